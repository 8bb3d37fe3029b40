"""The machine as kernels see it: SIMD tiers, how many threads, forks, scratch memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.errors import ConfigError

VARIABLES = ("ENTRENAR_ISA", "ENTRENAR_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
MISSING = [tier for tier in cpu.TIERS if tier not in cpu.supported_tiers()]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has imported cpu; only the given variables of ours are set."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", f"from entrenar._kernels import cpu\n{code}"],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(code: str, **environment: str) -> str:
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result
    return result.stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------- tiers
@pytest.mark.unit
@pytest.mark.skipif(cpu.effective_precision("high") != "high", reason="no 16-bit products on this machine")
def test_a_precision_that_the_tier_lacks_is_said_once() -> None:
    code = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name in ("highest", "high", "medium", "medium", "highest", "medium"):
        cpu.set_matmul_precision(name)
print(*[f"{w.category.__name__}: {w.message}" for w in said], sep="\\n")
"""
    expected = (
        "RuntimeWarning: The SIMD tier base has no instructions for the matmul precision 'medium'; computing 'high', "
        "which is finer."
    )
    assert printed(code, ENTRENAR_ISA="base") == expected


@pytest.mark.unit
def test_tiers_are_listed_slowest_first_and_base_always_runs() -> None:
    found = cpu.supported_tiers()
    assert found[0] == "base"
    assert found == list(cpu.TIERS[: len(found)])


@pytest.mark.unit
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel's list of CPU features is Linux's")
def test_tiers_are_those_of_the_features_that_the_kernel_lists() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())
    needs = {
        "v3": {"avx2", "fma", "bmi2"},
        "v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "v4i": {"avx512_vnni", "avx512vbmi"},
    }
    expected = ["base"]
    for tier, features in needs.items():
        if not features <= flags:
            break
        expected.append(tier)
    assert cpu.supported_tiers() == expected


@pytest.mark.unit
def test_the_fastest_tier_is_the_default() -> None:
    assert printed("print(cpu.tier())") == cpu.supported_tiers()[-1]
    assert printed("print(cpu.tier())", ENTRENAR_ISA="") == cpu.supported_tiers()[-1]


@pytest.mark.unit
@pytest.mark.parametrize("tier", cpu.supported_tiers())
def test_a_forced_tier_is_used_and_computes(tier: str) -> None:
    code = (
        "import numpy as np; from entrenar import autograd\n"
        "print(cpu.tier(), cpu.vector_floats(), autograd.matmul(np.full((9, 70), 2), np.ones((70, 5))).numpy().sum())"
    )
    name, width, total = printed(code, ENTRENAR_ISA=tier).split()
    assert name == tier
    assert int(width) == {"base": 4, "v3": 8, "v4": 16, "v4i": 16}[tier]
    assert float(total) == 9 * 5 * 140


@pytest.mark.unit
@pytest.mark.parametrize("name", ["avx2", "V3", "v5", "base,v3"])
def test_an_unknown_tier_is_refused_with_the_choices(name: str) -> None:
    message = last_line(run("", ENTRENAR_ISA=name))
    assert f"ConfigError: ENTRENAR_ISA='{name}' is no SIMD tier; choose one of base, v3, v4, v4i." in message
    with pytest.raises(ConfigError, match="is no SIMD tier"):
        cpu.set_tier(name)


@pytest.mark.unit
@pytest.mark.skipif(not MISSING, reason="this machine runs every tier")
def test_a_tier_that_the_machine_lacks_is_refused_with_what_it_runs() -> None:
    for tier in MISSING:
        runs = ", ".join(cpu.supported_tiers())
        message = last_line(run("", ENTRENAR_ISA=tier))
        assert (
            f"ConfigError: ENTRENAR_ISA={tier} needs instructions that this machine lacks; it runs {runs}." in message
        )
        before = cpu.tier()
        with pytest.raises(ConfigError, match="this machine lacks"):
            cpu.set_tier(tier)
        assert cpu.tier() == before


# ---------------------------------------------------------------- threads
@pytest.mark.unit
@pytest.mark.skipif(not cpu.has_openmp(), reason="built without OpenMP, so always one thread")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ENTRENAR_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # nested levels: the first is the outermost
        ({"ENTRENAR_NUM_THREADS": "", "OMP_NUM_THREADS": " 5 "}, 5),
        ({"ENTRENAR_NUM_THREADS": "  "}, cpu.default_num_threads()),
        ({}, cpu.default_num_threads()),
        ({"ENTRENAR_NUM_THREADS": "1024"}, 1024),
    ],
    ids=str,
)
def test_which_variable_decides_the_number_of_threads(environment: dict[str, str], expected: int) -> None:
    assert int(printed("print(cpu.get_num_threads())", **environment)) == expected


@pytest.mark.unit
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "99999999999999999999", "²"])
@pytest.mark.parametrize("variable", ["ENTRENAR_NUM_THREADS", "OMP_NUM_THREADS"])
def test_a_wrong_number_of_threads_in_the_environment_is_refused(variable: str, value: str) -> None:
    message = last_line(run("", PYTHONUTF8="1", **{variable: value}))
    assert message.endswith(f"ConfigError: {variable}='{value}' must be an integer from 1 to 1024.")


@pytest.mark.unit
@pytest.mark.parametrize("value", [0, -3, 1025, 2**40, 1.0, "2", None, True])
def test_a_wrong_number_of_threads_is_refused_and_changes_nothing(value: object, threads: None) -> None:
    before = cpu.get_num_threads()
    with pytest.raises(ConfigError, match="number of threads must be an integer from 1 to 1024, not"):
        cpu.set_num_threads(value)  # type: ignore[arg-type]
    assert cpu.get_num_threads() == before


@pytest.mark.unit
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity masks are Linux's")
def test_the_affinity_mask_bounds_the_default() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); print(cpu.default_num_threads())"
    assert printed(code) == "1"
    assert 1 <= cpu.default_num_threads() <= len(os.sched_getaffinity(0))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),  # one and a half CPUs
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),  # more than the mask has
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "what is this\n"}, 8),
        ({}, 8),
    ],
    ids=str,
)
def test_the_cgroup_quota_bounds_the_default(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cpu.default_num_threads() == expected


# ---------------------------------------------------------------- forks
FORK = """
import os
import signal
import numpy as np
from entrenar import autograd

def product():
    return autograd.matmul(np.ones((300, 300)), np.ones((300, 300))).numpy().sum()

def threads():
    return len(os.listdir("/proc/self/task"))

cpu.set_num_threads(2)
assert product() == 300**3  # the team exists now
before = threads()
pid = os.fork()
if pid == 0:
    signal.alarm(30)  # a child that hangs would keep this test's pipe open for ever
    code = 1
    try:
        assert threads() == 1, threads()
        assert cpu.get_num_threads() == 2, cpu.get_num_threads()
        assert product() == 300**3
        code = threads()
    finally:
        os._exit(code)
_, status = os.waitpid(pid, 0)
assert product() == 300**3
assert threads() == before
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.chaos
@pytest.mark.skipif(not cpu.has_openmp(), reason="built for one thread")
def test_a_forked_child_makes_threads_of_its_own() -> None:
    assert printed(FORK, OPENBLAS_NUM_THREADS="1") == "2"


# ---------------------------------------------------------------- waiting
@pytest.mark.unit
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "adaptive"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "passive"),
        ({"OMP_WAIT_POLICY": " active"}, "active"),
        ({"OMP_WAIT_POLICY": ""}, "adaptive"),
    ],
    ids=str,
)
def test_which_variable_decides_how_threads_wait(environment: dict[str, str], expected: str) -> None:
    assert printed("print(cpu.get_waiting())", **environment) == expected


@pytest.mark.unit
def test_a_wrong_way_to_wait_in_the_environment_is_refused() -> None:
    message = last_line(run("", OMP_WAIT_POLICY="sometimes"))
    assert "ConfigError: OMP_WAIT_POLICY='sometimes' is no way to wait" in message


@pytest.mark.unit
def test_no_result_depends_on_how_threads_wait(threads: None) -> None:
    before = cpu.get_waiting()
    a = np.random.default_rng(0).standard_normal((128, 300)).astype(np.float32)
    found = set()
    try:
        for name in cpu.WAITING:
            cpu.set_waiting(name)
            assert cpu.get_waiting() == name
            for count in (1, 2, 3):
                cpu.set_num_threads(count)
                found.add(autograd.matmul(a, a.T.copy()).numpy().tobytes())
        with pytest.raises(ConfigError, match="The waiting policy 'never' is unknown; choose one of adaptive, passive"):
            cpu.set_waiting("never")
        assert cpu.get_waiting() == name
    finally:
        cpu.set_waiting(before)
    assert len(found) == 1


@pytest.mark.memory
@pytest.mark.skipif(not cpu.has_openmp(), reason="built for one thread")
def test_a_python_thread_that_ends_takes_its_team_with_it(threads: None) -> None:
    cpu.set_num_threads(3)
    a = np.ones((300, 300), np.float32)

    def tasks() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    autograd.matmul(a, a)
    before, during = tasks(), []

    def work() -> None:
        autograd.matmul(a, a)
        during.append(tasks())

    for _ in range(5):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        deadline = time.monotonic() + 30  # Python calls a thread joined before the system has ended it
        while tasks() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tasks() == before
    assert during == [before + 3] * 5


# ---------------------------------------------------------------- scratch
@pytest.mark.memory
def test_scratch_is_kept_for_the_next_call_and_given_back() -> None:
    a = np.ones((200, 200), np.float32)
    cpu.release_scratch()
    assert cpu.scratch_bytes() == 0
    autograd.matmul(a, a)
    held = cpu.scratch_bytes()
    assert held > 200 * 200 * 4
    autograd.matmul(a, a)
    assert cpu.scratch_bytes() == held
    cpu.release_scratch()
    assert cpu.scratch_bytes() == 0
    assert autograd.matmul(a, a).numpy()[0, 0] == 200


@pytest.mark.memory
def test_each_python_thread_has_scratch_of_its_own() -> None:
    sizes, errors = [], []

    def work(n: int) -> None:
        rng = np.random.default_rng(n)
        for _ in range(20):
            a, b = rng.integers(-5, 6, (2, n, n)).astype(np.float32)
            if not np.array_equal(autograd.matmul(a, b).numpy(), a @ b):
                errors.append(n)
        sizes.append(cpu.scratch_bytes())

    cpu.release_scratch()
    workers = [threading.Thread(target=work, args=(n,)) for n in (97, 130, 201)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(sizes) == 3
    assert min(sizes) > 0
    assert cpu.scratch_bytes() == 0  # theirs, not ours

"""The machine: SIMD tier, the team of threads and how it waits, scratch memory.

The tier is chosen once, at import, from CPUID and what the operating system saves; ENTRENAR_ISA forces one. Threads:
ENTRENAR_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs of this process's affinity mask and cgroup quota. They wait
for each other as OMP_WAIT_POLICY says (passive, active), else by what the machine has for them (team.c).
"""
import math
import os
import warnings
from array import array
from pathlib import Path

from cpython.pycapsule cimport PyCapsule_New

from entrenar._kernels.simd.simd cimport simd_find, simd_supported
from entrenar.choices import PRECISIONS
from entrenar.errors import ConfigError

cdef extern from "scratch.h" nogil:
    void* scratch_get(int slot, size_t nbytes)
    size_t scratch_bytes_c "scratch_bytes"()
    void scratch_release_c "scratch_release"()

cdef extern from "team.h" nogil:
    ctypedef struct team_calls:
        pass
    const team_calls team
    const char* TEAM_CAPSULE
    enum:
        TEAM_ADAPTIVE
        TEAM_PASSIVE
        TEAM_ACTIVE
    void team_set_waiting(int policy)
    int team_waiting()
    int team_place(int threads, const int* cpus, int count, int each)

cdef extern from *:
    """
    #ifdef _OPENMP
    #define ENTRENAR_OPENMP 1
    #else
    #define ENTRENAR_OPENMP 0
    #endif
    """
    const int ENTRENAR_OPENMP

TIERS = ("base", "v3", "v4", "v4i")
MAX_THREADS = 1024  # beyond it a count is a mistake
cdef int n_threads = 1
cdef int matmul_format = 0
_fallbacks_said = set()  # (asked for, computed)


cdef void* scratch(int slot, size_t nbytes) noexcept nogil:
    """Scratch of the calling thread, uninitialised, 64-byte aligned, valid until the slot's next use; NULL if out."""
    return scratch_get(slot, nbytes)


def scratch_bytes():
    """Bytes of kernel scratch that the calling thread holds."""
    return scratch_bytes_c()


def release_scratch():
    """Free the calling thread's kernel scratch."""
    scratch_release_c()


def supported_tiers():
    """The SIMD tiers that this build has and this machine runs, slowest first."""
    return [tier for tier in TIERS if simd_supported(tier.encode())]


def tier():
    """The SIMD tier in use: base, v3 (AVX2 + FMA), v4 (AVX-512 F/BW/DQ/VL) or v4i (+ VNNI and VBMI)."""
    return simd.tier.decode()


def vector_floats():
    """Floats in one vector register of the tier in use."""
    return simd.vector_floats


def set_tier(name):
    """Use the SIMD tier `name` from now on (for tests and benchmarks); a ConfigError where it cannot run."""
    global simd
    if name not in TIERS:
        raise ConfigError(f"ENTRENAR_ISA={name!r} is no SIMD tier; choose one of {', '.join(TIERS)}.")
    if not simd_supported(name.encode()):
        raise ConfigError(
            f"ENTRENAR_ISA={name} needs instructions that this machine lacks; it runs {', '.join(supported_tiers())}.")
    simd = simd_find(name.encode())


def has_openmp():
    """Whether the compiler knew OpenMP's pragmas; without them every kernel runs on one thread."""
    return bool(ENTRENAR_OPENMP)


def get_matmul_precision():
    """The precision in force: "highest", "high" or "medium"."""
    return PRECISIONS[matmul_format]


def set_matmul_precision(name):
    """Set how matrices are multiplied from now on, in the whole process.

    "highest" is fp32. "high" multiplies block-scaled 16-bit integers (64 steps of the contraction share a scale, 32
    or 256 where x has few rows; relative error 1e-4 to 4e-4, closer than TF32). "medium" multiplies 8-bit ones
    where the weight has up to 8 bits itself and x has more than 48 rows (1e-2), and is "high" elsewhere. A tier
    without the instructions computes the next finer one, which a RuntimeWarning says once; `effective_precision`
    tells which. Raises ConfigError for another name.
    """
    global matmul_format
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ConfigError(f"The matmul precision {name!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    effective = effective_precision(name)
    if effective != name and (name, effective) not in _fallbacks_said:
        _fallbacks_said.add((name, effective))
        warnings.warn(f"The SIMD tier {tier()} has no instructions for the matmul precision {name!r}; computing "
                      f"{effective!r}, which is finer.", RuntimeWarning)
    matmul_format = PRECISIONS.index(name)  # a warning that is made an error changes nothing


def effective_precision(name):
    """What the tier in use computes where `name` is asked for."""
    cdef int format = PRECISIONS.index(name)
    while simd.gemm.format[format].mr == 0:
        format -= 1
    return PRECISIONS[format]


def cgroup_quota():
    """CPUs that the cgroup's quota allows (version 2, then 1), or infinity where none is set or readable."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        return quota / int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def default_num_threads():
    """Threads to use when nothing says otherwise: affinity mask, capped by the cgroup quota (rounded up)."""
    return _default_threads()[0]


def _default_threads():
    """(threads to use when nothing says otherwise, why so many)."""
    masked = hasattr(os, "sched_getaffinity")
    cpus, quota = len(os.sched_getaffinity(0)) if masked else os.cpu_count() or 1, cgroup_quota()
    allowed = max(1, math.ceil(min(quota, 1 << 16)))
    if allowed < cpus:
        return allowed, f"the cgroup's quota of {quota:g} CPUs, rounded up"
    return cpus, f"{cpus} CPUs of {'the affinity mask' if masked else 'the machine'}"


def threads_at_import():
    """(threads that this process began with, why so many); ConfigError where a variable is no count."""
    if not ENTRENAR_OPENMP:
        return 1, "compiled without threads"
    return _threads_from_environment()


def get_num_threads():
    """Threads that parallel kernels use at most."""
    return n_threads


def set_num_threads(count):
    """Set how many threads kernels use at most. The results of every kernel are the same bits for any count."""
    global n_threads
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_THREADS:
        raise ConfigError(f"The number of threads must be an integer from 1 to {MAX_THREADS}, not {count!r}.")
    n_threads = count if ENTRENAR_OPENMP else 1


def _threads_from_environment():
    """(threads, why so many), by the variables or the machine."""
    for variable in ("ENTRENAR_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").split(",")[0].strip()
        if not text:
            continue
        if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
            raise ConfigError(f"{variable}={text!r} must be an integer from 1 to {MAX_THREADS}.")
        return int(text), f"{variable}={text}"
    return _default_threads()


WAITING = {"adaptive": TEAM_ADAPTIVE, "passive": TEAM_PASSIVE, "active": TEAM_ACTIVE}


def get_waiting():
    """How threads wait for each other: "adaptive", "passive" or "active"."""
    return next(name for name, policy in WAITING.items() if policy == team_waiting())


def set_waiting(name):
    """Set how threads wait for each other; no result depends on it.

    "adaptive" spins while the threads get their CPUs, and sleeps at once while other programs take a share of them.
    "passive" always sleeps at once and "active" always spins, as OMP_WAIT_POLICY asks. ConfigError for another name.
    """
    if name not in WAITING:
        raise ConfigError(f"The waiting policy {name!r} is unknown; choose one of {', '.join(WAITING)}.")
    team_set_waiting(WAITING[name])


def place_threads(cpus, bint each):
    """Let the calling thread's team run on these CPUs: where `each`, thread i on cpus[i % len(cpus)] alone.

    Without `each` every thread that the team has may run on all of them, as before. OSError where the system refuses.
    """
    cdef bytes numbers = array("i", cpus).tobytes()
    cdef const int* first = <const int*> <const char*> numbers
    cdef int count = <int> len(cpus), failed
    if not count:
        raise ConfigError("place_threads: there is no CPU among those given.")
    with nogil:
        failed = team_place(n_threads if each else 0, first, count, each)
    if failed:
        raise OSError(failed, f"threads cannot be placed on the CPUs {list(cpus)}: {os.strerror(failed)}")


def _waiting_from_environment():
    text = os.environ.get("OMP_WAIT_POLICY", "")
    policy = text.strip().lower() or "adaptive"
    if policy not in WAITING:
        raise ConfigError(f"OMP_WAIT_POLICY={text!r} is no way to wait; choose one of {', '.join(WAITING)}.")
    return policy


_team = PyCapsule_New(<void*> &team, TEAM_CAPSULE, NULL)  # where the other extensions find it (team_calls.c)
set_waiting(_waiting_from_environment())
set_tier(os.environ.get("ENTRENAR_ISA") or supported_tiers()[-1])
set_num_threads(_threads_from_environment()[0])

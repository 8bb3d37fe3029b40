"""strace's and perf's output, recorded and live: what is read of it, and what it says of a run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entrenar.errors import FormatError
from entrenar.observe import syscalls
from entrenar.observe.syscalls import BETWEEN, Call, Faults, Timeline, bottlenecks, cause, parse, parse_faults, table

pytestmark = pytest.mark.unit
RECORDED = """\
10 100.000000 futex(0x55949b330e00, FUTEX_WAIT_PRIVATE, 67939, NULL <unfinished ...>
11 100.000100 clock_gettime(CLOCK_THREAD_CPUTIME_ID, {tv_sec=14, tv_nsec=213835086}) = 0 <0.000008>
11 100.000200 futex(0x55949b330e00, FUTEX_WAKE_PRIVATE, 2147483647) = 1 <0.000011>
10 100.000250 <... futex resumed>) = 0 <0.000250>
12 100.000300 futex(0x7f2f16be5ae0, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 0, NULL, FUTEX_BITSET_MATCH_ANY \
<unfinished ...>
10 100.100000 openat(AT_FDCWD</srv/a b>, "/out/checkpoint/.step-2.x/a.json", O_RDONLY|O_CLOEXEC) = \
3</out/checkpoint/.step-2.x/a.json> <0.000009>
10 100.100100 write(3</out/checkpoint/.step-2.x/a.json>, ""..., 38) = 38 <0.000029>
10 100.100200 fsync(3</out/checkpoint/.step-2.x/a.json>) = 0 <0.200000>
10 100.400000 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED} ---
10 100.400100 unlink("/out/nothing") = -1 ENOENT (No such file or directory) <0.000004>
10 100.400200 write(1<pipe:[123]>, ""..., 5) = 5 <0.000003>
10 100.400300 write(1</dev/pts/0<char 136:0>>, ""..., 5) = 5 <0.000003>
10 100.400400 mmap(NULL, 2101248, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f2ed8400000 <0.000010>
10 100.400500 pread64(4</models/a.gguf>, ""..., 4096, 0) = 4096 <0.000400>
10 100.400600 sendto(5<TCP:[127.0.0.1:1->127.0.0.1:2]>, ""..., 9, 0, NULL, 0) = 9 <0.000001>
10 100.400700 getpid() = 10 <0.000001>
10 100.400800 exit_group(0) = ?
11 100.500000 +++ exited with 0 +++
"""
PLACES = {"/out": "the run's records", "/out/checkpoint": "checkpoint"}


def recorded() -> list[Call]:
    return parse(RECORDED.splitlines())


def by_name(name: str) -> list[Call]:
    return [call for call in recorded() if call.name == name]


def test_a_call_that_was_interrupted_by_anothers_line_is_one_call() -> None:
    waited = by_name("futex")[0]
    assert (waited.thread, waited.time, waited.seconds) == (10, 100.0, 0.00025)
    assert waited.arguments == "0x55949b330e00, FUTEX_WAIT_PRIVATE, 67939, NULL"


def test_a_call_under_way_at_the_end_took_until_then() -> None:
    assert by_name("futex")[-1].seconds == pytest.approx(0.4997)


def test_errors_are_names_and_a_call_without_a_result_has_none() -> None:
    assert by_name("unlink")[0].error == "ENOENT"
    assert by_name("exit_group")[0].error is None
    assert len(recorded()) == 15


def test_each_call_has_its_cause() -> None:
    found = {(call.name, cause(call, PLACES)) for call in recorded()}
    assert found == {
        ("futex", syscalls.TEAM_WAIT),
        ("futex", syscalls.TEAM_WAKE),
        ("futex", syscalls.LOCK_WAIT),
        ("clock_gettime", syscalls.CLOCKS),
        ("openat", "checkpoint"),
        ("write", "checkpoint"),
        ("fsync", "checkpoint"),
        ("unlink", "the run's records"),
        ("write", syscalls.TERMINAL),
        ("mmap", syscalls.MEMORY),
        ("pread64", "files in /models"),
        ("sendto", syscalls.NETWORK),
        ("getpid", syscalls.INTERPRETER),
        ("exit_group", syscalls.INTERPRETER),
    }


def test_a_call_that_sleeps_and_a_relative_file_have_theirs() -> None:
    assert cause(Call(1, 0, "clock_nanosleep", "CLOCK_REALTIME, 0, {tv_sec=1}", 1.0), {}) == syscalls.SLEEP
    assert cause(Call(1, 0, "unlink", '"a.txt"', 1.0), {}) == "files"


@pytest.mark.parametrize("text", ["what is this", "10 100.0 what is this", "x 100.0 getpid() = 1 <0.1>"])
def test_what_is_no_line_of_strace_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="line 2 of strace's output"):
        parse(["10 100.0 getpid() = 10 <0.000001>", text])


def test_straces_own_remarks_and_empty_lines_are_left_out() -> None:
    assert parse(["strace: Process 12 attached", "", *RECORDED.splitlines()]) == recorded()


# ---------------------------------------------------------------------- phases
def trace(tmp_path: Path, end: str = "\n]\n") -> Path:
    events = [
        {"name": "entrenar.step", "ph": "X", "ts": 99e6, "dur": 2e6},
        {"name": "forward", "ph": "X", "ts": 99.5e6, "dur": 0.55e6},
        {"name": "checkpoint", "ph": "X", "ts": 100.09e6, "dur": 0.3e6},
    ]
    path = tmp_path / "trace.json"
    path.write_text("[\n" + ",\n".join(json.dumps(event) for event in events) + end)
    return path


@pytest.mark.parametrize("end", ["\n]\n", "", ",\n"])
def test_phases_are_those_of_the_trace_also_of_a_run_that_was_killed(end: str, tmp_path: Path) -> None:
    timeline = Timeline.read(trace(tmp_path, end))
    assert [timeline.at(time) for time in (99.0, 99.5, 100.0, 100.06, 100.1, 100.4)] == [
        *(BETWEEN, "forward", "forward", BETWEEN, "checkpoint", BETWEEN)
    ]
    assert Timeline().at(1.0) == BETWEEN


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "forward"}]', '{"name": 1}'])
def test_what_is_no_trace_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(FormatError, match="cannot be read as a Chrome trace"):
        Timeline.read(path)


def test_the_table_is_by_name_and_cause_the_longest_first(tmp_path: Path) -> None:
    lines = table(recorded(), PLACES, Timeline.read(trace(tmp_path)))
    assert [(line.name, line.cause, line.calls, line.phase) for line in lines[:2]] == [
        ("futex", syscalls.LOCK_WAIT, 1, "forward"),
        ("fsync", "checkpoint", 1, "checkpoint"),
    ]
    assert sum(line.calls for line in lines) == len(recorded())
    assert sum(line.errors for line in lines) == 1


# ---------------------------------------------------------------------- bottlenecks
FAULTS = Faults(1000, 0, 2e-6, {"memmove in heap": 3, "fill in anon": 1})


def sentences(tmp_path: Path, calls: list[Call], faults: Faults = FAULTS, window: float = 1.0) -> list[str]:
    return bottlenecks(calls, PLACES, Timeline.read(trace(tmp_path)), faults, 10, window)


def test_three_bottlenecks_are_named_by_how_long_the_run_was_held_up(tmp_path: Path) -> None:
    first, second, third = sentences(tmp_path, recorded())
    assert first.startswith("I/O holds the run up for 0.200 s (20.0 % of the window); most is fsync for checkpoint")
    assert "fewer checkpoints (checkpointing.every" in first
    assert second.startswith("Page faults: 1,000 minor and 0 major, 75 % of them by memmove in heap;")
    assert third.startswith("Futex waiting: the run's thread waits for 0.000 s")


def test_a_team_that_has_no_cores_is_named_first(tmp_path: Path) -> None:
    wait = Call(10, 100.0, "futex", "0x5, FUTEX_WAIT_PRIVATE, 1, NULL", 0.7)
    assert "fewer threads (training.threads)" in sentences(tmp_path, [*recorded(), wait])[0]


def test_a_lock_of_python_is_told_from_the_team(tmp_path: Path) -> None:
    wait = Call(10, 100.0, "futex", "0x5, FUTEX_WAIT_BITSET_PRIVATE, 1, NULL", 0.7)
    assert "observers of it are slow" in sentences(tmp_path, [*recorded(), wait])[0]


def test_pages_from_the_disk_are_told_from_fresh_memory(tmp_path: Path) -> None:
    assert "more memory than is free" in sentences(tmp_path, [], Faults(0, 1000, 1e-3))[0]
    assert "taken again" in sentences(tmp_path, [], Faults(10**6, 0, 1e-6))[0]
    assert "nothing to do" in sentences(tmp_path, [], Faults(1, 0, 1e-6))[0]


def test_a_slow_reader_of_the_output_is_named(tmp_path: Path) -> None:
    assert "send it to a file" in sentences(tmp_path, [Call(10, 1.0, "write", "1<pipe:[1]>, x", 0.9)])[0]
    assert "faster disk" in sentences(tmp_path, [Call(10, 1.0, "pread64", "1</models/a.gguf>, x", 0.9)])[0]


def test_a_window_without_calls_has_no_input_or_output(tmp_path: Path) -> None:
    assert "I/O: none in this window." in sentences(tmp_path, [])


def test_faults_of_perf_are_counted_by_function_and_memory() -> None:
    lines = [
        "18446744073709.551 ( 0.000 ms): python/1 minfault [micro_kernel16+0x6dc] => //anon@0x7f2ed8400000 (d.)",
        "18446744073709.551 ( 0.000 ms): python/1 minfault [micro_kernel16+0x6e0] => //anon@0x7f2ed8610000 (d.)",
        "     0.000 ( 0.000 ms): python/1 majfault [memcpy+0x1] => /models/a.gguf@0x10 (d.)",
        "     0.000 ( 0.000 ms): python/1 minfault [0x7f12] => [heap]@0x5559 (d.)",
        "     0.000 ( 0.012 ms): python/1 futex(uaddr: 0x5, op: WAIT) = 0",
    ]
    assert parse_faults(lines) == {
        "micro_kernel16 in anon": 2,
        "memcpy in /models/a.gguf": 1,
        "0x7f12 in [heap]": 1,
    }


# ---------------------------------------------------------------------- live
def test_a_live_process_is_read(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    target = tmp_path / "strace.txt"
    program = (
        "import os, sys, threading, time; print('on', flush=True); sys.stdin.readline()\n"
        f"path = {str(tmp_path / 'seen.txt')!r}\n"
        "worker = threading.Thread(target=time.sleep, args=(0.05,)); worker.start()\n"
        "for _ in range(5):\n"
        "    file = os.open(path, os.O_CREAT | os.O_WRONLY); os.write(file, b'x'); os.fsync(file); os.close(file)\n"
        "worker.join(); sys.stdin.readline()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdin is not None
    assert run.stdout is not None
    try:
        assert run.stdout.readline() == "on\n"
        command = ["strace", "-f", "-ttt", "-T", "-yy", "-s", "0", "-o", str(target), "-p", str(run.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "not permitted" in said:
            pytest.skip("ptrace is not permitted here")
        run.stdin.write("go\n")
        run.stdin.flush()
        deadline = time.monotonic() + 20
        while target.read_text().count("fsync(") < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)
    finally:
        run.communicate("end\n", timeout=20)
    calls = parse(target.read_text().splitlines())
    lines = {(line.name, line.cause): line for line in table(calls, {str(tmp_path): "the test"}, Timeline())}
    assert lines["fsync", "the test"].calls == 5
    assert lines["write", "the test"].calls == 5
    assert lines["openat", "the test"].errors == 0
    assert {call.thread for call in calls} > {run.pid}  # its thread too

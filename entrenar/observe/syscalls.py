"""System calls of a run, as strace and perf trace print them: what called, how long, in which phase, and why.

strace's lines are those of `strace -f -ttt -T -yy -s 0 -o FILE` (strace 6): thread, unix time, call, result, seconds.
Page faults are those of `perf trace -F all`. Phases are read from a Chrome trace of the same run.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from entrenar.errors import FormatError
from entrenar.observe.profile import PHASES

BETWEEN = "between phases"
MEMORY_CALLS = ("mmap", "munmap", "madvise", "mremap", "brk", "mprotect")
SLEEPING_CALLS = (
    "clock_nanosleep",
    "nanosleep",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "epoll_wait",
    "epoll_pwait",
    "wait4",
)
TEAM_WAIT, TEAM_WAKE = "the team's threads wait for work or for each other", "the team's threads are woken"
LOCK_WAIT, LOCK_WAKE = "Python's threads wait for a lock or for work", "Python's threads are woken"
MEMORY, SLEEP, CLOCKS = "memory from and to the system", "a thread sleeps", "the team sees whether it gets its CPUs"
INTERPRETER, TERMINAL, NETWORK = "the interpreter", "what is shown", "the network"

LINE = re.compile(r"^(\d+) +(\d+\.\d+) (.*)$")
WHOLE = re.compile(r"^(\w+)\((.*)\) += (.*?)(?: <(\d+\.\d+)>)?$")
BEGUN = re.compile(r"^(\w+)\((.*?) *<(?:unfinished|detached) \.\.\.>$")
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)\) += (.*?)(?: <(\d+\.\d+)>)?$")
ERROR = re.compile(r"^-1 (E[A-Z0-9]+)\b")
OPENED = re.compile(r"^\d+<(.*?)>(?=,|$| )")  # a descriptor that -yy names: a file, a pipe, a socket
QUOTED = re.compile(r'"(/[^"]*|[^"/][^"]*)"')
FAULT = re.compile(r"\b(maj|min)fault \[([^\]]*?)(?:\+0x[0-9a-f]+)?\] => (.*?)@?(?:\+?0x[0-9a-f]+)? \(")


@dataclass(frozen=True)
class Call:
    """A system call: seconds of unix time at its beginning, seconds that it took, its errno where it failed."""

    thread: int
    time: float
    name: str
    arguments: str
    seconds: float
    error: str | None = None


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls in strace's output, each where it began; one still under way at the end took until the last line.

    FormatError where a line is none of strace's.
    """
    calls: list[Call] = []
    open_: dict[int, tuple[float, str, str]] = {}
    last = 0.0
    for number, line in enumerate(lines, 1):
        found = LINE.match(line.rstrip("\n"))
        if found is None:
            if line.startswith("strace: ") or not line.strip():
                continue
            raise FormatError(
                f"line {number} of strace's output is {line.strip()[:80]!r}, expected a thread, a time and a call; "
                "run strace with -f -ttt -T -o."
            )
        thread, time, body = int(found[1]), float(found[2]), found[3]
        last = max(last, time)
        whole, begun, resumed = WHOLE.match(body), BEGUN.match(body), RESUMED.match(body)
        if resumed is not None:
            started, name, arguments = open_.pop(thread, (time, resumed[1], ""))
            calls.append(_call(thread, started, name, arguments + resumed[2], resumed[3], resumed[4]))
        elif begun is not None:
            open_[thread] = (time, begun[1], begun[2])
        elif whole is not None:
            calls.append(_call(thread, time, whole[1], whole[2], whole[3], whole[4]))
        elif not body.startswith(("--- ", "+++ ", "<... ", "????")):
            raise FormatError(
                f"line {number} of strace's output has {body[:80]!r}, expected a call, a signal or an exit."
            )
    for thread, (started, name, arguments) in open_.items():
        calls.append(Call(thread, started, name, arguments, max(0.0, last - started)))
    return sorted(calls, key=lambda call: call.time)


def _call(thread: int, time: float, name: str, arguments: str, result: str, seconds: str | None) -> Call:
    error = ERROR.match(result)
    return Call(thread, time, name, arguments, float(seconds or 0), error[1] if error else None)


# ---------------------------------------------------------------------- why
def path_of(call: Call) -> str | None:
    """The file, pipe or socket that a call is about; None where it is about none."""
    opened = OPENED.match(call.arguments)
    if opened is not None:
        return opened[1]
    quoted = QUOTED.search(call.arguments)
    return quoted[1] if quoted is not None else None


def cause(call: Call, places: Mapping[str, str]) -> str:
    """What in the run a call is made for; `places` say it for what stands below a path, the longest that fits."""
    if call.name.startswith("futex"):
        python = "BITSET" in call.arguments  # glibc's timed locks; the team's are plain (team.c)
        if "FUTEX_WAIT" in call.arguments:
            return LOCK_WAIT if python else TEAM_WAIT
        return LOCK_WAKE if python else TEAM_WAKE
    if call.name == "clock_gettime":
        return CLOCKS
    if call.name in SLEEPING_CALLS:
        return SLEEP
    path = path_of(call)
    if path is None:
        return MEMORY if call.name in MEMORY_CALLS else INTERPRETER
    if path.startswith(("pipe:", "/dev/pts", "/dev/tty", "/dev/null")):
        return TERMINAL
    if path.startswith(("TCP", "UDP", "UNIX", "socket:")):
        return NETWORK
    fitting = [prefix for prefix in places if path == prefix or path.startswith(prefix.rstrip("/") + "/")]
    if fitting:
        return places[max(fitting, key=len)]
    return f"files in {Path(path).parent}" if path.startswith("/") else "files"


# ---------------------------------------------------------------------- when
@dataclass(frozen=True)
class Timeline:
    """When a run was in which phase: begins in order of time, each with its end and name."""

    begins: Sequence[float] = ()
    phases: Sequence[tuple[float, str]] = ()

    @staticmethod
    def read(path: Path) -> Timeline:
        """From a Chrome trace, whose closing bracket may be missing; FormatError where it is none."""
        try:
            text = path.read_text(encoding="utf-8").rstrip().rstrip(",")
            events = json.loads(text if text.endswith("]") else text + "]")
            spans = sorted(
                (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6, event["name"])
                for event in events
                if event["name"] in PHASES
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path}: cannot be read as a Chrome trace ({error!r}); expected an array of events."
            ) from error
        return Timeline([begin for begin, _, _ in spans], [(end, name) for _, end, name in spans])

    def at(self, time: float) -> str:
        """The phase at a moment; phases do not overlap."""
        index = bisect_right(self.begins, time) - 1
        return self.phases[index][1] if index >= 0 and time <= self.phases[index][0] else BETWEEN


# ---------------------------------------------------------------------- the table
@dataclass(frozen=True)
class Line:
    """Calls of one name, made for one thing: how many, how many failed, seconds of all threads, and by phase."""

    name: str
    cause: str
    calls: int
    errors: int
    seconds: float
    phases: Mapping[str, float]

    @property
    def phase(self) -> str:
        """Where most of it was."""
        return max(self.phases, key=lambda name: self.phases[name])


def table(calls: Iterable[Call], places: Mapping[str, str], timeline: Timeline) -> list[Line]:
    """The lines, the longest first."""
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.name, cause(call, places)), []).append(call)
    lines = []
    for (name, why), group in groups.items():
        phases: dict[str, float] = {}
        for call in group:
            phase = timeline.at(call.time)
            phases[phase] = phases.get(phase, 0.0) + call.seconds + 1e-9  # calls of no time have a phase too
        errors = sum(call.error is not None for call in group)
        lines.append(Line(name, why, len(group), errors, sum(call.seconds for call in group), phases))
    return sorted(lines, key=lambda line: -line.seconds)


# ---------------------------------------------------------------------- page faults
@dataclass(frozen=True)
class Faults:
    """Page faults of the window: how many, seconds for one as measured, and by place where that is known."""

    minor: int
    major: int
    seconds_each: float
    places: Mapping[str, int] = field(default_factory=dict)


def parse_faults(lines: Iterable[str]) -> dict[str, int]:
    """How many faults `perf trace -F all` saw, by the function that touched the page and the memory that it is in."""
    found: dict[str, int] = {}
    for line in lines:
        fault = FAULT.search(line)
        if fault is not None:
            memory = fault[3].lstrip("/") if fault[3].startswith("//") else fault[3]
            name = f"{fault[2] or 'unknown code'} in {memory or 'unknown memory'}"
            found[name] = found.get(name, 0) + 1
    return found


# ---------------------------------------------------------------------- bottlenecks
def bottlenecks(
    calls: Sequence[Call], places: Mapping[str, str], timeline: Timeline, faults: Faults, main: int, window: float
) -> list[str]:
    """I/O, page faults and futex waiting, by how long the thread `main` of the run was held up, with what to do."""
    ours = [call for call in calls if call.thread == main]
    found = [
        _input_output(table(ours, places, timeline), window),
        _page_faults(table(ours, places, timeline), faults, window),
        _futex_waiting(calls, ours, window),
    ]
    return [sentence for _, sentence in sorted(found, key=lambda each: -each[0])]


def _input_output(lines: Sequence[Line], window: float) -> tuple[float, str]:
    kinds = (MEMORY, INTERPRETER, SLEEP, CLOCKS, TEAM_WAIT, TEAM_WAKE, LOCK_WAIT, LOCK_WAKE)
    files = [line for line in lines if line.cause not in kinds]
    seconds = sum(line.seconds for line in files)
    if not files:
        return 0.0, "I/O: none in this window."
    worst = files[0]
    if "checkpoint" in worst.cause:
        advice = "fewer checkpoints (checkpointing.every, checkpointing.minutes) or a faster disk"
    elif worst.cause == TERMINAL:
        advice = "whoever reads the output is slow: send it to a file"
    else:
        advice = "put it on a faster disk, or use it less often"
    return seconds, (
        f"I/O holds the run up for {_share(seconds, window)}; most is {worst.name} for {worst.cause} "
        f"({worst.seconds:.3f} s, {worst.calls} times, in {worst.phase}): {advice}."
    )


def _page_faults(lines: Sequence[Line], faults: Faults, window: float) -> tuple[float, str]:
    asked = sum(line.seconds for line in lines if line.cause == MEMORY)
    count = faults.minor + faults.major
    seconds = asked + count * faults.seconds_each
    if faults.major:
        advice = "pages come from the disk as they are used: the model and its data need more memory than is free"
    elif seconds < 0.01 * window:
        advice = "nothing to do"
    else:
        advice = "memory is given back and taken again: rows of equal length (data.packing) use the same blocks again"
    where = ""
    if faults.places:
        name = max(faults.places, key=lambda place: faults.places[place])
        share = 100 * faults.places[name] / sum(faults.places.values())
        where = f", {share:.0f} % of them by {name}"
    return seconds, (
        f"Page faults: {faults.minor:,} minor and {faults.major:,} major{where}; with the calls for memory they take "
        f"about {_share(seconds, window)}, {1e6 * faults.seconds_each:.1f} us each as measured: {advice}."
    )


def _futex_waiting(calls: Sequence[Call], ours: Sequence[Call], window: float) -> tuple[float, str]:
    team = sum(call.seconds for call in ours if cause(call, {}) == TEAM_WAIT)
    locks = sum(call.seconds for call in ours if cause(call, {}) == LOCK_WAIT)
    others = sum(call.seconds for call in calls if cause(call, {}) == TEAM_WAIT) - team
    seconds = team + locks
    if seconds < 0.01 * window:
        advice = "nothing to do"
    elif locks > team:
        advice = "another Python thread holds the lock that the run needs: observers of it are slow, ask for fewer"
    else:
        advice = (
            "other programs take the cores of its threads: stop them, or give the run fewer threads (training.threads)"
        )
    return seconds, (
        f"Futex waiting: the run's thread waits for {_share(seconds, window)}, {team:.3f} s for its team and "
        f"{locks:.3f} s for Python's locks; its team's threads wait {others:.3f} s for work: {advice}."
    )


def _share(seconds: float, window: float) -> str:
    return f"{seconds:.3f} s ({100 * seconds / window:.1f} % of the window)"

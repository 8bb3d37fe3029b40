"""Anomalies of the machine while a run goes on: rates a second and levels, scored against the last minute's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entrenar.observe.anomaly import AT_ONCE, Anomaly, Episode
from entrenar.observe.causes import MEGABYTE, SLOWER_CLOCK, Usual
from entrenar.observe.robust import Window, severity

WARM_UP = 5  # samples
FEW_BYTES = 1 << 30  # of free disk: a checkpoint or two
Delta = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """A figure of a sample that must not rise: `value` a second (or as a level), scored with at least `scatter`.

    `at_once` is the score of one sample that opens an episode: 3 for events that never happen by chance.
    """

    kind: str
    operation: str | None
    value: Callable[[Delta, Usual], float | None]
    scatter: float
    says: Callable[[float, Delta, Usual], str]
    at_once: float = AT_ONCE


def _rate(name: str) -> Callable[[Delta, Usual], float | None]:
    def value(delta: Delta, usual: Usual) -> float | None:
        return delta[name] / delta["time_seconds"] if name in delta else None

    return value


def _others(delta: Delta, usual: Usual) -> float | None:
    """CPUs that other processes used while this one waited for one."""
    if "cpu_busy_seconds" not in delta or "process_cpu_seconds" not in delta:
        return None
    seconds = delta["time_seconds"]
    waited = max(delta.get("run_delay_seconds", 0.0), delta.get("pressure_cpu_some_seconds", 0.0))
    others = (delta["cpu_busy_seconds"] - delta["process_cpu_seconds"]) / seconds
    return max(0.0, others) if waited > 0.1 * seconds else 0.0


def _slower_clock(delta: Delta, usual: Usual) -> float | None:
    """The share by which the CPU's frequency is lower than usual."""
    speed, before = delta.get("cpu_frequency_hertz"), usual.of("cpu_frequency_hertz")
    return None if not speed else max(0.0, 1 - speed / before) if before else 0.0


def _little_disk(delta: Delta, usual: Usual) -> float | None:
    free = delta.get("disk_free_bytes")
    return None if free is None else min(100.0, FEW_BYTES / max(free, 1.0)) if free < FEW_BYTES else 0.0


def _quota(delta: Delta, usual: Usual) -> str:
    limit, before = delta.get("cgroup_cpu_limit"), usual.of("cgroup_cpu_limit")
    if limit is None:
        return ""
    return f" (cpu.max {100 * limit:.0f} %" + (f", {100 * before:.0f} % before)" if before > limit else ")")


def _written(value: float, delta: Delta, usual: Usual) -> str:
    requests = max(delta.get("disk_requests", 0.0), 1.0)
    latency = 1000 * delta.get("disk_request_seconds", 0.0) / requests
    own = delta.get("process_written_bytes", 0.0) / delta["time_seconds"] / MEGABYTE
    mine = f", {own:,.0f} MB/s of it by this process" if own > 0.1 * value / MEGABYTE else ""
    return f"a burst of disk writes: {value / MEGABYTE:,.0f} MB/s{mine}, a request takes {latency:.1f} ms"


def _heat(value: float, delta: Delta, usual: Usual) -> str:
    temperature = delta.get("temperature_celsius")
    return f"the CPU is throttled for its heat ({value:.1f} times a second)" + (
        "" if temperature is None else f" at {temperature:.0f} degrees Celsius"
    )


def _clock(value: float, delta: Delta, usual: Usual) -> str:
    limit, before = delta.get("cpu_frequency_limit_hertz", 0.0), usual.of("cpu_frequency_limit_hertz")
    why = f"; its limit was set to {limit / 1e9:.2f} GHz" if limit < SLOWER_CLOCK * before else ""
    usual_speed = usual.of("cpu_frequency_hertz") / 1e9
    return f"the CPU runs at {delta['cpu_frequency_hertz'] / 1e9:.2f} GHz, {usual_speed:.2f} GHz before{why}"


RULES = (
    Rule(
        *("throttled", None, _rate("cgroup_throttled_seconds"), 0.05),
        lambda v, d, u: f"the cgroup is throttled for {v:.1f} s a second{_quota(d, u)}",
    ),
    Rule(
        *("steal", None, _rate("steal_seconds"), 0.1),
        lambda v, d, u: f"the hypervisor gives {v:.1f} CPUs to other machines (steal)",
    ),
    Rule(
        *("busy_neighbour", None, _others, 0.15),
        lambda v, d, u: f"a busy neighbour: other processes use {v:.1f} CPUs, for which this one waits",
    ),
    Rule(
        *("pressure", "memory", _rate("pressure_memory_some_seconds"), 0.03),
        lambda v, d, u: f"memory pressure: tasks wait {v:.2f} s a second for memory",
    ),
    Rule(
        *("pressure", "major faults", _rate("major_faults"), 50.0),
        lambda v, d, u: f"memory pressure: {v:,.0f} pages a second are read from disk (major faults)",
    ),
    Rule(
        *("pressure", "swap", _rate("swapped_in_pages"), 50.0),
        lambda v, d, u: f"memory pressure: {v:,.0f} pages a second are swapped in",
    ),
    Rule("disk", "write", _rate("disk_written_bytes"), 20 * MEGABYTE, _written),
    Rule(
        *("disk_space", None, _little_disk, 0.2),
        lambda v, d, u: (
            f"the disk of the run has {d['disk_free_bytes'] / MEGABYTE:,.0f} MB left; make room, or the "
            "next checkpoint cannot be written"
        ),
    ),
    Rule("thermal", None, _rate("thermal_throttles"), 0.15, _heat, at_once=3.0),
    Rule("frequency", None, _slower_clock, 0.05, _clock),
    Rule(
        *("edac", "corrected", _rate("edac_corrected"), 0.1),
        lambda v, d, u: f"the memory corrected {d['edac_corrected']:.0f} errors (EDAC); replace it before it fails",
        at_once=3.0,
    ),
    Rule(
        *("edac", "uncorrected", _rate("edac_uncorrected"), 0.01),
        lambda v, d, u: (
            f"the memory had {d['edac_uncorrected']:.0f} errors that it could not correct (EDAC): what was "
            "computed since may be wrong"
        ),
        at_once=3.0,
    ),
)


class Watch:
    """Scores the samples of the machine, given in order."""

    def __init__(self) -> None:
        self.usual = Usual()
        self._windows = [Window(size=60, warm_up=WARM_UP, absolute=rule.scatter) for rule in RULES]
        self._episodes = [Episode() for _ in RULES]

    def observe(self, delta: Delta, step: int, time: float) -> tuple[list[Anomaly], list[Anomaly]]:
        """The anomalies that begin with this sample (a `difference`), and those that are over; `step` is under way."""
        begun: list[Anomaly] = []
        ended: list[Anomaly] = []
        if delta.get("time_seconds", 0.0) <= 0:
            return begun, ended
        for rule, window, episode in zip(RULES, self._windows, self._episodes, strict=True):
            value = rule.value(delta, self.usual)
            score = None if value is None else window.score(value, episode.learns)
            if value is None or score is None:
                continue
            if episode.begins(score.z, True, True, rule.at_once):
                said = rule.says(value, delta, self.usual)
                level, sentence = severity(score.z) or "low", f"step {step}: {said}"
                fields = (step, time, rule.kind, level, score.z, value, score.expected, rule.operation)
                episode.anomaly = Anomaly(*fields, causes=[said], sentence=sentence)
                begun.append(episode.anomaly)
            elif episode.ends() and episode.anomaly is not None:
                episode.anomaly.ended = step
                ended.append(episode.anomaly)
                episode.anomaly = None
        self.usual.learn(delta)
        return begun, ended

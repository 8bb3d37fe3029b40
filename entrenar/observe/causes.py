"""Why something was slow: sentences from what the machine did meanwhile, each where it explains part of the excess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from entrenar.observe.robust import Window

# A cause explains at least this share of the lost seconds, and what is usual is no cause.
SHARE, TIMES_USUAL = 0.15, 2.0
MEGABYTE = 1e6
BURST, SLOW_REQUEST = 32 * MEGABYTE, 0.02  # bytes written, seconds a request
FAULTS, PAGES, SLOWER_CLOCK = 100, 256, 0.85
UNKNOWN = "unknown cause: nothing that was sampled explains it"
UNSAMPLED = "unknown cause: what the machine did was not sampled; run with --monitor to have it"


@dataclass
class Usual:
    """What is usual of each resource, by name: the median of the last samples' rates a second, or levels."""

    windows: dict[str, Window] = field(default_factory=dict)

    def learn(self, delta: Mapping[str, float]) -> None:
        """Take a sample in, after it was judged."""
        seconds = delta.get("time_seconds", 0.0)
        if seconds <= 0:
            return
        for name, value in delta.items():
            window = self.windows.setdefault(name, Window(size=32, warm_up=1))
            window.score(value if name in LEVELS else value / seconds)

    def of(self, name: str) -> float:
        """The usual rate a second, or level; 0 where nothing is known."""
        window = self.windows.get(name)
        return (window.median if window else None) or 0.0


LEVELS = {
    *("resident_bytes", "available_bytes", "disk_free_bytes", "cgroup_cpu_limit", "cpu_frequency_hertz"),
    *("cpu_frequency_limit_hertz", "temperature_celsius"),
}


@dataclass(frozen=True)
class Moment:
    """What happened in some seconds, of which `lost` are more than usual."""

    delta: Mapping[str, float]
    usual: Usual
    lost: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.delta.get("time_seconds", 0.0)

    def get(self, name: str) -> float:
        """What was counted; 0 where the source is missing."""
        return self.delta.get(name, 0.0)

    def excess(self, name: str) -> float:
        """What was counted beyond what is usual in as many seconds."""
        return max(0.0, self.get(name) - self.usual.of(name) * self.seconds)

    def waited(self, name: str) -> float:
        """Seconds of this process's own waiting, beyond those that are usual in a usual step."""
        return self.get(name) - self.usual.of(name) * max(self.seconds - self.lost, 0.0)

    def explains(self, name: str) -> bool:
        """Whether the excess seconds of `name` are a good part of the lost ones, and not what is usual."""
        value, usual = self.get(name), self.usual.of(name) * self.seconds
        return self.excess(name) >= SHARE * self.lost and value >= TIMES_USUAL * usual and value > 0


def causes(delta: Mapping[str, float], usual: Usual, lost: float) -> list[str]:
    """What explains `lost` seconds (> 0), the most specific first; a sentence that says so where nothing does."""
    if "time_seconds" not in delta:
        return [UNSAMPLED]
    moment = Moment(delta, usual, lost)
    found = [said for rule in (_throttled, _stolen, _heat, _memory, _disk, _neighbour) if (said := rule(moment))]
    return found or [_unexplained(moment)]


def _throttled(moment: Moment) -> str | None:
    if not moment.explains("cgroup_throttled_seconds"):
        return None
    limit, before = moment.delta.get("cgroup_cpu_limit"), moment.usual.of("cgroup_cpu_limit")
    quota = "" if limit is None else f" (cpu.max {100 * limit:.0f} %"
    if limit is not None:
        quota += f", {100 * before:.0f} % before)" if before and abs(before - limit) > 0.005 else ")"
    return f"the cgroup was throttled for {moment.get('cgroup_throttled_seconds'):.1f} s{quota}"


def _stolen(moment: Moment) -> str | None:
    if not moment.explains("steal_seconds"):
        return None
    return f"the hypervisor gave {moment.get('steal_seconds'):.1f} s of CPU time to other machines (steal)"


def _heat(moment: Moment) -> str | None:
    temperature = moment.delta.get("temperature_celsius")
    degrees = "" if temperature is None else f" at {temperature:.0f} degrees Celsius"
    if moment.excess("thermal_throttles") > 0:
        return f"the CPU was throttled {moment.get('thermal_throttles'):.0f} times for its heat{degrees}"
    speed, before = moment.get("cpu_frequency_hertz"), moment.usual.of("cpu_frequency_hertz")
    if speed and speed < SLOWER_CLOCK * before:
        limit, limit_before = moment.get("cpu_frequency_limit_hertz"), moment.usual.of("cpu_frequency_limit_hertz")
        why = f"; its limit was set to {limit / 1e9:.2f} GHz" if limit < SLOWER_CLOCK * limit_before else degrees
        return f"the CPU ran at {speed / 1e9:.2f} GHz, {before / 1e9:.2f} GHz before{why}"
    return None


def _memory(moment: Moment) -> str | None:
    parts = []
    if moment.explains("pressure_memory_some_seconds"):
        parts.append(f"tasks waited {moment.get('pressure_memory_some_seconds'):.1f} s for memory (pressure)")
    if moment.excess("major_faults") >= FAULTS:
        parts.append(f"{moment.get('major_faults'):,.0f} pages were read from disk (major faults)")
    swapped = moment.excess("swapped_in_pages") + moment.excess("swapped_out_pages")
    if swapped >= PAGES:
        parts.append(f"{swapped:,.0f} pages were swapped")
    if parts and moment.excess("cgroup_memory_limit_hits") > 0:
        parts.append("the cgroup reached its memory limit")
    return "memory pressure: " + ", ".join(parts) if parts else None


def _disk(moment: Moment) -> str | None:
    written, requests = moment.get("disk_written_bytes"), moment.get("disk_requests")
    latency = moment.get("disk_request_seconds") / requests if requests else 0.0
    usual = moment.usual.of("disk_request_seconds") / max(moment.usual.of("disk_requests"), 1e-9)
    burst = moment.excess("disk_written_bytes") >= BURST and written >= TIMES_USUAL * (
        written - moment.excess("disk_written_bytes")
    )
    waited = moment.explains("pressure_io_some_seconds")
    slow = latency > max(SLOW_REQUEST, 4 * usual) and requests >= 4
    if not burst and not (waited and slow):
        return None
    own = min(moment.get("process_written_bytes"), written)
    share = f", {own / MEGABYTE:,.0f} MB of it by this process" if own > 0.1 * written else ""
    stalled = f"; tasks waited {moment.get('pressure_io_some_seconds'):.1f} s for it" if waited else ""
    return (
        f"a burst of disk writes: {written / MEGABYTE:,.0f} MB{share}, a request took {1000 * latency:.1f} ms{stalled}"
    )


def _neighbour(moment: Moment) -> str | None:
    """Others kept the CPUs busy, and this process waited for them."""
    others = moment.get("cpu_busy_seconds") - moment.get("process_cpu_seconds")
    usual = moment.usual.of("cpu_busy_seconds") - moment.usual.of("process_cpu_seconds")
    if not moment.seconds or others < SHARE * moment.lost:
        return None
    queued = moment.waited("run_delay_seconds") >= 0.5 * moment.lost and not moment.explains("cgroup_throttled_seconds")
    if not queued and others / moment.seconds < usual + 0.2:  # CPUs that were as busy before
        return None
    waited = moment.explains("run_delay_seconds") or moment.explains("pressure_cpu_some_seconds")
    pushed = moment.get("involuntary_switches") / moment.seconds > 3 * moment.usual.of("involuntary_switches") + 20
    if not (queued or waited or pushed):
        return None
    return (
        f"a busy neighbour: other processes used {others / moment.seconds:.1f} CPUs ({max(usual, 0):.1f} before); "
        f"threads of this one waited {moment.get('run_delay_seconds'):.1f} s for a CPU and were preempted "
        f"{moment.get('involuntary_switches'):,.0f} times"
    )


def _unexplained(moment: Moment) -> str:
    """What is known where no cause is: whether the process computed in the lost seconds, or waited."""
    if "process_cpu_seconds" not in moment.delta or not moment.usual.of("process_cpu_seconds"):
        return UNKNOWN
    used = moment.get("process_cpu_seconds")
    usual = moment.usual.of("process_cpu_seconds") * max(moment.seconds - moment.lost, 0.0)
    if used - usual >= 0.5 * moment.lost:
        return f"{UNKNOWN}; the process computed meanwhile ({used:.1f} s of CPU time)"
    return f"{UNKNOWN}; the process waited meanwhile ({used:.1f} s of CPU time in {moment.seconds:.1f} s)"

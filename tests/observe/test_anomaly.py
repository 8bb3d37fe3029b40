"""Anomalies of steps on series with planted faults (step, severity and cause), and on clean ones (silence)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from entrenar.observe.anomaly import Anomaly, Step, StepDetector
from entrenar.observe.robust import Window, severity

STEPS = 80
USUAL = {  # what a second of a healthy run has
    "process_cpu_seconds": 1.9,
    "cpu_busy_seconds": 2.0,
    "major_faults": 0.0,
    "involuntary_switches": 5.0,
    "run_delay_seconds": 0.01,
    "pressure_cpu_some_seconds": 0.02,
    "pressure_memory_some_seconds": 0.0,
    "pressure_io_some_seconds": 0.0,
    "disk_written_bytes": 1e5,
    "disk_requests": 5.0,
    "disk_request_seconds": 0.005,
    "cgroup_throttled_seconds": 0.0,
    "steal_seconds": 0.0,
    "swapped_in_pages": 0.0,
    "thermal_throttles": 0.0,
}
LEVELS = {"resident_bytes": 5e8, "cgroup_cpu_limit": 2.0, "cpu_frequency_hertz": 3e9, "temperature_celsius": 60.0}


def series(
    seed: int = 0,
    steps: int = STEPS,
    planted: Callable[[int], dict[str, float]] = lambda step: {},
    sampled: bool = True,
) -> list[Anomaly]:
    """The anomalies of a noisy series; `planted` changes fields of a step, or rates and levels of its resources."""
    rng, detector, found = np.random.default_rng(seed), StepDetector(), list[Anomaly]()
    for number in range(1, steps + 1):
        change = planted(number)
        seconds = (1 + 0.03 * abs(rng.standard_t(4))) * change.get("slower", 1)
        loss = 4 * number**-0.3 * np.exp(0.1 * rng.standard_t(6)) * change.get("loss", 1)
        norm = (0.5 + number**-0.3) * np.exp(0.15 * rng.standard_t(6)) * change.get("norm", 1)
        rates = {name: value * seconds * rng.gamma(4, 0.25) for name, value in USUAL.items()}
        levels = {name: value * (1 + 0.001 * rng.standard_normal()) for name, value in LEVELS.items()}
        levels["cgroup_cpu_limit"] = 2.0
        if rng.random() < 0.05:
            levels["resident_bytes"] += rng.exponential(2e6)
        resources = {**rates, **levels, **{name: v for name, v in change.items() if name in USUAL or name in LEVELS}}
        resources["time_seconds"] = seconds
        phases = {"forward": 0.3 * seconds, "backward": 0.7 * seconds}
        step = Step(number, 0.0, seconds, loss, norm, 512, phases, resources if sampled else {})
        found += detector.observe(step)[0]
    return found


def at(step: int, **changes: float) -> Callable[[int], dict[str, float]]:
    return lambda number: changes if number == step else {}


# ---------------------------------------------------------------------- scores
@pytest.mark.unit
@pytest.mark.parametrize(("score", "name"), [(2.99, None), (3, "low"), (4, "medium"), (4.99, "medium"), (5, "high")])
def test_severities_begin_at_three_four_and_five(score: float, name: str | None) -> None:
    assert severity(score) == name


@pytest.mark.unit
def test_a_value_is_scored_before_it_enters_its_window() -> None:
    window = Window(size=32, warm_up=16, relative=0, absolute=1)
    assert [window.score(float(10 + number % 2)) for number in range(16)] == [None] * 16
    found = window.score(1010.5)
    assert found is not None and found.expected == 10.5 and found.z == pytest.approx(1000)
    assert len(window.values) == 17


@pytest.mark.unit
def test_the_first_value_after_warm_up_can_be_high() -> None:
    """Against a window that holds the value itself, n values cannot score above (n - 1) / sqrt(n)."""
    (found,) = series(planted=at(17, slower=3))
    assert (found.step, found.severity) == (17, "high")


@pytest.mark.unit
@pytest.mark.parametrize("values", [[0.25] * 200, [0.25, 0.26] * 100, [0.0] * 200, [1e-9, 0.0] * 100], ids=str)
def test_constant_and_quantised_series_raise_nothing(values: list[float]) -> None:
    detector = StepDetector()
    for number, value in enumerate(values, 1):
        step = Step(number, 0.0, value, 1.0, 1.0, 512, {"forward": value}, {"time_seconds": value})
        assert detector.observe(step) == ([], [])


@pytest.mark.unit
def test_shapes_have_windows_of_their_own() -> None:
    detector = StepDetector()
    for number in range(1, 101):
        long = number % 2
        step = Step(number, 0.0, 4.0 if long else 1.0, 1.0, 1.0, 2048 if long else 512)
        assert detector.observe(step) == ([], [])
    (found,), _ = detector.observe(Step(101, 0.0, 4.0, 1.0, 1.0, 512))
    assert found.kind == "slow_step" and found.expected == 1.0


# ---------------------------------------------------------------------- causes
CAUSES = {
    "throttled": (
        {"cgroup_throttled_seconds": 1.8, "cgroup_cpu_limit": 1.5},
        "the cgroup was throttled for 1.8 s (cpu.max 150 %, 200 % before)",
    ),
    "throttled without a new quota": (
        {"cgroup_throttled_seconds": 1.8},
        "the cgroup was throttled for 1.8 s (cpu.max 200 %)",
    ),
    "steal": ({"steal_seconds": 1.5}, "the hypervisor gave 1.5 s of CPU time to other machines (steal)"),
    "neighbour": (
        {"cpu_busy_seconds": 6.0, "process_cpu_seconds": 2.0, "run_delay_seconds": 1.7, "involuntary_switches": 400},
        "a busy neighbour: other processes used 1.",
    ),
    "disk": (
        {"disk_written_bytes": 2e9, "disk_requests": 400, "disk_request_seconds": 16, "pressure_io_some_seconds": 1.4},
        "a burst of disk writes: 2,000 MB, a request took 40.0 ms; tasks waited 1.4 s for it",
    ),
    "memory": (
        {"pressure_memory_some_seconds": 1.2, "major_faults": 4321},
        "memory pressure: tasks waited 1.2 s for memory (pressure), 4,321 pages were read from disk (major faults)",
    ),
    "swap": ({"swapped_in_pages": 9000}, "memory pressure: 9,000 pages were swapped"),
    "heat": (
        {"thermal_throttles": 7, "temperature_celsius": 98},
        "the CPU was throttled 7 times for its heat at 98 degrees Celsius",
    ),
    "clock": (
        {"cpu_frequency_hertz": 1.2e9},
        "the CPU ran at 1.20 GHz, 3.00 GHz before at 60 degrees Celsius",
    ),
    "sleep": (
        {"process_cpu_seconds": 1.9},
        "unknown cause: nothing that was sampled explains it; the process waited meanwhile (1.9 s of CPU time in 3.",
    ),
    "computing": (
        {"process_cpu_seconds": 5.8, "cpu_busy_seconds": 6.0},
        "unknown cause: nothing that was sampled explains it; the process computed meanwhile (5.8 s of CPU time)",
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", CAUSES)
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_step_is_found_with_its_cause(name: str, seed: int) -> None:
    resources, sentence = CAUSES[name]
    (found,) = series(seed, planted=at(60, slower=3, **resources))
    assert (found.step, found.kind, found.severity, found.operation) == (60, "slow_step", "high", "backward")
    (cause,) = found.causes
    assert cause.startswith(sentence), cause
    assert found.sentence.startswith("step 60: ") and f"x slower, most of it in backward; {cause}" in found.sentence


@pytest.mark.unit
def test_without_samples_the_cause_is_said_to_be_unknown() -> None:
    (found,) = series(planted=at(60, slower=3), sampled=False)
    assert found.causes == ["unknown cause: what the machine did was not sampled; run with --monitor to have it"]


@pytest.mark.unit
def test_what_is_usual_is_no_cause() -> None:
    """A run that is always throttled: a slow step has another cause."""
    (found,) = series(planted=lambda number: {"cgroup_throttled_seconds": 0.5, **at(60, slower=3)(number)})
    assert found.causes[0].startswith("unknown cause")


@pytest.mark.unit
def test_waiting_is_measured_against_a_usual_step_not_against_the_slow_one() -> None:
    """Where others use the cores all the time, a step that waits longer for one is slow for that."""

    def shared(number: int) -> dict[str, float]:
        seconds = 3.0 if number == 60 else 1.0
        return {"cpu_busy_seconds": 2 * seconds, "process_cpu_seconds": 0.5, "run_delay_seconds": seconds - 0.5}

    (found,) = series(planted=lambda number: {**shared(number), **at(60, slower=3)(number)})
    assert found.causes[0].startswith("a busy neighbour: other processes used "), found.causes


@pytest.mark.unit
def test_an_episode_is_one_anomaly_with_its_end() -> None:
    detector, begun, ended = StepDetector(), [], []
    for number in range(1, 101):
        slow = 1.3 if 50 <= number < 60 else 1.0
        new, over = detector.observe(Step(number, 0.0, slow + 0.01 * (number % 3), 1.0, 1.0, 512))
        begun, ended = begun + new, ended + over
    (found,) = begun
    assert ended == [found]
    assert (found.step, found.ended, found.kind) == (51, 62, "slow_step")  # 1.3x: when it lasts, not at once


# ---------------------------------------------------------------------- health
@pytest.mark.unit
@pytest.mark.parametrize(("change", "kind"), [({"loss": 4.0}, "loss_spike"), ({"norm": 20.0}, "grad_norm_spike")])
@pytest.mark.parametrize("seed", range(3))
def test_spikes_are_found_at_their_step(change: dict[str, float], kind: str, seed: int) -> None:
    (found,) = series(seed, planted=at(70, **change))
    assert (found.step, found.kind, found.severity) == (70, kind, "high")
    assert "as usual" in found.causes[0]


@pytest.mark.unit
@pytest.mark.parametrize("start", [1, 40])
def test_a_leak_of_five_megabytes_a_step_is_found_with_its_beginning(start: int) -> None:
    rng = np.random.default_rng(start)

    def planted(number: int) -> dict[str, float]:
        return {"resident_bytes": 5e8 + 5e6 * max(0, number - start) + 4e5 * rng.standard_normal()}

    (found,) = series(planted=planted)
    assert (found.kind, found.severity) == ("memory_leak", "high")
    said, since = found.sentence.split(";")[0].rsplit(" ", 1)
    assert said in [f"step {found.step}: RSS grows by {size} MB a step since step" for size in ("4.9", "5.0", "5.1")]
    assert abs(int(since) - start) <= 4
    assert found.step <= start + 34


@pytest.mark.unit
@pytest.mark.parametrize("jumps", [(30,), (20, 45, 70)])
def test_memory_that_grows_in_jumps_is_no_leak(jumps: tuple[int, ...]) -> None:
    grown = lambda number: {"resident_bytes": 5e8 + 2e8 * sum(number >= jump for jump in jumps)}  # noqa: E731
    assert series(planted=grown) == []


@pytest.mark.unit
def test_a_loss_that_falls_no_more_is_a_plateau_once() -> None:
    rng, detector, found = np.random.default_rng(3), StepDetector(), list[Anomaly]()
    for number in range(1, 1001):
        loss = max(1.0, 3 - number / 100) * (1 + 0.05 * rng.standard_normal())
        found += detector.observe(Step(number, 0.0, 1.0, loss, 1.0, 512))[0]
    (flat,) = found
    assert (flat.kind, flat.severity) == ("plateau", "low") and 450 <= flat.step <= 800


# ---------------------------------------------------------------------- false alarms
@pytest.mark.unit
def test_clean_runs_raise_at_most_one_anomaly_in_a_thousand_steps() -> None:
    found = [anomaly for seed in range(10) for anomaly in series(seed, steps=500)]
    assert len(found) <= 5, [anomaly.sentence for anomaly in found]


@pytest.mark.slow
@pytest.mark.unit
def test_long_clean_runs_raise_at_most_one_anomaly_in_a_thousand_steps() -> None:
    found = [anomaly for seed in range(10, 20) for anomaly in series(seed, steps=3000)]
    assert len(found) <= 30, [anomaly.sentence for anomaly in found]

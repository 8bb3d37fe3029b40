"""The monitor in real runs: planted faults with step, severity and cause, and what --on-spike does."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from entrenar.errors import ConfigError, NumericsError
from entrenar.lora import LoRAConfig
from entrenar.observe.events import Event, Metric, Subscriber, subscribe, unsubscribe
from entrenar.observe.resources import Resources
from entrenar.train.callbacks import Callback
from entrenar.train.config import Observe
from entrenar.train.observe_monitor import Monitor
from entrenar.train.trainer import Trainer
from tests.observe.test_resources import sampler
from tests.train.builders import losses, run_config, trainer_of, weights_hash

ADAPTER = LoRAConfig(rank=4, target_modules=["all-linear"])
WHEN = 45  # the step of a fault
LONG = 2.0  # seconds: far more than other programs take of a step on a machine that is full


class Fault(Callback):
    """Calls a function in the forward of step WHEN (or of every step from it on)."""

    def __init__(self, function: Any, always: bool = False) -> None:
        self.function, self.always = function, always

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        step = trainer.step + 1
        if phase == "forward" and (step == WHEN or (self.always and step > WHEN)):
            self.function()


class Paced(Callback):
    """Steps of some milliseconds of computing: a model of the tests has too short ones for a machine's clocks."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        if phase == "forward":
            until = time.thread_time() + self.seconds
            while time.thread_time() < until:
                sum(range(200))


def watched(
    directory: Path,
    *faults: Callback,
    steps: int = 50,
    on_spike: str = "warn",
    resources: Resources | None = None,
    interval: float = 0.05,
    console: Console | None = None,
    **options: Any,
) -> tuple[Trainer, io.StringIO]:
    """A trainer with a monitor, and what the monitor shows."""
    directory.mkdir(exist_ok=True)
    shown = io.StringIO()
    config = run_config(directory, steps=steps, adapter=ADAPTER, **options)
    monitor = Monitor(
        directory, console or Console(file=shown, width=300), on_spike, resources=resources, interval=interval
    )
    return trainer_of(config, callbacks=[*faults, monitor]), shown


def recorded(directory: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of anomalies.jsonl, those of one kind."""
    lines = [json.loads(line) for line in (directory / "anomalies.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def slow_step(directory: Path) -> dict[str, Any]:
    (found,) = [line for line in recorded(directory, "slow_step") if line["step"] == WHEN]
    assert found["severity"] == "high"
    return found


# ---------------------------------------------------------------------- planted faults of the machine
@pytest.mark.unit
def test_a_step_that_sleeps_is_found_and_its_cause_is_said_to_be_unknown(tmp_path: Path) -> None:
    sampler(tmp_path / "machine")  # what other programs do meanwhile would be a cause
    machine = Resources(tmp_path, proc=tmp_path / "machine" / "proc", sys=tmp_path / "machine" / "sys")
    sleep = Fault(lambda: time.sleep(LONG))
    trainer, shown = watched(tmp_path, Paced(0.01), sleep, steps=WHEN + 40, resources=machine)
    trainer.run()
    found = slow_step(tmp_path)
    assert found["causes"][0].startswith("unknown cause: ") and "the process waited meanwhile" in found["causes"][0]
    assert f"[high] {found['sentence']}" in shown.getvalue()
    assert f"step {found['ended']}: over: slow step since step {WHEN}" in shown.getvalue(), shown.getvalue()
    assert trainer.reports[-1].resources["process_cpu_seconds"] > 0


@pytest.mark.unit
def test_a_burst_of_disk_writes_is_the_cause(tmp_path: Path) -> None:
    def burst() -> None:
        with (tmp_path / "burst").open("wb") as file:
            for _ in range(24):
                file.write(os.urandom(1 << 23))
            os.fsync(file.fileno())

    trainer, _ = watched(tmp_path, Paced(), Fault(burst))
    if "disk_written_bytes_total" not in Resources(tmp_path).sample():
        pytest.skip("this machine does not count what is written to its disks")
    trainer.run()
    (cause,) = [said for said in slow_step(tmp_path)["causes"] if "disk" in said and "major" not in said]
    assert cause.startswith("a burst of disk writes: ") and "of it by this process" in cause


@pytest.mark.unit
def test_a_busy_neighbour_is_the_cause(tmp_path: Path) -> None:
    """Twelve processes that spin on the CPU of this one."""
    spinning: list[subprocess.Popen[bytes]] = []
    allowed = os.sched_getaffinity(0)

    def spin() -> None:
        spinning.extend(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(12))

    trainer, shown = watched(tmp_path, Fault(spin), Paced(0.05), steps=47, interval=0.2)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        trainer.run()
    finally:
        os.sched_setaffinity(0, allowed)
        for process in spinning:
            process.kill()
            process.wait()
    found = [line for line in recorded(tmp_path) if WHEN <= line["step"] <= WHEN + 3]
    causes = [cause for line in found if line["kind"] == "slow_step" for cause in line["causes"]]
    assert [cause for cause in causes if cause.startswith("a busy neighbour: other processes used ")], shown.getvalue()
    assert "high" in {line["severity"] for line in found}


@contextmanager
def cgroup(quota: int) -> Iterator[Path]:
    """A cgroup with a quota in microseconds of 100,000, in which this process is; skips where none can be made."""
    for root, name in ((Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us"), (Path("/sys/fs/cgroup"), "cpu.max")):
        folder = root / f"entrenar-test-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                (folder / name).write_text(f"{quota}\n" if name != "cpu.max" else f"{quota} 100000\n")
                (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
                yield folder / name
                return
            finally:
                with suppress(OSError):
                    (root / "cgroup.procs").write_text(f"{os.getpid()}\n")
                folder.rmdir()
    pytest.skip("no cgroup can be made here")


@pytest.mark.unit
def test_a_quota_that_is_cut_is_the_cause(tmp_path: Path) -> None:
    with cgroup(200_000) as quota:
        cut = Fault(lambda: quota.write_text("5000\n" if "cfs" in quota.name else "5000 100000\n"))
        trainer, shown = watched(tmp_path, cut, Paced(0.05), steps=47, interval=0.2)
        trainer.run()
    found = [line for line in recorded(tmp_path) if WHEN <= line["step"] <= WHEN + 3]
    causes = [cause for line in found if line["kind"] == "slow_step" for cause in line["causes"]]
    assert [cause for cause in causes if "throttled" in cause and "(cpu.max 5 %, 200 % before)" in cause], (
        shown.getvalue()
    )
    assert {"high"} <= {line["severity"] for line in found}
    assert [line for line in found if line["kind"] == "throttled"], shown.getvalue()


@pytest.mark.unit
def test_memory_pressure_is_the_cause(tmp_path: Path) -> None:
    """On files as the kernel writes them: no test may put this machine under pressure."""
    resources = sampler(tmp_path / "machine", folder=tmp_path)
    pressure = tmp_path / "machine" / "proc" / "pressure" / "memory"

    def stall() -> None:
        fresh = pressure.with_suffix(".new")
        fresh.write_text(pressure.read_text().replace("total=2000000", "total=3900000"))
        fresh.replace(pressure)
        time.sleep(LONG)

    trainer, _ = watched(tmp_path / "run", Paced(0.01), Fault(stall), resources=resources)
    trainer.run()
    assert slow_step(tmp_path / "run")["causes"] == ["memory pressure: tasks waited 1.9 s for memory (pressure)"]


@pytest.mark.unit
def test_a_leak_is_found_with_its_beginning(tmp_path: Path) -> None:
    kept: list[mmap.mmap] = []

    class Leak(Callback):
        def on_step(self, trainer: Trainer, report: object) -> None:
            if trainer.step >= 20:  # new pages: the heap may hold what tests before have freed
                kept.append(mmap.mmap(-1, 5_000_000))
                kept[-1].write(b"\1" * 5_000_000)

    trainer, _ = watched(tmp_path, Leak())
    trainer.run()
    (found,) = recorded(tmp_path, "memory_leak")
    assert found["severity"] == "high" and 30 <= found["step"] <= 60
    begin, since = found["sentence"].split(";")[0].rsplit(" ", 1)
    assert begin.endswith("MB a step since step") and abs(int(since) - 20) <= 8
    assert float(begin.split("by ")[1].split()[0]) == pytest.approx(5.0, abs=0.3)


@pytest.mark.unit
def test_the_thread_sees_what_the_steps_do_not_feel(tmp_path: Path) -> None:
    """Errors that the memory corrected, in a machine's files: one line, one event in a span, one metric."""
    resources = sampler(tmp_path / "machine", folder=tmp_path)
    count = tmp_path / "machine/sys/devices/system/edac/mc/mc0/ce_count"

    class Heard(Subscriber):
        def __init__(self) -> None:
            self.events: list[Event] = []
            self.metrics: list[Metric] = []

        def on_event(self, event: Event) -> None:
            self.events.append(event)

        def on_metric(self, metric: Metric) -> None:
            if metric.name.startswith("entrenar_anomalies_") and metric.attributes["kind"] == "edac":
                self.metrics.append(metric)

    heard = Heard()

    def error() -> None:
        fresh = count.with_suffix(".new")
        fresh.write_text("3\n")
        fresh.replace(count)  # at no moment is there an empty file, as in a machine's
        time.sleep(0.2)

    slow = Fault(error)
    trainer, shown = watched(tmp_path / "run", Paced(0.01), slow, steps=60, resources=resources, interval=0.02)
    subscribe(heard)
    try:
        trainer.run()
    finally:
        unsubscribe(heard)
    (found,) = recorded(tmp_path / "run", "edac")
    assert found["step"] == WHEN and "the memory corrected 1 errors (EDAC)" in found["sentence"]
    assert found["sentence"] in shown.getvalue() and found["ended"] is not None
    assert f"step {found['ended']}: over: edac since step {WHEN}" in shown.getvalue()
    event, end = [each for each in heard.events if each.attributes["kind"] == "edac"]
    assert (event.name, end.name) == ("anomaly", "anomaly over")
    assert (end.attributes["step"], end.attributes["since"]) == (found["ended"], WHEN)
    assert all(each.span is not None and each.span.name in ("entrenar.step", "entrenar.run") for each in (event, end))
    counted = [(each.name.removeprefix("entrenar_anomalies_"), each.value) for each in heard.metrics]
    assert counted == [("total", 1), ("open", 1), ("open", 0)]
    assert heard.metrics[0].attributes["severity"] == found["severity"]


# ---------------------------------------------------------------------- the training's health
class Poison(Callback):
    """Multiplies a weight's gradient before the clip of step WHEN, each time that step is reached."""

    def __init__(self, factor: float, times: int = 1, step: int = WHEN) -> None:
        self.factor, self.left, self.step = factor, times, step

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        if phase == "clip" and trainer.step + 1 == self.step and self.left:
            self.left -= 1
            for _, tensor in trainer.parameters:
                tensor.grad.numpy()[...] *= np.float32(self.factor)


@pytest.mark.unit
def test_a_nan_gradient_is_an_anomaly_too(tmp_path: Path) -> None:
    trainer, shown = watched(tmp_path, Poison(np.nan))
    with pytest.raises(NumericsError, match=f"Step {WHEN}"):
        trainer.run()
    (found,) = recorded(tmp_path)
    assert (found["step"], found["kind"], found["severity"]) == (WHEN, "nonfinite", "high")
    assert found["sentence"] in shown.getvalue() and "no spike came before" in found["causes"][0]


@pytest.mark.unit
def test_a_gradient_spike_is_said_or_stops_the_run(tmp_path: Path) -> None:
    trainer, shown = watched(tmp_path / "a", Poison(1000))
    trainer.run()
    (found,) = recorded(tmp_path / "a", "grad_norm_spike")
    assert (found["step"], found["severity"]) == (WHEN, "high") and found["sentence"] in shown.getvalue()
    trainer, _ = watched(tmp_path / "b", Poison(1000), on_spike="stop", every=20)
    with pytest.raises(NumericsError, match=rf"step {WHEN}: the gradient norm is .* stopped, as observe.on_spike says"):
        trainer.run()
    assert trainer.step == WHEN and trainer.saved == 40


@pytest.mark.unit
@pytest.mark.parametrize("factor", [1000, np.nan])
def test_a_rollback_has_the_bits_of_a_resume_and_goes_on_with_other_data(tmp_path: Path, factor: float) -> None:
    trainer, shown = watched(tmp_path / "a", Poison(factor), on_spike="rollback", every=15, keep=9)
    bits = {}

    class Hash(Callback):
        def on_rollback(self, trainer: Trainer, path: Path) -> None:
            bits["weights"], bits["loader"] = weights_hash(trainer), trainer.loader.state_dict()

    trainer.callbacks = [*trainer.callbacks, Hash()]
    trainer.run()
    assert trainer.step == len(trainer.reports) == 50
    assert all(line["ended"] == WHEN for line in recorded(tmp_path / "a", "grad_norm_spike"))
    assert "rolled back to" in shown.getvalue() and "after step 30 with the data that follows" in shown.getvalue()
    # the same by hand: a run to step 30, resumed with the loader where it stood after the spike
    first = trainer_of(run_config(tmp_path / "b", steps=30, adapter=ADAPTER, every=15))
    first.run()
    resumed = trainer_of(run_config(tmp_path / "b", steps=50, adapter=ADAPTER, resume=True))
    assert weights_hash(resumed) == bits["weights"]
    resumed.loader.load_state_dict(bits["loader"])
    resumed.run()
    assert losses(resumed) == losses(trainer) and weights_hash(resumed) == weights_hash(trainer)


@pytest.mark.unit
def test_a_checkpoint_of_the_spike_itself_is_not_gone_back_to_and_is_removed(tmp_path: Path) -> None:
    steps: list[list[str]] = []

    class Look(Callback):
        def on_rollback(self, trainer: Trainer, path: Path) -> None:
            steps.append(sorted(each.name for each in trainer.checkpoint_directory.iterdir()))

    trainer, _ = watched(tmp_path, Poison(1000), Look(), on_spike="rollback", every=5)
    trainer.run()
    assert steps == [["step-40"]] and trainer.step == 50


@pytest.mark.unit
def test_a_rollback_without_a_checkpoint_and_a_spike_that_comes_again_stop_the_run(tmp_path: Path) -> None:
    trainer, _ = watched(tmp_path / "a", Poison(1000), on_spike="rollback", every=49)
    with pytest.raises(NumericsError, match=f"there is no checkpoint before step {WHEN} to roll back to"):
        trainer.run()
    trainer, _ = watched(tmp_path / "b", Poison(np.nan, times=9), on_spike="rollback", every=40)
    with pytest.raises(NumericsError, match="was rolled back to 3 times, and the spike came again"):
        trainer.run()


@pytest.mark.unit
def test_a_dead_adapter_is_named(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_step(self, trainer: Trainer, report: object) -> None:
            tensor = next(t for n, t in trainer.parameters if ".lora_B" in n)
            tensor.numpy()[...] = 0

    trainer, _ = watched(tmp_path, Kill(), steps=21)
    trainer.run()
    (found,) = recorded(tmp_path, "dead_adapter")
    assert found["step"] == 20 and found["severity"] == "medium" and "1 of 14 adapters are dead" in found["sentence"]


@pytest.mark.unit
def test_an_update_that_is_large_beside_its_weights_is_named_by_its_layer_once(tmp_path: Path) -> None:
    class Wild(Callback):
        """In the place of the optimizer: half of a layer's weights more, in two steps that are looked at."""

        def on_step(self, trainer: Trainer, report: object) -> None:
            if trainer.step in (80, 90):
                for name, tensor in trainer.parameters:
                    if ".layers.1." in name:
                        tensor.numpy()[...] *= np.float32(1.5)

    heard: list[tuple[str, float]] = []

    class Ratios(Subscriber):
        def on_metric(self, metric: Metric) -> None:
            if metric.name == "entrenar_update_ratio" and metric.attributes["step"] == 80:
                heard.append((str(metric.attributes["layer"]), metric.value))

    trainer, shown = watched(tmp_path, Wild(), steps=130, learning_rate=1e-4)
    listener = Ratios()
    subscribe(listener)
    try:
        trainer.run()
    finally:
        unsubscribe(listener)
    (found,) = recorded(tmp_path, "update_ratio")
    assert (found["step"], found["severity"], found["operation"]) == (80, "high", "model.layers.1")
    assert found["value"] == pytest.approx(0.5, rel=0.1) and found["expected"] < 0.05
    assert "lower the learning rate" in found["causes"][0] and found["sentence"] in shown.getvalue()
    assert found["ended"] is not None and f"over: update ratio since step {80}" in shown.getvalue()
    assert dict(heard)["model.layers.1"] == found["value"] and dict(heard)["model.layers.0"] < 0.05


@pytest.mark.unit
@pytest.mark.parametrize(
    ("observe", "options", "message"),
    [
        ({"on_spike": "stop"}, {}, "no effect without observe.monitor"),
        ({"monitor": True, "on_spike": "rollback"}, {}, "no checkpoint is written before the end"),
        ({"monitor": True, "on_spike": "rollback"}, {"every": 6}, "no checkpoint is written before the end"),
        ({"monitor": True, "on_spike": "panic"}, {"every": 2}, "panic"),
    ],
)
def test_what_could_not_work_is_refused(
    observe: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = run_config(tmp_path, **options)
    with pytest.raises(ConfigError, match=message):
        type(config)(config.training, config.lr_schedule, config.data, config.checkpointing, Observe(**observe))


# ---------------------------------------------------------------------- nothing is disturbed
@pytest.mark.unit
def test_a_watched_run_has_the_bits_of_an_unwatched_one(tmp_path: Path) -> None:
    plain = trainer_of(run_config(tmp_path / "a", adapter=ADAPTER, steps=30))
    trainer, _ = watched(tmp_path / "b", steps=30)
    plain.run()
    trainer.run()
    assert losses(plain) == losses(trainer)
    assert weights_hash(plain) == weights_hash(trainer)


@pytest.mark.chaos
def test_nothing_that_fails_in_the_monitor_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Resources):
        def sample(self) -> dict[str, float]:
            raise RuntimeError("a machine of its own kind")

    trainer, _ = watched(tmp_path, steps=12, resources=Broken(tmp_path), interval=0.001)
    with pytest.warns() as warned:
        assert len(trainer.run()) == 12
    assert any("a machine of its own kind" in str(each.message) for each in warned)
    (tmp_path / "full").mkdir()
    trainer, _ = watched(tmp_path / "full", Poison(1000))
    path = Path("/dev/full/x")
    monkeypatch.setattr("entrenar.train.observe_monitor.atomic_file", lambda _: path.open())
    with pytest.warns(UserWarning, match=r"anomalies.jsonl cannot be written"):
        assert len(trainer.run()) == 50

"""The profile of a run: it sums to the time that passed, changes nothing, and a fault of it stops nothing."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar._kernels import cpu, profile
from entrenar.errors import ConfigError
from entrenar.observe import subscribe, unsubscribe
from entrenar.observe.events import Span, Subscriber
from entrenar.observe.profile import PHASES
from entrenar.train.config import Observe
from entrenar.train.observers import observers
from entrenar.train.report import Output

from ..observe.test_pprof import read
from .builders import listen, losses, run_config, trainer_of

pytestmark = pytest.mark.unit


def observed(directory: Path, said: io.StringIO | None = None, steps: int = 6, **observe: Any) -> Any:
    """The trainer of a run with these options of [observe]."""
    config = run_config(directory, steps=steps, evaluate_every=3, every=3)
    config.observe = Observe(**observe)
    type(config)(config.training, config.lr_schedule, config.data, config.checkpointing, config.observe)  # checked
    console = Console(file=said or io.StringIO(), width=400)
    return trainer_of(config, callbacks=observers(config, directory, console))


def plain(directory: Path, steps: int = 6) -> list[str]:
    trainer = trainer_of(run_config(directory, steps=steps, evaluate_every=3, every=3))
    trainer.run()
    return losses(trainer)


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "profile.json").read_text())
    return found


class Clock(Subscriber):
    """Times the span of the run by another clock than the profile's."""

    seconds = 0.0

    def on_span_end(self, span: Span) -> None:
        if span.name == "entrenar.run":
            self.seconds = (span.end - span.start) / 1e9


def test_thread_seconds_sum_to_wall_time_times_threads(tmp_path: Path) -> None:
    clock = Clock()
    subscribe(clock)
    used = time.process_time()
    try:
        observed(tmp_path / "seen", steps=30, profile=True).run()
    finally:
        unsubscribe(clock)
    used = time.process_time() - used
    found = record(tmp_path / "seen")
    assert found["threads"] == cpu.get_num_threads()
    assert sum(found["thread_seconds"].values()) == pytest.approx(found["wall_seconds"] * found["threads"], rel=0.05)
    assert found["wall_seconds"] == pytest.approx(clock.seconds, rel=0.05)
    assert 0 < found["thread_seconds"]["interpreter"] <= used
    assert (found["first_step"], found["last_step"]) == (1, 30)


def test_a_profiled_run_has_the_bits_of_another_and_counts_no_more_when_it_is_over(tmp_path: Path) -> None:
    trainer = observed(tmp_path / "seen", profile=True, profile_every=2, profile_out=str(tmp_path / "all.txt"))
    trainer.run()
    assert losses(trainer) == plain(tmp_path / "plain")
    assert not profile.enabled()


def test_the_table_and_three_bottlenecks_are_shown(tmp_path: Path) -> None:
    said = io.StringIO()
    observed(tmp_path, said, profile=True).run()
    text = said.getvalue()
    assert "Kernels, steps 1 to 6" in text
    assert "linear_forward" in text
    assert "Peak of this machine, measured: " in text
    assert "accounted for: " in text
    assert [line[:2] for line in text.splitlines()[-3:]] == ["1.", "2.", "3."]
    assert record(tmp_path)["bottlenecks"] == [line[3:] for line in text.splitlines()[-3:]]


def test_every_phase_of_the_run_is_in_the_stacks(tmp_path: Path) -> None:
    out = tmp_path / "all.pb.gz"
    said = io.StringIO()
    observed(tmp_path, said, profile_out=str(out)).run()
    assert said.getvalue() == ""  # the file alone was asked for
    found = {stack[2] for stack in read(out.read_bytes()) if len(stack) == 4}
    assert found == set(PHASES)


def test_profiles_of_a_few_steps_sum_to_that_of_the_run(tmp_path: Path) -> None:
    observed(tmp_path, steps=7, profile_every=2, profile_out=str(tmp_path / "all.pb.gz")).run()
    parts = sorted((tmp_path / "profile").iterdir())
    assert [part.name for part in parts] == [
        *("steps-000001-000002.pb.gz", "steps-000003-000004.pb.gz"),
        *("steps-000005-000006.pb.gz", "steps-000007-000007.pb.gz"),
    ]
    calls: dict[tuple[str, ...], int] = {}
    for part in parts:
        for stack, values in read(part.read_bytes()).items():
            calls[stack] = calls.get(stack, 0) + values[0]
    assert calls == {stack: values[0] for stack, values in read((tmp_path / "all.pb.gz").read_bytes()).items()}


def test_a_run_in_the_place_of_another_removes_its_profiles(tmp_path: Path) -> None:
    from entrenar.train import folder

    observed(tmp_path, profile_every=2).run()
    folder.clear(tmp_path)
    assert not (tmp_path / "profile.json").exists()
    assert list((tmp_path / "profile").iterdir()) == []


def test_counts_of_the_metrics_and_of_the_profile_are_both_whole(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    trainer = observed(tmp_path, profile=True, metrics_file=str(tmp_path / "seen.prom"))
    trainer.run()
    assert not profile.enabled()
    assert 'entrenar_kernel_calls_total{kernel="adam_step"} 6.0' in (tmp_path / "seen.prom").read_text()
    assert sum(row["calls"] for row in record(tmp_path)["kernels"] if row["kernel"] == "adam_step") == 6


def test_a_run_that_fails_leaves_the_profile_of_its_steps(tmp_path: Path) -> None:
    trainer = observed(tmp_path, profile=True)

    def fail(report: Any) -> None:
        if report.step == 4:
            raise RuntimeError("planted")

    listen(trainer, on_step=fail)
    with pytest.raises(RuntimeError, match="planted"):
        trainer.run()
    assert record(tmp_path)["last_step"] == 4
    assert not profile.enabled()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_place_that_cannot_be_written_is_a_sentence_and_the_run_goes_on(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise error

    monkeypatch.setattr("entrenar.train.observe_profile.atomic_file", refuse)
    said = io.StringIO()
    trainer = observed(tmp_path / "seen", said, profile=True, profile_every=3)
    trainer.run()
    assert losses(trainer) == plain(tmp_path / "plain")
    assert f"The profile was not written: {error}" in said.getvalue()
    assert "Kernels, steps 1 to 6" in said.getvalue()


def test_a_closed_output_does_not_fail_the_run_at_its_end(tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    trainer = observed(tmp_path, Closed(), profile=True)
    trainer.callbacks[-1].console = Output(file=Closed())
    trainer.run()
    assert trainer.step == 6


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        ({"profile_out": "a.json"}, "observe.profile_out is a.json, expected a name that ends in .pb.gz"),
        ({"profile_out": "/nowhere/at/all.txt"}, "the folder of /nowhere/at/all.txt is not there"),
        ({"profile_every": 7}, "observe.profile_every is 7, expected at most training.steps = 6"),
        ({"profile_every": -1}, "observe.profile_every"),
    ],
)
def test_a_wrong_option_is_refused_before_training(observe: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        observed(tmp_path, **observe)

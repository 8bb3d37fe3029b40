"""Callbacks, ranks and events of a run: who hears what and when, what an error does, and what the state holds."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from entrenar._kernels import cpu
from entrenar.distributed import LocalCommunicator
from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.observe import Metric, Span, Subscriber, subscribe, unsubscribe
from entrenar.observe.metrics import BY_NAME
from entrenar.train import Callback, TrainConfig, Trainer, evaluate
from entrenar.train.callbacks import Display, Record
from entrenar.train.report import COLUMNS
from entrenar.train.summary import Summary
from entrenar.train.trainer import SPAN_ATTRIBUTES
from tests.train.builders import DROPOUT, Calls, losses, run_config, trainer_of, weights_hash

STEP = ["data", "forward", "backward", "reduce", "clip", "optimizer"]


class Log(Callback):
    """Every hook, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_run_start(self, trainer: Trainer) -> None:
        self.heard.append(f"start at {trainer.step}")

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        self.heard.append(phase)

    def on_step(self, trainer: Trainer, report: object) -> None:
        assert report is trainer.reports[-1]
        self.heard.append(f"step {trainer.step}")

    def on_evaluation(self, trainer: Trainer, evaluation: object) -> None:
        assert evaluation == trainer.reports[-1].held_out
        self.heard.append(f"evaluation {trainer.step}")

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        assert path.is_dir() and trainer.saved == trainer.step
        self.heard.append(path.name)

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        self.heard.append(f"error {error}")

    def on_run_end(self, trainer: Trainer) -> None:
        self.heard.append("end")


class Failing(Callback):
    """Raises in one hook."""

    def __init__(self, hook: str, error: BaseException) -> None:
        def fail(*arguments: object) -> None:
            raise error

        setattr(self, hook, fail)


# ---------------------------------------------------------------------- what callbacks hear
@pytest.mark.unit
def test_a_callback_hears_a_run_in_order(tmp_path: Path) -> None:
    log = Log()
    config = run_config(tmp_path, steps=3, gradient_accumulation=2, evaluate_every=2, every=2)
    trainer_of(config, callbacks=[log]).run()
    step = ["data", "forward", "backward", "forward", "backward", "reduce", "clip", "optimizer"]
    assert log.heard == [
        *["start at 0", *step, "step 1"],
        *[*step, "evaluation 2", "step-2", "step 2"],
        *[*step, "step-3", "step 3", "end"],
    ]
    again = Log()
    resumed = run_config(tmp_path, steps=3, gradient_accumulation=2, evaluate_every=2, every=2, resume=True)
    trainer_of(resumed, callbacks=[again]).run()
    assert again.heard == ["start at 3", "end"]


# Of runs that fail (tests/train/test_monitor.py), and of a result, which a trainer alone does not write.
RARE = ("on_error", "on_nonfinite", "on_rollback", "on_result")


@pytest.mark.unit
@pytest.mark.parametrize("hook", [name for name in vars(Callback) if name.startswith("on_") and name not in RARE])
def test_a_callback_that_raises_stops_the_run_with_its_error_and_the_checkpoint_stays(
    hook: str, tmp_path: Path
) -> None:
    first, last, error = Log(), Log(), RuntimeError("of a callback")
    trainer_of(run_config(tmp_path, steps=2, every=2)).run()
    config = run_config(tmp_path, steps=4, every=2, evaluate_every=1, resume=True)
    trainer = trainer_of(config, callbacks=[first, Failing(hook, error), last])
    with pytest.raises(RuntimeError) as raised:
        trainer.run()
    assert raised.value is error
    assert first.heard[-1] == last.heard[-1] == "error of a callback"
    assert first.heard.count("error of a callback") == 1
    resumed = trainer_of(run_config(tmp_path, steps=4, resume=True))
    assert resumed.step == (4 if hook in ("on_checkpoint", "on_run_end") else 2)


@pytest.mark.unit
def test_an_error_on_an_error_does_not_hide_the_first(tmp_path: Path) -> None:
    log = Log()
    failing = [Failing("on_step", ValueError("first")), Failing("on_error", OSError("second")), log]
    with pytest.raises(ValueError, match="first"), pytest.warns(UserWarning, match=r"Failing\.on_error raised OSError"):
        trainer_of(run_config(tmp_path), callbacks=failing).run()
    assert log.heard[-1] == "error first"


@pytest.mark.unit
def test_callbacks_change_no_bit(tmp_path: Path) -> None:
    plain = trainer_of(run_config(tmp_path / "a", adapter=DROPOUT))
    plain.run()
    config = run_config(tmp_path / "b", adapter=DROPOUT, every=1, evaluate_every=1)
    console = Console(file=io.StringIO())
    heard = trainer_of(config, callbacks=[Log(), Display(console), Record(tmp_path / "b", Summary())])
    with listening(Events()):
        heard.run()
    assert losses(plain) == losses(heard) and weights_hash(plain) == weights_hash(heard)


@pytest.mark.unit
def test_the_record_has_the_steps_of_the_checkpoint(tmp_path: Path) -> None:
    record = Record(tmp_path, Summary(["said"], {"examples": 3}))
    rows: list[int] = []

    def count(path: Path) -> None:
        rows.append(len((tmp_path / "metrics.csv").read_text().splitlines()) - 1)

    trainer = trainer_of(run_config(tmp_path, every=4), callbacks=[record, Calls(on_checkpoint=count)])
    trainer.run()
    assert rows == [4, 6]
    with record.metrics.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert [float(line[1]) for line in lines] == [report.loss for report in trainer.reports]
    record.write(trainer, evaluate(trainer.model, trainer.held_out))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["run"], summary["steps"], summary["remarks"]) == (trainer.run_id, 6, ["said"])
    assert summary["held_out"]["before"] is None and summary["held_out"]["after"]["tokens"] > 0
    assert summary["configuration"]["training"]["steps"] == 6 and summary["fingerprint"] == trainer.fingerprint
    assert summary["machine"]["threads"] == cpu.get_num_threads() and summary["machine"]["tier"] == cpu.tier()
    assert summary["memory"]["peak_resident_bytes"] > 1 << 20


# ---------------------------------------------------------------------- the state
@pytest.mark.unit
def test_a_state_moves_a_run_to_another_trainer_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer_of(run_config(tmp_path, adapter=DROPOUT, steps=8))
    whole.run()
    half = trainer_of(run_config(tmp_path, adapter=DROPOUT, steps=4))
    half.run()
    other = trainer_of(run_config(tmp_path, adapter=DROPOUT, steps=8))
    other.load_state_dict(half.state_dict())
    half.parameters[0][1].numpy()[...] = 0  # what was loaded is a copy
    assert (other.step, other.run_id, other.date) == (4, half.run_id, half.date)
    other.run()
    assert losses(other) == losses(whole) and weights_hash(other) == weights_hash(whole)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "stands at step|is None, expected a whole number"),
        ({"step": 7}, "It stands at step 7 after 2 reports"),
        ({"weights": {}}, r"Its weight model\..* has shape \(\), expected \("),
        ({"reports": [{"held_out": None}, {}]}, r"what no run writes \(TypeError"),
        ({"optimizer": {}}, "a state has the keys"),
        ({"loader": 3}, r"what no run writes \(TypeError"),
        ({"date": "today"}, r"what no run writes \(ValueError"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_that_no_run_has_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, steps=2))
    trainer.run()
    state = trainer.state_dict()
    fresh = trainer_of(run_config(tmp_path, steps=2))
    with pytest.raises(EntrenarError, match=message):
        fresh.load_state_dict(state | change)
    for key in state:
        with pytest.raises(FormatError, match=f"The state has no {key}; expected what"):
            fresh.load_state_dict({name: value for name, value in state.items() if name != key})


@pytest.mark.unit
def test_a_state_of_other_examples_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, steps=2, seed=4))
    trainer.run()
    with pytest.raises(ConfigError, match="with seed 4, this run has 20 with seed 3"):
        trainer_of(run_config(tmp_path, steps=2)).load_state_dict(trainer.state_dict())


# ---------------------------------------------------------------------- ranks
class Twins(LocalCommunicator):
    """As if another rank did the same: sums are twice as large, which rounds nothing."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.reduced: list[tuple[int, ...]] = []
        self.barriers = 0

    def all_reduce(self, array: np.ndarray) -> None:
        self.reduced.append(array.shape)
        array *= 2

    def barrier(self) -> None:
        self.barriers += 1


@pytest.mark.unit
def test_gradients_losses_and_token_counts_are_sums_over_the_ranks(tmp_path: Path) -> None:
    alone = trainer_of(run_config(tmp_path / "a", adapter=DROPOUT, gradient_accumulation=2))
    alone.run()
    twins = Twins()
    both = trainer_of(run_config(tmp_path / "b", adapter=DROPOUT, gradient_accumulation=2, every=3), communicator=twins)
    both.run()
    assert losses(both) == losses(alone) and weights_hash(both) == weights_hash(alone)
    for ours, theirs in zip(both.reports, alone.reports, strict=True):
        assert (ours.tokens, ours.trained_tokens) == (2 * theirs.tokens, 2 * theirs.trained_tokens)
    assert len(twins.reduced) == 6 * (3 + len(both.parameters))
    assert twins.barriers == 2


class Threads:
    """A rank of several in one process, each in a thread of its own."""

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(shared)
        self._shared, self._barrier = shared, barrier

    def _gather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait(60)
        values = list(self._shared)
        self._barrier.wait(60)
        return values

    def all_reduce(self, array: np.ndarray) -> None:
        array[...] = sum(self._gather(array.copy()))

    def broadcast(self, value: Any) -> Any:
        return self._gather(value)[0]

    def barrier(self) -> None:
        self._barrier.wait(60)


def run_in_threads(config: TrainConfig, **options: Any) -> list[Trainer]:
    """The trainers of two ranks that ran to their end."""
    shared: list[Any] = [None, None]
    barrier, found = threading.Barrier(2), {}

    def work(rank: int) -> None:
        found[rank] = trainer_of(config, communicator=Threads(rank, shared, barrier), **options)
        try:
            found[rank].run()
        except BaseException:
            barrier.abort()
            raise

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[0], found[1]]


@pytest.mark.unit
def test_two_ranks_take_the_steps_of_one(tmp_path: Path, threads: None) -> None:
    cpu.set_num_threads(1)
    alone = trainer_of(run_config(tmp_path / "alone", gradient_accumulation=4, every=3))
    alone.run()
    first, second = run_in_threads(run_config(tmp_path / "both", gradient_accumulation=4, every=3))
    assert losses(first) == losses(second) and weights_hash(first) == weights_hash(second)
    assert first.run_id == second.run_id
    for ours, theirs in zip(first.reports, alone.reports, strict=True):
        assert (ours.tokens, ours.trained_tokens) == (theirs.tokens, theirs.trained_tokens)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
    resumed = trainer_of(run_config(tmp_path / "both", gradient_accumulation=4, resume=True))
    assert weights_hash(resumed) == weights_hash(first)


@pytest.mark.unit
def test_a_rank_without_a_micro_batch_takes_part_in_the_step(tmp_path: Path, threads: None) -> None:
    cpu.set_num_threads(1)
    alone = trainer_of(run_config(tmp_path / "alone"))
    alone.run()
    for trainer in run_in_threads(run_config(tmp_path / "both")):
        assert losses(trainer) == losses(alone) and weights_hash(trainer) == weights_hash(alone)


@pytest.mark.unit
def test_rank_0_alone_writes(tmp_path: Path) -> None:
    record = Record(tmp_path, Summary())
    log = Calls(on_checkpoint=lambda path: None)
    other = trainer_of(run_config(tmp_path, every=2), communicator=Twins(rank=1), callbacks=[record, log])
    other.run()
    assert other.saved == 6 and list(tmp_path.iterdir()) == []


@pytest.mark.unit
def test_a_run_is_called_as_rank_0_calls_it(tmp_path: Path) -> None:
    class Second(LocalCommunicator):
        def broadcast(self, value: Any) -> Any:
            return ("of rank 0", *value[1:])

    assert trainer_of(run_config(tmp_path), communicator=Second()).run_id == "of rank 0"


# ---------------------------------------------------------------------- events
class Events(Subscriber):
    """The spans and metrics of a run."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: list[Metric] = []

    def on_span_end(self, span: Span) -> None:
        self.spans.append(span)

    def on_metric(self, metric: Metric) -> None:
        self.metrics.append(metric)


@contextmanager
def listening(events: Subscriber) -> Iterator[None]:
    subscribe(events)
    try:
        yield
    finally:
        unsubscribe(events)


@pytest.mark.unit
def test_a_run_emits_its_spans_and_metrics(tmp_path: Path) -> None:
    events = Events()
    with listening(events):
        trainer = trainer_of(run_config(tmp_path, steps=2, every=2, evaluate_every=2))
        trainer.run()
    assert [span.name for span in events.spans] == [
        *[*STEP, "entrenar.step", *STEP, "evaluate", "checkpoint", "entrenar.step"],
        "entrenar.run",
    ]
    run = events.spans[-1]
    steps = [span for span in events.spans if span.name == "entrenar.step"]
    assert [span.attributes for span in steps] == [
        {"step": report.step} | {key: getattr(report, key) for key in SPAN_ATTRIBUTES} for report in trainer.reports
    ]
    assert all(span.parent is run for span in steps)
    assert all(span.parent in steps for span in events.spans if span not in (run, *steps))
    values = {
        (metric.name, metric.attributes["step"]): metric.value
        for metric in events.metrics
        if "phase" not in metric.attributes
    }
    assert len(values) == 2 * 7 + 2
    phases = {(m.attributes["phase"], m.attributes["step"]): m.value for m in events.metrics if "phase" in m.attributes}
    assert {metric.name for metric in events.metrics} <= set(BY_NAME)
    for report in trainer.reports:
        assert values["entrenar_step_duration_seconds", report.step] == report.seconds
        assert values["entrenar_loss", report.step] == report.loss
        assert values["entrenar_tokens_total", report.step] == report.tokens
        assert all(phases[phase, report.step] == seconds for phase, seconds in report.phases.items())
    assert trainer.reports[1].held_out is not None
    assert values["entrenar_held_out_loss", 2] == trainer.reports[1].held_out.loss


@pytest.mark.unit
def test_a_subscriber_that_fails_does_not_fail_the_run(tmp_path: Path) -> None:
    class Bad(Subscriber):
        def on_span_end(self, span: Span) -> None:
            raise ValueError("bad")

    with listening(Bad()), pytest.warns(RuntimeWarning, match="it hears no more events"):
        assert len(trainer_of(run_config(tmp_path)).run()) == 6

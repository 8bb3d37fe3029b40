"""How long a run goes and what of it is kept: epochs, early stopping, the best checkpoint, samples, begun adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from entrenar.adapters.peft import read_adapter_config
from entrenar.errors import ConfigError, FormatError
from entrenar.lora import LoRAConfig
from entrenar.qlora import QLoRAConfig
from entrenar.train import StepReport, TrainConfig, evaluate
from entrenar.train.best import best, without_better
from entrenar.train.checkpoint import steps_in
from entrenar.train.config import Checkpointing, LRSchedule, Training
from entrenar.train.evaluate import Evaluation
from tests.train.builders import (
    SMALL,
    config_for,
    listen,
    losses,
    quiet,
    run_config,
    run_entrenar,
    trainer_of,
    weights_hash,
    write_examples,
    write_model,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "additions.jsonl")


def reports(*held_out: float | None) -> list[StepReport]:
    return [
        StepReport(i, 1.0, 0.1, 1.0, 1, 1, 1.0, None if loss is None else Evaluation(loss, 5))
        for i, loss in enumerate(held_out, 1)
    ]


# ---------------------------------------------------------------------- epochs
@pytest.mark.unit
@pytest.mark.parametrize("epochs", [0.3, 1, 2.5])
def test_epochs_are_as_many_steps_as_their_rows_fill(epochs: float, tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=60, batch_size=2, gradient_accumulation=2, epochs=epochs)
    trainer = trainer_of(config)
    rows = trainer.loader.rows
    steps = trainer.config.training.steps
    assert 4 * (steps - 1) < epochs * rows <= 4 * steps
    if epochs == 1:
        trainer.run()
        assert trainer.step == steps and trainer.loader.epoch == int(4 * steps > rows)


@pytest.mark.unit
def test_epochs_and_steps_are_one_or_the_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs is 2\.0, and training\.steps 7; give one of both"):
        run_config(tmp_path, steps=7, epochs=2)
    trainer = trainer_of(run_config(tmp_path, steps=60, epochs=1))
    assert trainer.config.counted(10**6).training.steps == trainer.config.training.steps  # counted once


@pytest.mark.unit
def test_what_depends_on_the_steps_is_checked_once_they_are_counted(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=60, epochs=1)
    config = replace(config, lr_schedule=replace(config.lr_schedule, warmup_steps=1000))
    with pytest.raises(ConfigError, match=r"warmup_steps is 1000, expected at most training\.steps = \d+"):
        trainer_of(config)


# ---------------------------------------------------------------------- early stopping
@pytest.mark.unit
@pytest.mark.parametrize(
    ("held_out", "threshold", "step", "count"),
    [
        ([], 0, None, 0),
        ([None, None], 0, None, 0),
        ([3.0], 0, 1, 0),
        ([3.0, 2.0, None, 2.0, 2.5], 0, 2, 2),
        ([3.0, 4.0, 2.0], 0, 3, 0),
        ([3.0, 2.9, 2.85, 1.0], 0.5, 4, 0),
        ([3.0, 2.9, 2.85], 0.5, 3, 2),
    ],
)
def test_the_best_evaluation_and_how_long_there_was_no_better(
    held_out: Sequence[float | None], threshold: float, step: int | None, count: int
) -> None:
    made = reports(*held_out)
    found = best(made)
    assert (found and found.step) == step
    assert without_better(made, threshold) == count


@pytest.mark.peers
def test_patience_counts_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(4)
    for threshold in (0.0, 0.2):
        found = rng.uniform(1, 2, 12).tolist()
        callback = transformers.EarlyStoppingCallback(3, threshold)
        state, control = transformers.TrainerState(), transformers.TrainerControl()
        arguments = transformers.TrainingArguments(
            metric_for_best_model="loss", greater_is_better=False, eval_strategy="steps", eval_steps=1
        )
        for at, loss in enumerate(found, 1):
            callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
            state.best_metric = loss if state.best_metric is None else min(loss, state.best_metric)
            assert without_better(reports(*found[:at]), threshold) == callback.early_stopping_patience_counter


def rising(directory: Path, **options: Any) -> TrainConfig:
    """A run whose held-out loss rises after a while: one row, learned by heart."""
    training = {"steps": 40, "learning_rate": 0.05, "evaluate_every": 2, **options.pop("training", {})}
    config = run_config(directory, **training)
    return replace(config, checkpointing=replace(config.checkpointing, **options))


@pytest.mark.unit
def test_training_stops_where_the_held_out_loss_falls_no_more_and_a_resume_stays_there(tmp_path: Path) -> None:
    config = rising(tmp_path, training={"early_stopping_patience": 2}, every=100)
    trainer = trainer_of(config)
    trainer.run()
    assert trainer.finished and trainer.step < 40 and trainer.step % 2 == 0
    assert without_better(trainer.reports, 0) == 2
    assert trainer.saved == trainer.step  # the last step has its checkpoint
    again = trainer_of(replace(config, checkpointing=replace(config.checkpointing, resume=True)))
    assert again.run() == trainer.reports and weights_hash(again) == weights_hash(trainer)
    more = replace(config, training=replace(config.training, early_stopping_patience=3))
    on = trainer_of(replace(more, checkpointing=replace(config.checkpointing, resume=True)))
    on.run()
    assert on.step > trainer.step


@pytest.mark.unit
@pytest.mark.parametrize(
    ("training", "checkpointing", "message"),
    [
        ({"early_stopping_patience": 2}, {}, "early_stopping_patience is 2, which has no effect without"),
        ({}, {"keep_best": True}, r"checkpointing\.keep_best is true, which has no effect without training\.evaluate"),
        (
            {"steps": 4, "evaluate_every": 5},
            {"keep_best": True},
            r"without training\.evaluate_every of at most the 4 steps",
        ),
        ({"early_stopping_threshold": 0.1}, {}, "early_stopping_threshold is 0.1, which has no effect without"),
        ({"continue_adapter": "x"}, {}, "continue_adapter is x, and the run trains all weights"),
    ],
)
def test_keys_without_effect_are_refused(training: dict[str, Any], checkpointing: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(training=Training(**training), checkpointing=Checkpointing(**checkpointing))


# ---------------------------------------------------------------------- the best checkpoint
@pytest.mark.unit
def test_the_best_checkpoint_stays_and_its_weights_are_taken(tmp_path: Path) -> None:
    trainer = trainer_of(rising(tmp_path, keep_best=True, every=5, keep=1))
    hashes = {}
    listen(trainer, on_step=lambda report: hashes.update({report.step: weights_hash(trainer)}))
    trainer.run()
    found = best(trainer.reports)
    assert found is not None and 0 < found.step < 40
    assert [path.name for path in steps_in(trainer.checkpoint_directory)] == ["step-40", f"step-{found.step}"]
    taken = trainer.take_best()
    assert taken == found and taken.held_out is not None
    assert weights_hash(trainer) == hashes[found.step] != hashes[40]
    assert evaluate(trainer.model, trainer.held_out).loss == taken.held_out.loss


@pytest.mark.unit
def test_a_run_that_broke_off_keeps_the_same_best(tmp_path: Path) -> None:
    whole = trainer_of(rising(tmp_path / "whole", keep_best=True))
    whole.run()
    config = rising(tmp_path / "parts", keep_best=True, every=5)
    broken = trainer_of(config)
    found = best(whole.reports)
    assert found is not None

    def fail(report: StepReport) -> None:
        if report.step == found.step + 6:
            raise RuntimeError

    listen(broken, on_step=fail)
    with pytest.raises(RuntimeError):
        broken.run()
    again = trainer_of(replace(config, checkpointing=replace(config.checkpointing, resume=True)))
    again.run()
    assert losses(again) == losses(whole)
    whole.take_best(), again.take_best()
    assert weights_hash(again) == weights_hash(whole)


@pytest.mark.unit
def test_a_best_checkpoint_that_is_gone_or_damaged_is_not_taken(tmp_path: Path) -> None:
    trainer = trainer_of(rising(tmp_path, keep_best=True))
    trainer.run()
    found = best(trainer.reports)
    assert found is not None
    before, path = weights_hash(trainer), trainer.checkpoint_directory / f"step-{found.step}"
    state = path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="is damaged"):
        trainer.take_best()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert trainer.take_best() is None and weights_hash(trainer) == before


@pytest.mark.unit
def test_a_run_writes_its_best_weights_stops_early_and_samples(model: Path, data: Path, tmp_path: Path) -> None:
    training = replace(SMALL, steps=30, learning_rate=0.2, evaluate_every=2, early_stopping_patience=4, sample_every=2)
    training.early_stopping_threshold = 100.0
    constant = LRSchedule(name="constant", warmup_steps=0)
    config = config_for(data, tmp_path / "run", training, lr_schedule=constant)
    config.checkpointing = replace(config.checkpointing, keep_best=True)
    result, shown = quiet(model, config)
    lowest = best(result.reports)
    assert lowest is not None and lowest.held_out is not None and result.after is not None
    assert result.after.loss == lowest.held_out.loss
    assert len(result.reports) == 10 and f"stopped early, after step {len(result.reports)} of 30" in shown
    assert "became lower by no more than 100 in 4 evaluations." in shown
    assert f"The result is of step {lowest.step}" in shown and "Step 2:" in shown
    remarks = json.loads((tmp_path / "run" / "summary.json").read_text())["remarks"]
    assert any("stopped early" in remark for remark in remarks)
    written = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    plain = config_for(data, tmp_path / "plain", replace(training, steps=lowest.step), lr_schedule=constant)
    plain.training.sample_every = 0
    quiet(model, plain)
    other = load_file(tmp_path / "plain" / "adapter" / "adapter_model.safetensors")
    for name, tensor in other.items():
        np.testing.assert_array_equal(written[name], tensor)


# ---------------------------------------------------------------------- an adapter that is continued
@pytest.mark.unit
def test_training_continues_an_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    first, _ = quiet(model, config_for(data, tmp_path / "first"))
    begun = replace(SMALL, continue_adapter=str(first.output))
    second, _ = quiet(model, config_for(data, tmp_path / "second", begun))
    assert first.after is not None and second.before is not None
    assert second.before.loss == pytest.approx(first.after.loss, rel=1e-6)
    assert second.sample_before == first.sample_after
    for wrong, message in (
        (LoRAConfig(rank=8, target_modules=["all-linear"]), r"lora\.rank is 8, and .* has 4; give the same"),
        (QLoRAConfig(rank=4, target_modules=["q_proj"]), r"qlora\.target_modules is .*; give the same"),
    ):
        with pytest.raises(ConfigError, match=message):
            quiet(model, config_for(data, tmp_path / "third", begun, adapter=wrong))
    with pytest.raises(FormatError, match="none"):
        quiet(model, config_for(data, tmp_path / "third", replace(SMALL, continue_adapter=str(tmp_path / "none"))))


@pytest.mark.unit
def test_the_flag_of_the_adapter_takes_the_folder_of_one(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "first", adapter=LoRAConfig(rank=3, alpha=5.0, target_modules=["q_proj"]))
    first, _ = quiet(model, config)
    words = ["finetune", "--model", model, "--data", data, "--sequence-length", "64", "--steps", "2"]
    done = run_entrenar(*words, "--adapter", first.output, "--output", tmp_path / "second", "--learning-rate", "1e-2")
    assert done.returncode == 0, done.stderr
    found = read_adapter_config(tmp_path / "second" / "adapter")
    assert isinstance(found, LoRAConfig) and (found.rank, found.alpha, found.target_modules) == (3, 5.0, ["q_proj"])
    done = run_entrenar(*words, "--adapter", first.output, "--rank", "4", "--output", tmp_path / "third")
    assert done.returncode and "lora.rank is 4" in done.stderr and not (tmp_path / "third").exists()

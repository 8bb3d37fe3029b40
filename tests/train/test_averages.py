"""Runs whose result is an average of the weights that are trained: what evaluates, samples, keeps and writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.io.safetensors import open_safetensors
from entrenar.optim import AdamWScheduleFree
from entrenar.train import TrainConfig, finetune
from entrenar.train.config import LRSchedule, Training
from entrenar.train.trainer import Trainer
from tests.train.builders import (
    DROPOUT,
    config_for,
    listen,
    losses,
    quiet,
    run_config,
    trainer_of,
    weights_hash,
    write_examples,
    write_model,
)
from tests.train.test_checkpoint import stop_after

CONSTANT = LRSchedule(name="constant", warmup_steps=3)
AVERAGED: dict[str, Any] = {"optimizer": "schedulefree_adamw", "lr_schedule": CONSTANT}


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in trainer.parameters}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.unit
def test_evaluations_see_the_average_and_leave_what_is_trained(tmp_path: Path) -> None:
    plain = trainer_of(run_config(tmp_path / "plain", adapter=DROPOUT, **AVERAGED))
    plain.run()
    trainer = trainer_of(run_config(tmp_path / "run", adapter=DROPOUT, evaluate_every=2, **AVERAGED))
    seen: list[dict[str, np.ndarray]] = []
    trained: list[dict[str, np.ndarray]] = []
    kept = trainer.objective.evaluate

    def evaluate(*arguments: Any) -> Any:
        seen.append(arrays(trainer))
        return kept(*arguments)

    object.__setattr__(trainer.objective, "evaluate", evaluate)
    listen(trainer, on_step=lambda report: trained.append(arrays(trainer)))
    trainer.run()
    assert len(seen) == 3 and not equal(seen[-1], trained[-1])
    assert equal(seen[-1], arrays(trainer))  # the model has the result when the run is over
    assert losses(trainer) == losses(plain) and weights_hash(trainer) == weights_hash(plain)


@pytest.mark.unit
@pytest.mark.parametrize("adapter", [DROPOUT, None], ids=["lora", "full"])
def test_a_run_that_broke_off_continues_to_the_same_bits(adapter: Any, tmp_path: Path, threads: None) -> None:
    settings: dict[str, Any] = {**AVERAGED, "steps": 10, "weight_decay": 0.1, "evaluate_every": 3, "adapter": adapter}
    whole = trainer_of(run_config(tmp_path / "whole", **settings))
    whole.run()
    stop_after(trainer_of(run_config(tmp_path / "run", every=3, **settings)), 8)
    resumed = trainer_of(run_config(tmp_path / "run", every=3, resume=True, **settings))
    assert resumed.step == 6
    resumed.run()
    assert losses(resumed) == losses(whole) and weights_hash(resumed) == weights_hash(whole)
    assert [r.held_out for r in resumed.reports] == [r.held_out for r in whole.reports]


@pytest.mark.unit
def test_a_checkpoint_has_what_is_trained_also_after_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, adapter=DROPOUT, **AVERAGED))
    trained: list[dict[str, np.ndarray]] = []
    listen(trainer, on_step=lambda report: trained.append(arrays(trainer)))
    trainer.run()
    result = arrays(trainer)
    path = trainer.save()
    stored = open_safetensors(path / "state.safetensors")
    for name, array in trained[-1].items():
        assert (stored[f"state/weights/{name}"].load() == array).all()
    resumed = trainer_of(run_config(tmp_path, adapter=DROPOUT, resume=True, **AVERAGED))
    assert equal(arrays(resumed), trained[-1])
    resumed.run()
    assert equal(arrays(resumed), result)


@pytest.mark.unit
def test_the_best_checkpoint_gives_its_average(tmp_path: Path) -> None:
    """The lowest loss is in the middle: a rate that is too high makes the last steps worse."""
    config = run_config(tmp_path, adapter=DROPOUT, steps=8, evaluate_every=1, **{**AVERAGED, "learning_rate": 0.5})
    config.checkpointing.keep_best = True
    trainer = trainer_of(config)
    averages: dict[int, dict[str, np.ndarray]] = {}

    def on_step(report: Any) -> None:
        with trainer.optimizer.evaluating():
            averages[report.step] = arrays(trainer)

    listen(trainer, on_step=on_step)
    trainer.run()
    found = trainer.take_best()
    assert found is not None and found.held_out is not None and found.step < 8
    assert equal(arrays(trainer), averages[found.step])
    trainer.evaluate()
    assert equal(arrays(trainer), averages[found.step])  # the result stays where it is evaluated once more
    assert trainer.objective.evaluate(trainer.model, trainer.held_out, 0).loss == found.held_out.loss


@pytest.mark.unit
def test_samples_and_the_written_result_are_of_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = write_model(tmp_path / "model"), write_examples(tmp_path / "examples.jsonl")
    training = Training(
        steps=4, batch_size=2, sequence_length=64, learning_rate=0.05, optimizer="schedulefree_adamw", sample_every=2
    )
    sampled: list[bool] = []
    made: list[AdamWScheduleFree] = []
    begin = AdamWScheduleFree.__init__
    monkeypatch.setattr(
        AdamWScheduleFree, "__init__", lambda self, *a, **o: (made.append(self), begin(self, *a, **o))[1]
    )
    module = sys.modules[finetune.__module__]
    sample = vars(module)["_sample"]
    monkeypatch.setattr(module, "_sample", lambda *a: (sampled.append(bool(made[0]._kept)), sample(*a))[1])
    result, _ = quiet(model, config_for(data, tmp_path / "run", training, lr_schedule=CONSTANT))
    assert sampled == [False, True, True, True]  # before, steps 2 and 4, after
    assert result.after is not None and result.before is not None and result.after.loss < result.before.loss
    stored = open_safetensors(result.output / "adapter_model.safetensors")
    names = [name for group in made[0].param_groups for name in group["names"]]
    for name, tensor in zip(names, (t for group in made[0].param_groups for t in group["params"]), strict=True):
        assert (stored[f"base_model.model.{name}"].load() == tensor.numpy()).all()
        assert (made[0].trained(tensor) != tensor.numpy()).any()


@pytest.mark.unit
def test_verified_steps_are_the_same_bits(tmp_path: Path) -> None:
    plain = trainer_of(run_config(tmp_path / "plain", adapter=DROPOUT, **AVERAGED))
    plain.run()
    config = run_config(tmp_path / "run", adapter=DROPOUT, **AVERAGED)
    config.observe.verify_every = 2
    trainer = trainer_of(config)
    trainer.run()
    assert losses(trainer) == losses(plain) and weights_hash(trainer) == weights_hash(plain)


# ---------------------------------------------------------------------- what is refused
@pytest.mark.unit
@pytest.mark.parametrize("name", ["warmup_cosine", "cosine", "linear", "wsd", "step"])
def test_a_rate_that_falls_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"lr_schedule\.name is {name}, and schedulefree_adamw averages .* constant"):
        TrainConfig(training=Training(optimizer="schedulefree_adamw"), lr_schedule=LRSchedule(name=name))


@pytest.mark.unit
def test_an_average_that_nothing_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.beta1 is 0, expected a number above 0 for schedulefree_adamw"):
        TrainConfig(training=Training(optimizer="schedulefree_adamw", beta1=0), lr_schedule=LRSchedule("constant"))


@pytest.mark.unit
def test_an_optimizer_that_is_none_is_refused_and_not_taken_for_another() -> None:
    config = TrainConfig()
    config.training.optimizer = "adamv"
    with pytest.raises(ConfigError, match=r"training\.optimizer is 'adamv', expected one of adamw, adam"):
        config.make_optimizer([("w", Tensor([1.0], requires_grad=True))])
    with pytest.raises(ConfigError, match="optimizer"):
        Training(optimizer="adamv")

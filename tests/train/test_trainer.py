"""The training loop: what a step computes, what stays the same, and what happens when something breaks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entrenar._kernels import cpu
from entrenar.adapters.base import adapter_layers
from entrenar.autograd import Tensor
from entrenar.data import DataLoader, collate
from entrenar.errors import ConfigError, NumericsError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.train import StepReport, Trainer, evaluate
from entrenar.train.config import LRSchedule
from tests.train.builders import (
    DROPOUT,
    LENGTH,
    SHAPE,
    Calls,
    held_out_batches,
    listen,
    losses,
    run_config,
    samples,
    trainer_of,
    weights_hash,
)


class FixedLoader(DataLoader):
    """Gives the same four rows in batches of `batch_size`, whatever the seed says."""

    def _shuffled(self) -> list[list[int]]:
        return [[i] for i in range(len(self.samples))]


def gradients_of_one_step(batch_size: int, accumulation: int, directory: Path) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of one step over the same four rows, which train different numbers of tokens."""
    config = run_config(
        directory, steps=1, batch_size=batch_size, gradient_accumulation=accumulation, max_grad_norm=1e9
    )
    loader = FixedLoader(samples(4), batch_size, LENGTH, packing=False)
    trainer = Trainer(LLaMAModel(SHAPE, seed=7), config, loader)
    found: dict[str, np.ndarray] = {}
    trainer.optimizer.step = lambda scale: found.update(  # type: ignore[method-assign]
        {name: tensor.grad.numpy().copy() for name, tensor in trainer.parameters if tensor.grad is not None}
    )
    return trainer.run()[0].loss, found


# ---------------------------------------------------------------------- what a step computes
@pytest.mark.unit
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (2, 2)])
def test_accumulated_batches_give_the_step_of_one_large_batch(
    batch_size: int, accumulation: int, tmp_path: Path
) -> None:
    whole_loss, whole = gradients_of_one_step(4, 1, tmp_path)
    loss, parts = gradients_of_one_step(batch_size, accumulation, tmp_path)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert whole.keys() == parts.keys() and len(whole) == len(SHAPE.parameter_shapes())
    for name, expected in whole.items():
        error = np.linalg.norm(parts[name] - expected) / np.linalg.norm(expected)
        assert error < 1e-5, name


@pytest.mark.unit
def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens_alone(tmp_path: Path) -> None:
    rows = samples(4)
    model = LLaMAModel(SHAPE, seed=7)
    total, tokens = 0.0, 0
    for row in rows:  # one row after the other, through logits in float64
        logits = model(row.tokens[None, :-1].astype(np.int64)).numpy()[0].astype(np.float64)
        log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        costs = log_sum - logits[np.arange(len(logits)), row.tokens[1:]]
        total += costs[row.trained[1:]].sum()
        tokens += int(row.trained[1:].sum())
    loss, _ = gradients_of_one_step(1, 4, tmp_path)
    assert loss == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.unit
def test_a_report_says_what_the_step_did(tmp_path: Path) -> None:
    seen: list[StepReport] = []
    config = run_config(tmp_path, steps=3, gradient_accumulation=2, learning_rate=0.5e-2)
    trainer = trainer_of(config, callbacks=[Calls(on_step=seen.append)])
    reports = trainer.run()
    assert reports == seen == trainer.reports
    assert [report.step for report in reports] == [1, 2, 3]
    for report in reports:
        assert report.tokens == 2 * 2 * LENGTH
        assert 0 < report.trained_tokens < report.tokens
        assert report.learning_rate == 0.5e-2
        assert report.seconds > 0 and report.grad_norm > 0 and report.held_out is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LRSchedule(name="constant", warmup_steps=2), [0.5, 1.0, 1.0, 1.0]),
        (LRSchedule(name="step", step_size=2, gamma=0.5), [1.0, 1.0, 0.5, 0.5]),
        (LRSchedule(name="step", step_size=2), [1.0, 1.0, 0.1, 0.1]),
        (LRSchedule(name="exponential", gamma=0.5), [1.0, 0.5, 0.25, 0.125]),
        (LRSchedule(name="cosine"), [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
        (LRSchedule(name="warmup_cosine", warmup_steps=2, min_lr=0.005), [0.5, 1.0, 1.0, 0.75]),
        (LRSchedule(name="linear"), [1.0, 0.75, 0.5, 0.25]),
        (LRSchedule(name="linear", schedule_steps=8), [1.0, 0.875, 0.75, 0.625]),
        (LRSchedule(name="wsd", warmup_steps=1, decay_steps=2, decay_shape="linear"), [1.0, 1.0, 1.0, 0.5]),
        (LRSchedule(name="warmup_cosine"), [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
    ],
    ids=lambda value: value.name if isinstance(value, LRSchedule) else "",
)
def test_the_schedule_sets_the_learning_rate_of_each_step(
    schedule: LRSchedule, expected: list[float], tmp_path: Path
) -> None:
    trainer = trainer_of(run_config(tmp_path, steps=4, learning_rate=0.01, lr_schedule=schedule))
    rates = [report.learning_rate / 0.01 for report in trainer.run()]
    assert rates == pytest.approx(expected)


@pytest.mark.unit
def test_the_first_step_of_a_warmup_moves_the_weights(tmp_path: Path) -> None:
    schedule = LRSchedule(name="constant", warmup_steps=2)
    trainer = trainer_of(run_config(tmp_path, steps=2, lr_schedule=schedule))
    before = weights_hash(trainer)
    after = []
    listen(trainer, on_step=lambda report: after.append(weights_hash(trainer)))
    trainer.run()
    assert len({before, *after}) == 3


@pytest.mark.unit
def test_gradients_are_scaled_down_to_the_norm_that_is_asked_for(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=1, optimizer="sgd", momentum=0.0, learning_rate=1.0, max_grad_norm=0.01)
    trainer = trainer_of(config)
    before = {name: tensor.numpy().copy() for name, tensor in trainer.parameters}
    (report,) = trainer.run()
    moves = np.concatenate([(before[name] - tensor.numpy()).ravel() for name, tensor in trainer.parameters])
    assert report.grad_norm > 0.5  # as it was before
    assert np.linalg.norm(moves) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.unit
def test_the_held_out_set_is_evaluated_as_often_as_asked_and_changes_nothing(tmp_path: Path) -> None:
    plain = trainer_of(run_config(tmp_path, adapter=DROPOUT))
    plain.run()
    watched = trainer_of(run_config(tmp_path, adapter=DROPOUT, evaluate_every=2))
    reports = watched.run()
    assert [report.step for report in reports if report.held_out] == [2, 4, 6]
    assert reports[-1].held_out == evaluate(watched.model, held_out_batches())
    assert reports[1].held_out != reports[-1].held_out
    assert losses(plain) == losses(watched) and weights_hash(plain) == weights_hash(watched)


# ---------------------------------------------------------------------- evaluation
@pytest.mark.unit
def test_evaluation_weighs_tokens_and_not_batches(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path))
    batches = held_out_batches()
    one_by_one = [evaluate(trainer.model, [batch]) for batch in batches]
    whole = evaluate(trainer.model, batches)
    assert whole.tokens == sum(part.tokens for part in one_by_one) == sum(batch.trained_tokens for batch in batches)
    assert whole.loss == pytest.approx(sum(part.loss * part.tokens for part in one_by_one) / whole.tokens)
    assert whole.perplexity == pytest.approx(math.exp(whole.loss))


@pytest.mark.unit
def test_evaluation_leaves_dropout_out_and_switches_it_on_again(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, adapter=DROPOUT, steps=2))
    trainer.run()  # B is no longer zero
    assert evaluate(trainer.model, trainer.held_out) == evaluate(trainer.model, trainer.held_out)
    assert all(layer.training for _, layer in adapter_layers(trainer.model))
    without = LLaMAModel(SHAPE, seed=7)
    replace(DROPOUT, dropout=0.0).apply(without)
    for (_, theirs), (_, ours) in zip(trainer.parameters, without.trainable_parameters(), strict=True):
        ours.numpy()[...] = theirs.numpy()
    assert evaluate(without, trainer.held_out) == evaluate(trainer.model, trainer.held_out)


@pytest.mark.unit
def test_a_held_out_set_without_targets_is_refused(tmp_path: Path) -> None:
    row = samples(1)[0]
    empty = collate([[replace(row, trained=np.zeros(len(row), bool))]], LENGTH, 0)
    with pytest.raises(NumericsError, match="held-out set has no trained tokens"):
        evaluate(LLaMAModel(SHAPE), [empty])


# ---------------------------------------------------------------------- the same bits
@pytest.mark.unit
@pytest.mark.parametrize("lora", [None, DROPOUT], ids=["full", "lora with dropout"])
def test_one_seed_gives_one_result_for_any_number_of_threads(
    lora: LoRAConfig | None, tmp_path: Path, threads: None
) -> None:
    runs = []
    for count in (1, 2, 2):
        cpu.set_num_threads(count)
        trainer = trainer_of(run_config(tmp_path, adapter=lora))
        trainer.run()
        runs.append((losses(trainer), weights_hash(trainer)))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.unit
def test_another_seed_gives_another_result(tmp_path: Path) -> None:
    first, second = (trainer_of(run_config(tmp_path, adapter=DROPOUT, seed=seed)) for seed in (3, 4))
    assert losses_of_run(first) != losses_of_run(second)


def losses_of_run(trainer: Trainer) -> list[str]:
    trainer.run()
    return losses(trainer)


@pytest.mark.unit
def test_recomputing_layers_changes_no_bit(tmp_path: Path) -> None:
    plain, recomputed = (trainer_of(run_config(tmp_path, adapter=DROPOUT)) for _ in range(2))
    recomputed.model.gradient_checkpointing = True
    assert losses_of_run(plain) == losses_of_run(recomputed)
    assert weights_hash(plain) == weights_hash(recomputed)


# ---------------------------------------------------------------------- what breaks
def damage(tensor: Tensor) -> None:
    tensor.numpy().reshape(-1)[5] = np.nan


@pytest.mark.unit
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_weight(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, every=1))
    states = []

    def break_after_two_steps(report: object) -> None:
        if trainer.step == 2:
            damage(dict(trainer.parameters)["model.layers.1.mlp.up_proj.weight"])
        states.append(weights_hash(trainer))

    listen(trainer, on_step=break_after_two_steps)
    with pytest.raises(
        NumericsError, match=r"loss of step 3 is nan: the weight model\.layers\.1\.mlp\.up_proj\.weight is not finite"
    ):
        trainer.run()
    assert weights_hash(trainer) == states[1], "the step that failed changed weights"
    resumed = trainer_of(run_config(tmp_path, resume=True))
    assert resumed.step == 2 and weights_hash(resumed) != states[1]  # written before the damage
    assert len(resumed.run()) == 6


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.1.self_attn.v_proj.weight", r"the output of model\.layers\.1\.self_attn"),
        ("model.layers.0.mlp.down_proj.weight", r"the output of model\.layers\.0\.mlp"),
        ("lm_head.weight", "the logits of the head"),
    ],
)
def test_an_overflow_names_the_layer_and_the_operation(name: str, where: str, tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path))
    dict(trainer.parameters)[name].numpy()[...] = np.float32(3e38)
    with pytest.raises(NumericsError, match=rf"loss of step 1 is \w+: {where} is not finite"):
        trainer.run()
    with pytest.raises(NumericsError, match=rf"held-out loss is \w+: {where} is not finite"):
        evaluate(trainer.model, trainer.held_out)


@pytest.mark.unit
def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(run_config(tmp_path))
    before = weights_hash(trainer)
    weight = dict(trainer.parameters)["model.norm.weight"]
    backward = Trainer._backward

    def poisoned(self: Trainer, loss: Tensor) -> None:
        backward(self, loss)
        assert weight.grad is not None
        damage(weight.grad)

    monkeypatch.setattr(Trainer, "_backward", poisoned)
    with pytest.raises(NumericsError, match=r"Step 1: The gradient of model\.norm\.weight has the norm nan"):
        trainer.run()
    assert weights_hash(trainer) == before and trainer.step == 0


@pytest.mark.unit
def test_frozen_weights_alone_cannot_be_trained(tmp_path: Path) -> None:
    model = LLaMAModel(SHAPE)
    model.freeze()
    config = run_config(tmp_path)
    loader = DataLoader(samples(), 2, LENGTH)
    with pytest.raises(ConfigError, match="no parameters to optimize"):
        Trainer(model, config, loader)

"""Messages with weights: their tokens' losses are multiplied, and the mean is over the sum of weights, as in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor, linear_cross_entropy, no_grad
from entrenar.data import (
    DataLoader,
    Sample,
    Samples,
    collate,
    encode_example,
    encode_examples,
    evaluation_batches,
)
from entrenar.data.formats import example_of
from entrenar.data.preferences import PreferenceFile
from entrenar.errors import ConfigError, FormatError, NumericsError, ShapeError
from entrenar.llama import LLaMAModel
from entrenar.train import Trainer
from entrenar.train.config import Training
from entrenar.train.evaluate import evaluate
from tests.data.test_masking import chatml
from tests.train.builders import (
    LENGTH,
    SHAPE,
    config_for,
    losses,
    quiet,
    run_config,
    samples,
    weights_hash,
    write_model,
)

pytestmark = pytest.mark.unit


def weighted(count: int = 12, seed: int = 0) -> list[Sample]:
    """Random samples whose targets have one of three weights; some of the samples have none."""
    rng = np.random.default_rng(seed)
    made = []
    for index, sample in enumerate(samples(count, seed)):
        weights = rng.choice([0.25, 0.5, 1.0], len(sample)).astype(np.float32)
        made.append(sample if index % 3 == 0 else Sample(sample.tokens, sample.trained, weights=weights))
    return made


def by_torch(model: LLaMAModel, chosen: list[Sample]) -> float:
    """The weighted mean over all targets of samples that run alone, by torch's cross-entropy."""
    torch = pytest.importorskip("torch")
    total = weight = 0.0
    for sample in chosen:
        with no_grad():
            logits = model(sample.tokens[None].astype(np.int64)).numpy()[0, :-1]
        each = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits.copy()).double(),
            torch.from_numpy(sample.tokens[1:].astype(np.int64)),
            reduction="none",
        ).numpy()
        own = np.ones(len(sample)) if sample.weights is None else sample.weights.astype(np.float64)
        marks = sample.trained[1:] * own[1:]
        total, weight = total + float((each * marks).sum()), weight + float(marks.sum())
    return total / weight


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_loss_and_gradients_are_those_of_torch(reduction: str, cap: float | None) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, head = rng.standard_normal((2, 5, 8)).astype(np.float32), rng.standard_normal((11, 8)).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 5)), rng.random((2, 5)).astype(np.float32)
    targets[0, :2], weights[1, 1] = -100, 0
    ours = [Tensor(x, requires_grad=True), Tensor(head, requires_grad=True)]
    loss = linear_cross_entropy(*ours, targets, reduction=reduction, softcap=cap, weights=weights)
    loss.backward()
    theirs = [torch.tensor(x, requires_grad=True), torch.tensor(head, requires_grad=True)]
    logits = theirs[0] @ theirs[1].T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    each = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 11), torch.tensor(targets.reshape(-1)), reduction="none"
    )
    counted = torch.tensor(weights.reshape(-1) * (targets.reshape(-1) != -100))
    expected = (each * counted).sum() / (counted.sum() if reduction == "mean" else 1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for own, other in zip(ours, theirs, strict=True):
        assert own.grad is not None
        np.testing.assert_allclose(own.grad.numpy(), other.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_weights_of_one_change_no_bit_and_wrong_ones_are_refused() -> None:
    rng = np.random.default_rng(1)
    x, head = Tensor(rng.standard_normal((3, 8)), requires_grad=True), Tensor(rng.standard_normal((11, 8)))
    targets = np.array([1, -100, 3])
    found = []
    for weights in (None, np.ones(3)):
        x.grad = None
        loss = linear_cross_entropy(x, head, targets, weights=weights)
        loss.backward()
        assert x.grad is not None
        found.append((loss.item(), x.grad.tolist()))
    assert found[0] == found[1]
    with pytest.raises(ShapeError, match=r"weights have shape \(2,\), expected \(3,\) as the targets"):
        linear_cross_entropy(x, head, targets, weights=np.ones(2))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="finite and not negative"):
            linear_cross_entropy(x, head, targets, weights=np.array([1, 1, wrong]))
    with pytest.raises(NumericsError, match="no tokens"):
        linear_cross_entropy(x, head, targets, weights=np.zeros(3))


@pytest.mark.parametrize("packing", [False, True])
def test_evaluation_is_the_weighted_mean_whatever_shares_a_row(packing: bool) -> None:
    model = LLaMAModel(SHAPE, seed=7)
    found = evaluate(model, evaluation_batches(Samples(weighted()), 2, LENGTH, packing))
    assert found.loss == pytest.approx(by_torch(model, weighted()), rel=1e-5)
    assert found.tokens == sum(int(sample.trained[1:].sum()) for sample in weighted())
    plain = evaluate(model, evaluation_batches(samples(12), 2, LENGTH, packing))
    assert abs(plain.loss - found.loss) > 1e-3


def run(directory: Path, chosen: list[Sample], batch: int, accumulation: int, packing: bool) -> Trainer:
    config = run_config(directory, batch_size=batch, gradient_accumulation=accumulation, steps=2)
    loader = DataLoader(Samples(chosen), batch, LENGTH, seed=3, packing=packing)
    trainer = Trainer(LLaMAModel(SHAPE, seed=7), config, loader, list(evaluation_batches(chosen[:4], 2, LENGTH)))
    trainer.run()
    return trainer


def test_accumulation_of_weighted_tokens_equals_one_batch(tmp_path: Path) -> None:
    chosen = weighted(32)
    one, many = run(tmp_path / "a", chosen, 32, 1, False), run(tmp_path / "b", chosen, 1, 32, False)
    assert one.reports[0].loss == pytest.approx(by_torch(LLaMAModel(SHAPE, seed=7), chosen), rel=1e-5)
    for ours, theirs in zip(one.reports, many.reports, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        assert ours.trained_tokens == theirs.trained_tokens
    for (name, ours_), (_, theirs_) in zip(one.parameters, many.parameters, strict=True):
        np.testing.assert_allclose(ours_.numpy(), theirs_.numpy(), rtol=1e-4, atol=2e-5, err_msg=name)


def test_equal_weights_are_no_weights_and_others_are_another_run(tmp_path: Path) -> None:
    ones = [Sample(s.tokens, s.trained, weights=np.ones(len(s), np.float32)) for s in samples(8)]
    plain, same = run(tmp_path / "a", samples(8), 2, 2, True), run(tmp_path / "b", ones, 2, 2, True)
    assert losses(plain) == losses(same) and weights_hash(plain) == weights_hash(same)
    other = run(tmp_path / "c", weighted(8), 2, 2, True)
    assert weights_hash(other) != weights_hash(plain)
    assert other.fingerprint["the examples"] != plain.fingerprint["the examples"]
    assert other.fingerprint["the held-out examples"] != plain.fingerprint["the held-out examples"]


def test_samples_keep_the_weights_where_they_are_cut_and_packed() -> None:
    kept = Samples(weighted())
    for ours, theirs in zip(kept, weighted(), strict=True):
        if theirs.weights is None:
            assert ours.weights is None
        else:
            assert ours.weights is not None and np.array_equal(ours.weights, theirs.weights)
    batch = collate([[weighted()[1], weighted()[0]]], 2 * LENGTH, 0)
    assert batch.weights is not None and batch.weights.shape == batch.targets.shape
    assert (batch.weights[batch.targets == -100] == 0).all() and (batch.weights[batch.targets != -100] > 0).all()
    assert batch.trained_weight == pytest.approx(float(batch.weights.sum()))
    plain = collate([samples(1)], LENGTH, 0)
    assert plain.weights is None and plain.trained_weight == plain.trained_tokens


TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two words", "weight": 0.25},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four", "weight": 0.0},
    {"role": "user", "content": "five"},
    {"role": "assistant", "content": "six more words", "weight": 1},
]


@pytest.mark.parametrize("on_prompt", [False, True])
@pytest.mark.parametrize("system", [{}, {"system": "Be brief."}])
def test_a_message_gives_its_weight_to_its_tokens(on_prompt: bool, system: dict[str, str]) -> None:
    tokenizer = chatml()
    example = example_of({"messages": TURNS, **system}, "here")
    made = encode_example(example, tokenizer, train_on_prompt=on_prompt)
    assert made.weights is not None and made.weights.dtype == np.float32
    assert set(made.weights[made.trained].tolist()) == {0.25, 1.0}
    quarter = tokenizer.decode(made.tokens[made.trained & (made.weights == 0.25)].tolist(), skip_special=False)
    assert quarter.startswith("two words") and "three" not in quarter
    unweighted = [turn | ({"weight": 1} if turn.get("weight") == 0.25 else {}) for turn in TURNS]
    plain = encode_example(example_of({"messages": unweighted, **system}, ""), tokenizer, train_on_prompt=on_prompt)
    assert plain.weights is None
    assert np.array_equal(plain.tokens, made.tokens) and np.array_equal(plain.trained, made.trained)


def test_split_samples_and_the_last_answer_keep_their_weights() -> None:
    tokenizer = chatml()
    example = example_of({"messages": [*TURNS[:5], TURNS[5] | {"weight": 0.5}]}, "here")
    whole = encode_examples([example], tokenizer, 10_000)[0][0]
    assert whole.weights is not None
    pieces, _ = encode_examples([example], tokenizer, 12, too_long="split")
    total = sum(float(piece.weights[piece.trained].sum()) for piece in pieces if piece.weights is not None)
    assert len(pieces) > 1 and total == pytest.approx(float(whole.weights[whole.trained].sum()))
    last, _ = encode_examples([example], tokenizer, 10_000, last_answer=True)
    assert last[0].weights is not None and set(last[0].weights[last[0].trained].tolist()) == {0.5}


@pytest.mark.parametrize("wrong", [-0.5, 1.5, 2, "0.5", [1], float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(FormatError, match=r"here: weight of a message is .*, expected a number from 0 \(not trained\)"):
        example_of({"messages": [TURNS[0], TURNS[1] | {"weight": wrong}]}, "here")


def test_a_weight_of_a_prompt_or_against_a_mark_is_refused() -> None:
    with pytest.raises(FormatError, match="weight says that a message of the user is trained"):
        example_of({"messages": [TURNS[0] | {"weight": 0.5}, TURNS[1]]}, "here")
    with pytest.raises(FormatError, match="weight true and train false, which contradict each other"):
        example_of({"messages": [TURNS[0], TURNS[1] | {"train": False}]}, "here")
    assert example_of({"messages": [TURNS[0], TURNS[1] | {"train": True}]}, "here").weights == {1: 0.25}


def test_weights_of_preferences_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    answers = {"chosen": [TURNS[1]], "rejected": [{"role": "assistant", "content": "no"}]}
    path.write_text(json.dumps({"prompt": [TURNS[0]], **answers}) + "\n")
    with pytest.raises(FormatError, match="line 1: an answer has a weight, which preferences do not use"):
        PreferenceFile(path, labelled=False)


def test_a_run_over_a_file_with_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    results = []
    for name, weight in (("a", 0.5), ("b", 1), ("c", 0.25)):
        lines = []
        for i in range(20):
            turns = [
                {"role": "user", "content": f"What is {i} plus 1?"},
                {"role": "assistant", "content": f"It is {i + 1}."},
            ]
            turns[1] |= {"weight": weight if name != "c" else (0.25 if i % 2 else 1)}
            lines.append(json.dumps({"messages": turns}))
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(lines))
        training = Training(steps=2, batch_size=2, sequence_length=64, learning_rate=1e-2)
        results.append(quiet(model, config_for(data, tmp_path / name, training))[0])
    half, one, mixed = results
    assert half.after.loss == pytest.approx(one.after.loss, rel=1e-5)  # the same weight everywhere is none
    assert abs(mixed.after.loss - one.after.loss) > 1e-6

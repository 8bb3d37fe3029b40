"""LLaMAModel: causality, losses, gradients that add up, weights that move once or never, the same bits every time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar import matmul_precision
from entrenar._kernels import cpu
from entrenar._kernels.cpu import PRECISIONS
from entrenar.autograd import QuantizedTensor, Tensor, cross_entropy, manual_seed, memory_stats, no_grad
from entrenar.errors import ConfigError, EntrenarError, ShapeError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.optim import SGD, AdamW
from entrenar.qlora import QLoRAConfig

from .builders import (
    assert_same,
    gradients_of,
    model_of,
    random_arrays,
    random_model,
    random_tokens,
    relative_error,
    small_config,
    weights_of,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "llama2"
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one kv head, head size 24": {"num_key_value_heads": 1, "head_dim": 24},
    "multi-head": {"num_key_value_heads": 4},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def adapted(kind: str, dropout: float = 0.0) -> LLaMAModel:
    """A model that trains "full", or adapters over an fp32 ("lora") or 4-bit ("qlora") base, with B off zero."""
    model = random_model(small_config(hidden_size=128, intermediate_size=192))
    if kind == "full":
        return model
    if kind == "lora":
        model.to_lora(LoRAConfig(rank=4, dropout=dropout, target_modules=["all-linear"]))
    else:
        model.to_qlora(QLoRAConfig(rank=4, dropout=dropout, target_modules=["all-linear"]))
    rng = np.random.default_rng(5)
    for name, weight in model.trainable_parameters():
        if "lora_B" in name:
            weight.numpy()[...] = 0.1 * rng.standard_normal(weight.shape).astype(np.float32)
    return model


def step_of(model: LLaMAModel, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of one step from a fixed seed."""
    manual_seed(3)
    for _, weight in model.trainable_parameters():
        weight.grad = None
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.item(), gradients_of(model)


# ---------------------------------------------------------------------- forward
@pytest.mark.unit
@every_variant
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_changed_future_token_leaves_earlier_logits_bit_identical(
    precision: str, changes: dict[str, Any], tier: str
) -> None:
    model = random_model(small_config(**changes))
    tokens = random_tokens(model.config, 2, 40)

    def logits(tokens: np.ndarray) -> np.ndarray:
        with matmul_precision(precision):
            return model(tokens).numpy().copy()

    before = logits(tokens)
    assert before.shape == (2, 40, 67)
    for position in (39, 33, 1):
        other = tokens.copy()
        other[0, position] = (other[0, position] + 1) % model.config.vocab_size
        after = logits(other)
        np.testing.assert_array_equal(after[0, :position], before[0, :position])
        np.testing.assert_array_equal(after[1], before[1])
        assert (after[0, position:] != before[0, position:]).any(axis=-1).all()  # and every later token sees it


@pytest.mark.unit
@pytest.mark.parametrize(("name", "shape"), [("tiny", (4, 129)), ("124m", (2, 129))])
def test_the_loss_at_random_weights_is_that_of_a_uniform_guess(name: str, shape: tuple[int, int]) -> None:
    config = LLaMAConfig.from_file(CONFIGS / f"{name}.toml")
    model = LLaMAModel(config)
    tokens = random_tokens(config, *shape)
    with no_grad():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(config.vocab_size), rel=0.02)


@pytest.mark.unit
def test_initial_weights_follow_the_seed_and_the_configured_spread() -> None:
    config = LLaMAConfig.from_file(CONFIGS / "tiny.toml")
    weights = weights_of(LLaMAModel(config, seed=1))
    assert_same(weights_of(LLaMAModel(config, seed=1)), weights)
    others = weights_of(LLaMAModel(config, seed=2))
    for name, values in weights.items():
        if values.ndim == 1:
            assert (values == 1).all(), name
        else:
            assert values.std() == pytest.approx(config.initializer_range, rel=0.03), name
            assert abs(values.mean()) < 5 * config.initializer_range / math.sqrt(values.size), name
            assert not np.array_equal(values, others[name]), name
    matrices = [values.ravel()[:64].tobytes() for values in weights.values() if values.ndim == 2]
    assert len(set(matrices)) == len(matrices)  # no two matrices are the same numbers


@pytest.mark.gradient
@every_variant
def test_the_fused_loss_is_the_cross_entropy_of_the_logits(changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    tokens = random_tokens(config, 3, 17)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, :5] = targets[2] = -100
    fused, plain = random_model(config), random_model(config)
    fused_loss = fused.loss(inputs, targets)
    plain_loss = cross_entropy(plain(inputs), targets)
    assert fused_loss.item() == pytest.approx(plain_loss.item(), rel=1e-6)
    fused_loss.backward()
    plain_loss.backward()
    expected = gradients_of(plain)
    assert expected.keys() == config.parameter_shapes().keys()
    for name, gradient in gradients_of(fused).items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


@pytest.mark.unit
def test_sum_and_divisor_scale_the_loss() -> None:
    model = random_model()
    tokens = random_tokens(model.config, 2, 9)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[1, 3:] = -100  # 11 targets are left
    mean = model.loss(inputs, targets).item()
    assert model.loss(inputs, targets, reduction="sum").item() == pytest.approx(11 * mean, rel=1e-6)
    assert model.loss(inputs, targets, divisor=44).item() == pytest.approx(mean / 4, rel=1e-6)


@pytest.mark.unit
def test_positions_rotate_queries_and_keys_by_their_difference() -> None:
    model = random_model(std=0.3)
    tokens = random_tokens(model.config, 2, 20)
    default = model(tokens).numpy()
    counted = np.broadcast_to(np.arange(20), (2, 20))
    np.testing.assert_array_equal(model(tokens, positions=counted).numpy(), default)
    np.testing.assert_allclose(model(tokens, positions=counted + 44).numpy(), default, atol=2e-4)
    stretched = model(tokens, positions=counted * 2).numpy()
    assert np.abs(stretched[:, 5:] - default[:, 5:]).max() > 1e-2
    np.testing.assert_array_equal(stretched[:, 0], default[:, 0])  # the first token attends to itself alone


@pytest.mark.gradient
@every_variant
def test_packed_samples_are_the_samples_one_by_one(changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    lengths = [1, 13, 5, 21]
    bounds = np.cumsum([0, *lengths])
    tokens = random_tokens(config, 1, bounds[-1] + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    packed, single = random_model(config, std=0.3), random_model(config, std=0.3)
    cu_seqlens = bounds.astype(np.int32)
    logits = packed(inputs, positions=positions, cu_seqlens=cu_seqlens).numpy()
    loss = packed.loss(inputs, targets, positions=positions, cu_seqlens=cu_seqlens)
    loss.backward()
    total = 0.0
    for start, stop in itertools.pairwise(bounds):
        alone = single(inputs[:, start:stop]).numpy()
        np.testing.assert_allclose(logits[:, start:stop], alone, atol=1e-5, err_msg=f"{start}:{stop}")
        part = single.loss(inputs[:, start:stop], targets[:, start:stop], divisor=bounds[-1])
        part.backward()
        total += part.item()
    assert loss.item() == pytest.approx(total, rel=1e-6)
    expected = gradients_of(single)
    for name, gradient in gradients_of(packed).items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


# ---------------------------------------------------------------------- gradients
@pytest.mark.gradient
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_four_small_batches_accumulate_to_one_large_one(kind: str) -> None:
    tokens = random_tokens(small_config(), 4, 25)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, :20] = targets[1, 7:] = -100  # parts of unequal weight
    count = int((targets != -100).sum())
    whole, parts = adapted(kind), adapted(kind)
    loss = whole.loss(inputs, targets)
    loss.backward()
    total = 0.0
    for row in range(4):
        part = parts.loss(inputs[row : row + 1], targets[row : row + 1], divisor=count)
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    expected = gradients_of(whole)
    assert len(expected) == {"full": 21, "lora": 28, "qlora": 28}[kind]
    for name, gradient in gradients_of(parts).items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


@pytest.mark.gradient
@pytest.mark.parametrize(("kind", "dropout"), [("full", 0.0), ("lora", 0.3), ("qlora", 0.3)])
def test_recomputing_layers_gives_the_same_bits(kind: str, dropout: float) -> None:
    model = adapted(kind, dropout)
    tokens = random_tokens(model.config, 2, 33)
    loss, gradients = step_of(model, tokens)
    kept = []
    for layers in (False, 1, model.config.num_hidden_layers, True, 99):
        model.gradient_checkpointing = layers
        again, recomputed = step_of(model, tokens)
        assert again == loss
        assert_same(recomputed, gradients)
        before = memory_stats()["in_use"]
        held = model.loss(tokens[:, :-1], tokens[:, 1:])
        kept.append(memory_stats()["in_use"] - before)
        del held
    assert kept[0] > kept[1] > kept[2] == kept[3] == kept[4]
    if dropout:
        manual_seed(4)
        assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() != loss  # the masks do depend on the seed
    for wrong in (-1, "on"):
        model.gradient_checkpointing = wrong
        with pytest.raises(
            ConfigError, match=f"gradient_checkpointing is {wrong!r}, expected True, False or a number of layers"
        ):
            model.loss(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.gradient
@pytest.mark.parametrize(("kind", "dropout"), [("full", 0.0), ("lora", 0.3), ("qlora", 0.3)])
def test_any_number_of_threads_gives_the_same_bits(kind: str, dropout: float, tier: str, threads: None) -> None:
    model = adapted(kind, dropout)
    tokens = random_tokens(model.config, 3, 63)  # enough rows that matmul, attention and the head split them
    cpu.set_num_threads(1)
    loss, gradients = step_of(model, tokens)
    logits = model(tokens).numpy().copy()
    for count in (2, 3):
        cpu.set_num_threads(count)
        again, others = step_of(model, tokens)
        assert again == loss
        assert_same(others, gradients)
        np.testing.assert_array_equal(model(tokens).numpy(), logits)


# ---------------------------------------------------------------------- training
@pytest.mark.unit
def test_one_batch_is_learned_by_heart() -> None:
    model = LLaMAModel(LLaMAConfig.from_file(CONFIGS / "tiny.toml"))
    tokens = random_tokens(model.config, 2, 33)
    optimizer = AdamW(model.trainable_parameters(), lr=3e-3)
    for _ in range(110):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.loss(tokens[:, :-1], tokens[:, 1:]).item() < 0.05
    greedy = model(tokens[:, :-1]).numpy().argmax(-1)
    np.testing.assert_array_equal(greedy, tokens[:, 1:])


@pytest.mark.gradient
def test_a_tied_weight_is_one_weight_with_the_gradients_of_both_its_uses() -> None:
    config = small_config(tie_word_embeddings=True)
    arrays = random_arrays(config)
    table = "model.embed_tokens.weight"
    tied = model_of(config, arrays)
    untied = model_of(small_config(), arrays | {"lm_head.weight": arrays[table]})
    assert [name for name, _ in tied.named_parameters()] == list(config.parameter_shapes())
    assert tied.head_weight is tied.model.embed_tokens.weight
    tokens = random_tokens(config, 2, 21)
    for model in (tied, untied):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    one, two = gradients_of(tied), gradients_of(untied)
    assert relative_error(one[table], two[table] + two["lm_head.weight"]) < 1e-5
    assert relative_error(one[table], two[table]) > 0.1
    SGD(tied.trainable_parameters(), lr=0.5).step()
    np.testing.assert_allclose(weights_of(tied)[table], arrays[table] - 0.5 * one[table], rtol=1e-6, atol=1e-7)


@pytest.mark.unit
def test_a_weight_that_two_layers_share_is_listed_once() -> None:
    model = random_model()
    assert model.lm_head is not None
    model.lm_head.weight = model.model.embed_tokens.weight
    assert len(model.trainable_parameters()) == len(model.config.parameter_shapes()) - 1
    assert [name for name, weight in model.named_parameters() if weight is model.head_weight] == [
        "model.embed_tokens.weight"
    ]


@pytest.mark.unit
def test_a_tied_weight_takes_one_optimizer_step() -> None:
    model = random_model(small_config(tie_word_embeddings=True))
    before = weights_of(model)["model.embed_tokens.weight"].copy()
    tokens = random_tokens(model.config, 4, 30)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    AdamW(model.trainable_parameters(), lr=1e-3, weight_decay=0.0).step()
    moved = np.abs(weights_of(model)["model.embed_tokens.weight"] - before)
    assert np.median(moved) == pytest.approx(1e-3, rel=0.01)  # the first step of Adam moves every weight by the rate
    assert moved.max() < 1.01e-3


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_the_base_under_adapters_never_changes(kind: str) -> None:
    model = adapted(kind)
    base = [(name, weight) for name, weight in model.named_parameters() if ".lora_" not in name]
    trained = model.trainable_parameters()
    assert len(base) == 21
    assert all(".lora_" in name for name, _ in trained)
    frozen = {name: raw_bytes(weight) for name, weight in base}
    before = {name: weight.numpy().copy() for name, weight in trained}
    optimizer = AdamW(trained, lr=1e-2, weight_decay=0.5)
    tokens = random_tokens(model.config, 2, 20)
    for _ in range(3):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {name: raw_bytes(weight) for name, weight in base} == frozen
    for name, weight in base:
        assert not weight.requires_grad
        assert isinstance(weight, QuantizedTensor) or weight.grad is None, name
    for name, weight in trained:
        assert not np.array_equal(weight.numpy(), before[name]), name


def raw_bytes(weight: Tensor | QuantizedTensor) -> bytes:
    if isinstance(weight, QuantizedTensor):
        return b"".join(np.asarray(array).tobytes() for array in weight.to_arrays().values())
    return weight.numpy().tobytes()


@pytest.mark.unit
def test_a_weight_that_was_frozen_by_hand_stays_while_the_others_move() -> None:
    model = random_model()
    frozen = ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"]
    for name, weight in model.named_parameters():
        weight.requires_grad = name not in frozen
    before = {name: values.copy() for name, values in weights_of(model).items()}
    tokens = random_tokens(model.config, 2, 20)
    optimizer = AdamW(model.trainable_parameters(), lr=1e-2, weight_decay=0.5)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    after = weights_of(model)
    for name, weight in model.named_parameters():
        assert np.array_equal(after[name], before[name]) == (name in frozen), name
        assert (weight.grad is None) == (name in frozen), name
    model.freeze()
    assert model.trainable_parameters() == []


# ---------------------------------------------------------------------- bad input
def ids(*shape: int, dtype: Any = np.int64) -> np.ndarray:
    return np.ones(shape, dtype)


WRONG: dict[str, tuple[Callable[[LLaMAModel], Any], str]] = {
    "id beyond the vocabulary": (lambda m: m(np.array([[1, 67]])), r"67.*vocabulary|vocabulary.*67|\b67\b"),
    "negative id": (lambda m: m(np.array([[1, -1]])), r"-1"),
    "negative id in training": (lambda m: m.loss(np.array([[-100, 1]]), ids(1, 2)), r"-100"),
    "too long": (lambda m: m(ids(1, 65)), "65 positions is longer than the model's context of 64; use a shorter"),
    "too long in training": (lambda m: m.loss(ids(1, 65), ids(1, 65)), "65 positions is longer than .* context of 64"),
    "position beyond": (lambda m: m(ids(1, 2), positions=np.array([[0, 64]])), "65 positions is longer"),
    "negative position": (lambda m: m(ids(1, 2), positions=np.array([[0, -1]])), "-1"),
    "positions of another shape": (lambda m: m(ids(1, 2), positions=np.array([[0]])), r"\(1, 1\), expected \(1, 2\)"),
    "positions that are no integers": (lambda m: m(ids(1, 2), positions=np.array([[0.0, 1.5]])), "integers"),
    "floats": (lambda m: m(ids(1, 2, dtype=np.float32)), r"integers of shape \(batch, seq\), not float32"),
    "one axis": (lambda m: m(ids(3)), r"integers of shape \(batch, seq\), not int64 of shape \(3,\)"),
    "three axes": (lambda m: m(ids(1, 2, 3)), r"of shape \(1, 2, 3\)"),
    "no tokens": (lambda m: m(ids(1, 0)), r"\(1, 0\)"),
    "no rows": (lambda m: m(ids(0, 4)), r"\(0, 4\)"),
    "targets of another shape": (
        lambda m: m.loss(ids(1, 4), ids(1, 3)),
        r"\(1, 3\), expected \(1, 4\) as",
    ),
    "target beyond the vocabulary": (lambda m: m.loss(ids(1, 2), np.array([[1, 67]])), r"67"),
    "negative target": (lambda m: m.loss(ids(1, 2), np.array([[1, -2]])), r"-2"),
    "every target ignored": (lambda m: m.loss(ids(1, 2), np.full((1, 2), -100)), r"target"),
    "bounds that do not cover": (lambda m: m(ids(1, 4), cu_seqlens=np.array([0, 3])), r"cu_seqlens"),
    "bounds that fall": (lambda m: m(ids(1, 4), cu_seqlens=np.array([0, 3, 2, 4])), r"cu_seqlens"),
    "bounds that start late": (lambda m: m(ids(1, 4), cu_seqlens=np.array([1, 4])), r"cu_seqlens"),
    "unknown reduction": (lambda m: m.loss(ids(1, 2), ids(1, 2), reduction="max"), r"max"),
}


@pytest.mark.unit
@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_bad_input_is_one_clear_sentence(call: Callable[[LLaMAModel], Any], message: str) -> None:
    model = random_model()
    for _ in range(2):  # and the model is as good as before
        with pytest.raises(EntrenarError, match=message):
            call(model)
    assert np.isfinite(model(ids(1, 3)).numpy()).all()


@pytest.mark.unit
def test_the_longest_sequence_and_the_last_token_are_allowed() -> None:
    model = random_model()
    tokens = np.full((1, 64), 66)
    assert np.isfinite(model(tokens).numpy()).all()
    assert model(tokens.astype(np.uint16)).shape == (1, 64, 67)
    with pytest.raises(ShapeError):
        model(np.full((1, 65), 66))

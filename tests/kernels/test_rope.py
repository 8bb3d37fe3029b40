"""RoPE beyond its cases: the inverse, relative positions, Hugging Face's own rotation, and errors."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.autograd.ops.rope import rope, rope_table
from entrenar.errors import ConfigError, ShapeError

from .cases.rope import inverse_frequencies


@pytest.mark.unit
def test_table_is_rounded_once_from_float64() -> None:
    frequencies = inverse_frequencies(48, theta=5e5)
    cos, sin = rope_table(4096, frequencies)
    angles = np.arange(4096)[:, None] * frequencies
    assert np.array_equal(cos.numpy(), np.cos(angles).astype(np.float32))
    assert np.array_equal(sin.numpy(), np.sin(angles).astype(np.float32))
    assert rope_table(4096, frequencies)[0] is cos
    assert rope_table(4096, frequencies / 2)[0] is not cos


@pytest.mark.unit
def test_a_scale_is_that_of_cosines_and_sines() -> None:
    for scaled, plain in zip(rope_table(9, [1.0, 0.1], 1.25), rope_table(9, [1.0, 0.1]), strict=True):
        np.testing.assert_allclose(scaled.numpy(), 1.25 * plain.numpy().astype(np.float64), rtol=1e-7)


@pytest.mark.gradient
def test_backward_is_the_inverse_rotation_and_adds_up(tier: str) -> None:
    x = np.random.default_rng(1).standard_normal((2, 9, 3, 20)).astype(np.float32)
    positions = np.random.default_rng(2).integers(0, 64, (2, 9))
    table = rope_table(64, inverse_frequencies(20))
    tensor = Tensor(x, requires_grad=True)
    for turns in (1, 2):
        y = rope(tensor, *table, positions)
        y.backward(y.detach())  # the gradient of x is R^T R x = x
        np.testing.assert_allclose(tensor.grad.numpy(), turns * x, rtol=0, atol=2e-6)


@pytest.mark.unit
def test_scores_depend_on_relative_positions_only() -> None:
    q, k = np.random.default_rng(3).standard_normal((2, 1, 1, 1, 64))
    table = rope_table(300, inverse_frequencies(64))

    def score(m: int, n: int) -> float:
        return float((rope(q, *table, [[m]]).numpy() * rope(k, *table, [[n]]).numpy()).sum())

    assert score(7, 3) == pytest.approx(score(250, 246), abs=1e-4)
    assert abs(score(7, 3) - score(7, 5)) > 1e-2


@pytest.mark.unit
def test_a_position_beyond_every_integer_is_refused() -> None:
    table = rope_table(4, inverse_frequencies(8))
    with pytest.raises(ShapeError, match=r"position 9223372036854775808 of token \(0, 1\) lies outside the table of 4"):
        rope(np.zeros((1, 2, 1, 8)), *table, np.array([[0, 1 << 63]], np.uint64))


@pytest.mark.peers
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_agrees_with_transformers(parameters: dict[str, object]) -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=96, num_attention_heads=2, max_position_embeddings=512, rope_parameters=parameters
    )
    embedding = llama.LlamaRotaryEmbedding(config)
    rng = np.random.default_rng(4)
    q, k = rng.standard_normal((2, 2, 11, 2, 48)).astype(np.float32)
    positions = rng.integers(0, 512, (2, 11))
    theirs = [torch.tensor(x).transpose(1, 2) for x in (q, k)]
    expected = llama.apply_rotary_pos_emb(*theirs, *embedding(theirs[0], torch.tensor(positions)))
    table = rope_table(512, embedding.inv_freq.double().numpy())
    for x, y in zip((q, k), expected, strict=True):
        # transformers rounds the angle to float32 before the cosine: 512 radians carry 3e-5
        np.testing.assert_allclose(rope(x, *table, positions).numpy(), y.transpose(1, 2).numpy(), rtol=0, atol=2e-4)


@pytest.mark.unit
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0)], ids=str)
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    tensor = Tensor(np.ones(shape), requires_grad=True)
    out = rope(tensor, *rope_table(8, np.ones(shape[-1] // 2)))
    out.backward(Tensor(np.ones(shape)))
    assert out.shape == tensor.grad.shape == shape


@pytest.mark.unit
def test_what_does_not_fit_is_refused() -> None:
    cos, sin = rope_table(4, inverse_frequencies(8))
    x = np.ones((2, 3, 1, 8), np.float32)
    with pytest.raises(ShapeError, match=r"position 4 of token \(1, 2\) lies outside the table of 4"):
        rope(x, cos, sin, [[0, 1, 2], [1, 2, 4]])
    with pytest.raises(ShapeError, match=r"position -1 of token \(0, 1\)"):
        rope(x, cos, sin, [[0, -1, 2], [1, 2, 3]])
    with pytest.raises(ShapeError, match=r"position 4 of x .* table of 4"):
        rope(np.ones((1, 5, 1, 8)), cos, sin)
    with pytest.raises(ShapeError, match=r"integers of shape \(2, 3\)"):
        rope(x, cos, sin, [0, 1, 2])
    with pytest.raises(ShapeError, match=r"integers of shape \(2, 3\)"):
        rope(x, cos, sin, np.zeros((2, 3)))
    with pytest.raises(ShapeError, match=r"shape \(positions, 4\)"):
        rope(x, *rope_table(4, inverse_frequencies(6)))
    with pytest.raises(ShapeError, match=r"shape \(positions, 3\)"):
        rope(np.ones((1, 2, 1, 7)), cos, sin, partial=True)
    with pytest.raises(ShapeError, match="even head size"):
        rope(np.ones((1, 2, 1, 7)), cos, sin)
    with pytest.raises(ConfigError, match="bfloat16"):
        rope(Tensor(x, dtype="bfloat16"), cos, sin)
    with pytest.raises(ShapeError, match="vector"):
        rope_table(4, np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"between 0 and .*, found -1"):
        rope_table(-1, [1.0])

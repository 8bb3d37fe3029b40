"""NF4 beside bitsandbytes on matrices of a real model: values, absmax, and the second quantization of the absmax."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from entrenar.autograd.quantized import (
    DYNAMIC_MAP,
    QuantizedTensor,
    dequantize_bitsandbytes,
    dequantize_nf4,
    quantize_nf4,
)

from .. import smollm2

pytestmark = [pytest.mark.peers, pytest.mark.model]
MATRICES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.14.mlp.down_proj.weight",
    "model.layers.29.mlp.gate_proj.weight",
)
every_matrix = pytest.mark.parametrize("name", MATRICES)


@functools.cache
def real_matrix(name: str) -> np.ndarray:
    """A matrix of SmolLM2-135M-Instruct in float32 (of the embedding, the first rows)."""
    tensor = smollm2.checkpoint().tensors[name]
    return tensor.load_rows(0, min(2048, tensor.shape[0]))


def bitsandbytes(x: np.ndarray, double: bool) -> tuple[Any, Any, Any]:
    """(packed values, state, its own dequantization)."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.from_numpy(x), blocksize=64, quant_type="nf4", compress_statistics=double
    )
    return packed, state, functional.dequantize_4bit(packed, state).numpy()


def parts(packed: Any, state: Any) -> dict[str, Any]:
    """The arguments of from_bitsandbytes for a doubly quantized tensor."""
    nested = state.state2
    return {
        "quantized_values": packed,
        "absmax": state.absmax,
        "shape": tuple(state.shape),
        "quant_map": state.code,
        "nested_absmax": nested.absmax,
        "nested_quant_map": nested.code,
        "nested_offset": state.offset,
        "nested_blocksize": nested.blocksize,
    }


@every_matrix
def test_values_and_absmax_of_a_real_matrix_are_bit_equal(name: str, tier: str) -> None:
    x = real_matrix(name)
    packed, state, theirs = bitsandbytes(x, double=False)
    quantized, absmax = quantize_nf4(x)
    assert quantized.tobytes() == packed.numpy().tobytes()
    assert absmax.tobytes() == state.absmax.numpy().tobytes()
    np.testing.assert_array_equal(dequantize_nf4(quantized, absmax), theirs)
    error = np.linalg.norm(theirs - x) / np.linalg.norm(x)
    assert 0.05 < error < 0.12  # both did quantize


@every_matrix
def test_their_double_quantized_values_dequantize_to_the_same_weights(name: str, tier: str) -> None:
    packed, state, theirs = bitsandbytes(real_matrix(name), double=True)
    ours = QuantizedTensor.from_bitsandbytes(**parts(packed, state))
    assert ours.double_quantized
    assert ours.quantized_values.tobytes() == packed.numpy().tobytes()
    for values in (ours.dequantize(), dequantize_bitsandbytes(**parts(packed, state))):
        np.testing.assert_allclose(values, theirs, rtol=0, atol=1e-6)


@every_matrix
def test_our_double_quantization_takes_the_nearest_map_entry_and_nearly_always_theirs(name: str, tier: str) -> None:
    x = real_matrix(name)
    packed, state, _ = bitsandbytes(x, double=True)
    ours = QuantizedTensor.quantize(x, "nf4")
    assert ours.quantized_values.tobytes() == packed.numpy().tobytes()
    assert ours.scales is not None
    assert ours.quantized_scales is not None
    absmax = quantize_nf4(x)[1].reshape(-1)
    chosen = ours.quantized_scales.reshape(-1)
    scaled = (absmax - np.float32(ours.scale_offset)) / np.repeat(ours.scales, 256)[: absmax.size]
    distances = np.abs(scaled[:, None] - DYNAMIC_MAP)
    np.testing.assert_allclose(distances[np.arange(chosen.size), chosen], distances.min(axis=1), rtol=0, atol=1e-7)
    assert np.unique(chosen).size > 50
    assert (chosen == state.absmax.numpy()).mean() >= 0.995
    np.testing.assert_allclose(ours.scale_offset, float(state.offset), rtol=1e-6)
    np.testing.assert_allclose(ours.scales, state.state2.absmax.numpy(), rtol=1e-6)

"""16-bit values with a scale for every 64 columns: their definition, their error, and products that read them as is."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar import matmul_precision
from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor, Tensor, linear
from entrenar.errors import QuantizationError

LIMIT = 4095


def heavy_tailed(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).standard_t(2, shape).astype(np.float32)


def values_of(quantized: QuantizedTensor) -> np.ndarray:
    return quantized.quantized_values.view(np.int16)


@pytest.mark.unit
def test_values_are_the_nearest_multiples_of_the_blocks_scale(tier: str) -> None:
    x = heavy_tailed((5, 192))
    x[2, 64:128] = 0
    x[3, :64] = 1e-36  # its reciprocal would overflow: a block of zeros
    quantized = QuantizedTensor.quantize(x, "int16")
    blocks = x.astype(np.float64).reshape(5, 3, 64)
    largest = np.abs(blocks).max(axis=-1)
    largest[largest < 1e-30] = 0
    np.testing.assert_allclose(quantized.scales, largest / LIMIT, rtol=1e-6)
    values = values_of(quantized).reshape(5, 3, 64)
    assert values.dtype == np.int16 and np.abs(values).max() == LIMIT
    assert not values[2, 1].any() and not values[3, 0].any()
    error = np.abs(values * quantized.scales.astype(np.float64)[..., None] - blocks)
    assert (error <= 0.501 * quantized.scales[..., None] + 1e-36).all()
    exact = (values * quantized.scales[..., None]).reshape(5, 192)
    np.testing.assert_array_equal(quantized.dequantize(), exact)
    np.testing.assert_array_equal(quantized.dequantize_run(1, 7, 161), exact[1, 7:161])
    assert quantized.nbytes == 5 * 192 * 2 + 5 * 3 * 4


@pytest.mark.unit
def test_it_is_finer_than_bfloat16(tier: str) -> None:
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    error = np.linalg.norm(QuantizedTensor.quantize(x, "int16").dequantize() - x)
    assert error < 0.125 * np.linalg.norm(Tensor(x, dtype="bfloat16").numpy().astype(np.float32) - x)


@pytest.mark.unit
def test_values_survive_requantization_and_storage(tier: str) -> None:
    quantized = QuantizedTensor.quantize(heavy_tailed((7, 128)), "int16")
    again = QuantizedTensor.quantize(quantized.dequantize(), "int16")
    np.testing.assert_array_equal(again.quantized_values, quantized.quantized_values)
    stored = QuantizedTensor.from_arrays(quantized.to_arrays(), "int16")
    np.testing.assert_array_equal(stored.dequantize(), quantized.dequantize())


@pytest.mark.unit
@pytest.mark.parametrize("rows", [40, 64, 71])
def test_the_products_read_the_quantized_values_without_rounding_them_again(rows: int, tier: str) -> None:
    """With integers of x that are exact too, the 16-bit product is the exact one up to fp32's sums."""
    rng = np.random.default_rng(1)
    values = rng.integers(
        -100, 101, (rows + 40, 320), np.int16
    )  # far below the limit: another scale would fit them better
    scales = rng.uniform(0.5, 2, (rows + 40, 5)).astype(np.float32)
    weight = QuantizedTensor.from_arrays({"quantized_values": values.view(np.uint8), "scales": scales}, "int16")
    x = rng.integers(-100, 100, (rows, 320)).astype(np.float32)
    x[:, ::32] = 16383 if rows <= 48 and tier != "base" else 8191  # the scale of every block is 1
    wanted = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    with matmul_precision("high"):
        found = linear(Tensor(x), weight).numpy()
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


@pytest.mark.unit
@pytest.mark.parametrize("value", [4096, -32768])
def test_values_that_would_overflow_the_products_are_refused(value: int) -> None:
    values = np.zeros((2, 64), np.int16)
    values[1, 3] = value
    with pytest.raises(QuantizationError, match=r"int16 values reach from .*, expected 4095 at most in magnitude"):
        QuantizedTensor.from_arrays(
            {"quantized_values": values.view(np.uint8), "scales": np.ones(2, np.float32)}, "int16"
        )


@pytest.mark.unit
def test_the_same_quantized_values_for_any_thread_count(threads: None) -> None:
    x = heavy_tailed((1001, 512))
    made = []
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        made.append(QuantizedTensor.quantize(x, "int16").quantized_values.tobytes())
    assert len(set(made)) == 1


@pytest.mark.unit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_position(bad: float, tier: str) -> None:
    x = np.ones((4, 128), np.float32)
    x[2, 77] = bad
    with pytest.raises(QuantizationError, match=r"row 2, column 77 is .*; int16 holds finite ones only"):
        QuantizedTensor.quantize(x, "int16")
    with pytest.raises(QuantizationError, match="100 columns are no multiple of the block size 64"):
        QuantizedTensor.quantize(np.ones((2, 100), np.float32), "int16")

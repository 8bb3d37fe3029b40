"""Products of few rows, in fp32 and in 16-bit integers: by gemv, and by micro-panels of the weight's own integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import entrenar
from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.autograd.weight_types import WEIGHT_TYPES

from .cases.weights import FROZEN, frozen_weight, scales_at, whole_blocks
from .products import normal, relative_error

# of x: what gemv takes in one pass and in two, what it takes of some types alone, whole and part micro-panels, the most
ROWS = (1, 2, 3, 4, 7, 9, 13, 21, 28, 48)
every_frozen_type = pytest.mark.parametrize("weight_type", FROZEN)


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", FROZEN)
def test_gemv_reads_the_numbers_that_dequantizing_gives(weight_type: str, tier: str) -> None:
    """A one in a row of zeros picks a column of the weight, bit for bit."""
    k = whole_blocks(weight_type, 192)
    weight, values = frozen_weight(weight_type, 35, k)
    expected = values.astype(np.float32)
    for m in (1, 2, 3, 4, 7):  # 7: two passes
        for first in range(0, k, 37):
            x = np.zeros((m, k), np.float32)
            columns = (first + 5 * np.arange(m)) % k
            x[np.arange(m), columns] = 1
            np.testing.assert_array_equal(autograd.linear(Tensor(x), weight).numpy(), expected[:, columns].T)


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("m", ROWS)
@every_frozen_type
def test_products_of_few_rows_are_close(weight_type: str, m: int, precision: str, tier: str, threads: None) -> None:
    """x in 15 or 16 bits times the quantized values as they are; NF4's are rounded.

    Beyond gemv both are rounded on the base tier, which has no integers of few rows, and where the weight has none.
    """
    for n, columns in ((3, 64), (37, 576), (70, 1536)):
        k = whole_blocks(weight_type, columns)
        weight, values = frozen_weight(weight_type, n, k)
        (x,) = normal(20, (m, k))
        x[:, ::7] *= 100  # a step of columns has its own scale
        bits = set()
        for count in (1, 2, 3):
            cpu.set_num_threads(count)
            with entrenar.matmul_precision(precision):
                y = autograd.linear(x, weight).numpy()
            bits.add(y.tobytes())
        assert len(bits) == 1
        rounded = m > 8 and (tier == "base" or "float" in weight_type)
        limit = 3e-4 if rounded or weight_type.startswith("nf4") else 1e-4
        assert relative_error(y, x.astype(np.float64) @ values.T) < limit


@pytest.mark.unit
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("weight_type", ["int16", "nf4", "q8_0", "q4_1"])
def test_the_largest_integers_do_not_wrap_around(weight_type: str, m: int, tier: str) -> None:
    for sign in (1, -1):
        weight = QuantizedTensor.quantize(np.full((9, 192), sign, np.float32), weight_type)
        with entrenar.matmul_precision("high"):
            y = autograd.linear(np.full((m, 192), 5, np.float32), weight).numpy()
        np.testing.assert_allclose(y, sign * 960.0, rtol=2e-3)


@pytest.mark.unit
@pytest.mark.parametrize("m", [1, 3, 4, 25])
@pytest.mark.parametrize("weight_type", [row.name for row in WEIGHT_TYPES.values() if row.block_size == 256])
def test_the_largest_blocks_do_not_wrap_around(weight_type: str, m: int, tier: str) -> None:
    """Every integer and every scale of the blocks the largest, or the least, that the bits can say."""
    row = WEIGHT_TYPES[weight_type]
    for fill, scale in itertools.product((0xFF, 0x80, 0x00), (1.0, -1.0)):
        raw = np.full((9, 4 * row.block_bytes), fill, np.uint8)
        for at in scales_at(row):
            raw.reshape(-1, row.block_bytes)[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
        if weight_type == "q6_k":
            raw.reshape(-1, row.block_bytes)[:, 192:208] = 0x80  # -128, the largest magnitude
        weight = QuantizedTensor.from_gguf_blocks(raw, weight_type, (9, 1024))
        for x in (np.full((m, 1024), 5, np.float32), *normal(22, (m, 1024))):
            expected = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
            with entrenar.matmul_precision("high"):
                y = autograd.linear(x, weight).numpy()
            largest = np.abs(weight.dequantize()).max() * np.linalg.norm(x, axis=1).max() * 32
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.unit
@every_frozen_type
def test_few_rows_keep_zeros_and_what_is_no_number(weight_type: str, tier: str) -> None:
    k = whole_blocks(weight_type, 192)
    weight, _ = frozen_weight(weight_type, 37, k)
    with entrenar.matmul_precision("high"):
        for m in (3, 25):
            assert not autograd.linear(np.zeros((m, k), np.float32), weight).numpy().any()
        for m, bad in itertools.product((1, 3, 9, 25), (np.nan, np.inf, -np.inf)):
            (x,) = normal(21, (m, k))
            before = autograd.linear(x, weight).numpy().copy()
            x[m - 1, 100] = bad
            after = autograd.linear(x, weight).numpy()
            assert not np.isfinite(after[m - 1]).any()
            np.testing.assert_array_equal(after[:-1], before[:-1])


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", ["q4_1", "q6_k", "float32"])
def test_a_row_is_the_same_beside_others(weight_type: str, tier: str) -> None:
    """In fp32 up to what gemv takes, so that an answer does not depend on who asks at the same time."""
    k = whole_blocks(weight_type, 192)
    weight, _ = frozen_weight(weight_type, 70, k)
    (x,) = normal(23, (8, k))
    alone = [autograd.linear(x[i : i + 1], weight).numpy()[0] for i in range(8)]
    for m in range(2, 9):
        np.testing.assert_array_equal(autograd.linear(x[:m], weight).numpy(), np.stack(alone[:m]))

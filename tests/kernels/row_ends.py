"""Weights between two pages that nobody may read: run by test_row_ends.py in a process of its own."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np

import entrenar
from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.autograd.weight_types import WEIGHT_TYPES, WeightType

DENSE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LIBC = ctypes.CDLL(None, use_errno=True)
KEPT: list[mmap.mmap] = []  # pages stay as they are to the end


def guarded(values: np.ndarray, *, at_end: bool) -> np.ndarray:
    """A copy whose last byte, or first, is the last, or first, of memory that may be read."""
    page = mmap.PAGESIZE
    inside = -(-values.nbytes // page) * page
    pages = mmap.mmap(-1, inside + 2 * page)
    start = page + (inside - values.nbytes if at_end else 0)
    copy = np.frombuffer(pages, values.dtype, values.size, start).reshape(values.shape)
    copy[...] = values
    address = copy.ctypes.data - start
    for guard in (address, address + page + inside):
        if LIBC.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    KEPT.append(pages)
    return copy


def weights(row: WeightType, *, at_end: bool) -> Iterator[tuple[Tensor | QuantizedTensor, np.ndarray]]:
    """Weights of this type between guards, and what they stand for: one row, an odd number, halves of heads."""
    rng = np.random.default_rng(7)
    for rows, blocks in ((1, 1), (5, 1), (7, 3)):
        columns = row.block_size * blocks if row.is_quantized else 16 * blocks + 3
        x = rng.standard_normal((rows, columns)).astype(np.float32)
        if not row.is_quantized:
            array = x.astype(DENSE[row.name])
            yield Tensor.from_numpy(guarded(array, at_end=at_end)), array.astype(np.float32)
            continue
        for double in (True, False) if row.scale_block else (False,):
            plain = QuantizedTensor.quantize(x, row.name, double_quantization=double)
            arrays = {name: guarded(array, at_end=at_end) for name, array in plain.to_arrays().items()}
            weight = QuantizedTensor.from_arrays(arrays, row.name)
            assert weight.quantized_values.ctypes.data == arrays["quantized_values"].ctypes.data, "a copy was made"
            yield weight, plain.dequantize()
        if row.gguf_name is not None and rows == 7:
            raw = plain.quantized_values[:6]
            halves = QuantizedTensor.from_gguf_blocks(raw.copy(), row.name, (6, columns), 6).dequantize()
            yield QuantizedTensor.from_gguf_blocks(guarded(raw, at_end=at_end), row.name, (6, columns), 6), halves


def read(weight: Tensor | QuantizedTensor, expected: np.ndarray) -> None:
    """Every way to read a weight; what is read is compared as well."""
    rows, columns = expected.shape
    if isinstance(weight, QuantizedTensor):
        assert weight.dequantize().tobytes() == expected.tobytes()
        for start, stop in ((0, 1), (columns - 1, columns), (columns - 17, columns), (3, columns - 1)):
            run = weight.dequantize_run(rows - 1, start, stop)
            assert run.tobytes() == expected[rows - 1, start:stop].tobytes()
    assert autograd.embedding(np.arange(rows), weight).numpy().tobytes() == expected.tobytes()
    rng = np.random.default_rng(8)
    for precision in ("highest", "high", "medium"):
        with entrenar.matmul_precision(precision):
            for m in (1, 2, 3, 4, 9):
                x = Tensor(rng.standard_normal((m, columns)), requires_grad=True)
                y = autograd.linear(x, weight)
                exact = x.numpy().astype(np.float64) @ expected.T.astype(np.float64)
                assert np.linalg.norm(y.numpy() - exact) < 3e-2 * np.linalg.norm(exact)
                y.sum().backward()
                sums = np.broadcast_to(expected.astype(np.float64).sum(0), x.shape)
                assert np.linalg.norm(x.grad.numpy() - sums) < 3e-2 * np.linalg.norm(sums)
                autograd.linear_cross_entropy(x, weight, np.zeros(m, np.int64)).backward()


def main(tier: str) -> None:
    cpu.set_tier(tier)
    cpu.set_num_threads(1)
    for row in WEIGHT_TYPES.values():
        for at_end in (True, False):
            print(f"{row.name}, {'behind the last' if at_end else 'before the first'} byte", flush=True)
            for weight, expected in weights(row, at_end=at_end):
                read(weight, expected)


if __name__ == "__main__":
    main(sys.argv[1])

"""Matrices that bitsandbytes has quantized to NF4, as safetensors files of transformers hold them.

A matrix `NAME` is several tensors: the packed quantized values, `NAME.absmax`, `NAME.quant_map`, and as JSON in bytes
`NAME.quant_state.bitsandbytes__nf4`; under double quantization `NAME.nested_absmax` and `NAME.nested_quant_map` too.
Here they become one LazyTensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor, dequantize_bitsandbytes
from entrenar.autograd.weight_types import quantized_type
from entrenar.config import shown
from entrenar.errors import FormatError, QuantizationError
from entrenar.io.json_file import parse_json
from entrenar.io.lazy import LazyTensor

STATE = ".quant_state.bitsandbytes__"
NF4 = quantized_type("nf4")
DOUBLE, PLAIN = "NF4", "NF4 with float32 scales"  # with and without double quantization
NESTED = ("nested_absmax", "nested_quant_map")
MOST_BLOCK = 1 << 20


class NF4Tensor(LazyTensor):
    """A matrix as bitsandbytes stores it. `type` is DOUBLE or PLAIN where its blocks are those of our type nf4."""

    def __init__(self, where: str, name: str, state: Mapping[str, Any], parts: Mapping[str, LazyTensor]) -> None:
        self._where, self._parts = where, parts
        shape = state.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(_is_size(extent, 2**31) for extent in shape):
            raise self._wrong("shape", shape, "two sizes")
        size = state.get("blocksize")
        if not _is_size(size, MOST_BLOCK) or size % 2:
            raise self._wrong("blocksize", size, "an even number")
        self._block: int = size
        self._nested: dict[str, Any] = {}
        if "nested_absmax" in parts:
            block, offset = state.get("nested_blocksize"), state.get("nested_offset")
            if not _is_size(block, MOST_BLOCK):
                raise self._wrong("nested_blocksize", block, "a positive number")
            if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
                raise self._wrong("nested_offset", offset, "a finite number")
            self._nested = {"nested_blocksize": block, "nested_offset": offset}
        ours = (
            self._block == NF4.block_size and self._nested.get("nested_blocksize", NF4.scale_block) == NF4.scale_block
        )
        kind = DOUBLE if self._nested else PLAIN
        super().__init__(name, tuple(shape), kind if ours else f"NF4 in blocks of {self._block}")

    def _wrong(self, key: str, found: Any, expected: str) -> FormatError:
        return FormatError(f"{self._where} says {key} {shown(found)}, expected {expected}; fetch the files again.")

    def raw(self) -> np.ndarray:
        return self._parts[""].raw().reshape(-1)

    def read(self) -> np.ndarray:
        return self._parts[""].read().reshape(-1)

    def _arrays(self) -> dict[str, Any]:
        """The small parts with the names of `QuantizedTensor.from_bitsandbytes`."""
        scales = self._parts["absmax"]
        arrays: dict[str, Any] = {"absmax": scales.read().reshape(-1) if self._nested else scales.load().reshape(-1)}
        arrays |= {name: self._parts[name].load().reshape(-1) for name in ("quant_map", *NESTED) if name in self._parts}
        return arrays | self._nested | {"blocksize": self._block}

    def quantized(self) -> QuantizedTensor:
        """The matrix in its own quantized values, mapped; QuantizationError where they do not fit its shape."""
        return QuantizedTensor.from_bitsandbytes(self.raw(), shape=self.shape, **self._arrays())

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        arrays, columns = self._arrays(), self.shape[1]
        unit = self._block * self._nested.get("nested_blocksize", 1)  # elements whose scales stand alone
        first, last = start * columns // unit * unit, min(-(-stop * columns // unit) * unit, math.prod(self.shape))
        arrays["absmax"] = arrays["absmax"][first // self._block : -(-last // self._block)]
        if self._nested:
            arrays["nested_absmax"] = arrays["nested_absmax"][first // unit : -(-last // unit)]
        try:
            flat = dequantize_bitsandbytes(self.raw()[first // 2 : -(-last // 2)], shape=(last - first,), **arrays)
        except QuantizationError as error:
            raise FormatError(f"{self._where} does not fit its tensors: {error}") from error
        return flat[start * columns - first : stop * columns - first].reshape(stop - start, columns)


def _is_size(value: Any, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def gathered(where: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """`tensors` with each matrix that bitsandbytes quantized as one; `where` names the files in messages.

    Raises FormatError for a kind other than NF4, for a state that is damaged, and where a part is missing.
    """
    found = dict(tensors)
    for key in tensors:
        name, _, kind = key.partition(STATE)
        if not kind:
            continue
        if kind != "nf4":
            raise FormatError(
                f"{where}: holds {key}: its weights are quantized by bitsandbytes ({kind}), which is not read; "
                "expected NF4, or the model in F32, F16 or BF16, or a GGUF file of it."
            )
        said = f"{where}: {key}"
        state = parse_json(found.pop(key).read().tobytes(), said)
        if not isinstance(state, dict):
            raise FormatError(f"{said} is {shown(state)}, expected an object; fetch the files again.")
        nested = f"{name}.nested_absmax" in tensors
        parts = {}
        for part in ("", "absmax", "quant_map", *(NESTED if nested else ())):
            stored = f"{name}.{part}" if part else name
            if stored not in found:
                raise FormatError(f"{where}: the tensor {stored} is missing beside {key}; fetch the files again.")
            parts[part] = found.pop(stored)
        found[name] = NF4Tensor(said, name, state, parts)
    return found

"""Quantize the linears of a module tree, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.weight_types import weight_type
from entrenar.errors import QuantizationError
from entrenar.nn.layers import Linear
from entrenar.nn.module import Module, Weight

AUTO = "nf4"  # what quantize="auto" makes of values that no file has quantized


def stays_quantized(weight: Weight, quantize: str) -> bool:
    """Whether a weight keeps its quantized values: of 4 bits always, under quantize="auto" all that GGUF files have."""
    if not isinstance(weight, QuantizedTensor):
        return False
    row = weight_type(weight.weight_type)
    return row.bits == 4 or (quantize == "auto" and row.gguf_name is not None)


def merge_sentence(merged: Sequence[Weight]) -> str:
    """For the person who runs it: what precision merging adapters into these matrices keeps."""
    kinds = Counter(w.weight_type if isinstance(w, QuantizedTensor) else w.dtype for w in merged)
    held = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
    are = "matrix is" if len(merged) == 1 else "matrices are"
    return f"{len(merged)} {are} merged with their adapters in float32 ({held})."


def in_decoder_layer(name: str) -> bool:
    """Whether a weight or module of this name belongs to a decoder layer."""
    return ".layers." in name


def misfit(columns: int, to: str) -> str | None:
    """Why rows of so many columns cannot be quantized to `to`; None where they can."""
    block = weight_type(to).block_size
    return f"its {columns} columns are no multiple of {block}" if columns % block else None


def _rows_of(weight: Tensor) -> Callable[[int, int], np.ndarray]:
    array = weight.numpy()
    return lambda start, stop: array[start:stop]


def quantize_linears(tree: Module, quantize: str, double_quantization: bool) -> dict[str, str]:
    """Make every linear of the tree's decoder layers 4-bit, one at a time, in place, but for those that stay quantized.

    Returns the names of the weights that stay in full precision, and why. Raises QuantizationError for a weight that
    its weight type cannot represent.
    """
    to = AUTO if quantize == "auto" else quantize
    unquantized = {}
    for name, module in tree.named_modules():
        if not isinstance(module, Linear) or not in_decoder_layer(name) or stays_quantized(module.weight, quantize):
            continue
        if reason := misfit(module.in_features, to):
            unquantized[f"{name}.weight"] = reason
            continue
        weight = module.weight
        rows = weight.dequantize_rows if isinstance(weight, QuantizedTensor) else _rows_of(weight)
        try:
            module.weight = QuantizedTensor.quantize_streaming(
                rows, weight.shape, to, double_quantization=double_quantization
            )
        except QuantizationError as error:
            raise QuantizationError(f"{name}.weight cannot become {to}: {error}") from error
    return unquantized

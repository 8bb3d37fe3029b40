"""How a model's weights are stored: options -> tensor name -> weight type, once.

The loader, the budget check and the memory plan read the mapping that `StoragePolicy.storage` returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from entrenar.autograd.weight_types import WeightType, gguf_weight_type, weight_type
from entrenar.choices import DTYPES, QUANTIZE
from entrenar.errors import ConfigError
from entrenar.io.bitsandbytes import DOUBLE, PLAIN
from entrenar.nn.quantize import AUTO, in_decoder_layer, misfit

ROUNDED = ("float16", "bfloat16")  # storage of 16 bits that is frozen
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BITSANDBYTES = {DOUBLE: True, PLAIN: False}  # matrices in the very blocks of our nf4; whether doubly quantized
FULL_PRECISION = ("F64", "F32", "F16", "BF16")  # names of GGUF types


@dataclass(frozen=True)
class WeightStorage:
    """How one weight is stored."""

    shape: tuple[int, ...]
    weight_type: str
    as_stored: bool = False  # the file's own bytes, mapped where their rows need no other order
    unquantized: str | None = None  # why a matrix that was to be quantized is not
    requantized: bool = False  # whether quantized values of another type are replaced
    stored: str | None = None  # the type of bitsandbytes that is kept
    dequantized: bool = False  # whether quantized values are not kept because kernels do not read their type


@dataclass(frozen=True)
class Storage:
    """The weights of a model by name, in the model's order, each with its weight type."""

    policy: StoragePolicy
    weights: Mapping[str, WeightStorage]

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(math.prod(weight.shape) for weight in self.weights.values())

    @property
    def nbytes(self) -> int:
        """The bytes that all weights take."""
        double = self.policy.double_quantization
        sizes = (
            math.prod(w.shape) * weight_type(w.weight_type).bytes_per_weight(BITSANDBYTES.get(w.stored or "", double))
            for w in self.weights.values()
        )
        return int(sum(sizes, Fraction(0)))


@dataclass(frozen=True)
class StoragePolicy:
    """How weights are to be stored; ConfigError for an unknown option.

    `quantize`: None keeps every weight in `dtype`; "auto" keeps the quantized values that a file has, of
    embedding and head too, where kernels read their type, and makes NF4 of the other linears of decoder layers; an
    embedding or head of 16 bits stays as it is. "nf4" and "int4" force one weight type on the linears. Embedding, norms
    and head are never quantized here.
    `dtype` of what is not: "float32" is trainable; "float16", "bfloat16" and "int16" (finer than both: 64 columns share
    a scale) are frozen storage, beside which norms stay float32; "auto" keeps matrices that the file has in float16 or
    bfloat16 as they are, frozen, and makes float32 of the others. Under "int16" an embedding that is no head stays in
    stored 16 bits: no product reads it.
    `double_quantization` keeps the scales of NF4 in 8 bits.
    """

    dtype: str = "float32"
    quantize: str | None = None
    double_quantization: bool = True

    def __post_init__(self) -> None:
        if self.quantize not in QUANTIZE:
            raise ConfigError(f"quantize={self.quantize!r} is unknown; choose None, 'auto', 'nf4' or 'int4'.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
        if not isinstance(self.double_quantization, bool):
            raise ConfigError(f"double_quantization={self.double_quantization!r} is unknown; choose True or False.")

    def storage(self, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, str] | None = None) -> Storage:
        """The weight type of each tensor of these shapes; `stored` has the types that a file has for them (GGUF names).

        What no file has is float32 before it is converted, and under quantize="auto" taken for Q4_1, the larger of the
        types of 4 bits.
        """
        looked_up = EMBEDDING if HEAD in shapes else None
        types = stored or {}
        weights = {
            name: self._weight(name, shape, types.get(name), looked_up == name) for name, shape in shapes.items()
        }
        return Storage(self, weights)

    def _weight(self, name: str, shape: tuple[int, ...], stored: str | None, looked_up: bool) -> WeightStorage:
        if len(shape) != 2:
            return WeightStorage(shape, "float32")
        in_layer, reason = in_decoder_layer(name), None
        own = None if stored is None else gguf_weight_type(stored)  # None too for a type that kernels do not read
        if own is not None and self.quantize == "auto" and own.is_quantized:
            return WeightStorage(shape, own.name, as_stored=True)
        if stored in BITSANDBYTES and self.quantize in ("auto", AUTO) and misfit(shape[1], AUTO) is None:
            return WeightStorage(shape, AUTO, as_stored=True, stored=stored)
        quantized = stored is not None and stored not in FULL_PRECISION
        if self.quantize is not None and in_layer:
            to = self._four_bit(stored)
            reason = misfit(shape[1], to)
            if reason is None:
                return WeightStorage(shape, to, requantized=quantized)
        if own is not None and self._stays_in_16_bits(own, looked_up):
            return WeightStorage(shape, own.name, as_stored=True, unquantized=reason)
        lacked = quantized and own is None and self.quantize is not None
        if self.dtype == "int16":
            too_narrow = misfit(shape[1], "int16")
            if too_narrow is None:
                return WeightStorage(shape, "int16", unquantized=reason, dequantized=lacked)
            reason = too_narrow
        dtype = self.dtype if self.dtype in ROUNDED else "float32"
        return WeightStorage(shape, dtype, unquantized=reason, dequantized=lacked)

    def _stays_in_16_bits(self, own: WeightType, looked_up: bool) -> bool:
        """Whether a file's own values of 16 bits stay; `looked_up` is an embedding that no product reads."""
        if own.is_quantized or own.bits != 16:
            return False
        if self.dtype == "float32":
            return self.quantize == "auto"
        return self.dtype in ("auto", own.name) or (self.dtype == "int16" and looked_up)

    def _four_bit(self, stored: str | None) -> str:
        if self.quantize == "auto":
            return "int4" if stored is None else AUTO
        assert self.quantize is not None
        return self.quantize

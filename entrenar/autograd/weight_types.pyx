"""Weight types as the traits table of the kernels has them (_kernels/simd/weights/types.c): sizes, names, abilities."""
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.simd.weights.types cimport weight_type as weight_type_row

from entrenar.errors import ConfigError

ALIASES = MappingProxyType({"int4": "q4_1"})  # of the two with 4 bits and a GGUF form the one with the smaller error


@dataclass(frozen=True)
class WeightType:
    """One way to hold the weights of a matrix (rows, columns): a row of the traits table."""

    name: str
    gguf_name: str | None  # of the type in GGUF files, None where they have no such type
    gguf_type: int | None  # and its number there
    is_quantized: bool  # blocks of integers that share a scale
    bits: int  # of one value
    block_size: int  # columns of a block
    block_bytes: int  # of its values, and of the scales among them
    has_scales: bool  # a float32 scale for each block in an array of its own
    scale_block: int  # of such scales that share one under double quantization; 0 where there is none
    index: int  # of the row

    def row_bytes(self, columns):
        """Bytes of a row's quantized values, for a multiple of `block_size` columns."""
        return columns // self.block_size * self.block_bytes

    def bytes_per_weight(self, double_quantization=True):
        """Bytes of one weight, its share of all scales included, as a Fraction."""
        doubly = double_quantization and self.scale_block
        scale = 0 if not self.has_scales else 1 + Fraction(4, self.scale_block) if doubly else 4
        return Fraction(self.block_bytes + scale) / self.block_size


cdef object _row(int index):
    cdef const weight_type_row* row = &simd.weight_types[index]
    in_files = row.gguf_name != NULL
    return WeightType(
        row.name.decode(), row.gguf_name.decode() if in_files else None, row.gguf_type if in_files else None,
        bool(row.is_quantized), row.bits, row.block, row.block_bytes, bool(row.has_scales), row.scale_block, index)


cdef dict _rows():
    cdef int index = 0
    rows = {}
    while simd.weight_types[index].name != NULL:
        row = _row(index)
        rows[row.name] = row
        index += 1
    return rows


WEIGHT_TYPES = MappingProxyType(_rows())
_BY_GGUF_NAME = {row.gguf_name: row for row in WEIGHT_TYPES.values() if row.gguf_name is not None}


def weight_type(str name):
    """The row of this name or alias; ConfigError for an unknown one."""
    row = WEIGHT_TYPES.get(ALIASES.get(name, name))
    if row is None:
        raise ConfigError(f"The weight type {name!r} is unknown; choose one of {', '.join([*WEIGHT_TYPES, *ALIASES])}.")
    return row


def quantized_type(str name):
    """`weight_type` of one that is quantized; ConfigError for another."""
    row = weight_type(name)
    if not row.is_quantized:
        names = [*(row.name for row in WEIGHT_TYPES.values() if row.is_quantized), *ALIASES]
        raise ConfigError(f"The weight type {name!r} is not quantized; choose one of {', '.join(names)}.")
    return row


def float32_scaled(row):
    """The type of the fewest bits, but as many as `row`'s, whose scales are float32."""
    return min((t for t in WEIGHT_TYPES.values() if t.has_scales and t.bits >= row.bits), key=lambda t: t.bits)


def gguf_weight_type(str gguf_name):
    """The row of a type by its name in GGUF files, None for one that kernels do not read."""
    return _BY_GGUF_NAME.get(gguf_name)

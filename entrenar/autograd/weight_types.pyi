from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

ALIASES: Mapping[str, str]
WEIGHT_TYPES: Mapping[str, WeightType]

@dataclass(frozen=True)
class WeightType:
    name: str
    gguf_name: str | None
    gguf_type: int | None
    is_quantized: bool
    bits: int
    block_size: int
    block_bytes: int
    has_scales: bool
    scale_block: int
    index: int
    def row_bytes(self, columns: int) -> int: ...
    def bytes_per_weight(self, double_quantization: bool = True) -> Fraction: ...

def weight_type(name: str) -> WeightType: ...
def quantized_type(name: str) -> WeightType: ...
def float32_scaled(row: WeightType) -> WeightType: ...
def gguf_weight_type(gguf_name: str) -> WeightType | None: ...

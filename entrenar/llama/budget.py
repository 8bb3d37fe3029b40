"""What a model's weights need in memory, and what the machine has: asked before anything is allocated."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from entrenar.errors import MemoryBudgetError
from entrenar.llama.config import LLaMAConfig

BYTES = {"float32": 4, "bfloat16": 2}
# codes, then scales: NF4 with an 8-bit absmax per 64 and an fp32 one per 256 of those; Q4_1 with two fp16 per 32
BYTES_4BIT = {"nf4": Fraction(1, 2) + (1 + Fraction(4, 256)) / 64, "int4": Fraction(20, 32)}
BLOCK_COLUMNS = {"nf4": 64, "int4": 32}  # rows that are no multiple of these stay in full precision
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that this process can still take: the machine's free memory, capped by its cgroup's limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit_file, usage_file in CGROUP_FILES:
        try:
            limit, usage = int(Path(limit_file).read_text()), int(Path(usage_file).read_text())
        except (OSError, ValueError):
            continue  # no such cgroup version here, or "max"
        available = min(available, max(0, limit - usage))
    return available


def weight_bytes(config: LLaMAConfig, dtype: str = "float32", quantize: str | None = None) -> int:
    """Bytes of the weights: block linears in 4 bits where `quantize` and their columns allow it, else in `dtype`."""
    kind = "nf4" if quantize == "nf4" else "int4"  # "auto" may keep a file's Q4_1 codes, the larger of the formats
    four_bit = 0
    if quantize is not None:
        shapes = config.parameter_shapes().items()
        four_bit = sum(
            math.prod(shape)
            for name, shape in shapes
            if ".layers." in name and len(shape) == 2 and shape[1] % BLOCK_COLUMNS[kind] == 0
        )
    return int(four_bit * BYTES_4BIT[kind] + (config.num_parameters() - four_bit) * BYTES[dtype])


def check_weights_fit(config: LLaMAConfig, dtype: str = "float32", quantize: str | None = None) -> None:
    """Raise MemoryBudgetError where the weights alone exceed the available memory."""
    needed, available = weight_bytes(config, dtype, quantize), available_memory()
    if needed > available:
        advice = "a smaller model" if quantize else "a 4-bit base (quantize='nf4') or a smaller model"
        raise MemoryBudgetError(
            f"The weights of this {config.num_parameters() / 1e9:.1f}-billion-parameter model need "
            f"{needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is available; use {advice}."
        )

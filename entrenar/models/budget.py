"""What a model's weights need in memory, and what the machine has: asked before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from entrenar.errors import MemoryBudgetError
from entrenar.models.config import LLaMAConfig

BYTES = {"auto": Fraction(4), "float32": Fraction(4), "bfloat16": Fraction(2), "int16": 2 + Fraction(4, 64)}
# codes, then scales: NF4 with an 8-bit absmax per 64 and an fp32 one per 256 of those; Q4_1 with two fp16 per 32
BYTES_4BIT = {"nf4": Fraction(1, 2) + (1 + Fraction(4, 256)) / 64, "int4": Fraction(20, 32)}
BYTES_KEPT = {"BF16": Fraction(2), "Q8_0": Fraction(34, 32)}  # Q8_0: a byte each and an fp16 scale per 32
BLOCK_COLUMNS = {"nf4": 64, "int4": 32, "int16": 64}  # rows that are no multiple of these stay in full precision
NF4_FP32_SCALES = Fraction(1, 2) + Fraction(4, 64)  # without double quantization
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# the version's folder below CGROUPS; files of limit and usage; memory.stat's name of the pages that can be taken back
CGROUP_V2 = (".", "memory.max", "memory.current", "inactive_file")
CGROUP_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory() -> int:
    """Bytes that this process can still take: the machine's free memory, capped by the limits of its cgroups."""
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *_cgroup_rooms())))


def _cgroup_rooms() -> list[float]:
    """Bytes that the memory cgroups of this process, and those above them, have left; infinity for no limit."""
    rooms = [math.inf]
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return rooms
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        version, *files = CGROUP_V2 if number == "0" else CGROUP_V1
        root = CGROUPS / version
        leaf = root / path.lstrip("/")
        rooms += [_room(folder, *files) for folder in (leaf, *leaf.parents) if folder.is_relative_to(root)]
    return rooms


def _room(folder: Path, limit: str, usage: str, reclaimable: str) -> float:
    """Limit - usage of one cgroup; infinity where it has no limit, or is not visible from this container."""
    try:
        left = int((folder / limit).read_text()) - int((folder / usage).read_text())
        found = re.search(rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # ValueError: "max"
        return math.inf
    return left + (int(found[1]) if found else 0)


def weight_bytes(
    config: LLaMAConfig,
    dtype: str = "float32",
    quantize: str | None = None,
    double_quantization: bool = True,
    kept: Mapping[str, str] | None = None,
) -> int:
    """Bytes of the weights: decoder linears in 4 bits where `quantize` and their columns allow it, else in `dtype`.

    `kept` has the types of the matrices that stay as a file stores them (BF16, Q8_0).
    """
    kind = "nf4" if quantize == "nf4" else "int4"  # "auto" may keep a file's Q4_1 codes, the larger of the formats
    four_bit_bytes = NF4_FP32_SCALES if kind == "nf4" and not double_quantization else BYTES_4BIT[kind]
    total = Fraction(0)
    for name, shape in config.parameter_shapes().items():
        matrix = len(shape) == 2
        if quantize is not None and matrix and ".layers." in name and shape[1] % BLOCK_COLUMNS[kind] == 0:
            each = four_bit_bytes
        elif kept and name in kept:
            each = BYTES_KEPT[kept[name]]
        elif matrix and not (dtype == "int16" and shape[1] % BLOCK_COLUMNS["int16"]):
            each = BYTES[dtype]
        else:  # norms, and rows that are no whole blocks
            each = BYTES["float32"]
        total += math.prod(shape) * each
    return int(total)


def check_weights_fit(
    config: LLaMAConfig,
    dtype: str = "float32",
    quantize: str | None = None,
    double_quantization: bool = True,
    kept: Mapping[str, str] | None = None,
) -> None:
    """Raise MemoryBudgetError where the weights alone exceed the available memory; arguments as in `weight_bytes`."""
    needed, available = weight_bytes(config, dtype, quantize, double_quantization, kept), available_memory()
    if needed > available:
        advice = "a smaller model" if quantize else "a 4-bit base (quantize='nf4') or a smaller model"
        raise MemoryBudgetError(
            f"The weights of this {config.num_parameters() / 1e9:.1f}-billion-parameter model need "
            f"{needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is available; use {advice}."
        )

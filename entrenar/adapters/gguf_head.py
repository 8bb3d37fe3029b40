"""LoRA of the head in PEFT's files, which llama.cpp computes and no layer here does.

PEFT saves the head's own weight beside it (`base_layer`), which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft_weights import PREFIX
from entrenar.adapters.targets import END, full_matches, is_quick
from entrenar.adapters.trained_weights import HEAD

PATTERNS = ("rank_pattern", "alpha_pattern")
WEIGHTS = tuple(f"{PREFIX}{HEAD}.{part}.weight" for part in ("lora_A", "lora_B"))


def has_head(table: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json names the head in a list of targets."""
    targets = table.get("target_modules")
    return isinstance(targets, list) and HEAD in targets


def without_head(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of the other modules: without the head among the targets, and without patterns that mean it alone."""
    inner = dict(table, target_modules=[name for name in table["target_modules"] if name != HEAD])
    for key in PATTERNS:
        if isinstance(table.get(key), dict):
            inner[key] = {name: value for name, value in table[key].items() if name != HEAD}
    return inner


def settings_of(table: Mapping[str, Any], config: LoRAConfig, where: str) -> tuple[int, float]:
    """(rank, alpha) of the head: by the first pattern that matches, as PEFT has it."""
    found: list[Any] = []
    for key, default in zip(PATTERNS, (config.rank, config.alpha), strict=True):
        patterns = [name for name in table.get(key) or {} if isinstance(name, str)]
        matches = full_matches([END.format(name) for name in patterns], [HEAD], where, quick=is_quick(patterns))
        meant = next((name for name, names in zip(patterns, matches, strict=True) if names), None)
        found.append(default if meant is None else table[key][meant])
    return int(found[0]), float(found[1])


def file_shapes(rank: int, shape: tuple[int, ...], stored: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of the file for a head of this shape, its own weight where that was saved too."""
    found: dict[str, tuple[int, ...]] = {WEIGHTS[0]: (rank, shape[1]), WEIGHTS[1]: (shape[0], rank)}
    base = f"{PREFIX}{HEAD}.base_layer.weight"
    return found | ({base: shape} if base in stored else {})

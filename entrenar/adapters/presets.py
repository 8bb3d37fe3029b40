"""Settings of LoRA that are advised, by name: PEFT's public comparison of methods says which.

huggingface/peft, method_comparison/MetaMathQA (Llama-3.2-3B, August 2026), accuracy on held-out problems / forgetting
of other text (lower is better): LoRA r64 with rsLoRA .513 / .111, the MLP's linears alone at r10 .494 / .032, LoRA r32
.478 / .05, full fine-tuning .472 / .030.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrenar.adapters.options import OPTIONS
from entrenar.config import names_of, nearest, shown
from entrenar.errors import ConfigError

KEY = "preset"


@dataclass(frozen=True)
class Preset:
    """Values for keys of a LoRA section, and what they are good for."""

    settings: Mapping[str, Any]
    help: str


PRESETS = {
    "all-linear": Preset(
        {"rank": 16, "alpha": 16.0, "target_modules": ["all-linear"], "use_rslora": True},
        "rank 16 with rsLoRA on every linear, to learn most (rsLoRA in PEFT's comparison: accuracy .513, forgetting "
        ".111)",
    ),
    "mlp": Preset(
        {"rank": 10, "alpha": 20.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
        "rank 10 on the MLP's linears alone, to forget least (in PEFT's comparison: accuracy .494, forgetting .032)",
    ),
}


def preset(name: Any, where: str) -> Mapping[str, Any]:
    """The settings of this name; ConfigError where there are none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{where} is {shown(name)}; {nearest(str(name), PRESETS)}")
    return PRESETS[name].settings


def with_preset(section: str, content: Any) -> Any:
    """What a file has under `section`; an adapter's with the keys of the preset that it names where it sets none."""
    known = names_of(OPTIONS[section]) if section in OPTIONS else []
    if not isinstance(content, dict) or KEY not in content or not set(PRESETS["mlp"].settings) <= set(known):
        return content
    found = dict(content)
    return {**preset(found.pop(KEY), f"{section}.{KEY}"), **found}


def filled(table: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table of a file with a program's defaults under what it says; a preset has its own."""
    found = dict(table)
    for section, values in defaults.items():
        content = table.get(section, None if section in OPTIONS else {})
        if isinstance(content, dict) and KEY not in content:
            found[section] = {**values, **content}
    return found

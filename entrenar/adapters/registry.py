"""The kinds of adapters, found by the section of a configuration file and by PEFT's `peft_type`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from entrenar.adapters.base import AdapterConfig
from entrenar.adapters.peft_table import check_kind
from entrenar.config import ADAPTER_SECTIONS


def _kind(section: str) -> type[AdapterConfig]:
    """The configuration of this section, which the module of its name defines."""
    module = import_module(f"entrenar.adapters.{section}")
    (kind,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, AdapterConfig) and getattr(value, "section", None) == section
    )
    return kind


KINDS: dict[str, type[AdapterConfig]] = {section: _kind(section) for section in ADAPTER_SECTIONS}
# [qlora] is LoRA over a base in 4 bits, of which PEFT's file says nothing: the first kind of a type reads its files.
PEFT_TYPES: dict[str, type[AdapterConfig]] = {}
for kind in KINDS.values():
    PEFT_TYPES.setdefault(kind.peft.peft_type, kind)


def from_peft(table: Mapping[str, Any], where: str) -> AdapterConfig:
    """The configuration that an adapter_config.json says; ConfigError, naming the key, for what is not computed."""
    check_kind(table, where, list(PEFT_TYPES))
    return PEFT_TYPES[table["peft_type"]].from_peft(table, where)

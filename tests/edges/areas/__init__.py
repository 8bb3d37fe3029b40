"""The variations, one file an area; each file has a list VARIATIONS."""

from __future__ import annotations

import importlib
import pkgutil

from ..harness import Variation


def all_variations() -> list[Variation]:
    """Every area's variations, in the order of the files' names; an area whose peer is missing is an ImportError."""
    variations: list[Variation] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        variations += importlib.import_module(f"{__name__}.{module.name}").VARIATIONS
    names = [variation.id for variation in variations]
    doubled = sorted({name for name in names if names.count(name) > 1})
    assert not doubled, f"variations of the same name: {doubled}"
    return variations

"""Every op's cases, a file a family: shapes and tolerances are written here once."""

from __future__ import annotations

import importlib
import pkgutil

from .base import Case

CASES: list[Case] = []
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    if _module != "base":
        CASES += importlib.import_module(f"{__name__}.{_module}").CASES

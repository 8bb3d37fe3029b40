"""Libraries that only some flags need."""

from __future__ import annotations

import importlib
from types import ModuleType

from entrenar.errors import ConfigError


def needed(module: str, option: str, extra: str = "observe") -> ModuleType:
    """The module, imported; ConfigError saying which extra brings it where it is missing or does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{option} needs {module.split('.')[0]}, which cannot be imported ({error}); install it with "
            f"pip install 'entrenar[{extra}]'."
        ) from error

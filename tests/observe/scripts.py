"""Scripts of scripts/, imported, with a small program in the place of the example that they run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.architecture.sources import ROOT


def with_program(name: str, program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script `name`, whose example is a file of `folder` with the source `program`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    example = folder / "program.py"
    example.write_text(program)
    monkeypatch.setattr(module, "EXAMPLE", example)
    return module

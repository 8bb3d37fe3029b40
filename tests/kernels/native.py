"""The C sources of the micro-kernels, compiled as setup.py compiles them, for tests that look at them directly."""

from __future__ import annotations

import ast
import platform
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "entrenar/_kernels"


@cache
def build_settings() -> tuple[list[str], dict[str, list[str]]]:
    """setup.py's COMMON flags and its TIERS, without running the rest of it."""
    wanted = {"X86", "V3", "V4", "TIERS", "COMMON"}
    tree = ast.parse((ROOT / "setup.py").read_text())
    assignments = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and {target.id for target in node.targets if isinstance(target, ast.Name)} & wanted
    ]
    values: dict[str, object] = {"platform": platform}
    exec(compile(ast.Module(assignments, []), "setup.py", "exec"), values)
    return values["COMMON"], values["TIERS"]  # type: ignore[return-value]


def compiler() -> str:
    """The C compiler that built Python's extensions, else cc or gcc; skips where the machine has none."""
    names = [(sysconfig.get_config_var("CC") or "cc").split()[0], "cc", "gcc"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


def compile_for_tier(source: Path, tier: str, target: Path, *more: str) -> Path:
    """`target`, an object (or with "-shared" a library) of one C file, with the flags of `tier`."""
    common, tiers = build_settings()
    flags = ["-O3", "-g0", *common, f"-DTIER={tier}", *tiers[tier]]
    subprocess.run([compiler(), *flags, "-I", KERNELS, *more, source, "-o", target], check=True)
    return target

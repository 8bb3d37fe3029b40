"""The stubs say of the compiled modules what is true, and every public compiled module has one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import entrenar

PACKAGE = Path(entrenar.__file__).parent
pytestmark = pytest.mark.architecture

# What a compiled module shows beyond its interface, as regular expressions of whole names.
ALLOWED = r"""
.*\.(__test__|__pyx_capi__|__reduce_cython__|__setstate_cython__)
# nodes of the tape and what they hold are reached through Tensor.grad_fn only, which is a Node
entrenar\.autograd\..*\.(\w+Node|AccumulateGrad|Segments|Storage)
# the buffer protocol, which Python shows as a method from 3.12 on
entrenar\.autograd\.tensor\.Tensor\.__buffer__
# a slot that every Cython class with __pow__ has; here it raises TypeError
entrenar\.autograd\.tensor\.Tensor\.__rpow__
"""


def modules_with(suffix: str) -> set[str]:
    files = PACKAGE.rglob(f"*{suffix}")
    return {".".join(f.relative_to(PACKAGE.parent).with_name(f.name.split(".")[0]).parts) for f in files}


def stubtest(folder: Path, modules: list[str]) -> subprocess.CompletedProcess[str]:
    """mypy.stubtest in a folder of its own, so that Python imports the package under test and not a source tree."""
    (folder / "allowed").write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "--allowlist", "allowed", "--ignore-unused-allowlist", *modules]
    environment = dict(os.environ)
    if str(PACKAGE.parent) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["MYPYPATH"] = str(PACKAGE.parent)  # mypy does not follow an editable install
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_every_stub_of_a_compiled_module_agrees_with_it(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    modules = sorted(modules_with(".pyi") & modules_with(sysconfig.get_config_var("EXT_SUFFIX")))
    assert {"entrenar.autograd.tensor", "entrenar.autograd.ops.matmul", "entrenar.optim.update"} <= set(modules)
    result = stubtest(tmp_path, modules)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_stub_belongs_to_a_compiled_module() -> None:
    assert modules_with(".pyi") - modules_with(sysconfig.get_config_var("EXT_SUFFIX")) == set()


def test_every_compiled_module_above_the_kernels_has_a_stub() -> None:
    public = {m for m in modules_with(sysconfig.get_config_var("EXT_SUFFIX")) if not m.startswith("entrenar._kernels")}
    assert len(public) > 10
    assert public - modules_with(".pyi") == set()


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()

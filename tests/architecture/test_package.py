"""What users install: wheel and source distribution hold what they need and nothing else; imports stay light."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import entrenar
from entrenar.config import load_toml

from .sources import FOLDERS, ROOT, files, name

pytestmark = pytest.mark.architecture
EXTENSION = sysconfig.get_config_var("EXT_SUFFIX")
INSTALLED = Path(entrenar.__file__).parent
TRACKED = ("LICENSE", "README.md", "CHANGELOG.md", "MANIFEST.in", "Makefile", "pyproject.toml", "setup.py")
MADE = ("*.so", "*.pyc", "__pycache__", "corpus", "crashes")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "sklearn", "opentelemetry", "pandas", "scipy")
OF_FORMATS = ("gguf", "tokenizers", "sentencepiece", "jinja2", "safetensors", "ml_dtypes")
MOST_IMPORT_MIB = 60


def run(command: list[str], folder: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


# ---------------------------------------------------------------------- source distribution and wheel
def has_build_tools() -> bool:
    if importlib.util.find_spec("Cython") is None or importlib.util.find_spec("wheel") is None:
        return False
    return importlib.util.find_spec("setuptools") is not None and int(version("setuptools").split(".")[0]) >= 77


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH with the build requirements of pyproject.toml; empty where they are installed."""
    folder = tmp_path_factory.mktemp("tools")
    if not has_build_tools():
        text = (ROOT / "pyproject.toml").read_text()
        wanted = text.split("requires = [", 1)[1].split("]", 1)[0]
        requirements = [item.strip().strip('"') for item in wanted.replace('",', '"\n').splitlines() if item.strip()]
        run([sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *requirements], ROOT)
    return str(folder)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, tools: str) -> Path:
    """The folder that the source distribution of a copy of the checkout unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    for part in FOLDERS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / "checkout" / part, ignore=shutil.ignore_patterns(*MADE))
    for part in TRACKED:
        shutil.copy2(ROOT / part, folder / "checkout")
    if (ROOT / "build" / "cython").is_dir():  # what Cython made already
        shutil.copytree(ROOT / "build" / "cython", folder / "checkout" / "build" / "cython")
    hook = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run([sys.executable, "-c", hook], folder / "checkout", PYTHONPATH=tools)
    (archive,) = folder.glob("entrenar-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, tools: str, unpacked: Path) -> zipfile.ZipFile:
    """The wheel that the source distribution builds; what this checkout has compiled already is not compiled anew."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(unpacked, source)
    if (ROOT / "build").is_dir():
        shutil.copytree(ROOT / "build", source / "build", ignore=shutil.ignore_patterns("lib.*", "bdist.*"))
    library = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "entrenar"
    for path in INSTALLED.rglob(f"*{EXTENSION}"):
        target = library / path.relative_to(INSTALLED)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    run(command, source, PYTHONPATH=tools)
    (built,) = folder.glob("entrenar-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_the_source_distribution_holds_every_source_and_nothing_that_was_built(unpacked: Path) -> None:
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    checkout = unpacked.parent / "checkout"
    needed = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    needed = {path for path in needed if not path.startswith("build/") and ".egg-info/" not in path}
    assert len(needed) > 200
    assert sorted(needed - there) == []
    assert [path for path in there if path.endswith((".so", ".o", ".pyc"))] == []
    assert [path for path in there if path.endswith(".c") and path.removesuffix("c") + "pyx" in there] == []


@pytest.mark.slow
def test_the_wheel_holds_modules_stubs_and_no_sources_of_c(wheel: zipfile.ZipFile) -> None:
    names = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert {path.split("/")[0] for path in names} == {"entrenar"}
    compiled = {name(path.with_suffix("")) + EXTENSION for path in files(".pyx", under=("entrenar",))}
    assert compiled - names == set()
    assert {name(path) for path in files(".py", ".pyi", under=("entrenar",))} - names == set()
    assert "entrenar/py.typed" in names
    assert {f"entrenar/{name(path)}" for path in files(".toml", under=("configs",))} - names == set()
    kept = {EXTENSION.rsplit(".", 1)[-1], "py", "pyi", "pxd", "typed", "toml"}
    assert sorted(path for path in names if path.rsplit(".", 1)[-1] not in kept) == []


@pytest.mark.slow
def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (path for path in wheel.namelist() if path.endswith(".dist-info/METADATA"))
    said = wheel.read(metadata).decode()
    for line in ("Name: entrenar", "Requires-Python: >=3.10", "License-Expression: MIT", "Requires-Dist: numpy>=1.26"):
        assert line in said
    assert any(path.endswith("LICENSE") for path in wheel.namelist())
    (scripts,) = (path for path in wheel.namelist() if path.endswith(".dist-info/entry_points.txt"))
    assert "entrenar = entrenar.cli.main:main" in wheel.read(scripts).decode()
    (tags,) = (path for path in wheel.namelist() if path.endswith(".dist-info/WHEEL"))
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"Tag: {python}-{python}-" in wheel.read(tags).decode()


# ---------------------------------------------------------------------- importing
IMPORTED = """
import importlib, sys, psutil
process = psutil.Process()
import numpy
before = process.memory_info().rss
for module in sys.argv[1:]:
    importlib.import_module(module)
print((process.memory_info().rss - before) / 2**20)
print(" ".join(sys.modules))
"""


def imported(*modules: str) -> tuple[float, set[str]]:
    """MiB that a fresh process takes for importing these, NumPy aside, and all modules it then has."""
    out = run([sys.executable, "-c", IMPORTED, *modules], ROOT / "tests", PYTHONPATH=str(INSTALLED.parent))
    size, names = out.splitlines()
    return float(size), set(names.split())


@pytest.mark.memory
@pytest.mark.parametrize(
    "modules",
    [
        ("entrenar",),
        ("entrenar.autograd", "entrenar.optim"),
        ("entrenar.llama", "entrenar.lora", "entrenar.qlora"),
        ("entrenar.train", "entrenar.data", "entrenar.io.hub", "entrenar.cli.main", "entrenar.cli.finetune"),
    ],
    ids=lambda modules: modules[0],
)
def test_an_import_is_small_and_loads_no_other_framework(modules: tuple[str, ...]) -> None:
    size, loaded = imported(*modules)
    assert set(modules) <= loaded
    assert size < MOST_IMPORT_MIB
    assert sorted(loaded & {*HEAVY, *OF_FORMATS}) == []


def test_importing_another_framework_would_be_seen() -> None:
    _, loaded = imported("entrenar", "gguf")
    assert "gguf" in loaded


def test_ci_installs_every_extra_and_ends_with_lint_and_tests() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert "set -euo pipefail" in lines and lines[-2:] == ["make lint", "make test"]
    (extras,) = re.findall(r"^pip install -q '\.\[([\w,]+)\]'$", "\n".join(lines), re.MULTILINE)
    known = set(load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"])
    assert set(extras.split(",")) == known - {"fuzz"}  # whose target installs it

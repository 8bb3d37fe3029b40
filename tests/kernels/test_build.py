"""What the compiler made of the kernels: each tier keeps to its instructions, and extensions keep their symbols."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entrenar._kernels import cpu

from .native import KERNELS, ROOT, build_settings, compile_for_tier

pytestmark = pytest.mark.architecture
SIMD = KERNELS / "simd"
SOURCES = {path.stem: path for path in SIMD.rglob("*.c")}
STEMS = sorted(SOURCES)
on_x86 = pytest.mark.skipif("v3" not in build_settings()[1], reason="the tiers beyond base are x86's")
needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump of the binutils")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t(?:[0-9a-f]{2} )+\s*\t(.+)$", re.MULTILINE)


def object_of(tier: str, source: Path, folder: Path) -> Path:
    """The object of the last build where nothing changed since, else one compiled for this test."""
    changed = max(path.stat().st_mtime for path in (source, ROOT / "setup.py", *SIMD.rglob("*.h")))
    for found in ROOT.glob(f"build/temp.*/simd/{tier}/{source.stem}.o"):
        if found.stat().st_mtime > changed:
            return found
    return compile_for_tier(source, tier, folder / f"{tier}_{source.stem}.o", "-c")


Disassemble = Callable[[str, Iterable[str]], dict[str, list[str]]]


@pytest.fixture(scope="session")
def disassemble(tmp_path_factory: pytest.TempPathFactory) -> Disassemble:
    """(tier, stems of files) -> the instructions of each file as that tier has them."""
    folder = tmp_path_factory.mktemp("objects")

    def run(tier: str, stems: Iterable[str]) -> dict[str, list[str]]:
        def one(stem: str) -> list[str]:
            command = ["objdump", "-d", "--insn-width=16", object_of(tier, SOURCES[stem], folder)]
            lines = INSTRUCTION.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            # where objdump shows nothing, nothing is free of wide registers; `base` has no integers for few rows
            assert len(lines) > 20 or stem in ("table", "types") or (tier == "base" and stem in ("gemv", "gemm_steps"))
            return lines

        with ThreadPoolExecutor(2) as pool:
            return dict(zip(stems, pool.map(one, stems), strict=True))

    return run


def matching(pattern: str, files: dict[str, list[str]]) -> list[str]:
    return [f"{stem}.c: {line}" for stem, lines in files.items() for line in lines if re.search(pattern, line)]


@on_x86
@needs_objdump
def test_base_runs_on_any_x86(disassemble: Disassemble) -> None:
    files = disassemble("base", STEMS)
    assert not matching(r"%[yz]mm", files)
    assert not matching(r"^v[a-z]", files)  # AVX forms of SSE instructions are as foreign to an old CPU


@on_x86
@needs_objdump
def test_v3_is_free_of_avx512_and_uses_what_it_has(disassemble: Disassemble) -> None:
    files = disassemble("v3", STEMS)
    assert not matching(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)", files)
    assert matching(r"^vfmadd\w+ps .*%ymm", {"gemm": files["gemm"]})


@on_x86
@needs_objdump
def test_v4_is_free_of_vnni_and_uses_wide_registers(disassemble: Disassemble) -> None:
    files = disassemble("v4", ["gemm", "nf4", "q4_1"])
    assert not matching(r"^(vpdp\w+|vpermb|vperm[it]2b|vpmultishiftqb)\b", files)
    assert matching(r"^vfmadd\w+ps .*%zmm", files)
    assert matching(r"^vfmadd\w+ps .*%zmm", disassemble("v4i", ["gemm"]))


def test_no_flag_ties_the_wheel_to_one_cpu_or_breaks_nan() -> None:
    common, tiers = build_settings()
    flags = [*common, *(flag for extra in tiers.values() for flag in extra)]
    assert not [flag for flag in flags if re.match(r"-m(arch|cpu|tune)|-Ofast|-ffast-math|-ffinite|-funsafe", flag)]
    assert tiers["base"] == []
    text = (ROOT / "setup.py").read_text()
    assert not re.search(r"march=|Ofast|fast-math", text)


def extension_files() -> list[Path]:
    package = importlib.util.find_spec("entrenar")
    assert package is not None
    folder = Path(next(iter(package.submodule_search_locations or [])))
    return sorted(folder.rglob("*.so"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of the binutils")
def test_extensions_export_their_module_and_cpu_alone_holds_the_dispatch_tables() -> None:
    files = extension_files()
    assert len(files) > 15
    holders = set()
    for path in files:
        exported = subprocess.run(
            ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        names = {line.split()[-1].split("@")[0] for line in exported.splitlines()} - {"_init", "_fini"}
        stem = path.name.split(".")[0]
        assert names == {f"PyInit_{stem}"}, path.name
        if b"simd_table_base" in path.read_bytes():
            holders.add(stem)
    assert holders == {"cpu"}


def cython_sources() -> dict[Path, str]:
    sources = {path: path.read_text() for path in (ROOT / "entrenar").rglob("*.p[yx][xd]")}
    assert len(sources) > 40
    return sources


def test_no_source_needs_the_headers_of_numpy() -> None:
    assert not [path for path, text in cython_sources().items() if re.search(r"cimport numpy|from numpy cimport", text)]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of the binutils")
def test_no_extension_calls_a_runtime_of_openmp() -> None:
    found = sorted(Path(cpu.__file__).parents[1].rglob("*.so"))
    assert len(found) > 20
    for path in found:
        shown = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"\b(GOMP_|omp_|__kmpc_)\w+", shown), path
    program = "import entrenar.autograd; print([line for line in open('/proc/self/maps') if 'gomp' in line])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_openmp_is_called_by_cpu_alone() -> None:
    for path, text in cython_sources().items():
        if path.stem != "cpu":
            assert not re.search(r"cimport openmp|openmp cimport|omp\.h|\bomp_\w+\(", text), path
    for path in [*KERNELS.rglob("*.c"), *KERNELS.rglob("*.h")]:
        assert "omp" not in re.findall(r"#pragma (\w+)|#include <(\w+)\.h>", path.read_text()), path


def test_kernels_know_no_floor_above_them() -> None:
    for path, text in cython_sources().items():
        if path.is_relative_to(KERNELS):
            imported = re.findall(r"^\s*(?:from|cimport|import) (entrenar[\w.]*)", text, re.MULTILINE)
            assert all(re.match(r"entrenar\.(_kernels|errors|choices)\b", name) for name in imported), path


def test_every_kernel_function_is_declared_where_others_find_it() -> None:
    for source in set(KERNELS.glob("*.pyx")) - {KERNELS / "peak.pyx"}:  # a measurement, for Python only
        assert source.with_suffix(".pxd").is_file(), source.name
    families = set(re.findall(r"const (\w+)_ops \*", (SIMD / "simd.h").read_text()))
    stems = {path.stem if path.stem in families else path.stem.split("_")[0] for path in SIMD.glob("*.c")}
    assert families and stems - {"table"} == families


def test_tiers_are_built_in_the_order_that_cpu_names_them() -> None:
    built = list(build_settings()[1])
    assert built == [tier for tier in cpu.TIERS if tier in built]
    assert set(cpu.supported_tiers()) <= set(built)

"""simd/*.pxd say what the headers beside them say: scripts/simd_pxd.py makes them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .sources import PACKAGE, ROOT, text

pytestmark = pytest.mark.architecture


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, working on a copy of simd/."""
    spec = importlib.util.spec_from_file_location("simd_pxd", ROOT / "scripts" / "simd_pxd.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "simd_pxd", module)
    spec.loader.exec_module(module)
    shutil.copytree(PACKAGE / "_kernels" / "simd", tmp_path / "simd", ignore=shutil.ignore_patterns("*.c", "*.so"))
    monkeypatch.setattr(module, "SIMD", tmp_path / "simd")
    return module


def test_no_pxd_is_stale(maker: ModuleType) -> None:
    assert len(maker.generated()) > 10
    assert maker.stale() == [], "run scripts/simd_pxd.py"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ptrdiff_t heads,", "ptrdiff_t heads, int extra,"),
        ("void (*rotate)", "void (*turn)"),
        ("} rope_ops;", "    int added;\n} rope_ops;"),
    ],
)
def test_a_changed_header_makes_its_pxd_stale(maker: ModuleType, before: str, after: str) -> None:
    header = maker.SIMD / "rope.h"
    assert before in header.read_text()
    header.write_text(header.read_text().replace(before, after))
    assert maker.stale() == ["rope.pxd"]
    maker.sys.argv = ["simd_pxd.py"]
    assert maker.main() == 0
    assert maker.stale() == []


def test_every_member_of_a_table_has_its_row() -> None:
    """A member without one is NULL, and the first call of it crashes."""
    simd = PACKAGE / "_kernels" / "simd"
    tables, missing = 0, []
    for path in sorted(simd.glob("*.pxd")):
        if table := re.search(rf"ctypedef struct {path.stem}_ops:\n((?: {{8}}.*\n)+)", text(path)):
            tables += 1
            members = re.findall(r"^ {8}(?! )(?:.*\(\*(\w+)\)|[^(\n]*?(\w+)(?:\[.*\])?$)", table[1], re.MULTILINE)
            assert members, path.name
            rows = set(re.findall(r"\.(\w+) = ", text(path.with_suffix(".c"))))
            missing += [f"{path.stem}.c: .{name}" for name in map("".join, members) if name not in rows]
    assert tables > 10
    assert not missing, f"no row in the table: {missing}"


def test_a_pxd_without_a_header_and_a_lost_one_are_stale(maker: ModuleType) -> None:
    (maker.SIMD / "other.pxd").write_text("")
    (maker.SIMD / "rope.pxd").unlink()
    assert maker.stale() == ["other.pxd", "rope.pxd"]


def test_what_is_below_ifdef_tier_is_left_out(maker: ModuleType) -> None:
    source = "int a(void);\n#ifdef TIER\n#if VLEN >= 8\nint b(void);\n#endif\nint c(void);\n#endif\nint d(void);\n"
    assert list(maker.statements(maker.without_tier(source))) == ["int a(void)", "int d(void)"]


def test_a_declaration_without_a_rule_is_an_error(maker: ModuleType) -> None:
    header = maker.SIMD / "rope.h"
    header.write_text(header.read_text() + "union odd { int a; };\n")
    with pytest.raises(SystemExit, match="no rule for 'union odd"):
        maker.stale()

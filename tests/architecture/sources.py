"""The checkout that the tests belong to, as files: what the tests of layers and conventions read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "entrenar"
FOLDERS = ("entrenar", "tests", "fuzz", "scripts", "examples", "benchmarks", "configs", "docs", ".ci")
TEXT = {".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".toml", ".md", ".sh", ".yml", ".yaml", ".cfg", ""}
MADE = {"__pycache__", "corpus", "crashes", "outputs"}


def files(*suffixes: str, under: tuple[str, ...] = FOLDERS) -> list[Path]:
    """The text files of the checkout with these suffixes (all of them where none is given), without what runs leave."""
    found = [path for path in ROOT.iterdir() if path.is_file() and under is FOLDERS]
    for folder in under:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = set(suffixes) or TEXT
    return sorted(path for path in found if path.suffix in wanted and not MADE & set(path.relative_to(ROOT).parts))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    """The dotted name of a source file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(source: str) -> str:
    """Cython source with continued lines joined, so that one statement is one line."""
    joined = re.sub(r"\\\n\s*", " ", source)
    return re.sub(r"\(([^()]*)\)", lambda match: "(" + re.sub(r"\s*\n\s*", " ", match[1]) + ")", joined)

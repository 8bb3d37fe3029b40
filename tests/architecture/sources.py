"""The checkout that the tests belong to, as files: what the tests of layers and conventions read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "entrenar"
FOLDERS = ("entrenar", "tests", "fuzz", "scripts", "examples", "benchmarks", "configs", "docs", ".ci")
TEXT = {".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".toml", ".md", ".sh", ".yml", ".yaml", ".cfg", ""}
MADE = {"__pycache__", "corpus", "crashes", "outputs", ".git"}  # .git is a file in a worktree


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


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a Python, Cython or C file (their first line's number and name) and how many lines each has."""
    found = {".py": _python, ".pyx": _cython, ".pxd": _cython, ".c": _c, ".h": _c}.get(path.suffix)
    if found:
        for title, first, last in found(text(path)):
            yield f"{name(path)}:{first}: {title}", last - first + 1


def _python(source: str) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, node.end_lineno or node.lineno


def _cython(source: str) -> Iterator[tuple[str, int, int]]:
    lines = source.splitlines()
    for first, line in enumerate(lines):
        found = re.match(r"(\s*)(?:def|cdef|cpdef)\s[^=]*?(\w+)\(", line)
        if not found:
            continue
        head, depth = first, 0  # the last line of the declaration
        while (depth := depth + lines[head].count("(") - lines[head].count(")")) > 0:
            head += 1
        if not lines[head].split("#")[0].rstrip().endswith(":"):
            continue  # declared here and defined elsewhere
        last = head
        for number in range(head + 1, len(lines)):
            if lines[number].strip() and len(lines[number]) - len(lines[number].lstrip()) <= len(found[1]):
                break
            last = number if lines[number].strip() else last
        yield found[2], first + 1, last + 1


def _c(source: str) -> Iterator[tuple[str, int, int]]:
    lines = source.splitlines()
    head = None  # the first line of the statement at the file's level
    for number, line in enumerate(lines):
        if head is None and re.match(r"[A-Za-z_]", line):
            head = number
        if head is not None and (line.startswith("}") or (line.endswith((";", "}")) and not line.startswith(" "))):
            found = re.search(r"(\w+)\(", " ".join(lines[head : number + 1]))
            if line == "}" and found:
                yield found[1], head + 1, number + 1
            head = None

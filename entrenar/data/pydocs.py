"""The default data: prompt/answer pairs from the Python documentation that every Python installation carries."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from entrenar.data.formats import Example
from entrenar.errors import FormatError

PART_CHARACTERS = 1400  # longest part of a topic
DOCSTRING_CHARACTERS = (120, 1400)  # shorter ones teach nothing, longer ones are tables
MOST_DOCSTRINGS = 2400
SKIPPED = ("test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "turtledemo", "pydoc_data")


def documentation_examples() -> list[Example]:
    """Prompt/answer pairs from `pydoc_data.topics` and the docstrings of the standard library, in a fixed order.

    Sources are parsed with `ast`, never imported. Raises FormatError where this Python has no documentation at all.
    """
    pairs = [*_topic_pairs(), *_docstring_pairs()]
    seen: set[str] = set()
    examples = []
    for prompt, answer in pairs:
        if answer not in seen:
            seen.add(answer)
            examples.append(Example([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]))
    if not examples:
        raise FormatError("This Python installation carries neither pydoc_data.topics nor library sources; use --data.")
    return examples


def _topic_pairs() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        parts = _parts(topics[name])
        for number, part in enumerate(parts, 1):
            which = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
            yield f"Explain the Python topic {name!r}{which}.", part


def _parts(text: str) -> list[str]:
    """The text in parts of at most PART_CHARACTERS, cut between paragraphs, else between lines, else anywhere."""
    parts: list[str] = []
    current = ""
    for paragraph in text.strip().split("\n\n"):
        for piece in _pieces(paragraph):
            if current and len(current) + 2 + len(piece) > PART_CHARACTERS:
                parts.append(current)
                current = piece
            else:
                current = f"{current}\n\n{piece}" if current else piece
    if current.strip():
        parts.append(current)
    return [part.strip("\n") for part in parts if part.strip()]


def _pieces(paragraph: str) -> list[str]:
    if len(paragraph) <= PART_CHARACTERS:
        return [paragraph]
    pieces, current = [], ""
    for line in paragraph.split("\n"):
        for start in range(0, max(len(line), 1), PART_CHARACTERS):
            chunk = line[start : start + PART_CHARACTERS]
            if current and len(current) + 1 + len(chunk) > PART_CHARACTERS:
                pieces.append(current)
                current = chunk
            else:
                current = f"{current}\n{chunk}" if current else chunk
    return [*pieces, current]


def _docstring_pairs() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = 0
    for file in _sources(root):
        relative = file.relative_to(root)
        for pair in _file_pairs(file, ".".join(relative.with_suffix("").parts).removesuffix(".__init__")):
            yield pair
            found += 1
            if found == MOST_DOCSTRINGS:
                return


def _sources(folder: Path) -> Iterator[Path]:
    """The public modules below a folder, in the order of their names; what is skipped is not entered."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_dir():
            if not entry.is_symlink() and entry.name not in SKIPPED and not entry.name.startswith("_"):
                yield from _sources(entry)
        elif entry.suffix == ".py" and (not entry.stem.startswith(("_", "test")) or entry.stem == "__init__"):
            yield entry


def _file_pairs(file: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError, ValueError):
        return  # a template or a file in another encoding: no documentation to read
    for name, node in _definitions(tree, module):
        docstring = ast.get_docstring(node)
        if docstring is None or not DOCSTRING_CHARACTERS[0] <= len(docstring) <= DOCSTRING_CHARACTERS[1]:
            continue
        kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
        yield f"What does the Python {kind} {name} do?", textwrap.dedent(inspect.cleandoc(docstring))


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, Definition]]:
    """The module, its public functions and classes, and their public methods, by dotted name."""
    yield module, tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_"):
                        yield f"{module}.{node.name}.{item.name}", item

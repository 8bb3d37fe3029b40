"""The pages are true: every path, link, command and name that they mention exists."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from entrenar.train import folder

from .imports import FLOORS
from .sources import PACKAGE, ROOT, files, name, text

pytestmark = pytest.mark.architecture
GENERATED = {"edges.md"}  # written by a test run, from names that exist
MADE_BY_RUNS = {"benchmarks/results", "benchmarks/history.jsonl"}
PAGES = [ROOT / "CONTRIBUTING.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in GENERATED)]
REQUIRED = ["architecture", "one_step", "gemm", "glossary", "conventions", "formats"]
REQUIRED += [f"howto/{page}" for page in ("op", "weight_type", "adapter", "family", "cli_verb", "ollama")]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FORMERLY = re.compile(r"^\|(?:[^|]*\|){2}(?P<old>[^|]*)\|$", re.MULTILINE)  # the glossary's third column


def prose(page: Path) -> str:
    """A page without its code blocks, the glossary without retired words, other tools' pages without their names."""
    source = FENCE.sub("", text(page))
    if page.name == "coming_from.md":
        source = re.sub(r"^\|[^|]*\|", "|", source, flags=re.MULTILINE)
    if page.name == "glossary.md":
        source = FORMERLY.sub(lambda match: match[0].replace(match["old"], ""), source)
    return source


@functools.cache
def words() -> frozenset[str]:
    """Every identifier of the code, tests and settings, pages left out."""
    found: set[str] = set()
    for path in files():
        if path.suffix != ".md":
            found.update(re.findall(r"[A-Za-z_]\w*", text(path)))
            found.update(re.split(r"\W+", str(path.relative_to(ROOT))))
    return frozenset(found)


@functools.cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), re.MULTILINE))


def is_path(mention: str) -> bool:
    """Whether a mention is a path of the checkout: no space, a slash and no pattern, or a known suffix."""
    if re.search(r"[\s*<>{}|=()\"'$]", mention) or mention.startswith(("-", "/", "~")):
        return False
    return "/" in mention or Path(mention).suffix in (".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".toml", ".md")


def exists(mention: str, page: Path) -> bool:
    """In the checkout or the package, from the page's folder, as the name of a file anywhere, or made by a run."""
    if mention in MADE_BY_RUNS or any(
        (base / mention).exists() for base in (ROOT, ROOT / "entrenar", ROOT / "entrenar" / "_kernels", page.parent)
    ):
        return True
    return "/" not in mention and any(path.name == mention for path in files())


@pytest.mark.parametrize("page", REQUIRED)
def test_the_page_is_there_and_linked(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").is_file()
    assert any(f"{page}.md" in text(other) for other in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_mentions_exists(page: Path) -> None:
    wrong = []
    source = prose(page)
    for target in LINK.findall(source):
        if "://" not in target and not (page.parent / target).exists():
            wrong.append(f"link {target}")
    for mention in CODE.findall(source):
        if mention.startswith("make "):
            wrong += [] if mention.split()[1] in targets() else [f"command {mention}"]
        elif is_path(mention):
            wrong += [] if exists(mention.split(":")[0].rstrip("/"), page) else [f"path {mention}"]
        else:
            wrong += [
                f"name {word} of {mention}" for word in re.findall(r"[A-Za-z_]\w{2,}", mention) if word not in words()
            ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mention", ["entrenar/nothing.py", "docs/nothing.md", "scripts/nothing.py"])
def test_a_path_that_is_not_there_is_seen(mention: str) -> None:
    assert is_path(mention)
    assert not exists(mention, ROOT / "docs" / "page.md")


def test_a_name_that_is_not_there_is_seen() -> None:
    assert "gradcheck" in words()
    assert "_".join(["never", "written", "anywhere"]) not in words()


def test_every_file_of_a_runs_folder_is_listed() -> None:
    section = re.search(r"^## The folder of a run\n(.*?)^## ", text(ROOT / "docs/formats.md"), re.MULTILINE | re.DOTALL)
    assert section
    rows = re.findall(r"^\| ([\w., ]+) \|", section[1], re.MULTILINE)[1:]
    listed = {name for row in rows for name in re.split(r", or |, ", row)}
    assert listed == {folder.LOCK, folder.BEGUN, *folder.FOLDERS, *folder.RECORDS}


LAYOUTS = {
    "README.md": (r"^## How the house is laid out\n(.*?)^## ", r"^    (\w+)(?:/|\.py)"),
    "docs/architecture.md": (r"^```\n(.*?)^```$", r"\| +(\w+)(?:/|\.py)"),
}


@pytest.mark.parametrize("page", LAYOUTS)
def test_the_picture_of_the_floors_is_that_of_the_imports(page: str) -> None:
    """Every room of the package is in the picture, none above a room that imports it."""
    where, what = LAYOUTS[page]
    picture = re.search(where, text(ROOT / page), re.MULTILINE | re.DOTALL)
    assert picture
    rooms = re.findall(what, picture[1], re.MULTILINE)
    levels = {room: level for level, floor in enumerate(FLOORS) for room in floor}
    faces = {"lora", "qlora"}  # on the line of llama.py
    ours = {path.name.split(".")[0] for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(rooms) | faces == ours - {"__init__", "__main__", "__pycache__"}
    assert [levels[room] for room in rooms] == sorted((levels[room] for room in rooms), reverse=True)

"""What the documentation's site makes of the repository: README as its first page, and the command line's reference.

Nothing is written twice: README's links are turned to the site's pages, those that leave docs/ become plain text, and
the reference is the help that the programs print.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from entrenar.cli.main import PROGRAM, VERBS

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them."""
    base = "." if page.file.src_uri == "index.md" else Path("docs", page.file.src_uri).parent.as_posix()

    def turned(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        place = os.path.normpath(os.path.join(base, target))  # noqa: PTH118 (a path in the repository, not on disk)
        if place.startswith("docs" + os.sep) and files.get_file_from_path(place[len("docs/") :]):
            here = Path(page.file.src_uri).parent.as_posix()
            return f"[{text}]({os.path.relpath(place[len('docs/') :], here)}{anchor})"
        if place == "README.md":
            return f"[{text}]({os.path.relpath('index.md', Path(page.file.src_uri).parent.as_posix())}{anchor})"
        return text

    return LINK.sub(turned, markdown)


def command_line() -> str:
    """The help of the program and of every verb."""
    os.environ["COLUMNS"] = "100"
    pages = [f"# Command line\n\n`{PROGRAM} VERB [FLAGS]`. What follows is what `--help` prints.\n"]
    for verb, purpose in VERBS.items():
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            import_module(f"entrenar.cli.{verb}").main(["--help"], prog=f"{PROGRAM} {verb}")
        pages.append(
            f"## {verb}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{printed.getvalue().rstrip()}\n```\n"
        )
    return "\n".join(pages)

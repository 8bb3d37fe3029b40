"""The documentation as a site: built without a warning, whole, and without anything from another server."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

import entrenar.llama
import entrenar.optim
from entrenar.cli.main import VERBS
from tests.observe import chromium

from .sources import ROOT, text

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytestmark = pytest.mark.architecture
LOADED = re.compile(r"""<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)=["']?(https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [str(Path(sysconfig.get_path("scripts")) / "mkdocs"), "build", "--strict", "--site-dir", str(folder)]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "WARNING" not in ended.stderr
    return folder


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert built - {Path("404")} == pages | {Path("index"), Path("cli")}
    for page in pages:
        assert f"{page}.md" in text(ROOT / "mkdocs.yml"), page  # none that only a search finds


def test_the_reference_has_every_verb_and_every_public_name(site: Path) -> None:
    line = (site / "cli.html").read_text()
    for verb in VERBS:
        assert f"usage: entrenar {verb} " in line, verb
    names = (site / "api.html").read_text()
    for module in (entrenar.llama, entrenar.optim):
        for name in module.__all__:
            assert re.search(rf'id="entrenar\.[\w.]*{name}"', names), name


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not LOADED.search(path.read_text()), path


@pytest.mark.skipif(not chromium.PROGRAM, reason="Chromium is not installed")
def test_a_browser_shows_it(site: Path, tmp_path: Path) -> None:
    for page, words in (("index.html", "From your own file"), ("cli.html", "usage: entrenar chat")):
        command = [
            chromium.PROGRAM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
        ]
        ended = subprocess.run(
            [*command, (site / page).as_uri()], capture_output=True, text=True, check=False, timeout=120
        )
        assert words in ended.stdout

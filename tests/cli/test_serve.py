"""`entrenar serve` where it cannot: one sentence, before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.train.builders import run_entrenar

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.mark.unit
def test_what_cannot_be_served_is_one_sentence(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases: list[tuple[tuple[str | Path, ...], str]] = [
            (("--port", port), f"127.0.0.1 port {port} cannot be listened at"),
            (("--host", "0.0.0.0"), "set ENTRENAR_API_KEY"),
            (("--adapter", tmp_path / "none"), "no such file or directory"),
            (("--context", "1000"), "sequences of at most 128"),
        ]
        for words, message in cases:
            ended = run_entrenar("serve", "--model", model, *words)
            assert ended.returncode == 1 and message in ended.stderr, ended.stderr
            assert ended.stderr.count("\n") == 1

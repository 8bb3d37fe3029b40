"""A run traced to Arize Phoenix (pip install arize-phoenix) over gRPC, and read back over its REST interface."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar.train.config import Observe
from entrenar.train.observers import observers
from tests.train.builders import losses, run_config, trainer_of

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
PHOENIX = shutil.which("phoenix")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PHOENIX is None, reason="needs arize-phoenix on PATH")]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a Phoenix: REST, and OTLP over gRPC."""
    ports = {"PHOENIX_PORT": str(free_port()), "PHOENIX_GRPC_PORT": str(free_port())}
    environment = os.environ | ports | {"PHOENIX_HOST": "127.0.0.1", "PHOENIX_WORKING_DIR": str(tmp_path / "phoenix")}
    environment["PHOENIX_TELEMETRY_ENABLED"] = "false"
    rest, otlp = (f"http://127.0.0.1:{port}" for port in ports.values())
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([PHOENIX or "", "serve"], stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 600
            while True:
                try:
                    ask(f"{rest}/v1/projects")
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.2)
            yield rest, otlp
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_the_tree_is_read_back(phoenix: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest, otlp = phoenix
    said = io.StringIO()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp)
    config = run_config(tmp_path / "run", steps=3)
    config.observe = Observe(trace=True, trace_layers=True)
    trainer = trainer_of(config, callbacks=observers(config, tmp_path, Console(file=said, width=200)))
    trainer.run()
    assert said.getvalue().count("\n") == 1, said.getvalue()
    trace, count = said.getvalue().split()[1].rstrip(","), int(said.getvalue().split()[2])
    spans: list[Any] = []
    deadline = time.monotonic() + 60
    while len(spans) < count and time.monotonic() < deadline:  # it writes what it takes into its database later
        time.sleep(0.2)
        spans = ask(f"{rest}/v1/projects/default/spans?limit=1000")["data"]
    assert len(spans) == count
    assert {span["context"]["trace_id"] for span in spans} == {trace}
    by_id = {span["context"]["span_id"]: span for span in spans}
    assert [span["name"] for span in spans if not span["parent_id"]] == ["entrenar.run"]
    assert all(span["parent_id"] in by_id for span in spans if span["parent_id"])
    steps = sorted((s for s in spans if s["name"] == "entrenar.step"), key=lambda span: span["start_time"])
    assert [step["attributes"]["loss"] for step in steps] == [report.loss for report in trainer.reports]
    assert sum(span["name"] == "layer.backward" for span in spans) == 6
    plain = trainer_of(run_config(tmp_path / "plain", steps=3))
    plain.run()
    assert losses(plain) == losses(trainer)

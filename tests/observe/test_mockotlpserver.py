"""A run traced to a receiver that others wrote, Elastic's mockotlpserver: gRPC, HTTP, and the file's JSON posted."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar.train.config import Observe
from entrenar.train.observers import observers
from tests.train.builders import run_config, trainer_of

pytestmark = pytest.mark.unit
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
PACKAGE, VERSION = "@elastic/mockotlpserver", "0.10.0"
SCRIPT = Path(__file__).with_name("mock_receiver.js")


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder of Node's packages with the receiver, which is installed once into the user's cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs Node")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entrenar-tests" / f"mock-{VERSION}"
    found = cache / "node_modules"
    if not (found / PACKAGE / "package.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(cache), "--no-audit", "--no-fund", f"{PACKAGE}@{VERSION}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return found


@contextmanager
def receiving(modules: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """The addresses of a receiver, and a function that gives what it received when it has as many spans."""
    environment = {**os.environ, "NODE_PATH": str(modules)}
    with subprocess.Popen(["node", str(SCRIPT)], stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        lines, spans = server.stdout, []

        def received(count: int) -> list[dict[str, Any]]:
            while len(spans) < count:
                request = json.loads(lines.readline())
                resource = request["resourceSpans"][0]
                spans.extend(span for scope in resource["scopeSpans"] for span in scope["spans"])
            return spans

        patience = threading.Timer(60, server.kill)  # then nothing more comes, instead of nothing for ever
        patience.start()
        try:
            yield json.loads(lines.readline()), received
        finally:
            patience.cancel()
            server.terminate()


def names(spans: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for span in spans:
        found[span["name"]] = found.get(span["name"], 0) + 1
    return found


@pytest.mark.parametrize(("protocol", "scheme"), [("grpc", "grpc"), ("http/protobuf", "http")])
def test_it_has_the_whole_tree(
    protocol: str, scheme: str, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, file = io.StringIO(), tmp_path / "trace.jsonl"
    with receiving(modules) as (addresses, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", addresses[scheme])
        config = run_config(tmp_path / "run", steps=3)
        config.observe = Observe(trace=True, trace_layers=True, trace_file=str(file))
        trainer = trainer_of(config, callbacks=observers(config, tmp_path, Console(file=said, width=200)))
        trainer.run()
        count = int(said.getvalue().split()[2])
        spans = received(count)
    assert said.getvalue().count("\n") == 1, said.getvalue()
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_id) == count
    assert names(spans)["entrenar.step"] == 3
    assert names(spans)["layer.forward"] == names(spans)["layer.backward"] == 6
    for span in spans:
        above = by_id[span["parentSpanId"]]["name"] if span.get("parentSpanId") else None
        if span["name"] != "entrenar.run":
            assert above == {"layer": span["name"].rpartition(".")[2], "entrenar": "entrenar.run"}.get(
                span["name"].partition(".")[0], "entrenar.step"
            )
    losses = [span["attributes"]["loss"] for span in spans if span["name"] == "entrenar.step"]
    assert sorted(losses) == sorted(report.loss for report in trainer.reports)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    sent = [span for each in written for span in each["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    assert {span["spanId"] for span in sent} == set(by_id)


def test_it_takes_the_lines_of_the_file(modules: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", steps=2)
    config.observe = Observe(trace_file=str(tmp_path / "trace.jsonl"))
    trainer = trainer_of(config, callbacks=observers(config, tmp_path, Console(file=io.StringIO())))
    trainer.run()
    lines = (tmp_path / "trace.jsonl").read_bytes().splitlines()
    with receiving(modules) as (addresses, received):
        for line in lines:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{addresses['http']}v1/traces", line, headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200
        spans = received(1 + 2 * 7)
    assert names(spans)["entrenar.step"] == 2
    (run,) = [span for span in spans if span["name"] == "entrenar.run"]
    assert run["attributes"]["run"] == trainer.run_id
    assert run["attributes"]["seed"] in (3, "3")

"""scripts/profile_llama_otlp.py: a program traced to a receiver, and a sentence with status 1 where something lacks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.architecture.sources import ROOT

from .scripts import with_program

pytestmark = pytest.mark.unit
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
receivers = pytest.importorskip("tests.observe.receivers")
PROGRAM = """
import sys
from entrenar.observe import otlp, otlp_sdk
from entrenar.observe.events import span
if "--fails" in sys.argv:
    sys.exit("there is no model")
assert "--trace" in sys.argv
exporter = otlp.Counted(otlp_sdk.exporter("traces", "observe.trace"), "the receiver")
with otlp.tracing([exporter], {}, print) as spans:
    with span("entrenar.run"):
        with span("entrenar.step", step=1):
            print("step 1/1")
if "--loses" in sys.argv:
    print(f"observe.trace: 1 of 2 {otlp.LOST} the receiver.")
print(f"trace {spans.trace_id}, {spans.ended} spans")
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a small program in the place of the example, and no Jaeger."""
    module = with_program("profile_llama_otlp", PROGRAM, tmp_path, monkeypatch)
    for name in [*os.environ]:
        if name.startswith("OTEL_") or name in ("TRACEPARENT", "TRACESTATE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAEGER_UI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return module


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def jaeger(received: Any, lacks: int = 0) -> Iterator[str]:
    """Answers Jaeger's /api/traces/ID: the first time with 404, then with what `received` has, `lacks` spans fewer."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            spans = [each for each in received.spans if each.trace_id.hex() == self.path.rpartition("/")[2]]
            body = json.dumps({"data": [{"spans": [each.name for each in spans[lacks:]]}]}).encode()
            self.send_response(200 if len(asked) > 1 else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("receiver", ["grpc_receiver", "http_receiver"])
def test_a_program_is_traced_below_the_target(
    receiver: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with getattr(receivers, receiver)() as received, jaeger(received) as address:
        for name, value in {**received.environment(), "JAEGER_UI": address}.items():
            monkeypatch.setenv(name, value)
        assert script.main(["--steps", "1"]) == 0
        spans = {each.name: each for each in received.spans}
    root, run, step = (spans[name] for name in ("make profile-llama-otlp", "entrenar.run", "entrenar.step"))
    assert (run.parent_span_id, step.parent_span_id) == (root.span_id, run.span_id)
    trace = root.trace_id.hex()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/1",
        f"trace {trace}, 2 spans",
        f"Trace {trace}: 3 spans, all at the receiver.",
        f"Look at it: {address}/trace/{trace}",
    ]


def test_without_jaeger_the_trace_is_to_be_searched_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with receivers.grpc_receiver() as received:
        for name, value in received.environment().items():
            monkeypatch.setenv(name, value)
        assert script.main([]) == 0
    assert "Look at it: search the receiver for the trace; no Jaeger answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        (["--fails"], {}, "the example ended with status 1; the last that it said is: there is no model"),
        (["--loses"], {}, "the receiver does not have the whole trace: observe.trace: 1 of 2 spans did not reach the"),
        ([], {"OTEL_TRACES_SAMPLER": "always_off"}, "nothing is traced; see OTEL_TRACES_SAMPLER"),
        ([], {"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'smoke', expected one of"),
    ],
)
def test_what_lacks_is_a_sentence_and_a_status(
    flags: list[str],
    variables: dict[str, str],
    sentence: str,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with receivers.grpc_receiver() as received:
        for name, value in {**received.environment(), **variables}.items():
            monkeypatch.setenv(name, value)
        assert script.main(["--", *flags]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"profile-llama-otlp: {sentence}")
    assert said.count("\n") == 1


def test_a_jaeger_that_does_not_come_to_have_it_is_a_sentence(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "PATIENCE", 0.5)
    with receivers.grpc_receiver() as received, jaeger(received, lacks=1) as address:
        for name, value in {**received.environment(), "JAEGER_UI": address}.items():
            monkeypatch.setenv(name, value)
        assert script.main([]) == 1
    assert f"Jaeger at {address} shows 2 of 3 spans" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_make_says_that_no_receiver_answers(protocol: str) -> None:
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
    }
    command = [shutil.which("make") or "make", "-o", "build", "profile-llama-otlp", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("profile-llama-otlp: no OTLP receiver answers (")
    assert "docker-compose-jaeger.yml" in lines[0]

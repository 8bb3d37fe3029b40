"""The metrics of a run, by the receivers that there are: an OTLP server, Prometheus' client; and faults of theirs."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar._kernels import profile
from entrenar.errors import ConfigError
from entrenar.observe import extras, prometheus
from entrenar.observe.metrics import BY_NAME, TABLE
from entrenar.train.config import Observe, TrainConfig
from entrenar.train.observers import observers
from entrenar.train.step import StepReport

from .builders import listen, losses, run_config, trainer_of

pytestmark = pytest.mark.unit
pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk.metrics")


def observed(tmp_path: Path, said: io.StringIO | None = None, **observe: Any) -> Any:
    """The trainer of a run of six steps with these options of [observe]."""
    config = run_config(tmp_path, steps=6, evaluate_every=3, every=3)
    config.observe = Observe(**observe)
    return trainer_of(config, callbacks=observers(config, tmp_path, Console(file=said or io.StringIO(), width=400)))


def plain(tmp_path: Path) -> list[str]:
    trainer = trainer_of(run_config(tmp_path / "plain", steps=6, evaluate_every=3, every=3))
    trainer.run()
    return losses(trainer)


class Receiver(BaseHTTPRequestHandler):
    """An OTLP/HTTP receiver (OTLP specification 1.x): reads what opentelemetry-proto says, answers `status`."""

    protocol_version = "HTTP/1.1"
    requests: list[Any]
    status, answer = 200, b""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, dict(self.headers), body))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def receiving(
    monkeypatch: pytest.MonkeyPatch, started: list[HTTPServer] | None = None, **answers: Any
) -> Iterator[list[Any]]:
    """The requests that an OTLP/HTTP receiver gets, which the environment names; `started` gets the server."""
    requests: list[Any] = []
    server = HTTPServer(("127.0.0.1", 0), type("R", (Receiver,), {"requests": requests, **answers}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    if started is not None:
        started.append(server)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def points(requests: list[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics of the last export by name, and the resource's attributes."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest.FromString(requests[-1][2])
    (of_resource,) = request.resource_metrics
    resource = {pair.key: pair.value.string_value for pair in of_resource.resource.attributes}
    return {m.name: m for scope in of_resource.scope_metrics for m in scope.metrics}, resource


def test_an_otlp_receiver_gets_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=night")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    with receiving(monkeypatch) as requests:
        trainer = observed(tmp_path, metrics=True)
        trainer.run()
    found, resource = points(requests)
    path, headers, _ = requests[-1]
    assert path == "/v1/metrics"
    assert headers["authorization"] == "secret"
    assert (resource["service.name"], resource["team"]) == ("entrenar", "night")
    assert resource["entrenar.run"] == trainer.run_id
    last = trainer.reports[-1]
    assert found["entrenar.loss"].gauge.data_points[0].as_double == last.loss
    tokens = found["entrenar.tokens"]
    assert tokens.sum.is_monotonic
    assert tokens.sum.data_points[0].as_int == sum(report.tokens for report in trainer.reports)
    assert found["entrenar.step_duration"].unit == "s"
    assert found["entrenar.step_duration"].histogram.data_points[0].count == 6
    phases = {
        p.attributes[0].value.string_value: p.count for p in found["entrenar.phase_duration"].histogram.data_points
    }
    assert phases["forward"] == 6
    assert set(found) <= {row.otel_name for row in TABLE}
    assert {"process.memory.usage", "process.paging.faults", "entrenar.kernel_flops"} <= set(found)


@pytest.mark.parametrize("fault", ["closed", "grpc", "garbage", "error", "silent"])
def test_a_receiver_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    expected, said = plain(tmp_path), io.StringIO()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    answers = {"garbage": {"answer": b"\xff\x00garbage"}, "error": {"status": 400}}.get(fault, {})
    with receiving(monkeypatch, **answers), socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if fault == "silent":
            held.listen()
        if fault == "grpc":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        if fault in ("closed", "grpc", "silent"):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        trainer = observed(tmp_path / "seen", said, metrics=True)
        trainer.run()
    assert losses(trainer) == expected
    assert said.getvalue().count("observe.metrics:") == (0 if fault == "garbage" else 1), said.getvalue()


def waits_for(condition: Callable[[], object]) -> Callable[[object], None]:
    """A hook that holds the run up until something of another thread has happened; it fails after half a minute."""

    def wait(_: object) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    return wait


@pytest.mark.chaos
def test_a_receiver_that_is_killed_in_mid_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, said, servers = plain(tmp_path), io.StringIO(), list[HTTPServer]()
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with receiving(monkeypatch, servers, protocol_version="HTTP/1.0") as requests:
        trainer = observed(tmp_path / "seen", said, metrics=True)

        def kill(report: StepReport) -> None:
            if report.step == 3:
                waits_for(lambda: requests)(report)
                servers[0].shutdown()
                servers[0].server_close()
            elif report.step == 5:
                waits_for(said.getvalue)(report)

        listen(trainer, on_step=kill)
        trainer.run()
    assert losses(trainer) == expected
    assert points(requests)[0]["entrenar.step"].gauge.data_points[0].as_double <= 3
    assert said.getvalue().count("observe.metrics:") == 1, said.getvalue()
    assert not [thread for thread in threading.enumerate() if "OtelPeriodic" in thread.name]


@pytest.mark.chaos
def test_a_metrics_file_on_a_full_disk_is_one_sentence_and_is_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, expected, said = tmp_path / "disk", plain(tmp_path), io.StringIO()
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "filler").write_bytes(bytes(60 << 10))
        monkeypatch.setattr(prometheus, "FILE_SECONDS", 0.01)
        trainer = observed(tmp_path / "seen", said, metrics_file=str(disk / "run.prom"))
        full, room = waits_for(said.getvalue), waits_for((disk / "run.prom").exists)

        def free(report: StepReport) -> None:
            if report.step == 3:
                full(report)
                assert not (disk / "run.prom").exists()
                (disk / "filler").unlink()
                room(report)

        listen(trainer, on_step=free)
        trainer.run()
        assert losses(trainer) == expected
        assert f"entrenar_loss {trainer.reports[-1].loss!r}" in (disk / "run.prom").read_text()
        assert [path.name for path in disk.iterdir()] == ["run.prom"]  # nothing half written is left
    finally:
        subprocess.run(["umount", disk], check=True)
    assert said.getvalue().count("observe.metrics_file:") == 1
    assert "cannot be written (No space left on device); the run goes on." in said.getvalue()


def test_a_scrape_in_mid_run_has_the_figures(tmp_path: Path) -> None:
    expected, said, texts = plain(tmp_path), io.StringIO(), []
    trainer = observed(tmp_path / "seen", said, metrics_port=0, metrics_file=str(tmp_path / "run.prom"))

    def scrape(report: StepReport) -> None:
        address = re.search(r"http://\S+", said.getvalue())
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=10) as answer:
            texts.append(answer.read().decode())

    listen(trainer, on_step=scrape)
    counted = profile.enabled()
    trainer.run()
    assert losses(trainer) == expected
    assert profile.enabled() == counted
    text = texts[-1]
    assert f"entrenar_loss {trainer.reports[-1].loss!r}" in text
    assert f"entrenar_tokens_total {float(sum(r.tokens for r in trainer.reports))}" in text
    for line in (
        *('entrenar_phase_duration_seconds_count{phase="optimizer"} 6.0', "entrenar_held_out_loss "),
        *('entrenar_page_faults_total{type="minor"} ', 'entrenar_context_switches_total{type="involuntary"} '),
        *("entrenar_resident_memory_bytes ", 'entrenar_allocator_bytes{state="peak"} '),
        *(
            'entrenar_kernel_flops_total{kernel="',
            'entrenar_kernel_seconds_total{kernel="',
            "entrenar_checkpoints_total ",
        ),
        *("entrenar_planned_steps 6.0", f'run="{trainer.run_id}"', 'tier="', 'precision="', 'data="', 'model="llama '),
    ):
        assert line in text, line
    assert f"entrenar_loss {trainer.reports[-1].loss!r}" in (tmp_path / "run.prom").read_text()


@pytest.mark.parametrize("option", ["metrics_port", "metrics_file"])
def test_a_place_that_is_taken_leaves_the_run_alone(tmp_path: Path, option: str) -> None:
    expected, said = plain(tmp_path), io.StringIO()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value = taken.getsockname()[1] if option == "metrics_port" else str(tmp_path / "nowhere" / "run.prom")
        trainer = observed(tmp_path / "seen", said, **{option: value})
        trainer.run()
    assert losses(trainer) == expected
    assert said.getvalue().count(f"observe.{option}:") == 1


@pytest.mark.parametrize(("option", "value"), [("metrics", True), ("metrics_port", 0), ("metrics_file", "a.prom")])
def test_a_missing_library_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: Any
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=rf"observe\.{option} needs .* pip install 'entrenar\[observe\]'"):
        observed(tmp_path, **{option: value})


def test_a_protocol_that_there_is_not_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json', expected one of grpc, http"):
        observed(tmp_path, metrics=True)


def test_a_file_that_node_exporter_would_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"observe\.metrics_file is run\.txt, expected a name that ends in \.prom"):
        TrainConfig(observe=Observe(metrics_file="run.txt"))


def test_every_metric_of_a_run_is_in_the_table() -> None:
    root = Path(__file__).parents[2] / "entrenar"
    text = "".join(path.read_text() for path in root.rglob("*.py") if path.name != "metrics.py")
    named = set(re.findall(r'metric\(\s*"(\w+)"', text)) | set(re.findall(r'\("(entrenar_\w+)", \{', text))
    assert len(named) > 15
    assert named - set(BY_NAME) == set()

"""observability/ follows from the table of metrics, and Prometheus and its tools read it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from entrenar.observe import prometheus
from entrenar.observe.events import metric, subscribe, unsubscribe
from entrenar.observe.metrics import BY_NAME, HISTOGRAM, TABLE, Store

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None, reason="needs Debian's prometheus"
)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("observability", ROOT / "scripts" / "observability.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def promtool(*words: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, words)], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def names(expression: str) -> set[str]:
    """The metrics that a query names, its strings, labels and by-clauses left out."""
    bare = re.sub(r"\bby \([^)]*\)|\{[^}]*\}|\[[^\]]*\]", "", expression)
    return set(re.findall(r"\b[a-z_]{3,}\b(?!\s*\()", bare)) - {"and", "without", "by"}


def exposed() -> set[str]:
    """The names of the series that the table gives."""
    parts = ("_bucket", "_sum", "_count")
    return {row.name + part for row in TABLE for part in (parts if row.kind == HISTOGRAM else ("",))}


def test_no_file_is_stale(maker: ModuleType) -> None:
    assert maker.stale() == [], "run scripts/observability.py"
    listed = {path.relative_to(maker.FOLDER).as_posix() for path in maker.FOLDER.rglob("*") if path.is_file()}
    assert listed == set(maker.generated())


def test_a_changed_file_is_stale(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["observability.py"])
    assert maker.main() == 0
    assert maker.stale() == []
    (tmp_path / "rules.yml").write_text("groups: []\n")
    (tmp_path / "prometheus.yml").unlink()
    monkeypatch.setattr(sys, "argv", ["observability.py", "--check"])
    assert maker.stale() == ["prometheus.yml", "rules.yml"]
    assert maker.main() == 1


def test_every_query_names_a_metric_that_exists(maker: ModuleType) -> None:
    assert len(maker.expressions()) > len(TABLE)
    for expression in maker.expressions():
        found = names(expression)
        assert found, expression
        assert found <= exposed(), expression
    labels = {label for row in TABLE for label in row.labels} | {"instance", "le"}
    for expression in maker.expressions():
        assert set(re.findall(r"(\w+)=~?\"", expression)) <= labels, expression


def test_a_query_of_something_else_is_seen() -> None:
    assert names('rate(entrenar_lost{a="b"}[5m]) / on_my_own > 2') == {"entrenar_lost", "on_my_own"}


def test_every_metric_has_a_panel(maker: ModuleType) -> None:
    table = json.loads(maker.dashboard())
    queries = " ".join(target["expr"] for panel in table["panels"] for target in panel.get("targets", []))
    assert [row.name for row in TABLE if row.name not in queries] == []
    places = [tuple(panel["gridPos"].values()) for panel in table["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in table["panels"]})


@needs_prometheus
def test_promtool_takes_configuration_and_rules() -> None:
    folder = ROOT / "observability"
    for what, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        found = promtool("check", what, folder / name)
        assert found.returncode == 0, found.stdout + found.stderr


@needs_prometheus
def test_promtool_takes_the_metrics() -> None:
    client = pytest.importorskip("prometheus_client")
    store = Store()
    subscribe(store)
    try:
        for row in TABLE:
            metric(row.name, 1.5, **dict.fromkeys(row.labels, "x"))
    finally:
        unsubscribe(store)
    text = client.generate_latest(prometheus.registry(store)).decode()
    assert {family for family in BY_NAME if family not in text} == set()
    found = promtool("check", "metrics", text=text)
    assert (found.returncode, found.stdout + found.stderr) == (0, ""), found.stdout + found.stderr


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def scraping(folder: Path, maker: ModuleType, target: int) -> Iterator[str]:
    """The address of a Prometheus that runs with our configuration, scraping `target` five times a second."""
    text = maker.prometheus().replace(f":{maker.PORT}", f":{target}")
    text = re.sub(r"(scrape_interval|evaluation_interval): \w+", r"\1: 200ms", text)
    (folder / "prometheus.yml").write_text(text)
    (folder / "rules.yml").write_text(maker.rules())
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def ask(address: str, query: str) -> list[Any]:
    """What Prometheus answers to an instant query; nothing before it is there."""
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
            return list(json.loads(answer.read())["data"]["result"])
    except (ConnectionError, urllib.error.URLError) as error:
        if getattr(error, "code", 503) != 503:
            raise
        return []


@needs_prometheus
def test_prometheus_scrapes_a_live_run_and_answers(tmp_path: Path, maker: ModuleType) -> None:
    pytest.importorskip("prometheus_client")
    from tests.train.builders import listen, losses, run_config, trainer_of  # a run takes longer than a scrape there
    from tests.train.test_observe_metrics import observed

    port, rates, deadline = free_port(), [], time.monotonic() + 60
    with scraping(tmp_path, maker, port) as address:
        trainer = observed(tmp_path / "run", metrics_port=port)
        trainer.config.training.steps = 100000

        def look(report: Any) -> None:
            if report.step % 10 == 0:
                rates.extend(ask(address, "rate(entrenar_tokens_total[10s])"))
            if (rates and float(rates[-1]["value"][1]) > 0) or time.monotonic() > deadline:
                trainer.config.training.steps = report.step
            threading.Event().wait(0.02)

        listen(trainer, on_step=look)
        trainer.run()
        assert rates, (tmp_path / "log").read_text()
        tokens = sum(report.tokens for report in trainer.reports)
        assert 0 < float(rates[-1]["value"][1]) < tokens
        (last,) = ask(address, "last_over_time(entrenar_step[1m])")
        assert 0 < float(last["value"][1]) <= len(trainer.reports)
        (facts,) = ask(address, "last_over_time(entrenar_info[1m])")
        assert facts["metric"]["run"] == trainer.run_id
        for expression in maker.expressions():
            ask(address, expression)  # a query that Prometheus refuses is a status of 400
    again = trainer_of(run_config(tmp_path / "plain", steps=len(trainer.reports), evaluate_every=3, every=3))
    again.run()
    assert losses(again) == losses(trainer)


def test_the_compose_file_names_files_and_services_that_exist(maker: ModuleType) -> None:
    text = maker.compose()
    for mounted in re.findall(r"- \./(\S+?):", text):
        assert (maker.FOLDER / mounted).is_file(), mounted
    (extended,) = re.findall(r"file: (\S+)\n      service: jaeger", text)
    jaeger = (maker.FOLDER / extended).read_text()
    for file in (text, jaeger):
        images = re.findall(r"image: (\S+)", file)
        assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images), images
    assert re.search(r"^  jaeger:\n    image: jaegertracing/jaeger:2\.", jaeger, re.MULTILINE)

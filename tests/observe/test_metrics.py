"""The table of metrics, its store, and the exporters against the libraries that read them."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from entrenar.observe import metrics, prometheus
from entrenar.observe.events import metric, subscribe, unsubscribe
from entrenar.observe.metrics import BY_NAME, COUNTER, SECONDS, TABLE, UNITS, Store

pytestmark = pytest.mark.unit
SUFFIXES = {"{token}": "tokens"}


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    subscribe(made)
    yield made
    unsubscribe(made)


@contextmanager
def served(store: Store, said: list[str]) -> Iterator[str]:
    with prometheus.serving(store, 0, said.append) as port:
        yield f"http://127.0.0.1:{port}/metrics"


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_the_table_follows_prometheus_naming() -> None:
    assert len(BY_NAME) == len(TABLE) > 25
    assert len({row.otel_name for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert re.fullmatch(r"entrenar_[a-z_]+[a-z]", row.name), row.name
        assert (row.kind == COUNTER) == row.name.endswith("_total"), row.name
        if row.unit in UNITS:
            assert row.base.endswith(f"_{UNITS[row.unit]}"), row.name
        assert row.help
        assert not row.help.endswith("."), row.name
        assert "le" not in row.labels


def test_a_counter_adds_a_gauge_replaces_a_histogram_counts(store: Store) -> None:
    for value in (2, 3):
        metric("entrenar_tokens_total", value, step=1)
        metric("entrenar_loss", value)
        metric("entrenar_phase_duration_seconds", value, phase="forward")
    metric("entrenar_phase_duration_seconds", 1.0, phase="forward")  # on a bound: in its bucket
    metric("entrenar_phase_duration_seconds", 1e9, phase="forward")
    metric("of_somebody_else", 1)
    values, histograms = store.snapshot()
    assert values == {"entrenar_tokens_total": {(): 5.0}, "entrenar_loss": {(): 3.0}}
    found = histograms["entrenar_phase_duration_seconds"][("forward",)]
    assert found.sum == 6 + 1e9
    assert found.counts[SECONDS.index(1.0)] == 1
    assert found.counts[SECONDS.index(2.5)] == 1
    assert found.counts[SECONDS.index(5.0)] == 1
    assert found.counts[-1] == 1


def test_prometheus_reads_what_the_events_said(store: Store) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    metric("entrenar_info", 1, version="1", model='a "b"\\\n', data="d")
    metric("entrenar_tokens_total", 512)
    metric("entrenar_loss", float("nan"))
    metric("entrenar_page_faults_total", 7, type="major")
    metric("entrenar_step_duration_seconds", 0.3)
    metric("entrenar_step_duration_seconds", 1000)
    said: list[str] = []
    with served(store, said) as address:
        text = read(address)
    assert said == [f"metrics: {address}"]
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["entrenar_info"].samples[0].labels["model"] == 'a "b"\\\n'
    assert families["entrenar_tokens"].type == "counter"
    assert families["entrenar_page_faults"].samples[0].labels == {"type": "major"}
    assert families["entrenar_loss"].samples[0].value != families["entrenar_loss"].samples[0].value
    step = {s.labels.get("le", s.name): s.value for s in families["entrenar_step_duration_seconds"].samples}
    assert (step["0.25"], step["0.5"], step["250.0"], step["+Inf"]) == (0, 1, 1, 2)
    assert step["entrenar_step_duration_seconds_sum"] == 1000.3
    assert "entrenar_held_out_loss" not in families


def test_a_port_that_is_taken_is_one_sentence(store: Store) -> None:
    pytest.importorskip("prometheus_client")
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with prometheus.serving(store, port, said.append) as found:
            assert found is None
    assert len(said) == 1
    assert re.search(rf"127\.0\.0\.1:{port} cannot be taken \(Address already in use\); the run goes on", said[0])


def test_the_port_is_free_again_afterwards(store: Store) -> None:
    pytest.importorskip("prometheus_client")
    threads = threading.active_count()
    with prometheus.serving(store, 0, lambda _: None) as port:
        pass
    assert threading.active_count() == threads
    with prometheus.serving(store, port or 0, lambda _: None) as again:
        assert again == port


def test_the_file_is_whole_and_leaves_nothing_beside_it(store: Store, tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    path, said = tmp_path / "entrenar.prom", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "FILE_SECONDS", 0.001)
        with prometheus.writing(store, path, said.append):
            for value in range(200):
                metric("entrenar_step", value)
                if path.exists() and (text := path.read_text()):
                    assert text.endswith("\n")
    samples = [s.value for family in parser.text_string_to_metric_families(path.read_text()) for s in family.samples]
    assert samples == [199.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["entrenar.prom"]
    assert said == []


@pytest.mark.parametrize("place", ["nowhere/entrenar.prom", "/dev/full/entrenar.prom"])
def test_a_file_that_cannot_be_written_is_one_sentence(store: Store, tmp_path: Path, place: str) -> None:
    pytest.importorskip("prometheus_client")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "FILE_SECONDS", 0.001)
        with prometheus.writing(store, tmp_path / place, said.append):
            metric("entrenar_step", 1)
            while not said:
                pass
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_labels_that_an_event_lacks_are_empty() -> None:
    row = BY_NAME["entrenar_anomalies_total"]
    assert metrics.labels_of(row, {"kind": "slow_step", "step": 3}) == ("slow_step", "")

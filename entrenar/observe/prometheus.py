"""The metrics as Prometheus reads them: over HTTP, and in a file for node_exporter's textfile collector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from entrenar.observe.extras import needed
from entrenar.observe.metrics import COUNTER, HISTOGRAM, SECONDS, TABLE, Store

HOST = "127.0.0.1"  # figures of a run are nobody else's, unless a person forwards the port
FILE_SECONDS = 5.0  # between two writes of a file


class Collector:
    """Gives `store` to prometheus_client, which asks at every scrape; a metric without a value is left out."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._core = needed("prometheus_client.core", "observe.metrics_port")

    def collect(self) -> Iterator[Any]:
        """The families of the table that have values (Prometheus text format 0.0.4)."""
        core, (values, histograms) = self._core, self._store.snapshot()
        bounds = [*map(str, SECONDS), "+Inf"]
        for row in TABLE:
            if row.kind == HISTOGRAM:
                family = core.HistogramMetricFamily(row.base, row.help, labels=row.labels)
                for labels, one in histograms.get(row.name, {}).items():
                    family.add_metric(labels, list(zip(bounds, accumulate(one.counts), strict=True)), one.sum)
            else:
                kind = core.CounterMetricFamily if row.kind == COUNTER else core.GaugeMetricFamily
                family = kind(row.base if row.kind == COUNTER else row.name, row.help, labels=row.labels)
                for labels, value in values.get(row.name, {}).items():
                    family.add_metric(labels, value)
            if family.samples:
                yield family


def registry(store: Store) -> Any:
    """A registry of prometheus_client that has `store` alone; ConfigError where the library is missing."""
    made = needed("prometheus_client", "observe.metrics_port").CollectorRegistry(auto_describe=False)
    made.register(Collector(store))
    return made


@contextmanager
def serving(store: Store, port: int, say: Callable[[str], None]) -> Iterator[int | None]:
    """Answer GET /metrics on the loopback interface inside the block; the port, None where it cannot be taken.

    `port` 0 takes a free one. `say` gets a sentence with the address, or why there is none: the run goes on.
    """
    client = needed("prometheus_client", "observe.metrics_port")
    try:
        server, thread = client.start_http_server(port, addr=HOST, registry=registry(store))
    except OSError as error:
        say(
            f"observe.metrics_port: {HOST}:{port} cannot be taken ({error.strerror or error}); the run goes on without."
        )
        yield None
        return
    try:
        say(f"metrics: http://{HOST}:{server.server_port}/metrics")
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def writing(store: Store, path: Path, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Write `path` every few seconds inside the block, and at its end, each time whole (renamed into its place).

    `say` gets one sentence where it cannot be written: the run goes on, and the next write may succeed.
    """
    client, made, failed = needed("prometheus_client", "observe.metrics_file"), registry(store), threading.Event()

    def write() -> None:
        try:
            client.write_to_textfile(str(path), made)
        except OSError as error:
            if not failed.is_set():
                failed.set()
                say(f"observe.metrics_file: {path} cannot be written ({error.strerror or error}); the run goes on.")

    return _repeated(write)


@contextmanager
def _repeated(write: Callable[[], None]) -> Iterator[None]:
    """Call `write` every FILE_SECONDS in a thread, and when the block is left."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(FILE_SECONDS):
            write()

    thread = threading.Thread(target=repeat, name="entrenar metrics file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write()

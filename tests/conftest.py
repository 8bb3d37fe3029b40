"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Threads that spin while they wait slow other programs' tests down where the cores are shared; read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from entrenar._kernels import cpu

# What `make test` tells the programs that its recipe runs is not for the `make` that a test runs.
for variable in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(variable, None)

# Each of pytest-xdist's workers gets its share of the cores, and so do the processes that its tests start.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
if WORKERS and not {"ENTRENAR_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
    cpu.set_num_threads(max(1, cpu.default_num_threads() // WORKERS))
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(cpu.get_num_threads())

MEASURED = pytest.StashKey[list[tuple[str, list[str]]]]()  # tables, with their titles, to print after the run


def heed_interrupts() -> None:
    """The preexec_fn of a process that a test stops: jobs in the background ignore SIGINT, or SIGHUP."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests measured, for the reader of the log."""
    for title, lines in config.stash.get(MEASURED, []):
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(lines))


class Report:
    """Counts the tests of each category (marker) by outcome and writes them to the file of --report."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self.path, self.started = path, time.time()
        self.categories = [line.split(":")[0] for line in config.getini("markers")]
        self.counts: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a failed or skipped setup has no call
            for category in [name for name in self.categories if name in report.keywords] or ["unmarked"]:
                self.counts.setdefault(category, Counter())[report.outcome] += 1
            self.counts.setdefault("all", Counter())[report.outcome] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        table = {"seconds": time.time() - self.started, "status": int(exitstatus), "counts": self.counts}
        self.path.write_text(json.dumps(table, indent=2) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="write the number of tests by category and outcome as JSON")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("report")
    if path and not hasattr(config, "workerinput"):  # a worker's tests are counted by the process that started it
        config.pluginmanager.register(Report(path.absolute(), config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands what it measured to the process that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["measured"] = session.config.stash.get(MEASURED, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of pytest-xdist: a worker has ended, or was killed and has no output."""
    node.config.stash.setdefault(MEASURED, []).extend(getattr(node, "workeroutput", {}).get("measured", []))


def pytest_collection_finish() -> None:
    """Leave what lives to the end, the tests and the peers' modules, out of what each full collection walks through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where `python -c` looks first: in the checkout, its uncompiled sources would hide the installed package."""
    os.chdir(tmp_path_factory.mktemp("working"))


@pytest.fixture(params=cpu.supported_tiers())
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each SIMD tier that this machine runs, in turn."""
    before = cpu.tier()
    cpu.set_tier(request.param)
    yield request.param
    cpu.set_tier(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the thread count after a test that changes it."""
    before = cpu.get_num_threads()
    yield
    cpu.set_num_threads(before)

"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# Threads that spin while they wait slow other programs' tests down where the cores are shared; read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from entrenar._kernels import cpu

MEASURED = pytest.StashKey[list[tuple[str, list[str]]]]()  # tables, with their titles, to print after the run


def heed_interrupts() -> None:
    """The preexec_fn of a process that a test interrupts: a shell's background jobs inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests measured, for the reader of the log."""
    for title, lines in config.stash.get(MEASURED, []):
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(lines))


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

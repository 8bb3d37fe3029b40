"""Collects the verdicts of the variations; `--edges-table FILE` writes them as a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from .table import VERDICTS, write_table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--edges-table", default=None, help="file to write the table of variations and verdicts to")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--edges-table", None) and config.getoption("numprocesses", None):
        raise pytest.UsageError("--edges-table needs the verdicts of one process; leave -n out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    file = config.getoption("--edges-table", None)
    if file:
        write_table(Path(file), config.stash.get(VERDICTS, []))
        terminalreporter.write_line(f"written: {file}")

"""Spans as a Chrome trace."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from entrenar.observe.chrome import ChromeTrace
from entrenar.observe.events import event, span, subscribe, unsubscribe
from entrenar.train.config import Observe
from entrenar.train.observers import observers
from tests.train.builders import run_config, trainer_of


@pytest.mark.unit
def test_a_run_is_a_chrome_trace_whose_phases_lie_within_their_steps(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", steps=2)
    config.observe = Observe(trace_chrome=str(tmp_path / "trace.json"))
    trainer = trainer_of(config, callbacks=observers(config, tmp_path, Console()))
    trainer.run()
    events = json.loads((tmp_path / "trace.json").read_text())
    steps = [event for event in events if event["name"] == "entrenar.step"]
    assert [step["args"]["step"] for step in steps] == [1, 2]
    assert [step["args"]["loss"] for step in steps] == [report.loss for report in trainer.reports]
    forward = [event for event in events if event["name"] == "forward"]
    for step, phase in zip(steps, forward, strict=True):
        assert (
            phase["ph"] == "X" and step["ts"] <= phase["ts"] <= phase["ts"] + phase["dur"] <= step["ts"] + step["dur"]
        )
    assert events[-1]["name"] == "entrenar.run"


@pytest.mark.unit
def test_events_are_instants_and_every_thread_has_its_name_before_its_first_entry(tmp_path: Path) -> None:
    def other() -> None:
        event("anomaly", kind="disk")

    with ChromeTrace(tmp_path / "trace.json", print) as trace:
        subscribe(trace)
        try:
            with span("outer"):
                event("anomaly", kind="slow_step")
            worker = threading.Thread(target=other, name="monitor")
            worker.start()
            worker.join()
        finally:
            unsubscribe(trace)
    entries = json.loads((tmp_path / "trace.json").read_text())
    instants = [entry for entry in entries if entry["ph"] == "i"]
    assert [entry["args"]["kind"] for entry in instants] == ["slow_step", "disk"]
    names = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["ph"] == "M"}
    assert [names[entry["tid"]] for entry in instants] == [threading.current_thread().name, "monitor"]


@pytest.mark.unit
def test_what_json_cannot_hold_is_written_as_text(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    with ChromeTrace(tmp_path / "trace.json", print) as trace:
        subscribe(trace)
        try:
            with span("step", loss=float("nan"), shape=(2, 3), path=tmp_path):
                event("nonfinite", value=float("-inf"))
        finally:
            unsubscribe(trace)
    entries = json.loads((tmp_path / "trace.json").read_text(), parse_constant=refuse)
    assert [entry["args"] for entry in entries if entry["ph"] in "iX"] == [
        {"value": "-inf"},
        {"loss": "nan", "shape": [2, 3], "path": str(tmp_path)},
    ]

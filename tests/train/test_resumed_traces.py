"""The trace files of a run that is resumed: nothing of the part before is lost, whatever a kill left of them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar.errors import ConfigError
from entrenar.observe.continued import Tail, array, lines
from entrenar.observe.stream import Stream
from entrenar.train.config import Observe
from entrenar.train.observers import observers
from entrenar.train.trainer import Trainer

from .builders import run_config, trainer_of
from .test_checkpoint import stop_after

pytestmark = pytest.mark.unit
pytest.importorskip("opentelemetry.sdk.trace")
STEPS = 6
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("OTEL_") or name in ("TRACEPARENT", "TRACESTATE"):
            monkeypatch.delenv(name)


def traced(folder: Path, said: io.StringIO, resume: bool = False) -> Trainer:
    config = run_config(folder / "run", steps=STEPS, every=2, resume=resume, overwrite=not resume)
    config.observe = Observe(trace_file=str(folder / "trace.jsonl"), trace_chrome=str(folder / "trace.json"))
    console = Console(file=said, width=1000)
    return trainer_of(config, callbacks=observers(config, folder / "run", console))


def stopped(folder: Path) -> Trainer:
    """A run that broke off after step 5; its checkpoint is of step 4."""
    trainer = traced(folder, io.StringIO())
    stop_after(trainer, 5)
    return trainer


def spans(path: Path) -> list[dict[str, Any]]:
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    scopes = [scope for request in requests for one in request["resourceSpans"] for scope in one["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


def steps(found: list[dict[str, Any]]) -> list[int]:
    """The steps of OTLP spans, by time."""
    by_time = sorted((one for one in found if one["name"] == "entrenar.step"), key=lambda one: one["startTimeUnixNano"])
    values = [{each["key"]: each["value"] for each in one["attributes"]} for one in by_time]
    return [int(each["step"]["intValue"]) for each in values]


def chrome_steps(path: Path) -> list[int]:
    return [one["args"]["step"] for one in json.loads(path.read_text()) if one["name"] == "entrenar.step"]


# ---------------------------------------------------------------------- whole runs
def test_the_spans_of_both_parts_are_there(tmp_path: Path) -> None:
    first = stopped(tmp_path)
    before, before_chrome = spans(tmp_path / "trace.jsonl"), json.loads((tmp_path / "trace.json").read_text())
    said = io.StringIO()
    resumed = traced(tmp_path, said, resume=True)
    resumed.run()
    after, after_chrome = spans(tmp_path / "trace.jsonl"), json.loads((tmp_path / "trace.json").read_text())
    assert after[: len(before)] == before and after_chrome[: len(before_chrome)] == before_chrome
    assert steps(after) == chrome_steps(tmp_path / "trace.json") == [1, 2, 3, 4, 5, 5, 6]
    assert len({one["traceId"] for one in after}) == 2
    assert first.run_id == resumed.run_id
    assert said.getvalue() == ""
    assert not list(tmp_path.glob("*before*"))


def test_another_run_begins_anew(tmp_path: Path) -> None:
    stopped(tmp_path)
    traced(tmp_path, io.StringIO()).run()
    assert steps(spans(tmp_path / "trace.jsonl")) == chrome_steps(tmp_path / "trace.json") == [1, 2, 3, 4, 5, 6]


@pytest.mark.chaos
@pytest.mark.parametrize("cut", [1, 3, 40, 200])
def test_half_an_entry_is_left_out_with_a_sentence(cut: int, tmp_path: Path) -> None:
    """As a kill leaves it: files that end anywhere, Chrome's without its bracket."""
    stopped(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("trace.jsonl", "trace.json")}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content.rstrip(b"]\n")[:-cut])
    said = io.StringIO()
    traced(tmp_path, said, resume=True).run()
    sentences = said.getvalue().splitlines()
    assert [line.split(": ")[0] for line in sentences] == ["observe.trace_file", "observe.trace_chrome"]
    assert all("ended in the middle of an entry" in line for line in sentences)
    assert steps(spans(tmp_path / "trace.jsonl"))[-2:] == [5, 6]
    assert chrome_steps(tmp_path / "trace.json")[-2:] == [5, 6]
    entries = whole["trace.json"].splitlines()[1:-2]  # all but the last, which was cut
    assert (tmp_path / "trace.json").read_bytes().splitlines()[1 : len(entries) + 1] == entries
    lines_before = whole["trace.jsonl"].splitlines()[:-1]
    assert (tmp_path / "trace.jsonl").read_bytes().splitlines()[: len(lines_before)] == lines_before


KILLED = """
import os, signal, sys, time
from pathlib import Path
from rich.console import Console
sys.path.append(sys.argv[2])  # last: the checkout's entrenar is not compiled
from entrenar.train.config import Observe
from entrenar.train.observers import observers
from tests.train.builders import listen, run_config, trainer_of

folder = Path(sys.argv[1])
config = run_config(folder / "run", steps=6, every=2)
config.observe = Observe(
    trace_file=str(folder / "trace.jsonl"), trace_chrome=str(folder / "trace.json"), trace_ops=True
)
trainer = trainer_of(config, callbacks=observers(config, folder / "run", Console()))
def on_step(report):  # two lines are there before the kill, however late the exporter's thread gets a CPU
    while report.step in (2, 5) and (folder / "trace.jsonl").read_bytes().count(b"\\n") < report.step // 2:
        time.sleep(0.01)
    if report.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
listen(trainer, on_step=on_step)
trainer.run()
"""


@pytest.mark.chaos
def test_a_killed_process_leaves_files_that_are_written_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(ROOT)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "OTEL_BSP_SCHEDULE_DELAY": "20"}
    killed = subprocess.run(command, check=False, env=variables)
    assert killed.returncode == -signal.SIGKILL
    left = {name: (tmp_path / name).read_bytes().splitlines() for name in ("trace.jsonl", "trace.json")}
    assert not left["trace.json"][-1].endswith(b"]")
    traced(tmp_path, io.StringIO(), resume=True).run()
    assert chrome_steps(tmp_path / "trace.json")[-2:] == [5, 6]
    assert steps(spans(tmp_path / "trace.jsonl"))[-2:] == [5, 6]
    for name, entries in left.items():
        whole = entries[: -2 if name == "trace.json" else -1]  # the last may be half an entry, and gets a comma
        assert whole and (tmp_path / name).read_bytes().splitlines()[: len(whole)] == whole


def test_a_file_of_something_else_is_kept_under_another_name(tmp_path: Path) -> None:
    stopped(tmp_path)
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    (tmp_path / "trace.before-1.json").write_text("an older one")
    said = io.StringIO()
    traced(tmp_path, said, resume=True).run()
    kept = tmp_path / "trace.before-2.json"
    assert kept.read_text() == '{"traceEvents": []}'
    assert (tmp_path / "trace.before-1.json").read_text() == "an older one"
    assert (
        said.getvalue() == f"observe.trace_chrome: {tmp_path}/trace.json cannot be written on, and is kept as {kept}.\n"
    )
    assert chrome_steps(tmp_path / "trace.json") == [5, 6]


def test_files_that_are_gone_are_begun(tmp_path: Path) -> None:
    stopped(tmp_path)
    (tmp_path / "trace.jsonl").unlink()
    (tmp_path / "trace.json").unlink()
    traced(tmp_path, io.StringIO(), resume=True).run()
    assert steps(spans(tmp_path / "trace.jsonl")) == chrome_steps(tmp_path / "trace.json") == [5, 6]


def test_a_folder_that_is_gone_is_said_before_training(tmp_path: Path) -> None:
    stopped(tmp_path)
    config = run_config(tmp_path / "run", steps=STEPS, every=2, resume=True)
    config.observe = Observe(trace_chrome=str(tmp_path / "none" / "trace.json"))
    with pytest.raises(ConfigError, match=r"observe\.trace_chrome is .* cannot be written"):
        observers(config, tmp_path / "run", Console(file=io.StringIO()))


# ---------------------------------------------------------------------- where a file is written on
@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ('{"a": 1}\n', Tail(8, "\n")),
        ('{"a": 1}\n\n', Tail(8, "\n")),
        ('{"a": 1}', Tail(8, "\n")),
        ('{"a": 1}\n{"b', Tail(9, "", 3)),
        ('{"b', Tail(0, "", 3)),
        ("\x00\x00\n", Tail(0, "")),
        ('{"a": 1}\n\x00\x00\x00', Tail(8, "\n")),
    ],
)
def test_lines(text: str, tail: Tail) -> None:
    assert lines(io.BytesIO(text.encode())) == tail


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("[\n]\n", Tail(1, "")),
        ("[", Tail(1, "")),
        ("[\n", Tail(1, "")),
        ('[\n{"a": 1}\n]\n', Tail(10, ",")),
        ('[\n{"a": 1}', Tail(10, ",")),
        ('[\n{"a": 1},\n', Tail(10, ",")),
        ('[\n{"a": 1},\n{"b": [2]', Tail(10, ",", 9)),
        ('[\n{"a": 1},\n{"b": 2}\n]', Tail(20, ",")),
        ('[\n{"a', Tail(1, "", 3)),
        ('[\n{"a": 1}\n]\x00\x00', Tail(10, ",")),
        ('[{"a": 1}]', None),
        ("[\nno\nJSON\n]", None),
        ('{"traceEvents": []}', None),
        ("\n[]", None),
    ],
)
def test_arrays(text: str, tail: Tail | None) -> None:
    assert array(io.BytesIO(text.encode())) == tail


def test_entries_longer_than_a_piece() -> None:
    entry = json.dumps({"a": "x" * 200_000})
    assert array(io.BytesIO(f"[\n{entry},\n{entry}\n]\n".encode())) == Tail(2 * len(entry) + 4, ",")
    assert lines(io.BytesIO(f"{entry}\n{entry[:-1]}".encode())) == Tail(len(entry) + 1, "", len(entry) - 1)


def test_a_file_that_cannot_be_read_is_one_sentence_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "trace.jsonl", []
    path.write_text('{"a": 1}\n')

    def fails(file: object) -> Tail:
        raise OSError(5, "Input/output error")

    stream = Stream(path, "observe.trace_file", said.append, fails)
    assert not stream.ready and not stream.write("x")
    assert said == [f"observe.trace_file: {path} cannot be written (Input/output error); the run goes on without it."]
    assert path.read_text() == '{"a": 1}\n'

"""Each logger against its real library, offline; and loggers that fail, hang or cannot keep up."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from entrenar.errors import ConfigError
from entrenar.observe import extras, loggers
from entrenar.observe.loggers import Feed, Logger
from entrenar.train.config import Observe, TrainConfig

from .builders import losses
from .test_observe_metrics import observed, plain

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: a proxy that is not there."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def logged(tmp_path: Path, name: str) -> Any:
    said = io.StringIO()
    trainer = observed(tmp_path, said, loggers=[name])
    trainer.run()
    assert said.getvalue() == ""
    return trainer


def test_tensorboard_reads_the_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = logged(tmp_path, "tensorboard")
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / trainer.run_id)).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in read.Scalars("loss")] == pytest.approx([r.loss for r in trainer.reports], rel=1e-6)
    assert [event.step for event in read.Scalars("held_out_loss")] == [3, 6]
    assert "phase_seconds/backward" in read.Tags()["scalars"]


def test_mlflow_reads_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trainer = logged(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("entrenar").experiment_id])
    assert (run.info.run_name, run.info.status) == (trainer.run_id, "FINISHED")
    assert run.data.params["training.learning_rate"] == "0.01"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (report.step, report.loss) for report in trainer.reports
    ]


def records(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a LevelDB log, blocks of 32 KiB, after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_reads_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trainer = logged(tmp_path, "wandb")
    (file,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{trainer.run_id}.wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in records(file.read_bytes()):
        items = {(i.key or i.nested_key[0]): i.value_json for i in Record.FromString(data).history.item}
        if "loss" in items:
            found.append((int(items["_step"]), json.loads(items["loss"])))
    assert found == [(report.step, report.loss) for report in trainer.reports]


def test_trackio_reads_the_run(tmp_path: Path) -> None:
    """In a process of its own: the library takes its folder from the environment when it is imported."""
    pytest.importorskip("trackio")
    program = (
        "import sys; from pathlib import Path; from tests.train.test_observe_loggers import logged; "
        "print(logged(Path(sys.argv[1]), 'trackio').run_id)"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run = done.stdout.split()[-1]
    with sqlite3.connect(tmp_path / "trackio" / "entrenar.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by step", [run]).fetchall()
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert all("loss" in json.loads(text) for _, text in rows)


class Planted(Logger):
    module = "json"

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        self.steps: list[int] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("where", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [ValueError("planted"), SystemExit("planted")])
def test_a_logger_that_raises_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def bad(*_: Any) -> None:
        raise error

    monkeypatch.setitem(loggers.LOGGERS, "wandb", type("Bad", (Planted,), {where: bad}))
    said = io.StringIO()
    trainer = observed(tmp_path / "seen", said, loggers=["wandb"])
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    assert said.getvalue().count(f"observe.loggers: wandb raised {type(error).__name__}: planted") == 1


def test_a_logger_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, said = threading.Event(), []

    class Hangs(Planted):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            over.wait()

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Hangs)
    monkeypatch.setattr(loggers, "LAST_SECONDS", 0.2)
    monkeypatch.setattr(loggers, "WAITING", 3)
    feed = Feed("wandb", said.append)
    with feed.running(tmp_path, "run", {}):
        for step in range(10):
            feed.log(step, {})
    over.set()
    assert feed.left_out >= 6
    assert said == ["observe.loggers: wandb is not done after 0.2 s, and is left."]


def test_a_missing_library_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"loggers: trackio needs trackio.*pip install 'entrenar\[trackio\]'"):
        observed(tmp_path, loggers=["trackio"])


@pytest.mark.parametrize(
    ("value", "message"),
    [(["tensorbord"], "did you mean 'tensorboard'"), (["wandb", "wandb"], "wandb stands there twice")],
)
def test_a_logger_that_there_is_not_is_refused(value: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(observe=Observe(loggers=value))

"""What a run that is killed while it writes leaves under temporary names is removed by the next run in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import heed_interrupts
from tests.train.builders import ROOT, config_for, quiet, write_examples, write_model

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its examples."""
    folder = tmp_path_factory.mktemp("files")
    return write_model(folder / "model"), write_examples(folder / "examples.jsonl")


@pytest.fixture(scope="module")
def adapter(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    quiet(files[0], config_for(files[1], folder))
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def parts(folder: Path) -> list[str]:
    """The temporary names in a folder and below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.part"))


STOPPED = """
import os, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])  # last: the checkout's entrenar is not compiled
from entrenar.io import atomic
from tests.train.builders import config_for, quiet

model, data, output, place = map(Path, sys.argv[2:6])
signals = [getattr(signal, name) for name in sys.argv[6:]]
sync = atomic.sync

def stopping(path):
    if signals and path.name.startswith(f".{place.name}.") and (output / place).parent == path.parent:
        while signals:
            os.kill(os.getpid(), signals.pop(0))
    sync(path)

atomic.sync = stopping
config = config_for(data, output)
config.checkpointing.every = 2
quiet(model, config)
"""
SIGNALS = {"SIGTERM twice": ("SIGTERM", "SIGTERM"), "SIGKILL": ("SIGKILL",)}


@pytest.mark.parametrize("signals", SIGNALS.values(), ids=SIGNALS.keys())
@pytest.mark.parametrize("place", ["adapter", "summary.json", "metrics.csv", "checkpoint/step-4"])
def test_a_run_stopped_while_it_writes_is_tidied_by_the_one_that_resumes(
    place: str, signals: tuple[str, ...], files: tuple[Path, Path], adapter: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-c", STOPPED, *map(str, (ROOT, *files, output, place)), *signals]
    stopped = subprocess.run(
        command,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert stopped.returncode != 0, stopped.stderr
    assert len(parts(output)) == ("SIGKILL" in signals), "what stops in order tidies itself"
    config = config_for(files[1], output)
    done = place != "checkpoint/step-4" and (output / "checkpoint" / "step-2").exists()
    config.checkpointing = replace(config.checkpointing, resume=done, overwrite=not done)
    quiet(files[0], config)
    assert parts(output) == []
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_every_temporary_name_of_a_run_is_known_to_the_next(files: tuple[Path, Path], tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    config = config_for(files[1], output)
    quiet(files[0], config)
    elsewhere.mkdir()
    linked = output / "adapter" / "adapter_model.safetensors"
    linked.rename(elsewhere / linked.name)
    linked.symlink_to(elsewhere / linked.name)
    (output / "model").mkdir()
    left = [
        *(output / f".{name}.0123abcd.part" for name in ("adapter", "model", "checkpoint", "entrenar")),
        *(output / f".{name}.0123abcd.part" for name in ("metrics.csv", "summary.json")),
        *(output / name / ".entrenar.0123abcd.part" for name in ("adapter", "model", "checkpoint/step-4")),
        output / "checkpoint" / ".step-3.0123abcd.part",
        elsewhere / ".entrenar.0123abcd.part",
    ]
    for path in left:
        path.mkdir()
        (path / "half").write_text("half")
    mine = [output / ".remarks.0123abcd.part", output / "adapter" / ".config.json.part"]
    for path in mine:
        path.write_text("of another program")
    config.checkpointing = replace(config.checkpointing, resume=True)
    quiet(files[0], config)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in mine)

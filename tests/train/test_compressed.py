"""Compressed checkpoints: resumed to the same bits, held against their checksums, refused before training starts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entrenar.errors import ConfigError
from entrenar.io.safetensors import open_safetensors
from entrenar.train import TrainConfig, finetune
from entrenar.train.contents import contents
from tests.train.builders import DROPOUT, losses, run_config, run_entrenar, seal, trainer_of, weights_hash
from tests.train.test_checkpoint import message, stop_after, truncate

pytest.importorskip("zstandard")


def config(directory: Path, compression: str = "zstd", **options: Any) -> TrainConfig:
    made = run_config(directory, **{"adapter": DROPOUT, "every": 2, **options})
    return replace(made, checkpointing=replace(made.checkpointing, compression=compression))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a run that stopped after step 5 of 6; its checkpoint is of step 4."""
    stop_after(trainer_of(config(tmp_path)), 5)
    return tmp_path


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("zstd", "zstd", {}),
        ("zstd", "none", {}),
        ("none", "zstd", {}),
        ("zstd", "zstd", {"adapter": None, "optimizer": "muon"}),
    ],
)
def test_a_run_ends_in_the_bits_of_one_that_was_never_stopped(
    first: str, second: str, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = trainer_of(config(tmp_path / "whole", "none", **options))
    whole.run()
    stop_after(trainer_of(config(tmp_path / "run", first, **options)), 5)
    resumed = trainer_of(config(tmp_path / "run", second, resume=True, **options))
    assert resumed.step == 4
    resumed.run()
    assert losses(resumed) == losses(whole) and weights_hash(resumed) == weights_hash(whole)
    metadata: dict[str, str] = {}
    open_safetensors(tmp_path / "run" / "checkpoint" / "step-6" / "state.safetensors", metadata=metadata)
    assert ("compression" in metadata) == (second == "zstd")


@pytest.mark.unit
def test_the_best_checkpoint_is_read_back(tmp_path: Path) -> None:
    made = config(tmp_path, steps=8, evaluate_every=1, learning_rate=0.3)
    made.checkpointing.keep_best = True
    trainer = trainer_of(made)
    trainer.run()
    found = trainer.take_best()
    assert found is not None and found.held_out is not None and found.step < 8
    assert trainer.objective.evaluate(trainer.model, trainer.held_out, 0).loss == found.held_out.loss


@pytest.mark.chaos
def test_a_truncated_one_is_one_sentence_whatever_its_checksums_say(written: Path) -> None:
    newest = written / "checkpoint" / "step-4"
    truncate(newest / "state.safetensors")
    assert "step-4: is damaged (its files do not have the checksums" in message(written)
    seal(newest)
    message(written)


@pytest.mark.chaos
def test_frames_that_are_damaged_under_right_checksums_are_one_sentence(written: Path) -> None:
    file = written / "checkpoint" / "step-4" / "state.safetensors"
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start : start + 4] = b"none"  # the magic number of the first frame
    file.write_bytes(content)
    seal(file.parent)
    assert "is damaged or cut off" in message(written)


@pytest.mark.unit
def test_it_is_listed_as_any_other(written: Path) -> None:
    newest = written / "checkpoint" / "step-4"
    found = contents(newest)
    assert found.problem is None and found.kind == "checkpoint of a run"
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    trainer = trainer_of(config(written, resume=True))
    assert all(shapes[f"state/weights/{name}"] == tensor.shape for name, tensor in trainer.parameters)
    stored = open_safetensors(newest / "state.safetensors")
    assert found.types()["F32"]["bytes"] == sum(tensor.nbytes for tensor in stored.values())


# ---------------------------------------------------------------------- the library
@pytest.mark.unit
def test_a_missing_library_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    said = r"checkpointing\.compression = zstd needs zstandard, .* pip install 'entrenar\[zstd\]'"
    with pytest.raises(ConfigError, match=said):
        finetune(tmp_path / "there is no model", config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=said):
        trainer_of(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_resuming_a_compressed_one_without_the_library_says_so(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"step-4/state\.safetensors: is compressed and needs zstandard"):
        trainer_of(config(written, "none", resume=True))


@pytest.mark.unit
def test_the_flag_and_what_it_refuses() -> None:
    run = run_entrenar("finetune", "--checkpoint-compression", "gzip")
    assert run.returncode == 1 and "checkpointing.compression is 'gzip'; expected one of none, zstd." in run.stderr

"""The picture of a run's losses: drawn with evaluations and at the end, and never at the run's cost."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entrenar.errors import ConfigError
from entrenar.observe import loss_curve
from entrenar.train.config import Observe
from tests.train.builders import SMALL, config_for, quiet, run_entrenar, write_examples, write_model

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its examples."""
    folder = tmp_path_factory.mktemp("files")
    return write_model(folder / "model"), write_examples(folder / "examples.jsonl")


def pixels(path: Path) -> np.ndarray:
    """The picture as (height, width, 4) bytes."""
    image = pytest.importorskip("matplotlib.image")
    return np.round(255 * image.imread(path)).astype(np.uint8)


def texts(path: Path) -> dict[bytes, int]:
    """The kinds of the chunks of a PNG file, each with its check sum held against its content."""
    content, at, found = path.read_bytes(), 8, {}
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        checksum = struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0]
        assert zlib.crc32(content[at + 4 : at + 8 + size]) == checksum
        found[kind], at = size, at + 12 + size
    return found


def has(image: np.ndarray, colour: str) -> bool:
    """Whether some pixels have this colour."""
    return bool((image[..., :3] == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum() > 20)


@pytest.mark.unit
def test_a_run_leaves_the_picture_of_its_losses(files: tuple[Path, Path], tmp_path: Path) -> None:
    config = config_for(files[1], tmp_path / "run", replace(SMALL, steps=14, evaluate_every=5))
    config.observe = Observe(loss_curve=True)
    result, _ = quiet(files[0], config)
    picture = tmp_path / "run" / "loss.png"
    assert {b"IHDR", b"IDAT", b"IEND"} <= texts(picture).keys()
    image = pixels(picture)
    assert image.shape == (600, 1080, 4) and (image[0, 0] == 255).all()
    for colour in (loss_curve.TRAINED, loss_curve.MEAN, loss_curve.HELD_OUT, "#f2b705"):
        assert has(image, colour), colour
    assert not list(picture.parent.glob(".*.part"))
    plain, _ = quiet(files[0], replace_directory(config, tmp_path / "plain"))
    assert [report.loss for report in plain.reports] == [report.loss for report in result.reports]
    assert not (tmp_path / "plain" / "loss.png").exists()


@pytest.mark.unit
def test_the_loss_of_the_result_is_drawn_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing is evaluated in between: two held-out losses, of which the lower is marked."""
    config = config_for(files[1], tmp_path / "run")
    config.observe = Observe(loss_curve=True)
    quiet(files[0], config)
    image = pixels(tmp_path / "run" / "loss.png")
    assert has(image, loss_curve.HELD_OUT) and has(image, "#f2b705")


def replace_directory(config: object, directory: Path) -> object:
    """The configuration in another folder, without a picture."""
    other = replace(config, observe=Observe())  # type: ignore[type-var]
    other.checkpointing = replace(other.checkpointing, directory=str(directory))  # type: ignore[attr-defined]
    return other


@pytest.mark.unit
@pytest.mark.parametrize("held_out", [[], [(0, 2.5)], [(0, 2.5), (2, 2.0)]])
@pytest.mark.parametrize("steps", [0, 1, 11, 5000])
def test_any_number_of_steps_is_drawn(steps: int, held_out: list[tuple[int, float]], tmp_path: Path) -> None:
    losses = [(step, 3 / step**0.5) for step in range(1, steps + 1)]
    loss_curve.draw(tmp_path / "x.png", losses, held_out, title="of $a_b$ \\frac", best="lowest", unit="nats a token")
    assert pixels(tmp_path / "x.png").shape == (600, 1080, 4)


@pytest.mark.unit
def test_means_are_of_equal_parts() -> None:
    losses = [(step, float(step)) for step in range(1, 65)]
    assert loss_curve.means(losses)[:2] == [(2.5, 2.5), (6.5, 6.5)] and len(loss_curve.means(losses)) == 16
    assert loss_curve.means(losses[:11]) == []


@pytest.mark.unit
def test_a_picture_that_cannot_be_drawn_costs_no_run(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loss_curve, "draw", full)
    config = config_for(files[1], tmp_path / "run", replace(SMALL, evaluate_every=2))
    config.observe = Observe(loss_curve=True)
    result, shown = quiet(files[0], config)
    assert len(result.reports) == SMALL.steps
    said = r"The losses are not drawn, and the run goes on without: \S*loss\.png: cannot be written \(No space left"
    assert len(re.findall(said, shown)) == 1


@pytest.mark.unit
def test_a_missing_library_is_said_before_training(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = config_for(files[1], tmp_path / "run")
    config.observe = Observe(loss_curve=True)
    with pytest.raises(ConfigError, match=r"observe\.loss_curve needs matplotlib, which .*'entrenar\[plot\]'\.$"):
        quiet(files[0], config)
    assert not (tmp_path / "run").exists()


@pytest.mark.chaos
def test_the_flag_of_the_program_draws_and_a_resumed_run_draws_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    words = f"finetune --model {files[0]} --data {files[1]} --sequence-length 64 --loss-curve --evaluate-every 2 "
    words += f"--keep-best --held-out-fraction 0.2 --output {tmp_path / 'run'}"
    done = run_entrenar(*words.split(), "--steps", "4")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "run" / "loss.png").read_bytes()
    done = run_entrenar(*words.split(), "--steps", "6", "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "loss.png").read_bytes() != first

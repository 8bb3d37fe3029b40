"""Checkpoints of a run: continued to the same bits, refused where they do not fit, whole whatever kills the process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entrenar._kernels import cpu
from entrenar.adapters.base import AdapterConfig
from entrenar.autograd.precision import matmul_precision
from entrenar.errors import ConfigError, EntrenarError, FormatError, NumericsError
from entrenar.llama import LLaMAModel
from entrenar.lora import DoRAConfig, IA3Config, LoRAConfig, PrefixConfig
from entrenar.train import Trainer
from entrenar.train.config import LRSchedule
from entrenar.train.step import StepReport
from tests.train.builders import DROPOUT, Calls, listen, losses, run_config, seal, trainer_of, weights_hash

ROOT = Path(__file__).parents[2]


class Stopped(Exception):
    """Thrown into a run, as a crash would."""


def stop_after(trainer: Trainer, step: int) -> None:
    """Run until `step` steps are done and reported, then break off."""

    def on_step(report: object) -> None:
        if trainer.step == step:
            raise Stopped

    listen(trainer, on_step=on_step)
    with pytest.raises(Stopped):
        trainer.run()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a run that stopped after step 5 of 6; its checkpoint is of step 4."""
    stop_after(trainer_of(run_config(tmp_path, adapter=DROPOUT, every=2)), 5)
    return tmp_path


# ---------------------------------------------------------------------- the same bits
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("adapter", "settings"),
    [
        (None, {}),
        (None, {"optimizer": "muon", "weight_decay": 0.1}),
        (DROPOUT, {"gradient_accumulation": 3}),
        (DROPOUT, {"optimizer": "sgd", "learning_rate": 0.1}),
        (DROPOUT, {"lr_schedule": LRSchedule(name="warmup_cosine", warmup_steps=3, min_lr=1e-4)}),
        (IA3Config(target_modules=["all-linear"]), {}),
        (DoRAConfig(rank=4, dropout=0.3, target_modules=["all-linear"]), {"loraplus_lr_ratio": 8}),
        (
            LoRAConfig(rank=4, init_lora_weights="pissa", modules_to_save=["embed_tokens", "norm"]),
            {"weight_decay": 0.1},
        ),
        (LoRAConfig(rank=4, init_lora_weights="orthogonal", target_modules=["embed_tokens", "q_proj"]), {}),
        (PrefixConfig(num_virtual_tokens=4), {}),
    ],
    ids=[
        *(
            "full",
            "muon",
            "lora with dropout, accumulation",
            "sgd with momentum",
            "warmup and cosine",
            "ia3",
            "dora, lora+",
        ),
        *("pissa, modules_to_save", "embedding, orthogonal", "prefix"),
    ],
)
def test_a_run_that_broke_off_continues_to_the_bits_of_one_that_did_not(
    adapter: AdapterConfig | None, settings: dict[str, Any], tmp_path: Path, threads: None
) -> None:
    whole = trainer_of(run_config(tmp_path / "whole", adapter=adapter, steps=12, **settings))
    whole.run()  # 12 steps of 2 rows: the order of the second and third epoch matters too
    broken = trainer_of(run_config(tmp_path / "run", adapter=adapter, steps=12, every=4, **settings))
    stop_after(broken, 7)
    cpu.set_num_threads(2 if cpu.get_num_threads() == 1 else 1)
    resumed = trainer_of(run_config(tmp_path / "run", adapter=adapter, steps=12, every=4, resume=True, **settings))
    assert resumed.step == resumed.saved == 4
    reports = resumed.run()
    assert losses(resumed) == losses(whole)
    assert weights_hash(resumed) == weights_hash(whole) != weights_hash(broken)
    assert [report.step for report in reports] == list(range(1, 13))
    assert [replace(report, seconds=0) for report in reports] == [
        replace(report, seconds=0) for report in whole.reports
    ]


@pytest.mark.unit
def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    done = trainer_of(run_config(tmp_path, adapter=DROPOUT, every=4))
    done.baseline["sample"] = "héllo\n"
    done.run()
    again = trainer_of(run_config(tmp_path, adapter=DROPOUT, every=4, resume=True))
    assert again.run() == done.reports and weights_hash(again) == weights_hash(done)
    assert again.baseline == {"sample": "héllo\n"}


@pytest.mark.unit
def test_more_steps_may_be_asked_for_and_what_changes_no_bit_may_change(written: Path) -> None:
    config = run_config(
        written, adapter=DROPOUT, resume=True, steps=8, threads=1, evaluate_every=4, gradient_checkpointing="on"
    )
    assert [report.step for report in trainer_of(config).run()] == list(range(1, 9))


@pytest.mark.unit
def test_fewer_steps_than_there_are_is_refused(written: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"training\.steps is 3, and .*step-4 was written after step 4; resume with at"
    ):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True, steps=3))


@pytest.mark.unit
def test_held_out_losses_of_earlier_steps_are_kept(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, every=3, evaluate_every=2))
    stop_after(trainer, 3)
    resumed = trainer_of(run_config(tmp_path, resume=True, evaluate_every=2))
    assert resumed.reports == trainer.reports
    assert resumed.reports[1].held_out is not None


# ---------------------------------------------------------------------- another run's checkpoint
@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 2e-2},
            r"training\.learning_rate is 0\.02 and was 0\.01 when .*checkpoint/step-4 was written",
        ),
        ({"seed": 4}, r"training\.seed is 4 and was 3"),
        ({"batch_size": 1}, r"training\.batch_size is 1 and was 2"),
        ({"optimizer": "adam"}, r"training\.optimizer is 'adam' and was 'adamw'"),
        ({"max_grad_norm": 2.0}, r"training\.max_grad_norm is 2\.0 and was 1\.0"),
        ({"lr_schedule": LRSchedule(name="cosine")}, r"lr_schedule\.name is 'cosine' and was 'constant'"),
        ({"adapter": replace(DROPOUT, rank=8)}, r"lora\.rank is 8 and was 4"),
        ({"adapter": replace(DROPOUT, target_modules=["q_proj"])}, r"lora\.target_modules is \['q_proj'\] and was"),
        ({"adapter": None}, r"another base model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_with_both_values(change: dict[str, Any], message: str, written: Path) -> None:
    values: dict[str, Any] = {"adapter": DROPOUT, "resume": True} | change
    with pytest.raises(ConfigError, match=message):
        trainer_of(run_config(written, **values))


@pytest.mark.unit
def test_other_examples_are_refused(written: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint/step-4: was written with other examples"):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True), data_seed=1)


@pytest.mark.unit
def test_another_base_model_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.train import builders

    monkeypatch.setattr(builders, "LLaMAModel", lambda shape, seed: LLaMAModel(shape, seed=seed + 1))
    with pytest.raises(ConfigError, match=r"checkpoint/step-4: was written with another base model"):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True))


# ---------------------------------------------------------------------- damaged ones
def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the top level of state.json, whose values are wrapped as {"value": x}."""
    table = json.loads(path.read_text())
    entries = dict(table["dict"])
    change(entries)
    path.write_text(json.dumps({"dict": list(entries.items())}))


def drop_array(path: Path) -> None:
    arrays = load_file(path)
    arrays.pop(next(name for name in arrays if "lora_A" in name))
    save_file(arrays, path)


def reshape_array(path: Path) -> None:
    arrays = load_file(path)
    name = next(name for name in arrays if "weights" in name)
    save_file(arrays | {name: arrays[name].reshape(-1)}, path)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "arrays truncated": ("state.safetensors", truncate),
    "arrays missing": ("state.safetensors", Path.unlink),
    "an array missing": ("state.safetensors", drop_array),
    "an array of another shape": ("state.safetensors", reshape_array),
    "values truncated": ("state.json", truncate),
    "values missing": ("state.json", Path.unlink),
    "no JSON": ("state.json", lambda path: path.write_text("state") and None),
    "a list": ("state.json", lambda path: path.write_text("[1, 2]") and None),
    "nested deeply": ("state.json", lambda path: path.write_text('{"list":[' * 50_000) and None),
    "binary": ("state.json", lambda path: path.write_bytes(b"\xff\xfe\x00") and None),
    "no step": ("state.json", lambda path: edit(path, lambda e: e.pop("step"))),
    "no step count": ("state.json", lambda path: edit(path, lambda e: e.update(step={"value": "4"}))),
    "a step of the future": ("state.json", lambda path: edit(path, lambda e: e.update(step={"value": 9}))),
    "no reports": ("state.json", lambda path: edit(path, lambda e: e.update(reports={"value": 7}))),
    "no fingerprint": ("state.json", lambda path: edit(path, lambda e: e.update(fingerprint={"value": 1}))),
    "no optimizer": ("state.json", lambda path: edit(path, lambda e: e.update(optimizer={"value": {}}))),
    "no schedule": ("state.json", lambda path: edit(path, lambda e: e.update(schedule={"value": {}}))),
    "no position": ("state.json", lambda path: edit(path, lambda e: e.update(loader={"value": {}}))),
    "no random state": ("state.json", lambda path: edit(path, lambda e: e.update(random={"value": {}}))),
    "no weights": ("state.json", lambda path: edit(path, lambda e: e.update(weights={"value": None}))),
    "unknown array": ("state.json", lambda path: edit(path, lambda e: e.update(weights={"array": "nothing"}))),
    "two kinds": ("state.json", lambda path: edit(path, lambda e: e.update(step={"value": 1, "array": "x"}))),
}


def message(folder: Path) -> str:
    """With which the run in `folder` does not resume."""
    with pytest.raises(EntrenarError) as error:
        trainer_of(run_config(folder, adapter=DROPOUT, resume=True))
    text = str(error.value)
    assert "\n" not in text
    assert "checkpoint/step-4" in text, text
    return text


@pytest.mark.chaos
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_error_whatever_its_checksums_say(damage: str, written: Path) -> None:
    file, break_it = DAMAGES[damage]
    newest = written / "checkpoint" / "step-4"
    break_it(newest / file)
    assert "step-4: is damaged (" in message(written)
    assert f"remove it to continue from {newest.with_name('step-2')}, which is sound" in message(written)
    seal(newest)
    message(written)
    shutil.rmtree(newest)
    assert trainer_of(run_config(written, adapter=DROPOUT, resume=True)).step == 2


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "SHA256SUMS"])
def test_no_flipped_bit_of_a_checkpoint_is_used(name: str, written: Path) -> None:
    file = written / "checkpoint" / "step-4" / name
    content, rng = file.read_bytes(), np.random.default_rng(5)
    for bit in rng.integers(0, 8 * len(content), 25):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(flipped)
        assert "is damaged (its files do not have the checksums" in message(written)
    file.write_bytes(content)
    assert trainer_of(run_config(written, adapter=DROPOUT, resume=True)).step == 4


@pytest.mark.chaos
def test_changed_values_under_right_checksums_are_the_state_of_a_run_or_one_sentence(written: Path) -> None:
    """Every value of state.json in turn becomes what no run writes; the checksums are right."""
    directory = written / "checkpoint" / "step-4"
    text = (directory / "state.json").read_text()
    places = list(re.finditer(r'"value": (-?[\d.e+-]+)(?=[},])', text))
    rng, refused = np.random.default_rng(2), 0
    for place in rng.choice(len(places), 40, replace=False):
        match = places[place]
        for value in ("null", "NaN", "-1", "1e999", "9" * 25, '"x"'):
            (directory / "state.json").write_text(text[: match.start(1)] + value + text[match.end(1) :])
            seal(directory)
            try:
                trainer_of(run_config(written, adapter=DROPOUT, resume=True))
            except EntrenarError as error:
                assert "\n" not in str(error) and "step-4" in str(error)
                refused += 1
    assert refused > 150


@pytest.mark.unit
def test_arrays_of_another_type_or_that_are_no_numbers_are_refused(written: Path) -> None:
    directory = written / "checkpoint" / "step-4"
    arrays = load_file(directory / "state.safetensors")
    name = next(name for name in arrays if "weights" in name)
    for array in (arrays[name].view(np.int32), np.full_like(arrays[name], np.nan)):
        save_file(arrays | {name: array}, directory / "state.safetensors")
        seal(directory)
        assert re.search(r"its array .* is not of finite float32 numbers", message(written))


@pytest.mark.unit
def test_a_checkpoint_of_an_earlier_version_is_one_sentence(written: Path) -> None:
    (written / "checkpoint" / "step-4" / "state.json").rename(written / "checkpoint" / "state.json")
    for step in ("step-2", "step-4"):
        shutil.rmtree(written / "checkpoint" / step)
    with pytest.raises(FormatError, match=r"checkpoint: was written by an earlier version of entrenar, and cannot be"):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True))


# ---------------------------------------------------------------------- which are kept, and when they are written
def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").iterdir())


@pytest.mark.unit
def test_the_newest_checkpoints_are_kept_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "step-9x").mkdir(parents=True)
    mine = Calls(on_step=lambda report: (newest / "mine").touch() if report.step == 2 else None)
    newest = tmp_path / "checkpoint" / "step-2"
    trainer = trainer_of(run_config(tmp_path, every=1, keep=3), callbacks=[mine])
    trainer.run()
    assert kept(tmp_path) == ["step-2", "step-4", "step-5", "step-6", "step-9x"]
    assert [path.name for path in (tmp_path / "checkpoint" / "step-2").iterdir()] == ["mine"]
    (tmp_path / "checkpoint" / "step-9").symlink_to("nothing")
    assert trainer_of(run_config(tmp_path, resume=True)).step == 6


@pytest.mark.unit
def test_checkpoints_are_written_by_time_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entrenar.train import callbacks as module

    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    trainer, saved = trainer_of(run_config(tmp_path, minutes=2.0)), []

    def on_step(report: StepReport) -> None:
        nonlocal now
        now += 50.0

    listen(trainer, on_step=on_step, on_checkpoint=lambda path: saved.append(trainer.step))
    trainer.run()
    assert saved == [4, 6] and kept(tmp_path) == ["step-4", "step-6"]
    plain = trainer_of(run_config(tmp_path / "plain"))
    plain.run()
    assert not (tmp_path / "plain").exists()
    assert weights_hash(plain) == weights_hash(trainer)


@pytest.mark.unit
def test_a_linked_checkpoint_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to("../disk")
    stop_after(trainer_of(run_config(tmp_path / "run", every=2)), 3)
    assert trainer_of(run_config(tmp_path / "run", resume=True)).step == 2
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["step-2"]


@pytest.mark.unit
def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(written: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint: holds checkpoints of an earlier run; resume, overwrite, or"):
        trainer_of(run_config(written, adapter=DROPOUT))
    anew = trainer_of(run_config(written, adapter=DROPOUT, every=4, overwrite=True))
    assert kept(written) == ["step-2", "step-4"]  # until the new run begins
    stop_after(anew, 3)
    assert not (written / "checkpoint").exists()


# ---------------------------------------------------------------------- what the fingerprint holds
@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rope_theta": 20000.0}, r"^model\.rope_theta is 20000\.0 and was 10000\.0"),
        ({"rms_norm_eps": 1e-3}, r"^model\.rms_norm_eps is 0\.001 and was 1e-05"),
    ],
)
def test_another_shape_of_the_model_is_refused_by_name(
    change: dict[str, Any], name: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train import builders

    monkeypatch.setattr(builders, "SHAPE", replace(builders.SHAPE, **change))
    with pytest.raises(ConfigError, match=name):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True))


@pytest.mark.unit
def test_one_bit_at_the_end_of_a_frozen_weight_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.train import builders

    monkeypatch.setattr(builders, "SHAPE", replace(builders.SHAPE, vocab_size=600))
    stop_after(trainer_of(run_config(tmp_path, adapter=DROPOUT, every=2)), 3)

    def changed(*arguments: Any, **options: Any) -> LLaMAModel:
        model = LLaMAModel(*arguments, **options)
        head = dict(model.named_parameters())["lm_head.weight"]
        bits = head.numpy().reshape(-1).view(np.uint32)  # type: ignore[union-attr]
        assert bits.nbytes > 2 << 16
        bits[-1] ^= 1
        return model

    assert trainer_of(run_config(tmp_path, adapter=DROPOUT, resume=True)).step == 2
    monkeypatch.setattr(builders, "LLaMAModel", changed)
    with pytest.raises(ConfigError, match=r"step-2: was written with another base model"):
        trainer_of(run_config(tmp_path, adapter=DROPOUT, resume=True))


@pytest.mark.unit
def test_the_engine_and_the_version_are_part_of_the_fingerprint(
    written: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    cpu.set_num_threads(2)
    trainer_of(run_config(written, adapter=DROPOUT, resume=True))  # threads change no bit
    with matmul_precision("high"), pytest.raises(ConfigError, match=r"matmul precision is 'high' and was 'highest'"):
        trainer_of(run_config(written, adapter=DROPOUT, resume=True))
    with monkeypatch.context() as patch:
        patch.setattr("entrenar.train.fingerprint.version", lambda name: "0.0.7")
        with pytest.raises(ConfigError, match=r"entrenar's version is '0\.0\.7' and was"):
            trainer_of(run_config(written, adapter=DROPOUT, resume=True))
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "tier", lambda: "v9")
        with pytest.raises(ConfigError, match=r"SIMD tier is 'v9' and was"):
            trainer_of(run_config(written, adapter=DROPOUT, resume=True))


@pytest.mark.unit
def test_nothing_to_resume_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"checkpoint: there is no checkpoint to resume; start without resume first"):
        trainer_of(run_config(tmp_path, resume=True))


@pytest.mark.unit
def test_weights_that_are_not_finite_are_not_written_over_good_ones(tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, every=1))
    stop_after(trainer, 2)
    step = trainer.optimizer.step

    def overflow(gradient_scale: float) -> None:
        step(gradient_scale)
        dict(trainer.parameters)["model.norm.weight"].numpy()[0] = np.inf

    trainer.optimizer.step = overflow  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"weight model\.norm\.weight is not finite after step 3"):
        trainer.run()
    assert trainer_of(run_config(tmp_path, resume=True)).step == 2


@pytest.mark.unit
def test_a_full_disk_keeps_the_previous_checkpoint(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = trainer_of(run_config(written, adapter=DROPOUT, every=2, resume=True))
    monkeypatch.setattr("entrenar.train.checkpoint.save_safetensors", full)
    with pytest.raises(
        FormatError, match=r"checkpoint/step-6: cannot be written \(No space left on device\); make room"
    ):
        trainer.run()
    assert sorted(path.name for path in written.iterdir()) == ["checkpoint"]
    assert trainer_of(run_config(written, adapter=DROPOUT, resume=True)).step == 4


# ---------------------------------------------------------------------- killed processes
KILLED = """
import os, signal, sys
from pathlib import Path
from entrenar.io import atomic as files
sys.path.append(sys.argv[3])  # last: the checkout's entrenar is not compiled
from tests.train.builders import DROPOUT, listen, run_config, trainer_of

trainer = trainer_of(run_config(sys.argv[1], adapter=DROPOUT, every=2))
moment = sys.argv[2]
sync = files.sync

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def armed(report):
    if trainer.step == 3:  # the next checkpoint is that of step 4
        if moment == "while it is written":
            files.sync = die
        elif moment == "before it has its name":
            files.sync = lambda path: die() if path.name.endswith(".part") and path.is_dir() else sync(path)
        else:  # when it has it
            files.sync = lambda path: die() if path == Path(sys.argv[1], "checkpoint") else sync(path)

listen(trainer, on_step=armed)
trainer.run()
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("moment", "step"), [("while it is written", 2), ("before it has its name", 2), ("when it has its name", 4)]
)
def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(moment: str, step: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), moment, str(ROOT)]
    killed = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    resumed = trainer_of(run_config(tmp_path, adapter=DROPOUT, every=2, resume=True))
    assert resumed.step == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"], "leftovers of the killed process"
    whole = trainer_of(run_config(tmp_path / "whole", adapter=DROPOUT))
    whole.run()
    resumed.run()
    assert weights_hash(resumed) == weights_hash(whole)

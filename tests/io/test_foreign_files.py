"""Every output, written into a folder full of files of others, links and read-only parts: none of those is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io.safetensors import INDEX_FILE, SINGLE_FILE, open_safetensors, save_safetensors
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, save_adapter
from entrenar.train import report
from entrenar.train.step import StepReport
from tests.train.builders import ADDITIONS, ROOT, SHAPE, config_for, quiet, write_examples, write_model

MODEL_FILES = {"config.json", SINGLE_FILE}
TEXTS = [f"What is {a} plus {b}?" for a, b in ADDITIONS]


def model_of(seed: int = 1) -> LLaMAModel:
    return LLaMAModel(SHAPE, seed=seed)


def adapted(seed: int = 1) -> LLaMAModel:
    model = model_of()
    LoRAConfig(rank=2, target_modules=["q_proj"]).apply(model, seed)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] = seed
    return model


def save_sharded_model(folder: Path) -> None:
    model_of().save_pretrained(folder, max_shard_bytes=50_000)


def save_metrics(folder: Path) -> None:
    report.write_metrics(folder / "metrics.csv", [StepReport(1, 2.0, 0.1, 1.0, 8, 4, 0.5)])


# Each output, and the names that it writes (a prefix for the shards).
OUTPUTS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "model": (lambda folder: model_of().save_pretrained(folder), MODEL_FILES),
    "sharded model": (save_sharded_model, {"config.json", INDEX_FILE}),
    "adapter": (lambda folder: save_adapter(adapted(), folder), {"adapter_config.json", "adapter_model.safetensors"}),
    "tokenizer": (lambda folder: Tokenizer.train(TEXTS, 270).save(folder), {"tokenizer.json", "tokenizer_config.json"}),
    "metrics": (save_metrics, {"metrics.csv"}),
    "tensors": (lambda folder: save_safetensors(folder / "t.safetensors", {"x": np.zeros(3)}), {"t.safetensors"}),
}


def crowd(folder: Path, elsewhere: Path) -> None:
    """Files, folders, links and read-only parts of someone else."""
    elsewhere.mkdir()
    (elsewhere / "target").write_text("theirs")
    for name in ("README.md", ".hidden", "model.bin", "adapter_model.bin", "model-1.safetensors", ".config.json.part"):
        (folder / name).write_text(f"theirs: {name}")
    for name in ("checkpoint-10", "runs/deep", ".git"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("theirs")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(elsewhere / "target")
    (folder / "folder link").symlink_to(elsewhere)
    (folder / "dangling").symlink_to(elsewhere / "nothing")
    os.mkfifo(folder / "pipe")
    (folder / "fixed").write_text("read-only")
    (folder / "fixed").chmod(0o400)
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_text("read-only")
    (folder / "closed").chmod(0o500)


def picture(*folders: Path) -> dict[str, tuple[object, ...]]:
    """Inode, mode, time, link and content of everything below."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            target = str(path.readlink()) if path.is_symlink() else None
            when = None if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            found[str(path)] = (status.st_ino, status.st_mode, when, target, content)
    return found


@pytest.mark.chaos
@pytest.mark.parametrize("twice", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_touches_no_file_of_others(output: str, twice: bool, tmp_path: Path) -> None:
    write, names = OUTPUTS[output]
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    if twice:
        write(folder)
    crowd(folder, elsewhere)
    ours = {str(path) for path in folder.iterdir() if path.name in names or path.name.startswith("model-0")}
    before = {path: seen for path, seen in picture(folder, elsewhere).items() if path not in ours}
    write(folder)
    after = picture(folder, elsewhere)
    assert before.items() <= after.items()
    new = {Path(path).name for path in after.keys() - before.keys()}
    assert names <= new and all(name in names or name.startswith("model-0") for name in new)


@pytest.mark.chaos
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_follows_the_link_of_its_folder_and_of_its_files(output: str, tmp_path: Path) -> None:
    write, names = OUTPUTS[output]
    real, elsewhere = tmp_path / "real", tmp_path / "elsewhere"
    real.mkdir()
    elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    for name in names:
        (elsewhere / name).write_text("old")
        (real / name).symlink_to(elsewhere / name)
    write(link)
    assert link.is_symlink()
    for name in names:
        assert (real / name).is_symlink() and (elsewhere / name).read_bytes() != b"old"
    assert {path.name for path in elsewhere.iterdir()} == names
    write(tmp_path / "plain" / "deep")
    for name in names - {"metrics.csv"}:
        assert (elsewhere / name).read_bytes() == (tmp_path / "plain" / "deep" / name).read_bytes()


@pytest.mark.chaos
@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_over_a_read_only_file_or_into_a_read_only_folder_is_refused(output: str, tmp_path: Path) -> None:
    write, names = OUTPUTS[output]
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("theirs")
        (folder / name).chmod(0o444)
        before = picture(folder)
        with pytest.raises(FormatError, match=rf"{name}: is read-only; make it writable or choose another place"):
            write(folder)
        assert picture(folder) == before
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if names & {"metrics.csv", "t.safetensors"} and os.geteuid() == 0:
        return  # one file: the system decides, and root may
    with pytest.raises(FormatError, match=r"closed.*: (is a read-only folder|cannot be written)"):
        write(closed)
    assert not list(closed.iterdir())


@pytest.mark.chaos
@pytest.mark.parametrize("result", ["adapter", "model"])
def test_a_whole_run_touches_no_file_of_others(result: str, tmp_path: Path) -> None:
    """Nor does a second one that replaces the first with its checkpoints."""
    source, data = write_model(tmp_path / "source"), write_examples(tmp_path / "data.jsonl")
    for number, folder in enumerate((tmp_path / "out", tmp_path / "out" / result, tmp_path / "out" / "checkpoint")):
        folder.mkdir()
        crowd(folder, tmp_path / f"elsewhere {number}")
    before = picture(tmp_path)
    for overwrite in (False, True):
        config = config_for(data, tmp_path / "out", **({} if result == "adapter" else {"adapter": None}))
        config.checkpointing = replace(config.checkpointing, every=2, overwrite=overwrite)
        quiet(source, config)
        after = picture(tmp_path)
        assert before.items() <= after.items()
        new = {str(Path(path).relative_to(tmp_path / "out")) for path in after.keys() - before.keys()}
        assert {"metrics.csv", "summary.json", "checkpoint/step-4/state.json"} <= new
        assert any(name.startswith(f"{result}/") and name.endswith(".safetensors") for name in new)


# ---------------------------------------------------------------------- one model after the other
@pytest.mark.unit
def test_a_tokenizer_saved_before_the_model_stays_and_the_other_way_round(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 270)
    tokenizer.save(tmp_path)
    model_of().save_pretrained(tmp_path)
    assert Tokenizer.from_directory(tmp_path).encode("What is") == tokenizer.encode("What is")
    tokenizer.save(tmp_path)
    LLaMAModel.from_pretrained(tmp_path)


@pytest.mark.unit
def test_weights_of_an_earlier_save_do_not_contradict_the_new_ones(tmp_path: Path) -> None:
    for seed, shard_bytes in enumerate((10**9, 50_000, 20_000, 60_000, 10**9)):
        model_of(seed).save_pretrained(tmp_path, max_shard_bytes=shard_bytes)
        names = {path.name for path in tmp_path.iterdir()} - {"config.json"}
        count = len(names) - 1
        if shard_bytes == 10**9:
            assert names == {SINGLE_FILE}
        else:
            shards = {f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
            assert count > 1 and names == {INDEX_FILE} | shards
        loaded = dict(LLaMAModel.from_pretrained(tmp_path).named_parameters())
        for name, weight in model_of(seed).named_parameters():
            assert np.array_equal(loaded[name].numpy(), weight.numpy()), name  # type: ignore[union-attr]


@pytest.mark.unit
def test_the_working_directory_can_be_saved_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("theirs")
    model_of().save_pretrained(".")
    assert {path.name for path in tmp_path.iterdir()} == MODEL_FILES | {"mine"}
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    save_adapter(adapted(), ".")
    assert {path.name for path in Path.cwd().iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.unit
def test_a_model_and_an_adapter_do_not_share_a_folder(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path / "model")
    save_adapter(adapted(), tmp_path / "adapter")
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    with pytest.raises(ConfigError, match=r"model: holds a model \(config\.json\).*save the adapter in another folder"):
        save_adapter(adapted(), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"adapter: holds an adapter \(adapter_config\.json\).*in another folder"):
        model_of().save_pretrained(tmp_path / "adapter")
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before


# ---------------------------------------------------------------------- killed processes
KILLED = """
import os, random, signal, sys, threading, time
sys.path.append(sys.argv[1])  # last: the checkout's entrenar may not be compiled
from pathlib import Path
from entrenar.lora import save_adapter
from tests.io.test_foreign_files import adapted, model_of
folder, what = Path(sys.argv[2]), sys.argv[3]
model = adapted(2) if what == "adapter" else model_of(2)
def save():
    if what == "adapter":
        save_adapter(model, folder)
    else:
        model.save_pretrained(folder, max_shard_bytes=50_000)
folder, kept = folder.with_name("elsewhere"), folder
start = time.perf_counter()
save()
lasts, folder = time.perf_counter() - start, kept
moment = random.Random(int(sys.argv[4])).uniform(0, 1.2) * lasts
threading.Thread(target=lambda: (time.sleep(moment), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
for _ in range(50):
    save()
time.sleep(9)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("what", ["adapter", "model"])
@pytest.mark.parametrize("seed", range(4))
def test_a_process_killed_while_it_saves_leaves_the_old_the_new_or_one_sentence(
    what: str, seed: int, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if what == "adapter":
        save_adapter(adapted(1), folder)
    else:
        model_of(1).save_pretrained(folder)
    crowd(folder, tmp_path / "theirs")
    ours = {"adapter_config.json", "adapter_model.safetensors", *MODEL_FILES}
    before = {path: seen for path, seen in picture(folder).items() if str(Path(path).relative_to(folder)) not in ours}
    command = [sys.executable, "-c", KILLED, str(ROOT), str(folder), what, str(seed)]
    done = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert before.items() <= picture(folder).items()
    try:
        if what == "adapter":
            model = model_of()
            load_adapter(model, folder)
            values = {float(tensor.numpy().max()) for name, tensor in model.named_parameters() if ".lora_" in name}
            assert values in ({1.0}, {2.0})
        else:
            loaded = LLaMAModel.from_pretrained(folder)
            same = [
                all(
                    np.array_equal(ours.numpy(), theirs.numpy())  # type: ignore[union-attr]
                    for (_, ours), (_, theirs) in zip(
                        loaded.named_parameters(), model_of(s).named_parameters(), strict=True
                    )
                )
                for s in (1, 2)
            ]
            assert any(same)
    except EntrenarError as error:
        assert "config.json" in str(error) and "\n" not in str(error)
    if what == "adapter":  # and the next save is whole, and tidies
        save_adapter(adapted(3), folder)
        assert float(open_safetensors(folder / "adapter_model.safetensors").popitem()[1].load().max()) == 3.0
    else:
        model_of(3).save_pretrained(folder)
        LLaMAModel.from_pretrained(folder)
    assert {p.name for p in folder.glob(".*.part")} == {".config.json.part"}

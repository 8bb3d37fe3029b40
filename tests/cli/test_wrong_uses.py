"""Each verb used wrongly: missing, foreign and cut files, unknown flags, outputs that cannot be written, a full disk.

Every one ends with a status that is not 0 and one sentence on the error stream, and leaves no file behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from entrenar.cli.main import VERBS, dispatch
from entrenar.cli.run import run
from tests.train.builders import entrenar_command, run_entrenar, write_examples, write_model

pytestmark = pytest.mark.chaos

HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n" * 20
TOML = b'[training]\nsteps = 3\n\n[data]\npath = "examples.jsonl"\n'
NOISE = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
SHAPE = """[model]
vocab_size = 300
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64
"""
TRAINING = "--steps 2 --sequence-length 32 --output {out}"


@dataclass
class Use:
    """A command line that is right; its inputs by flag, or place, with their kind; its outputs, files or folders."""

    words: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


USES = {
    "finetune": Use(
        "--model {model} --data {data} --adapter lora --rank 2 " + TRAINING,
        {"--model": "model", "--data": "data", "--eval-data": "data", "--config": "config", "--adapter": "adapter"},
        {"--output": "folder"},
    ),
    "train": Use(
        "--config {config} --data {data} --steps 2 --sequence-length 8 --output {out}",
        {"--config": "config", "--data": "data"},
        {"--output": "folder"},
    ),
    "export": Use(
        "--model {model} --adapter {adapter} --output {out}.gguf",
        {"--model": "model", "--adapter": "adapter", "--data": "data"},
        {"--output": "file"},
    ),
    "merge": Use(
        "--model {model} --adapter {adapter} --output {out}",
        {"--model": "model", "--adapter": "adapter"},
        {"--output": "folder"},
    ),
    "quantize": Use("--model {model} --type Q8_0 --output {out}.gguf", {"--model": "model"}, {"--output": "file"}),
    "pull": Use("hf:org/none --to {out}", {}, {}),
    "generate": Use(
        "--model {model} --max-tokens 2 --raw --file {text}",
        {"--model": "model", "--adapter": "adapter", "--file": "text"},
    ),
    "chat": Use("--model {model}", {"--model": "model", "--adapter": "adapter"}),
    "evaluate": Use("--model {model} --data {data}", {"--model": "model", "--data": "data", "--adapter": "adapter"}),
    "doctor": Use("--json"),
    "inspect": Use("{model}", {"0": "model"}),
    "data": Use(
        "check --data {data} --model {model}",
        {"--data": "data", "--model": "model", "--eval-data": "data"},
        {"--html": "file"},
    ),
    "memory": Use(
        "--model {model} --sequence-length 32", {"--model": "model", "--config": "config", "--data": "missing"}
    ),
    "completion": Use("bash", {}, {"--output": "file"}),
    "serve": Use("--model {model} --port 0", {"--model": "model", "--adapter": "adapter"}),
    "analyze": Use("{run}", {"0": "run"}),
    "compare": Use("{run} {run}", {"0": "run", "1": "run", "--history": "history"}),
    "report": Use("{run}", {"0": "run"}, {"--out": "file"}),
}


# ---------------------------------------------------------------------- what is right
@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file or folder of each kind."""
    folder = tmp_path_factory.mktemp("right")
    model = write_model(folder / "model")
    write_examples(folder / "data.jsonl")
    (folder / "text.txt").write_text("What is 2?")
    (folder / "shape.toml").write_text(SHAPE)
    words = f"finetune --model {model} --data {folder / 'data.jsonl'} --adapter lora --rank 2 --steps 3"
    words += f" --sequence-length 32 --held-out-fraction 0 --output {folder / 'run'}"
    dispatch(words.split())
    return {
        "model": model,
        "data": folder / "data.jsonl",
        "text": folder / "text.txt",
        "config": folder / "shape.toml",
        "adapter": folder / "run" / "adapter",
        "run": folder / "run",
    }


def words_of(verb: str, right: dict[str, Path], out: Path) -> list[str]:
    return [verb, *USES[verb].words.format(**right, out=out).split(" ")]


def with_input(words: list[str], place: str, value: Path) -> list[str]:
    """The command line with another path for a flag, or at a place."""
    if place.isdigit():
        return [*words[: int(place) + 1], str(value), *words[int(place) + 2 :]]
    at = words.index(place) if place in words else len(words)
    return [*words[:at], place, str(value), *words[at + 2 :]]


# ---------------------------------------------------------------------- what is wrong
def _file(name: str, content: bytes) -> Callable[[Path, Path], Path]:
    def make(folder: Path, right: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _inside(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    """A copy of a folder in which one file is another."""

    def make(folder: Path, right: Path) -> Path:
        shutil.copytree(right, folder / "copy")
        path = folder / "copy" / name
        path.write_bytes(change(path.read_bytes()))
        return folder / "copy"

    return make


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _gguf_half(folder: Path, right: Path) -> Path:
    dispatch(
        ["quantize", "--model", str(right), "--type", "F32", "--output", str(folder / "cut.gguf"), "--no-modelfile"]
    )
    path = folder / "cut.gguf"
    path.write_bytes(_half(path.read_bytes()))
    return path


def _missing(folder: Path, right: Path) -> Path:
    return folder / "none" / "file"


def _empty_folder(folder: Path, right: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _swapped(content: bytes) -> Callable[[bytes], bytes]:
    return lambda before: content


WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
FAULTS: dict[str, dict[str, Callable[[Path, Path], Path]]] = {
    "model": {
        "missing": _missing,
        "empty folder": _empty_folder,
        "noise.gguf": _file("noise.gguf", NOISE),
        "html.gguf": _file("page.gguf", HTML),
        "empty.gguf": _file("empty.gguf", b""),
        "cut.gguf": _gguf_half,
        "toml": _file("model.toml", TOML),
        "html.safetensors": _inside(WEIGHTS, _swapped(HTML)),
        "noise.safetensors": _inside(WEIGHTS, _swapped(NOISE)),
        "cut.safetensors": _inside(WEIGHTS, _half),
        "html config": _inside("config.json", _swapped(HTML)),
        "cut config": _inside("config.json", _half),
    },
    "adapter": {
        "missing": _missing,
        "empty folder": _empty_folder,
        "noise.gguf": _file("noise.gguf", NOISE),
        "html.safetensors": _inside(ADAPTER, _swapped(HTML)),
        "noise.safetensors": _inside(ADAPTER, _swapped(NOISE)),
        "cut.safetensors": _inside(ADAPTER, _half),
        "cut config": _inside("adapter_config.json", _half),
    },
    "data": {
        "missing": _missing,
        "noise": _file("noise.jsonl", NOISE),
        "noise without a name": _file("noise", NOISE),
        "toml": _file("toml.jsonl", TOML),
        "html": _file("page.jsonl", HTML),
        "cut": _file("cut.jsonl", b'{"prompt": "What is 2?", "completion": "Two."}\n{"prompt": "What is 3?", "comp'),
        "cut.json": _file("cut.json", b'[{"prompt": "What is 2?", "completion": "Two."}, {"prompt": "What'),
        "noise.parquet": _file("noise.parquet", NOISE),
        "empty": _file("empty.jsonl", b""),
        "empty folder": _empty_folder,
    },
    "text": {"missing": _missing, "noise": _file("noise.txt", NOISE), "folder": _empty_folder},
    "config": {
        "missing": _missing,
        "noise": _file("noise.toml", NOISE),
        "html": _file("page.toml", HTML),
        "cut": _file("cut.toml", SHAPE.encode() + b"\n[training]\nsteps ="),
        "folder": _empty_folder,
    },
    "run": {
        "missing": _missing,
        "empty folder": _empty_folder,
        "noise": _inside("metrics.jsonl", _swapped(NOISE)),
        "html": _inside("metrics.jsonl", _swapped(HTML)),
        "a file": _file("run", NOISE),
    },
    "history": {"missing": _missing, "noise": _file("h.jsonl", NOISE), "html": _file("p.jsonl", HTML)},
    "missing": {},
}
CASES = [
    (verb, place, fault)
    for verb, use in USES.items()
    for place, kind in use.inputs.items()
    for fault in FAULTS[kind]
    # what says a kind of adapter takes a word for one; a shape of a model is what --model of memory may be
    if not (
        verb in ("finetune", "memory") and (place, fault) in (("--adapter", "missing"), ("--adapter", "noise.gguf"))
    )
]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.is_socket()
    }


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The output and the one sentence of a command line that is wrong."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(lambda: dispatch(words))
    printed = capsys.readouterr()
    assert ended.value.code in (1, 2), printed
    return printed.out, printed.err


def one_sentence(error: str) -> bool:
    return error.count("\n") == 1 and "error: " in error and error.endswith((".\n", "?\n")) and "Traceback" not in error


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """In a folder of its own, without input, and without a warning."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield
    assert [str(warning.message) for warning in recwarn] == []


def test_every_verb_is_here() -> None:
    assert set(USES) == set(VERBS)


@pytest.mark.parametrize(("verb", "place", "fault"), CASES)
def test_a_wrong_input_is_one_sentence_and_leaves_nothing(
    verb: str, place: str, fault: str, right: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = USES[verb].inputs[place]
    wrong = FAULTS[kind][fault](tmp_path, right.get(kind, tmp_path))
    words = with_input(words_of(verb, right, tmp_path / "here" / "out"), place, wrong)
    before = tree(tmp_path), tree(right["run"])
    output, error = refused(words, capsys)
    assert one_sentence(error), error
    assert wrong.name in error or "adapter" in error or place in error, error
    if verb == "data" and fault == "cut":  # the whole file is reported beside it
        assert "refused" in output and "line 2" in output
    assert (tree(tmp_path), tree(right["run"])) == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--no-such-flag", "--no-such-flag=3", "--model=", "-q"])
def test_an_unknown_flag_is_one_sentence(
    verb: str, flag: str, right: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(tmp_path)
    _, error = refused([*words_of(verb, right, tmp_path / "here" / "out"), flag], capsys)
    assert one_sentence(error), error
    assert error.startswith((f"entrenar {verb}: error: ", "error: ")) and tree(tmp_path) == before


OUTPUTS = [(verb, place) for verb, use in USES.items() for place in use.outputs]


def with_output(verb: str, place: str, right: dict[str, Path], out: Path) -> list[str]:
    ending = ".gguf" if verb in ("export", "quantize") else ""
    return with_input(words_of(verb, right, out), place, out.with_name(out.name + ending))


@pytest.mark.parametrize(("verb", "place"), OUTPUTS)
def test_an_output_below_a_file_is_one_sentence(
    verb: str, place: str, right: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    words = with_output(verb, place, right, tmp_path / "file" / "out")
    before = tree(tmp_path), tree(right["run"])
    _, error = refused(words, capsys)
    assert one_sentence(error), error
    assert "file" in error and (tree(tmp_path), tree(right["run"])) == before


@pytest.fixture(params=[128, 120], ids=["full", "nearly full"])
def full(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a disk on which no byte is left, or too few for what is written."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        (place / "filler").write_bytes(bytes(request.param << 10))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize(("verb", "place"), OUTPUTS)
def test_a_full_disk_is_one_sentence_and_keeps_no_part(
    verb: str, place: str, right: dict[str, Path], full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = with_output(verb, place, right, full / "out")
    if verb in ("data", "report", "completion"):  # which need no more than a nearly full disk has
        (full / "more").write_bytes(bytes(max(0, os.statvfs(full).f_bavail * os.statvfs(full).f_frsize)))
    before = tree(full)
    _, error = refused(words, capsys)
    assert one_sentence(error) and str(full) in error, error
    assert tree(full) == before


@pytest.mark.parametrize("verb", ["inspect", "doctor", "memory", "data", "evaluate", "generate", "completion"])
def test_an_output_stream_that_is_full_is_one_sentence(verb: str, right: dict[str, Path], tmp_path: Path) -> None:
    words = words_of(verb, right, tmp_path / "out")
    with Path("/dev/full").open("w") as stream:
        ended = subprocess.run(
            entrenar_command(*words), stdout=stream, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device.\n")


@pytest.mark.parametrize("words", [("hf:org/none",), ("hf:org/none:a.gguf", "--to", "there"), ()], ids=len)
def test_without_a_network_pull_is_one_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "PIP_INDEX_URL"), "http://127.0.0.1:9")
    homes = {name: str(tmp_path / "home") for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "ENTRENAR_CACHE")}
    ended = run_entrenar("pull", *words, **nowhere, **homes)
    assert ended.returncode == 1 and ended.stdout == "", ended
    assert one_sentence(ended.stderr), ended.stderr
    assert not any(tmp_path.rglob("*.safetensors")) and not Path("there").exists()

"""`entrenar export` for llama.cpp and Ollama: GGUF adapters, Modelfiles, the five commands of docs/howto/ollama.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, load_gguf_adapter, save_adapter, save_gguf_adapter
from entrenar.train.export import Export, export
from tests.edges.llama_cpp import LlamaCpp
from tests.io.ollama import parse_modelfile, render
from tests.models.builders import random_model, small_config, weights_of
from tests.train.builders import ROOT, entrenar_command

PAGE = ROOT / "docs" / "howto" / "ollama.md"


@pytest.fixture(scope="module")
def base(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file."""
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    export(Export(model=str(model), output=str(path), type="Q8_0", modelfile=False))
    return path


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapted = LLaMAModel.from_pretrained(base, quantize="auto")
    adapted.to_lora(LoRAConfig(rank=2, alpha=4.0, target_modules=["all-linear"]))
    for number, (_, weight) in enumerate(adapted.trainable_parameters()):
        weight.numpy()[...] = 0.05 * np.random.default_rng(number).standard_normal(weight.shape)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted, folder)
    return folder


def commands_of(path: Path) -> list[tuple[str, str]]:
    return parse_modelfile(path.read_text(encoding="utf-8"))


@pytest.mark.unit
@pytest.mark.parametrize("type_", ["keep", "F16"])
def test_a_gguf_adapter_has_its_modelfile(type_: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    settings = Export(model=str(base), adapter=str(adapter), to="gguf-adapter", type=type_,
                      output=str(tmp_path / "mine.gguf"))  # fmt: skip
    (remark,) = export(settings)
    assert "Ollama 0.34.1 and newer create no model with an ADAPTER" in remark
    files = commands_of(tmp_path / "mine.Modelfile")
    assert files[:2] == [("model", str(base)), ("adapter", "./mine.gguf")]
    assert ("stop", "<|im_end|>") in files
    assert ("num_ctx", "128") in files
    found, expected = (LLaMAModel.from_pretrained(base, quantize="auto") for _ in range(2))
    load_gguf_adapter(found, tmp_path / "mine.gguf")
    load_adapter(expected, adapter)
    tokens = np.array([[5, 6, 7, 8]])
    error = np.abs(found(tokens).numpy() - expected(tokens).numpy()).max()
    assert error < (1e-5 if type_ == "keep" else 1e-2)


@pytest.mark.unit
def test_a_merged_file_has_its_modelfile(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(Export(model=str(base), adapter=str(adapter), output=str(tmp_path / "tuned.gguf")))
    files = commands_of(tmp_path / "tuned.Modelfile")
    assert files[0] == ("model", "./tuned.gguf")
    assert "adapter" not in dict(files)
    prompt = render(dict(files)["template"], [{"role": "user", "content": "Hi"}])
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.unit
def test_a_gguf_adapter_is_merged(base: Path, adapter: Path, tmp_path: Path) -> None:
    """As the PEFT directory that it was made of."""
    export(Export(model=str(base), adapter=str(adapter), to="gguf-adapter", output=str(tmp_path / "a.gguf")))
    for name, given in (("one", adapter), ("other", tmp_path / "a.gguf")):
        export(Export(model=str(base), adapter=str(given), type="F32", output=str(tmp_path / f"{name}.gguf")))
    one, other = (weights_of(LLaMAModel.from_pretrained(tmp_path / f"{name}.gguf")) for name in ("one", "other"))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-6)
    assert np.abs(one["model.layers.0.mlp.up_proj.weight"]).max() > 0


@pytest.mark.unit
def test_a_modelfile_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(Export(model=str(base), to="modelfile", output=str(tmp_path / "Modelfile")))
    assert commands_of(tmp_path / "Modelfile")[0] == ("model", str(base))
    export(Export(model=str(base), adapter=str(adapter), to="gguf-adapter", output=str(tmp_path / "a.gguf")))
    export(Export(model=str(base), adapter=str(tmp_path / "a.gguf"), to="modelfile", output=str(tmp_path / "With")))
    assert commands_of(tmp_path / "With")[:2] == [("model", str(base)), ("adapter", "./a.gguf")]


@pytest.mark.unit
def test_an_adapter_for_a_directory_says_how_a_modelfile_is_made(model: Path, adapter: Path, tmp_path: Path) -> None:
    settings = Export(model=str(model), adapter=str(adapter), to="gguf-adapter", output=str(tmp_path / "a.gguf"))
    (remark,) = export(settings)
    assert "has no Modelfile, which would name the base's GGUF file" in remark
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.chaos
def test_files_that_do_not_fit_write_nothing(model: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="is a directory, and Ollama serves GGUF files; write one first"):
        export(Export(model=str(model), to="modelfile", output=output))
    with pytest.raises(FormatError, match=r"general\.type is 'model', expected 'adapter'"):
        export(Export(model=str(base), adapter=str(base), to="modelfile", output=output))
    with pytest.raises(ConfigError, match=r"export\.type is Q8_0, expected F32 or F16"):
        export(Export(model=str(base), adapter=str(adapter), to="gguf-adapter", type="Q8_0", output=output))
    for to, place, message in (
        ("gguf-adapter", base, "is a file, expected the PEFT adapter directory to make a GGUF adapter of; a GGUF"),
        ("modelfile", adapter, r"is a folder, expected the GGUF adapter that the Modelfile names; write one first"),
    ):
        with pytest.raises(ConfigError, match=f"{place.name}: {message}"):
            export(Export(model=str(base), adapter=str(place), to=to, output=output))
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF of hours")
    for to in ("gguf", "modelfile"):
        with pytest.raises(
            ConfigError, match=r"export\.output is .*mine\.gguf, the adapter that is read; choose another"
        ):
            export(Export(model=str(base), adapter=str(mine), to=to, output=str(mine), overwrite=True))
    assert mine.read_bytes() == b"GGUF of hours"
    mine.unlink()
    other = random_model(small_config(hidden_size=32)).to_lora(LoRAConfig(rank=2))
    save_gguf_adapter(other, tmp_path / "other.gguf")
    with pytest.raises(FormatError, match="give the model that the adapter was trained over"):
        export(Export(model=str(base), adapter=str(tmp_path / "other.gguf"), to="modelfile", output=output))
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


# ---------------------------------------------------------------------- docs/howto/ollama.md
def page_commands() -> list[list[str]]:
    """The commands of the page's blocks, a list each."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


@pytest.mark.unit
def test_there_are_five_commands() -> None:
    assert len(page_commands()[0]) == 5


@pytest.mark.peers
def test_the_commands_of_the_page_run_as_far_as_ollama(base: Path, data: Path, tmp_path: Path) -> None:
    """Each command of entrenar as it stands; what Ollama and llama-server are given is parsed and loaded."""
    pytest.importorskip("xllamacpp")
    shutil.copy(base, tmp_path / "base.gguf")
    shutil.copy(data, tmp_path / "my_examples.jsonl")
    ran = created = served = 0
    for command in [line for block in page_commands() for line in block]:
        program, *words = command.split()
        if program == "entrenar":
            if words[0] == "finetune":  # fewer steps, in the context of a small model
                words = [*("3" if word == "200" else word for word in words), "--sequence-length", "64"]
            ended = subprocess.run(entrenar_command(*words), cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (ended.returncode, ended.stderr) == (0, ""), command
            ran += 1
        elif words[0] == "create":
            files = dict(commands_of(tmp_path / words[words.index("-f") + 1]))
            with LlamaCpp(tmp_path / files["model"]) as peer:
                assert np.isfinite(peer.log_probabilities([5, 6, 7], 280)).all()
                expected = peer.render([{"role": "user", "content": "Hi"}])
            assert render(files["template"], [{"role": "user", "content": "Hi"}]) == expected
            created += 1
        elif program == "llama-server":
            options = dict(zip(words[::2], words[1::2], strict=True))
            with LlamaCpp(tmp_path / options["-m"], adapter=tmp_path / options["--lora"]) as peer:
                assert np.isfinite(peer.log_probabilities([5, 6, 7], 280)).all()
            served += 1
    assert (ran, created, served) == (3, 1, 1)

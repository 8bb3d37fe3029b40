"""`entrenar export` from a model and an adapter to the files that other programs run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, merge, save_adapter
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.merged import PlainWeight
from entrenar.nn.module import Weight
from entrenar.train.evaluate import Evaluation
from entrenar.train.export import Export, export
from tests.models.builders import assert_same, random_model, random_tokens, small_config, weights_of
from tests.train.builders import entrenar_command, run_entrenar


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapted = LLaMAModel.from_pretrained(model)
    adapted.to_lora(LoRAConfig(rank=2, target_modules=["all-linear"]))
    for number, (_, weight) in enumerate(adapted.trainable_parameters()):
        weight.numpy()[...] = 0.05 * np.random.default_rng(number).standard_normal(weight.shape)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapted, folder)
    return folder


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file with matrices in 4 bits."""
    path = tmp_path_factory.mktemp("file") / "model.gguf"
    LLaMAModel.from_pretrained(model).save_gguf(path, type="Q4_1")
    return path


def merged(base: Path, adapter: Path) -> LLaMAModel:
    model = LLaMAModel.from_pretrained(base)
    load_adapter(model, adapter)
    merge(model)
    return model


def types_of(path: Path) -> set[str]:
    return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1}


# ---------------------------------------------------------------------- what it writes
@pytest.mark.unit
@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_an_adapter_is_merged_into_a_directory(to: str, model: Path, adapter: Path, tmp_path: Path) -> None:
    ended = run_entrenar("export", "--model", model, "--adapter", adapter, "--to", to, "--output", tmp_path / "out")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "14 matrices are merged with their adapters in float32 (14 of float32)." in ended.stdout
    found = LLaMAModel.from_pretrained(tmp_path / "out")
    expected = merged(model, adapter)
    assert_same(weights_of(found), weights_of(expected))
    tokens = random_tokens(found.config, 1, 20)
    np.testing.assert_array_equal(found(tokens).numpy(), expected(tokens).numpy())
    text = "What is it? <|im_end|>"
    tokenizers = [Checkpoint.open(place).tokenizer() for place in (model, tmp_path / "out")]
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].eos_id == tokenizers[1].eos_id


@pytest.mark.unit
def test_a_file_keeps_its_types_and_its_values(file: Path, adapter: Path, tmp_path: Path) -> None:
    remarks = export(Export(model=str(file), output=str(tmp_path / "kept.gguf")))
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    assert_same({t.name: t.data for t in gguf.GGUFReader(tmp_path / "kept.gguf").tensors}, expected)
    assert all("without rounding" in remark for remark in remarks)
    remarks = export(Export(model=str(file), adapter=str(adapter), output=str(tmp_path / "tuned.gguf")))
    assert types_of(tmp_path / "tuned.gguf") == types_of(file)
    assert any("rounded by" in remark for remark in remarks)


@pytest.mark.unit
def test_what_an_export_costs_is_shown_where_examples_are_given(
    file: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    words = ("export", "--model", file, "--adapter", adapter, "--data", data, "--sequence-length", "64")
    ended = run_entrenar(*words, "--type", "q4_1", "--output", tmp_path / "a.gguf")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = re.search(r"loss +│ +([\d.]+) │ +([\d.]+) │", ended.stdout)
    assert found is not None
    before, after = found.groups()
    exact = run_entrenar(*words, "--type", "F32", "--output", tmp_path / "b.gguf")
    found = re.search(r"loss +│ +([\d.]+) │ +([\d.]+) │ +([+-][\d.]+) %", exact.stdout)
    assert found is not None and found[1] == before and found[3] in ("+0.0", "-0.0")
    assert before != after


@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_directory_of_16_bits_in_shards(dtype: str, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(Export(model=str(file), output=str(out), to="hf", dtype=dtype, max_shard_gb=1e-5))
    assert len(list(out.glob("*.safetensors"))) > 2
    assert {tensor.type for tensor in Checkpoint.open(out).tensors.values()} == {{"float16": "F16"}.get(dtype, "BF16")}


# ---------------------------------------------------------------------- what is refused
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "none.gguf"), "error: none.gguf: no such file or directory; expected a GGUF file or"),
        (("--adapter", "none"), "error: none: no such file or directory; expected a PEFT adapter directory or a GGUF"),
        (("--data", "none.jsonl"), "error: none.jsonl: cannot be read (No such file or directory)"),
        (("--type", "Q4_KM"), "error: type='Q4_KM' is unknown; did you mean 'Q4_K_M'?"),
        (("--type", "iq4_nl"), "error: type='iq4_nl' is read and not written, but by 'keep' where the model has it; e"),
        (("--dtype", "int8"), "error: export.dtype is 'int8'; expected one of"),
        (("--dtype", "float16"), "error: export.dtype is float16, which has no effect where export.to is gguf; leave"),
        (("--to", "hf", "--type", "F16"), "error: export.type is F16, which has no effect where export.to is hf;"),
        (("--to", "onnx"), "error: export.to is 'onnx'; expected one of gguf, gguf-adapter, hf, modelfile"),
        (("--to", "gguf-adapter"), "error: export.adapter is unset, expected the PEFT adapter directory to make a"),
        (("--to", "modelfile", "--type", "F16"), "error: export.type is F16, which has no effect where export.to is m"),
        (("--held-out-fraction", "0"), "error: export.held_out_fraction is 0.0, expected more than 0"),
        (("--held-out-fraction", "0.1"), "error: export.held_out_fraction is 0.1, which has no effect without export."),
        (("--sequence-length", "64"), "error: export.sequence_length is 64, which has no effect without export.data;"),
        (("--max-shard-gb", "1"), "error: export.max_shard_gb is 1.0, which has no effect where export.to is gguf;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_command_writes_nothing(words: Sequence[str], message: str, model: Path, tmp_path: Path) -> None:
    given = () if words[0] == "--model" else ("--model", model)
    ended = run_entrenar("export", *given, "--output", tmp_path / "out", *words)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.unit
def test_a_missing_or_wrong_flag_is_one_sentence() -> None:
    for words, message in (
        ((), "the following arguments are required: --model, --output"),
        (("--tipe", "F16"), "unknown argument --tipe; did you mean '--type'?"),
        (("--outfile", "x"), "unknown argument --outfile; "),
    ):
        ended = run_entrenar("export", *(("--model", "a", "--output", "b") if words else ()), *words)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        assert ended.stderr.startswith(f"entrenar export: error: {message}")


@pytest.mark.chaos
def test_an_output_that_is_there_stays_until_it_is_to_be_replaced(model: Path, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"x.gguf: is there already; choose another place, or --overwrite"):
        export(Export(model=str(model), output=str(path)))
    assert path.read_text() == "mine"
    export(Export(model=str(model), output=str(path), overwrite=True))
    LLaMAModel.from_pretrained(path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"x.Modelfile: is there already; choose another output, --overwrite, or"):
        export(Export(model=str(model), output=str(path)))
    export(Export(model=str(model), output=str(path), modelfile=False))
    for place in (model, file):
        to = "hf" if place is model else "gguf"
        with pytest.raises(ConfigError, match=r"export.output is .*, the model that is read; choose another place"):
            export(Export(model=str(place), output=str(place), to=to, overwrite=True))
    with pytest.raises(FormatError, match="is a file; expected a folder"):
        export(Export(model=str(model), output=str(path), to="hf", overwrite=True))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="is a folder; expected a file"):
        export(Export(model=str(model), output=str(tmp_path / "folder")))
    (tmp_path / "y.Modelfile").mkdir()
    with pytest.raises(FormatError, match=r"y\.Modelfile: is a folder; expected a file"):
        export(Export(model=str(model), output=str(tmp_path / "y.gguf"), overwrite=True))
    assert not (tmp_path / "y.gguf").exists()


@pytest.mark.chaos
def test_a_damaged_model_or_a_foreign_adapter_is_one_sentence(
    model: Path, file: Path, adapter: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FormatError, match=r"cut.gguf: .*truncated"):
        export(Export(model=str(cut), output=str(tmp_path / "x.gguf")))
    other = tmp_path / "other.gguf"
    random_model(small_config(num_hidden_layers=1)).save_gguf(other)
    with pytest.raises(EntrenarError, match=r"adapter_model.safetensors: the tensor .* has shape"):
        export(Export(model=str(other), adapter=str(adapter), output=str(tmp_path / "x.gguf")))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.chaos
def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path) -> None:
    command = entrenar_command("export", "--model", model, "--output", tmp_path / "x.gguf")
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", *map(str, command)]
    ended = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "x.gguf: cannot be written (File too large); make room or choose another place." in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chaos
@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_ctrl_c_half_way_leaves_nothing_or_what_was_there(
    to: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Export(model=str(model), output=str(tmp_path / "out"), to=to, overwrite=True)
    load, loaded = PlainWeight.load, 0

    def interrupted(weight: PlainWeight) -> Weight:
        nonlocal loaded
        loaded += 1
        if loaded == 8:
            raise KeyboardInterrupt
        return load(weight)

    for there in (False, True):
        loaded = 0
        with monkeypatch.context() as patch:
            patch.setattr(PlainWeight, "load", interrupted)
            with pytest.raises(KeyboardInterrupt):
                export(settings)
        files = {"hf": {"out"}, "gguf": {"out", "out.Modelfile"}}[to] if there else set()
        assert {entry.name for entry in tmp_path.iterdir()} == files
        if not there:
            export(settings)
        else:
            LLaMAModel.from_pretrained(tmp_path / "out")


@pytest.mark.chaos
def test_ctrl_c_after_the_file_is_there_says_so(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.gguf"

    def interrupted(found: LLaMAModel, batches: object) -> Evaluation:
        if output.exists():
            raise KeyboardInterrupt
        return Evaluation(1.0, 1)

    monkeypatch.setattr("entrenar.train.export.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"out\.gguf is written; its loss was not evaluated"):
        export(Export(model=str(model), output=str(output), data=str(data), sequence_length=64))
    LLaMAModel.from_pretrained(output)

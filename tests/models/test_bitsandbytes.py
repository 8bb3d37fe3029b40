"""Directories that bitsandbytes has quantized to NF4: their own values, bit for bit, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entrenar.autograd import QuantizedTensor, no_grad
from entrenar.errors import ConfigError, FormatError
from entrenar.io.bitsandbytes import gathered
from entrenar.io.lazy import LazyTensor
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.storage import StoragePolicy
from entrenar.models.weights import storage_of
from entrenar.train.export import Export, export

from .builders import assert_same, random_arrays, random_tokens, small_config, weights_of, write_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.peers

CONFIG = small_config(hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4)
DOWN = "model.layers.0.mlp.down_proj.weight"
STATE = f"{DOWN}.quant_state.bitsandbytes__nf4"


def quantized(folder: Path, name: str, config: Any = CONFIG, **options: Any) -> Path:
    """A directory of random weights, quantized by bitsandbytes and saved by transformers."""
    if not (folder / "full").exists():
        write_hf(folder / "full", config, random_arrays(config))
    bits = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "full", quantization_config=bits, dtype=torch.float32
    )
    model.save_pretrained(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    return {
        "plain": quantized(folder, "plain", bnb_4bit_quant_type="nf4", **four),
        "double": quantized(folder, "double", bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **four),
        "fp4": quantized(folder, "fp4", bnb_4bit_quant_type="fp4", **four),
        "int8": quantized(folder, "int8", load_in_8bit=True),
    }


class _Array(LazyTensor):
    """A tensor of a file as an array in memory."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        super().__init__(name, array.shape, str(array.dtype))
        self._array = array

    def raw(self) -> np.ndarray:
        return self._array

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]

    read = raw


def altered(source: Path, folder: Path, change: Any) -> Path:
    """A copy whose tensors `change` has edited."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize("quantize", ["auto", "nf4"])
@pytest.mark.parametrize("kind", ["plain", "double"])
def test_matrices_keep_their_values_and_logits_are_those_of_transformers(
    kind: str, quantize: str, directories: dict[str, Path]
) -> None:
    model = LLaMAModel.from_pretrained(directories[kind], quantize=quantize)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directories[kind], dtype=torch.float32)
    assert model.remarks == [] and model.unquantized == {}
    for other in (False, True):  # the file's scales are kept, whatever is asked for
        planned = storage_of(Checkpoint.open(directories[kind]), StoragePolicy("float32", quantize, other)).nbytes
        held = sum(weight.nbytes for _, weight in model.named_parameters())
        assert abs(planned - held) <= 4 * 7  # the last group of scales of a matrix is smaller
    for name, weight in model.named_parameters():
        their = theirs.get_parameter(name)
        if not name.endswith("_proj.weight"):
            np.testing.assert_array_equal(weight.numpy(), their.detach().numpy())
            continue
        assert isinstance(weight, QuantizedTensor) and weight.double_quantized == (kind == "double")
        values = bitsandbytes.functional.dequantize_4bit(their.data, their.quant_state)
        assert weight.quantized_values.tobytes() == their.data.numpy().tobytes()
        assert weight.dequantize().tobytes() == values.numpy().tobytes()
        assert not weight.quantized_values.flags.writeable  # mapped
    tokens = random_tokens(CONFIG, 2, 19)
    theirs = theirs.dequantize()  # its products over quantized values round x to bfloat16 on a CPU
    with no_grad(), torch.no_grad():
        ours, expected = model(tokens).numpy(), theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["plain", "double"])
def test_without_quantization_the_same_values_are_float32(kind: str, directories: dict[str, Path]) -> None:
    kept = dict(LLaMAModel.from_pretrained(directories[kind], quantize="auto").named_parameters())
    model = LLaMAModel.from_pretrained(directories[kind])
    for name, weight in model.named_parameters():
        expected = kept[name].dequantize() if name.endswith("_proj.weight") else kept[name].numpy()
        assert (weight.dtype, weight.numpy().tobytes()) == ("float32", expected.tobytes()), name
    (remark,) = LLaMAModel.from_pretrained(directories[kind], quantize="int4").remarks
    stored = "NF4" if kind == "double" else "NF4 with float32 scales"
    assert remark.startswith(f"7 matrices of type {stored} (model.layers.*.self_attn.q_proj.weight, ")


def test_adapters_train_over_the_values_and_a_merged_directory_is_no_longer_quantized(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    model = LLaMAModel.from_pretrained(directories["double"], quantize="auto")
    model.to_lora(LoRAConfig(rank=2, target_modules=["all-linear"]))
    tokens = random_tokens(CONFIG, 1, 9)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(np.isfinite(weight.grad.numpy()).all() for _, weight in model.trainable_parameters())
    LLaMAModel.from_pretrained(directories["double"]).save_pretrained(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    LLaMAModel.from_pretrained(tmp_path / "out")


def test_rows_that_are_no_whole_blocks_are_dequantized_and_said(tmp_path: Path) -> None:
    config = small_config(hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    for double in (False, True):
        options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
        path = quantized(tmp_path, f"odd{double}", config, load_in_4bit=True, **options)
        model = LLaMAModel.from_pretrained(path, quantize="auto")
        assert model.unquantized == {DOWN: "its 96 columns are no multiple of 64"}
        their = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).get_parameter(DOWN)
        their.quant_state.shape = torch.Size((1, 64 * 96))  # of more rows its CPU kernel loses count of the blocks
        expected = bitsandbytes.functional.dequantize_4bit(their.data, their.quant_state).numpy()
        weight = dict(model.named_parameters())[DOWN]
        np.testing.assert_array_equal(weight.numpy(), expected.reshape(64, 96))
        assert "dequantized to float32" in " ".join(model.remarks)


def test_rows_from_the_middle_have_the_scales_of_their_blocks() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((350, 100)).astype(np.float32))
    for double in (False, True):  # whose scales are of 64, and of 256 x 64 elements
        packed, state = bitsandbytes.functional.quantize_4bit(values, quant_type="nf4", compress_statistics=double)
        arrays = {f"w.{key}": part.numpy() for key, part in state.as_dict(packed=True).items()} | {"w": packed.numpy()}
        tensor = gathered("x", {key: _Array(key, part) for key, part in arrays.items()})["w"]
        state.shape = torch.Size((1, 350 * 100))  # of more rows its CPU kernel loses count of the blocks
        expected = bitsandbytes.functional.dequantize_4bit(packed, state).numpy().reshape(350, 100)
        for start, stop in ((0, 350), (0, 7), (163, 165), (170, 345), (349, 350)):
            np.testing.assert_allclose(tensor.load_rows(start, stop), expected[start:stop], rtol=1e-6, atol=1e-7)


def test_other_kinds_are_refused_by_name(directories: dict[str, Path], tmp_path: Path) -> None:
    for kind, word in (("fp4", r"bitsandbytes \(fp4\)"), ("int8", r"bitsandbytes \(int8\)")):
        with pytest.raises(ConfigError, match=rf"quantization_config says that the weights are quantized by {word}"):
            LLaMAModel.from_pretrained(directories[kind], quantize="auto")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/config.json").write_bytes((directories["plain"] / "config.json").read_bytes())
    (tmp_path / "mixed/model.safetensors").write_bytes((directories["fp4"] / "model.safetensors").read_bytes())
    with pytest.raises(
        FormatError, match=r"mixed: holds .*bitsandbytes__fp4: .* bitsandbytes \(fp4\), .* expected NF4"
    ):
        LLaMAModel.from_pretrained(tmp_path / "mixed")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (f"{DOWN}.absmax", None, rf"the tensor {DOWN}\.absmax is missing beside {DOWN}\.quant_state"),
        (DOWN, None, rf"the tensor {DOWN} is missing beside"),
        (f"{DOWN}.nested_quant_map", None, r"nested_quant_map is missing beside"),
        (
            DOWN,
            np.zeros((7, 1), np.uint8),
            rf"the tensor {DOWN} of type NF4 cannot be used: .* 7 elements, expected 6144",
        ),
        (
            f"{DOWN}.absmax",
            np.zeros(3, np.uint8),
            r"type NF4 cannot be used: quantized_scales has 3 elements, expected 192",
        ),
        (f"{DOWN}.quant_map", np.zeros(16, np.float32), r"quant_map is not NF4's"),
        (STATE, b"[]", rf"{STATE} is \[\], expected an object"),
        (STATE, b"{", rf"{STATE}: is not JSON"),
        (STATE, b'{"shape": [64], "blocksize": 64}', rf"{STATE} says shape \[64\], expected two sizes"),
        (STATE, b'{"shape": [64, 192], "blocksize": 7}', r"says blocksize 7, expected an even number"),
        (
            STATE,
            b'{"shape": [64, 192], "blocksize": 64, "nested_blocksize": 256}',
            r"says nested_offset null, expected",
        ),
        (
            STATE,
            b'{"shape": [192, 64], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0}',
            r"has shape \(192, 64\)",
        ),
    ],
)
def test_damage_is_named(part: str, value: Any, message: str, directories: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if value is None:
            del tensors[part]
        else:
            tensors[part] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value

    path = altered(directories["double"], tmp_path / "m", change)
    with pytest.raises(FormatError, match=message):
        LLaMAModel.from_pretrained(path, quantize="auto")


@pytest.mark.chaos
def test_a_configuration_that_contradicts_the_tensors_is_named(directories: dict[str, Path], tmp_path: Path) -> None:
    table = json.loads((directories["plain"] / "config.json").read_text())
    plain = altered(directories["plain"].parent / "full", tmp_path / "plain", lambda tensors: None)
    (plain / "config.json").write_text(json.dumps(table))
    with pytest.raises(FormatError, match=r"quantized by bitsandbytes \(nf4\), and the files have none that is"):
        LLaMAModel.from_pretrained(plain)
    packed = altered(directories["plain"], tmp_path / "packed", lambda tensors: None)
    (packed / "config.json").write_text(json.dumps({k: v for k, v in table.items() if k != "quantization_config"}))
    with pytest.raises(FormatError, match=r"its weights are quantized by bitsandbytes \(4 bits\)"):
        LLaMAModel.from_pretrained(packed)


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_they_are_exported_with_their_own_values(to: str, directories: dict[str, Path], tmp_path: Path) -> None:
    export(Export(model=str(directories["double"]), output=str(tmp_path / "out"), to=to))
    found = LLaMAModel.from_pretrained(tmp_path / "out")
    assert_same(weights_of(found), weights_of(LLaMAModel.from_pretrained(directories["double"], quantize="auto")))
    if to == "hf":
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)

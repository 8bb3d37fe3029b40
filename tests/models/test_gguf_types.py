"""The types of written GGUF files: which tensor gets which, and the values that it then has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from entrenar.autograd import QuantizedTensor, no_grad
from entrenar.autograd.weight_types import WEIGHT_TYPES, gguf_weight_type
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig, merge
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.file_types import FILE_TYPES
from entrenar.models.gguf_types import file_type_number, tensor_types
from entrenar.train.loading import as_stored
from tests.edges.gguf_models import PROMPTS, TOKENIZER, VOCABULARY, peers_log_probabilities
from tests.edges.llama_cpp import log_softmax

from .builders import assert_same, gguf_name, random_model, random_tokens, small_config, weights_of, write_gguf
from .family_cases import BASE, CASES

QUANTIZED = [name for name, file in FILE_TYPES.items() if file.matrices not in ("F32", "F16", "BF16")]


def config_of(hidden: int, inner: int, **changes: Any) -> LLaMAConfig:
    return small_config(
        **{"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": inner, "head_dim": 64} | changes
    )


def as_it_is(path: Path) -> LLaMAModel:
    """The model in the types of its file."""
    checkpoint = Checkpoint.open(path)
    return LLaMAModel.from_checkpoint(checkpoint, as_stored(checkpoint))


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


# What llama-quantize (llama.cpp of 2026-10, src/llama-quant.cpp) gives attn_v and ffn_down more bits in, by layers.
MORE_BITS = {
    1: [0],
    2: [1],
    8: [0, 3, 6, 7],
    16: [0, 1, 4, 7, 10, 13, 14, 15],
    22: [0, 1, 4, 7, 10, 13, 16, 19, 20, 21],
    30: [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29],
    36: [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35],
}
# and what a tied embedding, an embedding, its head and an attn_q get, with rows of 256, 96 and 66 elements
MATRICES = {
    "Q8_0": ("Q8_0 Q8_0 Q8_0 Q8_0", "Q8_0 Q8_0 Q8_0 Q8_0"),
    "Q4_0": ("Q6_K Q4_0 Q6_K Q4_0", "Q8_0 Q4_0 Q8_0 Q4_0"),
    "Q4_1": ("Q6_K Q4_1 Q6_K Q4_1", "Q8_0 Q4_1 Q8_0 Q4_1"),
    "Q5_0": ("Q6_K Q5_0 Q6_K Q5_0", "Q8_0 Q5_0 Q8_0 Q5_0"),
    "Q5_1": ("Q6_K Q5_1 Q6_K Q5_1", "Q8_0 Q5_1 Q8_0 Q5_1"),
    "Q4_K_M": ("Q6_K Q4_K Q6_K Q4_K", "Q8_0 Q5_0 Q8_0 Q5_0"),
    "Q5_K_M": ("Q6_K Q5_K Q6_K Q5_K", "Q8_0 Q5_1 Q8_0 Q5_1"),
    "Q6_K": ("Q6_K Q6_K Q6_K Q6_K", "Q8_0 Q8_0 Q8_0 Q8_0"),
}


@pytest.mark.unit
@pytest.mark.parametrize(("layers", "more"), MORE_BITS.items())
def test_the_mixes_give_more_bits_to_the_layers_that_llama_quantize_does(layers: int, more: list[int]) -> None:
    for name, most in (("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")):
        types = tensor_types(config_of(256, 512, num_hidden_layers=layers), name, {})
        for part in ("self_attn.v_proj", "mlp.down_proj"):
            found = [types[f"model.layers.{layer}.{part}.weight"] for layer in range(layers)]
            assert found == ["Q6_K" if layer in more else most for layer in range(layers)]
        others = [type_ for key, type_ in types.items() if "q_proj" in key or "o_proj" in key or "up_proj" in key]
        assert set(others) == {most}


@pytest.mark.unit
@pytest.mark.parametrize("name", MATRICES)
def test_head_embedding_and_rows_that_do_not_fit_are_as_in_llama_quantize(name: str) -> None:
    for width, expected in zip((256, 96, 66), (*MATRICES[name], "F16 F16 F16 F16"), strict=True):
        tied = tensor_types(config_of(width, 256, tie_word_embeddings=True), name, {})
        free = tensor_types(config_of(width, 256), name, {})
        names = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight")
        assert " ".join([tied[names[0]], *(free[key] for key in names)]) == expected


@pytest.mark.unit
def test_the_largest_models_share_their_values_in_five_bits() -> None:
    types = tensor_types(config_of(256, 256, num_hidden_layers=80), "Q4_K_M", {})
    found = [types[f"model.layers.{layer}.self_attn.v_proj.weight"] for layer in range(10, 16)]
    assert found == ["Q5_K", "Q5_K", "Q6_K", "Q5_K", "Q5_K", "Q6_K"]
    assert types["model.layers.10.mlp.down_proj.weight"] == "Q4_K"


@pytest.mark.unit
def test_a_type_of_one_kind_is_that_of_every_matrix_but_the_head() -> None:
    types = tensor_types(config_of(256, 512), "Q4_K", {})
    assert {types.pop("lm_head.weight")} == {"Q6_K"}
    assert {type_ for name, type_ in types.items() if "norm" not in name} == {"Q4_K"}


@pytest.mark.unit
@pytest.mark.parametrize("name", ["F16", "BF16", *QUANTIZED])
def test_values_are_those_of_the_encoder(name: str, tmp_path: Path) -> None:
    model = random_model(config_of(256, 256), std=0.05)
    found = model.save_gguf(tmp_path / "x.gguf", type=name.lower(), tokenizer=TOKENIZER)
    assert types_of(tmp_path / "x.gguf") == found.types
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["general.file_type"].contents() == FILE_TYPES[name].number
    back = weights_of(LLaMAModel.from_pretrained(tmp_path / "x.gguf"))
    for key, values in weights_of(model).items():
        expected = rounded(values, found.types[gguf_name(key)])
        np.testing.assert_array_equal(back[key], expected, err_msg=key)
    kept = as_it_is(tmp_path / "x.gguf")
    kept.save_gguf(tmp_path / "y.gguf", type=name)
    kept.save_gguf(tmp_path / "z.gguf", type="keep")
    assert (
        (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes() == (tmp_path / "z.gguf").read_bytes()
    )


def rounded(values: np.ndarray, type_: str) -> np.ndarray:
    """The values that a matrix has as this type."""
    floats = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    if type_ in floats:
        return values.astype(floats[type_]).astype(np.float32)
    return QuantizedTensor.quantize(values, gguf_weight_type(type_).name).dequantize()


@pytest.mark.peers
@pytest.mark.parametrize("name", ["F16", "BF16", *QUANTIZED])
def test_llama_cpp_agrees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    random_model(config_of(256, 256), std=0.05).save_gguf(tmp_path / "x.gguf", type=name, tokenizer=TOKENIZER)
    model = as_it_is(tmp_path / "x.gguf")
    with no_grad():
        ours = [log_softmax(model(np.array([prompt])).numpy()[0, -1]) for prompt in PROMPTS]
    # llama.cpp rounds what such weights are multiplied with: to 8 bits, or to their own 16
    np.testing.assert_allclose(ours, peers_log_probabilities(tmp_path / "x.gguf"), rtol=0, atol=0.1)


@pytest.mark.unit
@pytest.mark.parametrize("type_", ["Q8_0", "Q4_1", "Q5_0"])
def test_quantized_values_of_a_file_are_written_as_they_are(type_: str, tmp_path: Path) -> None:
    config = config_of(96, 288)
    weights = weights_of(random_model(config))
    at_the_ends = ("model.embed_tokens.weight", "lm_head.weight")
    chosen = lambda name: "Q8_0" if name in at_the_ends else type_  # noqa: E731
    write_gguf(tmp_path / "x.gguf", config, weights, chosen, metadata=TOKENIZER)
    model = LLaMAModel.from_pretrained(tmp_path / "x.gguf", quantize="auto")
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    found = model.save_gguf(tmp_path / "y.gguf", type="keep")
    assert_same({tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "y.gguf").tensors}, expected)
    assert found.types == types_of(tmp_path / "x.gguf")
    again = model.save_gguf(tmp_path / "z.gguf", type="Q5_1").remarks[0]
    assert again.startswith("15 matrices are quantized a second time (") and "'keep' leaves" in again
    assert "second time" not in " ".join(model.save_gguf(tmp_path / "z.gguf", type="F16").remarks + found.remarks)
    assert all("without rounding" in remark for remark in found.remarks)


@pytest.mark.unit
@pytest.mark.parametrize("quantize", ["auto", "nf4"])
def test_adapters_are_merged_as_matrices_are_written(quantize: str, tmp_path: Path) -> None:
    config = config_of(64, 128)
    weights = weights_of(random_model(config))
    write_gguf(
        tmp_path / "x.gguf", config, weights, lambda name: "Q4_1" if "_proj" in name else "Q8_0", metadata=TOKENIZER
    )
    model = LLaMAModel.from_pretrained(tmp_path / "x.gguf", quantize=quantize)
    model.to_lora(LoRAConfig(rank=2, target_modules=["q_proj", "down_proj"]))
    for _, weight in model.trainable_parameters():
        weight.numpy()[...] = np.random.default_rng(1).standard_normal(weight.shape) * 0.1
    found = model.save_gguf(tmp_path / "y.gguf", merge=True)
    base = "q4_1" if quantize == "auto" else "nf4"
    assert found.remarks[0] == (f"4 matrices are merged with their adapters in float32 (4 of {base}).")
    kept = model.save_gguf(tmp_path / "z.gguf", merge=True, type="keep")
    assert merge(model) == found.remarks[0]
    assert_same(weights_of(LLaMAModel.from_pretrained(tmp_path / "y.gguf")), weights_of(model))
    with no_grad():
        tokens = random_tokens(config, 1, 20)
        expected = model(tokens).numpy()
        np.testing.assert_array_equal(LLaMAModel.from_pretrained(tmp_path / "y.gguf")(tokens).numpy(), expected)
    assert set(kept.types.values()) == ({"F32", "Q4_1", "Q8_0"} if quantize == "auto" else {"F32"})


@pytest.mark.unit
def test_a_value_beyond_float16_is_refused_by_its_place(tmp_path: Path) -> None:
    model = random_model(config_of(96, 288))
    dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"].numpy()[7, 5] = -1e5
    message = r"tensor blk.1.ffn_up.weight is -100000 at \[7, 5\], beyond the largest number of float16; choose float32"
    with pytest.raises(FormatError, match=message):
        model.save_gguf(tmp_path / "x.gguf", type="F16")
    assert not list(tmp_path.iterdir())
    model.save_gguf(tmp_path / "x.gguf", type="BF16")


@pytest.mark.unit
def test_an_unknown_type_is_refused() -> None:
    for name in ("Q4_KM", "", "int4"):
        with pytest.raises(ConfigError, match=f"type={name!r} is unknown; "):
            random_model().save_gguf("x.gguf", type=name)


@pytest.mark.unit
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("type_", ["F32", "BF16", "Q8_0"])
def test_a_large_vocabulary_and_runs_of_rows(
    type_: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(vocab_size=50001, hidden_size=32, head_dim=8, num_hidden_layers=1, tie_word_embeddings=tied)
    model = random_model(config)
    model.save_gguf(tmp_path / "x.gguf", type=type_)
    back = LLaMAModel.from_pretrained(tmp_path / "x.gguf")
    assert (back.lm_head is None) is tied
    expected = {
        name: rounded(values, type_ if values.ndim == 2 else "F32") for name, values in weights_of(model).items()
    }
    assert_same(weights_of(back), expected)
    monkeypatch.setattr("entrenar.models.gguf_rows.ROW_BYTES", 4 * 32 * 20)  # runs of 20 rows, of q and k 16
    model.save_gguf(tmp_path / "y.gguf", type=type_)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()


@pytest.mark.unit
def test_a_kept_file_keeps_its_number(tmp_path: Path) -> None:
    config = config_of(96, 288)
    metadata = TOKENIZER | {"general.file_type": 1007, "general.license": "mit", "general.languages": ["en", "de"]}
    write_gguf(tmp_path / "x.gguf", config, weights_of(random_model(config)), "Q8_0", metadata=metadata)
    model = LLaMAModel.from_pretrained(tmp_path / "x.gguf", quantize="auto")
    for type_, number in (("keep", 1007), ("Q4_0", 2)):
        model.save_gguf(tmp_path / "y.gguf", type=type_)
        fields = gguf.GGUFReader(tmp_path / "y.gguf").fields
        assert fields["general.file_type"].contents() == number
        assert fields["general.license"].contents() == "mit" and fields["general.languages"].contents() == ["en", "de"]


@pytest.mark.unit
def test_the_number_of_kept_types_is_that_of_llama_cpp() -> None:
    """The names of llama.cpp's enum are the types'; a K-quant of its own kind is the small one."""
    for row in WEIGHT_TYPES.values():
        if row.gguf_name is not None:
            names = [f"{start}_{row.gguf_name}{end}" for start in ("ALL", "MOSTLY") for end in ("", "_S")]
            numbers = [kind.value for kind in gguf.LlamaFileType if kind.name in names]
            assert file_type_number({"a": row.gguf_name, "b": "F32"}, "keep") == numbers[0], row.gguf_name


@pytest.mark.unit
def test_types_of_more_bits_change_less(tmp_path: Path) -> None:
    """The error of the logits, and of the values, from the type of the most bits to that of the fewest."""
    order = ["F16", "Q8_0", "Q6_K", "Q5_1", "Q4_K_M", "Q4_0"]
    model = random_model(config_of(256, 256), std=0.05)
    tokens = random_tokens(model.config, 4, 32)
    with no_grad():
        expected = log_softmax(model(tokens).numpy())
        changes, errors = [], []
        for name in order:
            found = model.save_gguf(tmp_path / "x.gguf", type=name)
            (change, *_) = [float(part) for part in re.findall(r"rounded by ([\d.e-]+) %", " ".join(found.remarks))]
            changes.append(change)
            errors.append(
                np.abs(log_softmax(LLaMAModel.from_pretrained(tmp_path / "x.gguf")(tokens).numpy()) - expected).mean()
            )
    assert changes == sorted(changes) and errors == sorted(errors), (order, changes, errors)
    assert errors[0] < 1e-3 and errors[-1] < 0.5


ONE_OF_EACH = {case.model_type: case for case in reversed(CASES.values()) if not case.not_in_gguf}


@pytest.mark.peers
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_every_family_runs_in_a_mix_of_types(family: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    own = ONE_OF_EACH[family].changes
    table = BASE | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": VOCABULARY, "model_type": family} | own
    table |= {key: 128 for key in ("head_dim", "query_pre_attn_scalar") if key in own}
    model = random_model(LLaMAConfig.from_hf(table), std=0.05)
    path = tmp_path / "x.gguf"
    written = model.save_gguf(path, type="Q4_K_M", tokenizer=TOKENIZER)
    assert {"Q4_K", "Q6_K"} <= set(written.types.values()) == {"F32", "Q4_K", "Q6_K"}
    kept = as_it_is(path)
    kept.save_gguf(tmp_path / "y.gguf", type="Q4_K_M")
    assert (tmp_path / "y.gguf").read_bytes() == path.read_bytes()
    with no_grad():
        ours = [log_softmax(kept(np.array([prompt])).numpy()[0, -1]) for prompt in PROMPTS]
    # what llama.cpp rounds to 8 bits grows from layer to layer: here it is 0.15 on average after 7
    assert np.abs(ours - peers_log_probabilities(path)).mean() < 0.2
    kept.save_gguf(tmp_path / "z.gguf", type="F32")
    atol = 1e-2 if family.startswith("gemma") else 5e-4  # its GELU is a table of float16
    np.testing.assert_allclose(ours, peers_log_probabilities(tmp_path / "z.gguf"), rtol=0, atol=atol)

"""Layers that differ: which have a window, scales and norms; what of it goes into GGUF files and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.models.hf_config import table_of
from entrenar.nn.layers import Embedding

from .builders import random_model, random_tokens, small_config

SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA: dict[str, Any] = {"sliding_window": 8, "head_dim": 16}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def metadata_of(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


@pytest.mark.unit
def test_windows_are_those_of_the_family_unless_layers_are_named() -> None:
    gemma2 = small_config(family="gemma2", num_hidden_layers=5, **GEMMA)
    assert gemma2.layer_types == [SLIDING, FULL, SLIDING, FULL, SLIDING]
    assert [gemma2.window(layer) for layer in range(5)] == [8, None, 8, None, 8]
    gemma3 = small_config(family="gemma3_text", num_hidden_layers=7, **GEMMA)
    assert gemma3.layer_types == [*[SLIDING] * 5, FULL, SLIDING]
    mistral = small_config(family="mistral", sliding_window=8)
    assert [mistral.window(layer) for layer in range(2)] == [8, 8] and mistral.layer_types is None
    wide = small_config(family="ministral", sliding_window=64, layer_types=[FULL, SLIDING])
    assert [wide.window(layer) for layer in range(2)] == [None, None]  # as wide as the context
    assert [wide.is_sliding(layer) for layer in range(2)] == [False, True]
    for family in ("gemma3_text", "gemma2", "ministral"):  # transformers needs a number even so
        without = small_config(family=family, head_dim=16)
        assert without.layer_types == [FULL, FULL] and without.window(0) is None and without.sliding_window == 4096


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "llama", "sliding_window": 8}, "model.sliding_window is 8, which a LLaMA has not; leave it out"),
        ({"family": "qwen2", "final_logit_softcapping": 3.0}, "final_logit_softcapping is 3.0, which a Qwen2 has not"),
        ({"family": "gemma2", "rope_local_base_freq": 3.0}, "rope_local_base_freq is 3.0, which a Gemma 2 has not"),
        ({"family": "gemma2", **GEMMA, "layer_types": [FULL]}, "layer_types has 1 entries, expected num_hidden_lay"),
        ({"family": "gemma2", **GEMMA, "layer_types": [FULL, "x"]}, "layer_types has 'x'; expected one of full_att"),
        ({"family": "gemma2", "layer_types": [FULL, SLIDING]}, "sliding_window is unset, and layer_types has"),
        (
            {"family": "ministral3", "llama_4_scaling_beta": 0.1},
            "llama_4_scaling_beta is 0.1 and model.rope_scaling is",
        ),
        ({"family": "gemma2", "sliding_window": 0}, "sliding_window is 0, expected at least 1"),
    ],
)
def test_fields_that_a_family_has_not_or_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_config(**changes)
    assert message in str(caught.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("family", "scaling", "message"),
    [
        ("ministral3", None, "rope_scaling has the type 'default', expected 'yarn', without which"),
        ("ministral3", {"rope_type": "linear", "factor": 2.0}, "rope_scaling has the type 'linear', expected 'yarn',"),
        ("phi3", {"rope_type": "dynamic", "factor": 2.0}, "has the type 'dynamic', expected 'default' or 'longrope',"),
    ],
)
def test_no_config_json_is_written_that_transformers_cannot_read(family: str, scaling: Any, message: str) -> None:
    config = small_config(family=family, rope_scaling=scaling)
    with pytest.raises(ConfigError) as caught:
        config.to_hf()
    assert message in str(caught.value)


@pytest.mark.unit
def test_a_config_json_has_the_fields_of_its_family_alone() -> None:
    def keys(**changes: Any) -> set[str]:
        config = small_config(**changes)
        return set(table_of({name: getattr(config, name) for name in LLaMAConfig.__dataclass_fields__}))

    assert not keys() & {"sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"}
    assert {"query_pre_attn_scalar", "attn_logit_softcapping"} <= keys(family="gemma2", head_dim=16)
    assert "attn_logit_softcapping" not in keys(family="gemma3_text", head_dim=16)
    assert "hidden_act" not in keys(family="gemma3_text", head_dim=16)


@pytest.mark.unit
def test_the_pattern_of_older_gemma_3_files_names_the_layers() -> None:
    table = small_config(family="gemma3_text", num_hidden_layers=4, **GEMMA).to_hf()
    del table["layer_types"], table["rope_parameters"]
    config = LLaMAConfig.from_hf(table | {"sliding_window_pattern": 2, "rope_local_base_freq": 500.0})
    assert config.layer_types == [SLIDING, FULL, SLIDING, FULL]
    assert (config.rope_theta, config.rope_local_base_freq) == (10000.0, 500.0)
    scaled = LLaMAConfig.from_hf(table | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert scaled.rope_scaling == {"rope_type": "linear", "factor": 8.0}
    np.testing.assert_allclose(scaled.inverse_frequencies() * 8, scaled.local_rotation().frequencies)


@pytest.mark.unit
def test_the_scale_of_an_embedding_is_rounded_to_its_elements() -> None:
    values = np.random.default_rng(0).standard_normal((5, 640)).astype(np.float32)
    scale = 640**0.5  # 25.298..., in bfloat16 25.25
    np.testing.assert_array_equal(
        Embedding(Tensor(values), scale=scale)(np.array([[3]])).numpy()[0, 0], values[3] * np.float32(scale)
    )
    half = Tensor(values, dtype="bfloat16")
    found = Embedding(half, scale=scale)(np.array([[3]])).numpy()[0, 0]
    np.testing.assert_array_equal(found, half.numpy()[3].astype(np.float32) * np.float32(25.25))


# ---------------------------------------------------------------------- GGUF
@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"family": "gemma2", **GEMMA, **CAPS}, {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0}),
        ({"family": "gemma2", **GEMMA, **CAPS, "layer_types": [FULL, SLIDING]},
         {"attention.sliding_window_pattern": [False, True]}),
        ({"family": "gemma3_text", **GEMMA, "rope_local_base_freq": 500.0}, {"rope.freq_base_swa": 500.0}),
        ({"family": "gemma3_text", "head_dim": 16}, {"attention.sliding_window": None}),
        ({"family": "gemma2", "head_dim": 16, **CAPS}, {"attention.sliding_window_pattern": [False, False]}),
        ({"family": "mistral", "sliding_window": 8}, {"context_length": 8, "attention.sliding_window": None}),
        ({"family": "qwen2", "sliding_window": 8, "layer_types": [FULL, SLIDING]}, {"context_length": 8}),
    ],
    ids=["gemma2", "gemma2, named layers", "gemma3", "gemma3, none", "gemma2, none", "mistral", "qwen2"],
)  # fmt: skip
def test_what_a_file_says_of_windows(changes: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True} if changes["family"] == "gemma2" else {}
    model = random_model(small_config(**changes, **tied))
    remarks = " ".join(model.save_gguf(tmp_path / "x.gguf").remarks)
    found = metadata_of(tmp_path / "x.gguf")
    own = found["general.architecture"]
    assert ("context length is the model's window of 8 tokens" in remarks) == ("gemma" not in own)
    assert {key: found.get(f"{own}.{key}") for key in keys} == keys
    back = LLaMAModel.from_pretrained(tmp_path / "x.gguf")
    windowed = own in ("gemma2", "gemma3")
    assert back.config.max_position_embeddings == (64 if windowed else 8)
    if windowed:
        assert back.config.layer_types == model.config.layer_types
    tokens = random_tokens(model.config, 1, back.config.max_position_embeddings)
    np.testing.assert_array_equal(back(tokens).numpy(), model(tokens).numpy())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gemma2", **GEMMA, **CAPS}, "tie_word_embeddings is false, and llama.cpp runs the architecture"),
        ({"family": "gemma2", **GEMMA, "tie_word_embeddings": True}, "softcapping is null, and llama.cpp runs the"),
        ({"family": "gemma3_text", **GEMMA, "query_pre_attn_scalar": 7}, "query_pre_attn_scalar is 7, and llama.cpp"),
        ({"family": "olmo2", "head_dim": 8}, "model.head_dim is 8, and llama.cpp runs the architecture 'olmo2' with"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        random_model(small_config(**changes)).save_gguf(tmp_path / "x.gguf")
    assert message in str(caught.value).replace("None", "null")
    assert list(tmp_path.iterdir()) == []


def rewritten(
    source: Path, target: Path, architecture: str, metadata: dict[str, Any], drop: str = "", **more: np.ndarray
) -> Path:
    """The file with other metadata (None: without the key), without the tensor `drop` and with `more` of them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, architecture)
    values = {key: value for key, value in metadata_of(source).items() if key.startswith(f"{architecture}.")}
    for key, value in (values | {f"{architecture}.{key}": value for key, value in metadata.items()}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            {float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}[type(value)](key, value)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data))
    for name, values in more.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.unit
def test_keys_that_a_file_leaves_out_mean_what_llama_cpp_takes_for_them(tmp_path: Path) -> None:
    gemma2 = small_config(family="gemma2", **GEMMA, **CAPS, tie_word_embeddings=True)
    random_model(gemma2).save_gguf(tmp_path / "x.gguf")
    left_out = {"attention.sliding_window": None, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = LLaMAModel.from_pretrained(rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", "gemma2", left_out)).config
    assert (config.sliding_window, config.attn_logit_softcapping, config.final_logit_softcapping) == (4096, 50.0, 30.0)
    random_model(small_config(family="gemma3_text", **GEMMA)).save_gguf(tmp_path / "x.gguf")
    left_out = {"rope.freq_base_swa": None, "attention.sliding_window_pattern": 2}
    config = LLaMAModel.from_pretrained(rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", "gemma3", left_out)).config
    assert (config.rope_local_base_freq, config.layer_types) == (10000.0, [SLIDING, FULL])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"rope.freq_base_swa": 7.0}, "gemma2.rope.freq_base_swa is 7.0, expected that of gemma2.rope.freq_base"),
        ({"attention.sliding_window_pattern": [True]}, "sliding_window_pattern is [true], expected true or false for"),
        ({"attention.sliding_window_pattern": 1.5}, "sliding_window_pattern is 1.5, expected an integer or a list"),
        ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1.0, expected more than 0"),
    ],
)
def test_metadata_of_windows_that_do_not_fit_are_refused(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = random_model(small_config(family="gemma2", **GEMMA, **CAPS, tie_word_embeddings=True))
    model.save_gguf(tmp_path / "x.gguf")
    with pytest.raises(ConfigError) as caught:
        LLaMAModel.from_pretrained(rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", "gemma2", metadata))
    assert message in str(caught.value).replace("True", "true")


@pytest.mark.unit
def test_a_head_is_where_llama_cpp_wants_it(tmp_path: Path) -> None:
    model = random_model(small_config(family="olmo2", tie_word_embeddings=True))
    model.save_gguf(tmp_path / "x.gguf")
    back = LLaMAModel.from_pretrained(tmp_path / "x.gguf")
    assert not back.config.tie_word_embeddings
    np.testing.assert_array_equal(back.head_weight.numpy(), model.head_weight.numpy())
    without = rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", "olmo2", {}, drop="output.weight")
    with pytest.raises(FormatError, match=r"the tensor output\.weight of shape \(67, 64\) is missing"):
        LLaMAModel.from_pretrained(without)


@pytest.mark.unit
def test_a_head_where_llama_cpp_knows_none_is_refused(tmp_path: Path) -> None:
    model = random_model(small_config(family="gemma2", **GEMMA, **CAPS, tie_word_embeddings=True))
    model.save_gguf(tmp_path / "x.gguf")
    head = {"output.weight": model.head_weight.numpy()}
    with pytest.raises(
        FormatError, match=r"the tensor output\.weight is a head of its own, which the models of Gemma 2 do"
    ):
        LLaMAModel.from_pretrained(rewritten(tmp_path / "x.gguf", tmp_path / "y.gguf", "gemma2", {}, **head))

"""Fields that only SmolLM3, Phi-3 and Granite have: read, refused by name, written to files and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.models.decoder import activations, linear_shapes

from .builders import random_arrays, random_model, random_tokens, small_config, write_gguf

pytestmark = pytest.mark.unit

MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.125,
    "logits_scaling": 4.0,
}


def table_of(family: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a small model."""
    return small_config(family=family).to_hf() | changes


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, {"no_rope_layers": [1, 0]}),
        ("smollm3", {"no_rope_layers": [0, 1, 1]}, {"no_rope_layers": [0, 1]}),
        ("smollm3", {"no_rope_layers": None}, {"no_rope_layers": [1, 1]}),
        ("smollm3", {"rope_parameters": None, "rope_scaling": None, "rope_theta": 5.0}, {"rope_theta": 5.0}),
        ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": None}, {"partial_rotary_factor": 0.5, "rotated": 8}),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.75}}, {"partial_rotary_factor": 0.75, "rotated": 12}),
        ("granite", MULTIPLIERS, MULTIPLIERS | {"attention_scale": 0.125}),
        ("granite", {"embedding_multiplier": 12}, {"embedding_multiplier": 12}),
    ],
)
def test_a_field_is_read(family: str, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    remarks: list[str] = []
    config = LLaMAConfig.from_hf(table_of(family, **changes), remarks)
    assert {name: getattr(config, name) for name in expected} == expected and remarks == []
    assert LLaMAConfig.from_hf(config.to_hf()) == config


def test_what_a_smollm3_leaves_out() -> None:
    table = {key: value for key, value in table_of("smollm3").items() if "rope" not in key}
    assert LLaMAConfig.from_hf(table | {"num_hidden_layers": 9}).no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert LLaMAConfig.from_hf(table).rope_theta == 2e6


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers is \[1\], expected 0 or 1 for each of 2 layers"),
        ("smollm3", {"no_rope_layers": [1, 2]}, r"no_rope_layers is \[1, 2\], expected 0 or 1"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0, expected an"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8, less than the context"),
        (
            "phi3",
            {"partial_rotary_factor": 0.2, "rope_parameters": None},
            "partial_rotary_factor is 0.2, which rotates",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type is 'linear', which is not supp",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 8}},
            "short_factor is missing, expected a list",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su"}},
            "max_position_embeddings is missing, with which .*set rope_scaling.type",
        ),
        (
            "phi3",
            {"original_max_position_embeddings": None},
            "original_max_position_embeddings is null, expected an int",
        ),
        ("phi3", {"sliding_window": 0}, "sliding_window is 0, expected an integer of at least 1"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0, expected more than 0"),
        ("granite", {"residual_multiplier": None}, "residual_multiplier is null"),
        ("granite", {"embedding_multiplier": "3"}, "embedding_multiplier is '3', expected a number"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial rotation is not supported where model_type is 'llama'"),
    ],
)
def test_a_field_out_of_range_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLaMAConfig.from_hf(table_of(family, **changes))


def test_an_older_name_of_longrope_is_read() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = LLaMAConfig.from_hf(
        table_of(
            "phi3", rope_scaling={"type": "su", **factors, "original_max_position_embeddings": 64}, rope_parameters=None
        )
    )
    assert config.rope_scaling == {"rope_type": "longrope", **factors, "original_max_position_embeddings": 4096}
    assert LLaMAConfig.from_hf(config.to_hf()) == config


def test_fused_linears_stay_fused() -> None:
    shapes = linear_shapes(small_config(family="phi3", num_hidden_layers=1))
    assert shapes == {
        "model.layers.0.self_attn.qkv_proj": (128, 64),
        "model.layers.0.self_attn.o_proj": (64, 64),
        "model.layers.0.mlp.gate_up_proj": (192, 64),
        "model.layers.0.mlp.down_proj": (64, 96),
    }
    plain, fused = activations(small_config()), activations(small_config(family="phi3"))
    assert fused.layer == plain.layer and fused.backward == 5 * 96


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"family": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is .*, and llama.cpp runs"),
        ({"family": "phi3", "head_dim": 32}, "head_dim is 32, and llama.cpp runs the architecture 'phi3' with 16"),
        (
            {"family": "qwen2", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_scaling is dynamic, which GGUF files have no key for",
        ),
        (
            {"family": "qwen2", "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16,
                                                 "original_max_position_embeddings": 32}},
            "rope_scaling.beta_fast is 16, and llama.cpp computes yarn .* with 32 alone",
        ),
        (
            {"family": "qwen2", "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8,
                                                 "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}},
            "rope_scaling is longrope, and GGUF files of the architecture 'qwen2' have no place",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_not_written(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        random_model(small_config(**config)).save_gguf(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_granite_file_that_switches_rope_off_is_refused(tmp_path: Path) -> None:
    config = small_config(family="granite", **MULTIPLIERS)
    path = tmp_path / "model.gguf"
    keys = {"granite.logit_scale": 4.0, "granite.embedding_scale": 3.0, "granite.residual_scale": 0.5}
    write_gguf(path, config, random_arrays(config), metadata=keys)
    assert LLaMAModel.from_pretrained(path).config.attention_multiplier == 0.25  # 1 / sqrt(16), as llama.cpp has it
    write_gguf(path, config, random_arrays(config), metadata=keys | {"granite.rope.scaling.finetuned": False})
    with pytest.raises(
        ConfigError, match=r"granite\.rope\.scaling\.finetuned is false, with which llama\.cpp computes"
    ):
        LLaMAModel.from_pretrained(path)


def shape_metadata(architecture: str, **more: Any) -> dict[str, Any]:
    """What every file of the architecture has, of heads of 16, and further keys."""
    shape = {
        "embedding_length": 32,
        "feed_forward_length": 8,
        "block_count": 2,
        "attention.head_count": 2,
        "context_length": 64,
        "vocab_size": 9,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys = {f"{architecture}.{key}": value for key, value in {**shape, **more}.items()}
    return {"general.architecture": architecture, **keys}


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("olmo2", {"attention.sliding_window": 8}, r"olmo2\.attention\.sliding_window is 8, with which llama\.cpp"),
        (
            "gemma2",
            {"rope.dimension_count_swa": 8},
            r"gemma2\.rope\.dimension_count_swa is 8, expected the head size 16",
        ),
        (
            "gemma3",
            {"attention.key_length_swa": 8},
            r"gemma3\.attention\.key_length_swa is 8, expected the head size 16",
        ),
        ("gemma3", {**YARN, "rope.scaling.attn_factor": 0.5}, r"gemma3\.rope\.scaling\.attn_factor is 0\.5, which"),
    ],
)
def test_keys_that_some_architectures_heed_are_refused(architecture: str, keys: dict[str, Any], message: str) -> None:
    LLaMAConfig.from_gguf(shape_metadata(architecture), tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=message):
        LLaMAConfig.from_gguf(shape_metadata(architecture, **keys), tie_word_embeddings=True)


def test_sizes_of_windowed_layers_that_are_those_of_all_are_read() -> None:
    sizes = dict.fromkeys(("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"), 16)
    given = LLaMAConfig.from_gguf(shape_metadata("gemma3", **sizes, **YARN), tie_word_embeddings=True)
    assert given == LLaMAConfig.from_gguf(shape_metadata("gemma3", **YARN), tie_word_embeddings=True)
    none = {"attention.sliding_window": 0, "attention.sliding_window_pattern": 4}
    assert LLaMAConfig.from_gguf(shape_metadata("olmo2", **none), tie_word_embeddings=True).head_dim == 16


def test_a_magnitude_that_llama_cpp_would_apply_under_windows_is_not_exported(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    config = {"family": "gemma3_text", "sliding_window": 8, "tie_word_embeddings": True}
    random_model(small_config(**config, rope_scaling=yarn)).save_gguf(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match=r"cosines and sines by 1\.5, which llama\.cpp would do in layers"):
        random_model(small_config(**config, rope_scaling=yarn | {"attention_factor": 1.5})).save_gguf(tmp_path / "x")


@pytest.mark.parametrize("size", [6, 44, 46, 52, 128])
def test_every_even_part_of_a_head_is_what_a_file_says(size: int) -> None:
    for rotated in range(2, size + 1, 2):
        metadata = shape_metadata("phi3", embedding_length=2 * size, **{"rope.dimension_count": rotated})
        assert LLaMAConfig.from_gguf(metadata, tie_word_embeddings=True).rotated == rotated


def test_one_of_two_tensors_of_divisors_is_refused(tmp_path: Path) -> None:
    config = small_config()
    write_gguf(tmp_path / "one.gguf", config, random_arrays(config),
               extra={"rope_factors_long.weight": np.full(8, 2, np.float32)})  # fmt: skip
    with pytest.raises((ConfigError, FormatError), match=r"rope_factors_short\.weight is missing"):
        LLaMAModel.from_pretrained(tmp_path / "one.gguf")


def test_logits_beyond_the_original_context_do_not_depend_on_what_ran_before() -> None:
    model = random_model(small_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
    tokens = random_tokens(model.config, 1, 90)
    short = model(tokens[:, :40]).numpy().copy()
    long = model(tokens).numpy().copy()
    np.testing.assert_array_equal(model(tokens[:, :40]).numpy(), short)
    np.testing.assert_array_equal(model(tokens).numpy(), long)
    assert np.abs(long[:, :40] - short).max() > 1e-3  # every position is rotated otherwise


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layers_from_max_window_layers_on_have_the_window(family: str) -> None:
    table = small_config(family=family, num_hidden_layers=3, head_dim=16).to_hf() | {"layer_types": None}
    window = {"use_sliding_window": True, "sliding_window": 8}
    for first in range(4):
        config = LLaMAConfig.from_hf(table | window | {"max_window_layers": first})
        assert [config.window(layer) for layer in range(3)] == [None] * first + [8] * (3 - first)

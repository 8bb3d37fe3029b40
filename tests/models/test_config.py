"""LLaMAConfig: exact counts of the published shapes, files in and out, clear sentences for whatever does not fit."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.errors import ConfigError, EntrenarError, FormatError, MemoryBudgetError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models import api as model_module
from entrenar.models import budget
from entrenar.models.families import FAMILIES, OWN
from entrenar.models.storage import StoragePolicy
from entrenar.observe import hardware

from .builders import hf_table, small_config

CONFIGS = Path(__file__).parents[2] / "configs" / "llama2"
COUNTS = {
    "tiny": 1_000_576,
    "124m": 123_685_632,
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3_SCALINGS = [  # published, of another context, and of other bounds
    LLAMA3_SCALING | {"factor": 32.0, "original_max_position_embeddings": 8192},
    LLAMA3_SCALING | {"original_max_position_embeddings": 1000},
    LLAMA3_SCALING | {"high_freq_factor": 9.0, "original_max_position_embeddings": 3000},
]


def published(name: str) -> LLaMAConfig:
    return LLaMAConfig.from_file(CONFIGS / f"{name}.toml")


# ---------------------------------------------------------------------- counts
@pytest.mark.unit
@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_published_shape_has_exactly_its_parameters(name: str, count: int) -> None:
    config = published(name)
    assert config.num_parameters() == count
    assert sum(math.prod(shape) for shape in config.parameter_shapes().values()) == count


@pytest.mark.unit
def test_a_model_that_is_built_holds_the_weights_that_were_counted() -> None:
    for config in (
        published("tiny"),
        small_config(),
        small_config(head_dim=24),
        small_config(tie_word_embeddings=True),
    ):
        weights = dict(LLaMAModel(config).named_parameters())
        assert {name: weight.shape for name, weight in weights.items()} == config.parameter_shapes()
        assert sum(weight.size for weight in weights.values()) == config.num_parameters()


@pytest.mark.memory
def test_counting_a_70_billion_parameter_model_allocates_nothing() -> None:
    config = published("70b")
    config.num_parameters()
    tracemalloc.start()
    try:
        assert config.num_parameters() == COUNTS["70b"]
        LoRAConfig(rank=16, target_modules=["q_proj"]).num_parameters(config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # names and shapes of the tensors, never a tensor


@pytest.mark.memory
@pytest.mark.parametrize("name", ["7b", "70b"])
def test_a_model_that_cannot_fit_is_refused_before_it_allocates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 8 << 30)
    monkeypatch.setattr(model_module, "random_weights", lambda *_: pytest.fail("weights were about to be drawn"))
    config = published(name)
    tracemalloc.start()
    try:
        with pytest.raises(
            MemoryBudgetError, match=r"billion-parameter model need .* GiB and 8\.0 GiB is available; use"
        ):
            LLaMAModel(config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.unit
def test_the_weights_need_what_their_format_takes() -> None:
    config = published("7b")
    linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = COUNTS["7b"] - linears
    assert config.num_decoder_linear_parameters() == linears

    def held(shape: LLaMAConfig = config, stored: dict[str, str] | None = None, **options: Any) -> int:
        return StoragePolicy(**options).storage(shape.parameter_shapes(), stored).nbytes

    assert held() == 4 * COUNTS["7b"]
    norms = 65 * 4096  # stay float32
    assert held(dtype="bfloat16") == 2 * (COUNTS["7b"] - norms) + 4 * norms
    nf4 = linears // 2 + linears // 64 + 4 * linears // 64 // 256  # values, 8-bit scales, their fp32 scales
    assert held(dtype="int16") == (COUNTS["7b"] - norms) * 33 // 16 + 4 * norms
    assert held(quantize="nf4") == nf4 + 4 * rest
    assert held(quantize="nf4", double_quantization=False) == linears * 9 // 16 + 4 * rest
    assert held(dtype="bfloat16", quantize="int4") == linears * 20 // 32 + 2 * (rest - norms) + 4 * norms
    assert held(quantize="auto") == linears * 20 // 32 + 4 * rest  # no file: the larger of the types that may stay
    table = 32000 * 4096  # the embedding, in a file's Q8_0
    for type_name, four_bit in (("F16", nf4), ("Q4_0", linears * 18 // 32), ("Q4_1", linears * 20 // 32)):
        stored = dict.fromkeys(config.parameter_shapes(), type_name)
        stored |= {"model.embed_tokens.weight": "Q8_0", "lm_head.weight": "BF16"}
        expected = four_bit + 4 * (rest - 2 * table) + table * 34 // 32 + 2 * table
        assert held(stored=stored, dtype="auto", quantize="auto") == expected
    odd = small_config(hidden_size=96, num_attention_heads=4, intermediate_size=128)  # rows of 96 fit no block of 64
    fits = odd.num_hidden_layers * 96 * 128  # down_proj
    assert held(odd, dtype="int16") == fits * 33 // 16 + 4 * (odd.num_parameters() - fits)


@pytest.mark.unit
def test_a_model_fits_exactly_up_to_the_available_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    monkeypatch.setattr(budget, "available_memory", lambda: 4 * config.num_parameters())
    LLaMAModel(config)
    monkeypatch.setattr(budget, "available_memory", lambda: 4 * config.num_parameters() - 1)
    with pytest.raises(MemoryBudgetError, match="a 4-bit base"):
        LLaMAModel(config)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "reclaimable"),
    [
        ("0::/user/job", "user/job", "memory.max", "memory.current", "inactive_file"),
        ("0::/user/job/part", "user", "memory.max", "memory.current", "inactive_file"),
        ("0::/", ".", "memory.max", "memory.current", "inactive_file"),
        ("4:cpu:/other\n5:memory:/job", "memory/job", *hardware.CGROUP_V1),
        ("5:memory:/of/the/host", "memory", *hardware.CGROUP_V1),
    ],
)
def test_the_available_memory_is_capped_by_the_cgroups(
    line: str, folder: str, limit: str, usage: str, reclaimable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "membership").write_text(line + "\n")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "MEMBERSHIP", tmp_path / "membership")
    assert hardware.available_memory() > 8 << 20
    (tmp_path / folder / limit).write_text(f"{3 << 20}\n")
    (tmp_path / folder / usage).write_text(f"{2 << 20}\n")
    (tmp_path / folder / "memory.stat").write_text(f"anon 7\n{reclaimable} {1 << 20}\nactive_file {1 << 20}\n")
    assert hardware.available_memory() == 2 << 20, "pages of files that can be taken back are free"
    (tmp_path / folder / usage).write_text(f"{5 << 20}\n")
    assert hardware.available_memory() == 0
    (tmp_path / folder / limit).write_text("max\n")
    assert hardware.available_memory() > 8 << 20


# ---------------------------------------------------------------------- TOML
def model_toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nhiden_size = 8", r"model\.hiden_size is no known key; did you mean 'hidden_size'\?"),
        ("[model]\nzzz = 8", r"model\.zzz is no known key; expected one of attention_bias, .*vocab_size"),
        ("[modle]\nhidden_size = 8", r"\[modle\] is no known section; did you mean 'model'\?"),
        ("[model]\n[optimiser]\n", r"\[optimiser\] is no known section; "),
        ("[training]\nsteps = 1", r"has no \[model\] section"),
        ("model = 3", r"model is 3, expected a table of keys"),
        ("[model]\nhidden_size = 8.0", r"model\.hidden_size is 8\.0, expected an integer"),
        ('[model]\nhidden_size = "8"', r"model\.hidden_size is '8', expected an integer"),
        ("[model]\nhidden_size = true", r"model\.hidden_size is true, expected an integer"),
        ("[model]\nhidden_size = [8]", r"model\.hidden_size is \[8\], expected an integer"),
        ('[model]\nrope_theta = "1e4"', r"model\.rope_theta is '1e4', expected a number"),
        ("[model]\ntie_word_embeddings = 1", r"model\.tie_word_embeddings is 1, expected true or false"),
        ("[model]\nrope_scaling = 2.0", r"model\.rope_scaling is 2\.0, expected a table"),
        ("[model]\nrope_frequency_factors = 2.0", r"model\.rope_frequency_factors is 2\.0, expected a list"),
        ('[model]\nrope_frequency_factors = ["a"]', r"model\.rope_frequency_factors is 'a', expected a number"),
        ("[model]\nvocab_size = 0", r"model\.vocab_size is 0, expected at least 1"),
        ("[model]\nnum_hidden_layers = -1", r"model\.num_hidden_layers is -1, expected at least 1"),
        ("[model]\nnum_hidden_layers = 1000000000000", r"model\.num_hidden_layers is 1000000000000, expected at most"),
        (f"[model]\nhidden_size = 1{'0' * 400}", r"model\.hidden_size .*expected a number below 2\*\*63"),
        (f"[model]\nrope_theta = 1{'0' * 400}", r"model\.rope_theta .*expected a number below 2\*\*63"),
        ("[model]\nrms_norm_eps = 0.0", r"model\.rms_norm_eps is 0\.0, expected more than 0"),
        ("[model]\nrms_norm_eps = nan", r"model\.rms_norm_eps is nan, expected a finite number"),
        ("[model]\nrope_theta = inf", r"model\.rope_theta is inf, expected a finite number"),
        ("[model]\nrope_theta = -1", r"model\.rope_theta is -1\.0, expected more than 0"),
        ("[model]\nhead_dim = 7", r"model\.head_dim is 7, expected an even number"),
        ("[model]\nhidden_size = 100", r"model\.hidden_size is 100, expected a multiple of num_attention_heads = 32"),
        (
            "[model]\nnum_key_value_heads = 5",
            r"num_attention_heads is 32, expected a multiple of num_key_value_heads = 5",
        ),
        (
            "[model]\nrope_frequency_factors = [1.0]",
            r"rope_frequency_factors is \[1\.0\], expected 64 positive numbers",
        ),
        ('[model]\nrope_scaling = {type = "ntk"}', r"rope_scaling: type 'ntk' is not supported; .*linear"),
        ('[model]\nrope_scaling = {type = "liner"}', r"rope_scaling: type 'liner' .* did you mean 'linear'"),
        ('[model]\nrope_scaling = {type = "linear"}', r"rope_scaling\.factor is null, expected a positive number"),
        ('[model]\nrope_scaling = {type = "linear", factor = true}', r"rope_scaling\.factor is true, expected a pos"),
        (
            '[model]\nrope_scaling = {type = "llama3", factor = 8, low_freq_factor = 1, high_freq_factor = 0}',
            r"rope_scaling\.high_freq_factor is 0, expected a positive number",
        ),
        (
            '[model]\nrope_scaling = {type = "llama3", factor = 8, low_freq_factor = 4, high_freq_factor = 4, '
            "original_max_position_embeddings = 8192}",
            r"rope_scaling\.high_freq_factor is 4, expected more than low_freq_factor = 4",
        ),
        ("[model\n", r"is not valid TOML"),
        ("[model]\nhidden_size = 8\nhidden_size = 9", r"is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it_and_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = model_toml(tmp_path / "wrong.toml", text)
    with pytest.raises(ConfigError, match=message) as error:
        LLaMAConfig.from_file(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value).strip()


@pytest.mark.unit
def test_a_missing_or_binary_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file or directory\)"):
        LLaMAConfig.from_file(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        LLaMAConfig.from_file(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00[model]")
    with pytest.raises(ConfigError, match=r"binary\.toml: is not UTF-8 text"):
        LLaMAConfig.from_file(binary)


@pytest.mark.unit
def test_every_key_of_the_model_section_reaches_the_configuration(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "family": "gemma2",
        "vocab_size": 11,
        "hidden_size": 24,
        "intermediate_size": 13,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 17,
        "rms_norm_eps": 0.5,
        "rope_theta": 99.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_frequency_factors": [1.0, 2.0, 3.0, 4.0],
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.25,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": -1,
    }
    assert set(values) | (OWN - set(FAMILIES["gemma2"].own)) == {field.name for field in fields(LLaMAConfig)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, dict)]
    path = model_toml(tmp_path / "all.toml", "[model]\n" + "\n".join(lines) + "\n[model.rope_scaling]\n" +
                      'rope_type = "linear"\nfactor = 2.0\n')  # fmt: skip
    config = LLaMAConfig.from_file(path)
    assert {name: getattr(config, name) for name in values} == values
    assert all(
        value != LLaMAConfig.__dataclass_fields__[name].default for name, value in values.items()
    )  # none is right by accident


@pytest.mark.unit
def test_heads_follow_from_what_is_left_out() -> None:
    config = LLaMAConfig(hidden_size=96, num_attention_heads=4)
    assert (config.num_key_value_heads, config.head_dim) == (4, 24)
    assert (config.kv_heads, config.head_size) == (4, 24)
    wide = LLaMAConfig(hidden_size=96, num_attention_heads=4, num_key_value_heads=1, head_dim=48)
    assert wide.parameter_shapes()["model.layers.0.self_attn.q_proj.weight"] == (192, 96)
    assert wide.parameter_shapes()["model.layers.0.self_attn.k_proj.weight"] == (48, 96)
    assert wide.parameter_shapes()["model.layers.0.self_attn.o_proj.weight"] == (96, 192)


# ---------------------------------------------------------------------- config.json
@pytest.mark.unit
def test_a_config_json_survives_the_round_trip(tmp_path: Path) -> None:
    for config in (
        small_config(bos_token_id=1, eos_token_id=2, head_dim=24, tie_word_embeddings=True, rms_norm_eps=1e-6),
        small_config(rope_theta=500000.0, rope_scaling=dict(LLAMA3_SCALING)),
        published("70b"),
    ):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config.to_hf()))
        assert LLaMAConfig.from_hf(path) == config
        assert LLaMAConfig.from_hf(config.to_hf()) == config


@pytest.mark.unit
def test_published_spellings_of_config_json_are_read() -> None:
    table = hf_table(small_config())
    assert LLaMAConfig.from_hf(table) == small_config()
    listed = LLaMAConfig.from_hf(table | {"eos_token_id": [5, 7], "bos_token_id": None})
    assert (listed.eos_token_id, listed.eos_ids, listed.bos_token_id) == ([5, 7], (5, 7), None)
    old = LLaMAConfig.from_hf(table | {"rope_scaling": {"type": "linear", "factor": 2}})
    np.testing.assert_allclose(old.inverse_frequencies() * 2, small_config().inverse_frequencies())
    del table["rope_theta"]
    new = LLaMAConfig.from_hf(table | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    assert (new.rope_theta, new.rope_scaling) == (77.0, None)
    new = LLaMAConfig.from_hf(table | {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 77.0}})
    assert new.rope_theta == 77.0
    assert new.rope_scaling["factor"] == 8.0
    for change in (
        {"sliding_window": None},
        {"sliding_window": 64},
        {},
    ):
        assert LLaMAConfig.from_hf(table | {"model_type": "mistral"} | change).hidden_size == 64


@pytest.mark.unit
def test_what_config_json_leaves_out_has_the_defaults_of_transformers() -> None:
    table = hf_table(small_config())
    for name in ("rms_norm_eps", "max_position_embeddings", "rope_theta", "num_key_value_heads", "head_dim"):
        del table[name]
    config = LLaMAConfig.from_hf(table)
    assert (config.rms_norm_eps, config.max_position_embeddings, config.rope_theta) == (1e-6, 2048, 10000.0)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected 'llama'"),
        (
            {"model_type": "qwen3", "attention_bias": True},
            "attention_bias is true; linear layers with a bias are not supported",
        ),
        ({"model_type": "mistral", "mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        (
            {"sliding_window": 32},
            "sliding_window is 32, less than the context of 64; windows are not supported where model_type is 'llama'",
        ),
        ({"sliding_window": 8, "use_sliding_window": False}, "sliding_window is 8"),  # which Mistral does not read
        ({"sliding_window": "x"}, "sliding_window is 'x'"),
        (
            {"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"] * 2},
            "layer_types is given, which a Mistral with a sliding_window does not heed",
        ),
        ({"model_type": "olmo2", "sliding_window": 8}, "windows are not supported where model_type is 'olmo2'"),
        ({"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 8}, "windows are not supported where"),
        ({"model_type": "granite", "logits_scaling": None}, "logits_scaling is null, expected a number"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is true, with"),
        ({"model_type": "gemma2", "hidden_activation": "silu"}, "hidden_activation is 'silu', expected 'gelu_pyt"),
        ({"model_type": "gemma2", "head_dim": None}, "head_dim is null, expected an integer"),
        ({"model_type": "gemma2", "hidden_size": 62}, "hidden_size is 62, expected a multiple of num_attention_heads"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0, expected more than"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 2.5}, "query_pre_attn_scalar is 2.5, expected an integer"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern is 0, expected an integ"),
        ({"model_type": "gemma3_text", "sliding_window": None}, "sliding_window is null, expected an integer"),
        ({"model_type": "ministral", "sliding_window": None}, "sliding_window is null, expected an integer"),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "axial"}}, "rope_scaling.rope_type is 'axial', w"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear"}}, "rope_parameters.rope_type is not"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "rope_parameters.sliding_attention.rope_type is 'linear', expected 'default'",
        ),
        ({"model_type": "ministral", "head_dim": None}, "head_dim is null, expected an integer"),
        ({"model_type": "mistral3"}, "model_type is 'mistral3', a model that sees images too; .* 'ministral3'"),
        ({"model_type": "ministral3"}, "rope_parameters.type is 'default', which is not supported; .*yarn"),
        (
            {"model_type": "ministral3", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_scaling.llama_4_scaling_beta is missing, expected a number",
        ),
        ({"model_type": "gemma3"}, "model_type is 'gemma3', a model that sees images too; .* 'gemma3_text'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; .* not supported"),
        ({"hidden_size": "64"}, "config.json: hidden_size is '64', expected an integer"),
        ({"hidden_size": None}, "hidden_size is null, expected an integer"),
        ({"num_attention_heads": None}, "num_attention_heads is null, expected an integer"),
        ({"vocab_size": -3}, "config.json: vocab_size is -3, expected at least 1"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"rope_parameters": {"rope_theta": "x"}, "rope_theta": None}, "rope_theta is 'x', expected a number"),
    ],
)
def test_a_config_json_of_another_model_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_table(small_config()) | change))
    with pytest.raises(ConfigError, match=message) as error:
        LLaMAConfig.from_hf(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.chaos
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, "\udcff"])
def test_a_damaged_config_json_is_a_format_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(FormatError, match=re.escape(str(path))):
        LLaMAConfig.from_hf(path)
    with pytest.raises(FormatError, match="cannot be read"):
        LLaMAConfig.from_hf(tmp_path / "absent.json")


@pytest.mark.unit
@pytest.mark.parametrize("head_dim", [8, 16, 64])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, *LLAMA3_SCALINGS])
def test_factors_that_scaling_can_express_are_saved_as_that_scaling(
    scaling: dict[str, Any] | None, head_dim: int
) -> None:
    plain, scaled = (small_config(head_dim=head_dim, rope_theta=5e5, rope_scaling=s) for s in (None, scaling))
    divisors = plain.inverse_frequencies() / scaled.inverse_frequencies()
    factors = [float(np.float32(divisor)) for divisor in divisors]  # as a GGUF file has them
    config = small_config(head_dim=head_dim, rope_theta=5e5, rope_frequency_factors=factors)
    again = LLaMAConfig.from_hf(config.to_hf())
    assert again.rope_frequency_factors is None
    np.testing.assert_allclose(again.inverse_frequencies(), config.inverse_frequencies(), rtol=1e-6)


@pytest.mark.unit
def test_other_factors_have_no_place_in_config_json() -> None:
    factors = [1.0, 3.0, 1.0, 5.0, 1.0, 1.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match=r"rope_freqs: config\.json has no place for the rotary frequency factors"):
        small_config(rope_frequency_factors=factors).to_hf()
    linear = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ConfigError, match="no place for the rotary frequency factors"):
        small_config(rope_frequency_factors=[2.0] * 8, rope_scaling=linear).to_hf()


# ---------------------------------------------------------------------- GGUF metadata
def gguf_metadata(**changes: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 5e5,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.tokens": ["a"] * 67,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


@pytest.mark.unit
def test_gguf_metadata_give_the_shape() -> None:
    config = LLaMAConfig.from_gguf(gguf_metadata(), tie_word_embeddings=True)
    expected = {"rms_norm_eps": 1e-6, "rope_theta": 5e5, "bos_token_id": 1, "eos_token_id": 2}
    assert config == small_config(tie_word_embeddings=True, **expected)
    given = LLaMAConfig.from_gguf(gguf_metadata(llama__vocab_size=60), tie_word_embeddings=False)
    assert (given.vocab_size, given.tie_word_embeddings) == (67, False)
    bare = gguf_metadata(llama__vocab_size=60, tokenizer__ggml__tokens=None)
    assert LLaMAConfig.from_gguf(bare, tie_word_embeddings=False).vocab_size == 60
    strange = gguf_metadata(tokenizer__ggml__bos_token_id=67, tokenizer__ggml__eos_token_id="x")
    without = LLaMAConfig.from_gguf(strange, tie_word_embeddings=False)
    assert (without.bos_token_id, without.eos_token_id) == (None, None)
    wide = gguf_metadata(
        llama__attention__key_length=24, llama__attention__value_length=24, llama__rope__dimension_count=24
    )
    assert LLaMAConfig.from_gguf(wide, tie_word_embeddings=False).head_dim == 24
    scaled = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    scaled_config = LLaMAConfig.from_gguf(gguf_metadata() | scaled, tie_word_embeddings=False)
    np.testing.assert_allclose(scaled_config.inverse_frequencies() * 4, config.inverse_frequencies())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "gpt2"}, "general.architecture is 'gpt2', expected 'llama'"),
        ({"general__architecture": None}, "general.architecture is null, expected 'llama'"),
        (
            {"llama__expert_count": 8},
            "llama.expert_count is 8, expected none or 0; mixtures of experts are not supported",
        ),
        ({"llama__embedding_length": None}, "llama.embedding_length is missing from the GGUF metadata"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"tokenizer__ggml__tokens": None}, "llama.vocab_size is missing"),
        ({"llama__attention__head_count_kv": [2, 1]}, r"head_count_kv is \[2, 1\], expected one number, or the same"),
        ({"llama__rope__scaling__type": "dynamic"}, "llama.rope.scaling.type is 'dynamic', expected 'none', 'linear'"),
        ({"llama__rope__scaling__type": "longrope"}, "the tensor rope_factors_short.weight is missing; convert it"),
        ({"llama__rope__scaling__factor": "4"}, "llama.rope.scaling.factor is '4', expected a positive number"),
        ({"llama__rope__scaling__attn_factor": 2.0}, "llama.rope.scaling.attn_factor is 2.0, expected none or 1"),
        ({"llama__attention__causal": False}, "llama.attention.causal is false, expected true"),
        ({"llama__context_length": None}, "llama.context_length is missing from the GGUF metadata"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama__attention__value_length": 8}, "value_length is 8, expected the same for both"),
        ({"llama__a_new_key": 8}, "llama.a_new_key is no known key of the architecture 'llama'"),
        ({"general__type": "adapter"}, "general.type is 'adapter', expected 'model': the file is a LoRA adapter"),
        ({"general__architecture": "clip"}, "the file is a multimodal projector"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8, expected the head size 16"),
        ({"llama__embedding_length": "64"}, "llama.embedding_length is '64', expected an integer from 1"),
    ],
)
def test_gguf_metadata_of_another_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLaMAConfig.from_gguf(gguf_metadata(**changes), tie_word_embeddings=False)


# ---------------------------------------------------------------------- rotary frequencies
@pytest.mark.unit
def test_rotary_frequencies_follow_their_definition() -> None:
    config = small_config(rope_theta=100.0, head_dim=8)
    expected = [100 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(config.inverse_frequencies(), expected, rtol=1e-15)
    linear = small_config(rope_theta=100.0, head_dim=8, rope_scaling={"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(linear.inverse_frequencies(), np.divide(expected, 4), rtol=1e-15)
    factors = small_config(rope_theta=100.0, head_dim=8, rope_frequency_factors=[1.0, 2.0, 4.0, 8.0])
    np.testing.assert_allclose(factors.inverse_frequencies(), np.divide(expected, [1, 2, 4, 8]), rtol=1e-15)
    both = small_config(
        rope_theta=100.0,
        head_dim=8,
        rope_frequency_factors=[1.0, 2.0, 4.0, 8.0],
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    )
    np.testing.assert_allclose(both.inverse_frequencies(), np.divide(expected, [4, 8, 16, 32]), rtol=1e-15)


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {"rope_theta": 500000.0, **LLAMA3_SCALING},
    "llama3 published": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.peers
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_rotary_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    peer = transformers.LlamaConfig(**hf_table(small_config(head_dim=64)) | {"rope_parameters": dict(rope)})
    rotary = LlamaRotaryEmbedding(peer)
    assert rotary.attention_scaling == 1.0
    ours = LLaMAConfig.from_hf(peer.to_dict())
    np.testing.assert_allclose(ours.inverse_frequencies(), rotary.inv_freq.numpy(), rtol=2e-6)
    plain = small_config(head_dim=64, rope_theta=rope["rope_theta"]).inverse_frequencies()
    assert np.allclose(plain, ours.inverse_frequencies(), rtol=1e-3) == (rope["rope_type"] == "default")


@pytest.mark.peers
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_transformers_reads_our_config_json_and_we_read_theirs(rope: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    table = hf_table(small_config(head_dim=24, rms_norm_eps=1e-6, tie_word_embeddings=True))
    peer = transformers.LlamaConfig(**table | {"rope_parameters": dict(rope), "eos_token_id": 3, "bos_token_id": None})
    peer.save_pretrained(tmp_path / "theirs")
    ours = LLaMAConfig.from_hf(tmp_path / "theirs" / "config.json")
    assert (ours.head_dim, ours.rms_norm_eps, ours.tie_word_embeddings) == (24, 1e-6, True)
    (tmp_path / "config.json").write_text(json.dumps(ours.to_hf()))
    back = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(back) is transformers.LlamaConfig
    for name in table.keys() - {"architectures", "rope_theta"}:
        assert getattr(back, name) == getattr(peer, name), name
    assert (back.eos_token_id, back.bos_token_id) == (3, None)
    assert {key: back.rope_parameters[key] for key in rope} == rope
    assert LLaMAConfig.from_hf(back.to_dict()) == ours


@pytest.mark.unit
def test_every_error_of_a_configuration_is_ours() -> None:
    for error in (ConfigError, FormatError, MemoryBudgetError):
        assert issubclass(error, EntrenarError)

"""Checkpoints in and out: every GGUF type and Hugging Face dtype exactly, 4-bit codes kept, damaged files refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entrenar.autograd import QuantizedTensor, Tensor, no_grad
from entrenar.errors import ConfigError, EntrenarError, FormatError, MemoryBudgetError
from entrenar.llama import LLaMAConfig, LLaMAModel, budget, weights
from entrenar.llama.weights import Checkpoint
from entrenar.lora import LoRAConfig

from .builders import (
    HF_TYPES,
    Arrays,
    gguf_name,
    hf_table,
    model_of,
    random_arrays,
    random_model,
    random_tokens,
    small_config,
    stored,
    weights_of,
    write_gguf,
    write_hf,
    write_index,
)

GGUF_TYPES = ["F32", "F16", *(kind.name for kind in gguf.quants._type_traits)]
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(path: Path, **options: Any) -> LLaMAModel:
    return LLaMAModel.from_pretrained(path, **options)


def assert_same(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def is_block_linear(name: str) -> bool:
    return name.split(".")[-2] in BLOCK_LINEARS


# ---------------------------------------------------------------------- GGUF
@pytest.mark.unit
@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_every_type_that_gguf_dequantizes_loads_exactly(kind: str, tmp_path: Path) -> None:
    config = small_config(vocab_size=8, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    expected = write_gguf(path, config, random_arrays(config), kind)
    model = load(path)
    assert_same(weights_of(model), expected)
    assert all(weight.requires_grad for _, weight in model.named_parameters())
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    assert np.abs(expected[q_proj]).max() > 0
    assert not np.array_equal(expected[q_proj], expected[q_proj][::-1])


@pytest.mark.unit
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "head_dim": 2},
        {"num_key_value_heads": 1, "head_dim": 48},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10},
        {"tie_word_embeddings": True},
    ],
    ids=["grouped", "two rows a head", "head size 48", "odd heads", "tied"],
)
def test_q_and_k_rows_come_back_in_half_split_order(changes: dict[str, Any], tmp_path: Path) -> None:
    config = small_config(**changes)
    arrays = random_arrays(config)
    write_gguf(tmp_path / "model.gguf", config, arrays)
    model = load(tmp_path / "model.gguf")
    assert_same(weights_of(model), arrays)
    tokens = random_tokens(config, 2, 9)
    np.testing.assert_array_equal(model(tokens).numpy(), model_of(config, arrays)(tokens).numpy())


@pytest.mark.unit
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_tensor_that_is_read_in_many_pieces_is_the_same(
    quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(head_dim=24)
    arrays = random_arrays(config)
    write_gguf(tmp_path / "model.gguf", config, arrays)
    write_hf(tmp_path / "hf", config, arrays)
    for path in (tmp_path / "model.gguf", tmp_path / "hf"):
        whole = weights_of(load(path, quantize=quantize))
        for rows in (1, 7, 30):  # fewer than a head, no divisor of the vocabulary, more than a head
            monkeypatch.setattr(weights, "ROW_CHUNK_BYTES", rows * 64 * 4)
            assert_same(weights_of(load(path, quantize=quantize)), whole)
        monkeypatch.undo()


@pytest.mark.unit
def test_the_shape_and_settings_of_the_file_reach_the_model(tmp_path: Path) -> None:
    config = small_config(rope_theta=5e5, rms_norm_eps=0.25, head_dim=8, max_position_embeddings=12)
    factors = np.array([1.0, 1.5, 2.0, 8.0], np.float32)
    write_gguf(tmp_path / "a.gguf", config, random_arrays(config), extra={"rope_freqs.weight": factors})
    loaded = load(tmp_path / "a.gguf")
    assert loaded.config.rope_frequency_factors == factors.tolist()
    loaded.config.rope_frequency_factors = None
    assert loaded.config == config
    expected = model_of(replace(config, rope_frequency_factors=factors.tolist()), random_arrays(config))
    tokens = random_tokens(config, 1, 12)
    np.testing.assert_array_equal(loaded(tokens).numpy(), expected(tokens).numpy())
    assert not np.array_equal(loaded(tokens).numpy(), model_of(config, random_arrays(config))(tokens).numpy())


# ---------------------------------------------------------------------- 4 bits
@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LLaMAConfig, Arrays, Arrays]:
    """A GGUF file with a type for each kind of linear: (path, config, arrays given, values meant)."""
    config = small_config(hidden_size=256, intermediate_size=256)
    arrays = random_arrays(config)
    path = tmp_path_factory.mktemp("mixed") / "model.gguf"
    return path, config, arrays, write_gguf(path, config, arrays, mixed_kind)


MIXED = {
    "q_proj": "Q4_1",
    "k_proj": "Q4_0",
    "v_proj": "Q6_K",
    "o_proj": "Q8_0",
    "gate_proj": "Q4_0",
    "up_proj": "F16",
    "down_proj": "Q4_1",
    "embed_tokens": "Q8_0",
    "lm_head": "Q4_0",
}


def mixed_kind(name: str) -> str:
    return MIXED[name.split(".")[-2]]


@pytest.mark.unit
def test_auto_keeps_the_codes_of_the_file_and_makes_nf4_of_the_rest(
    mixed: tuple[Path, LLaMAConfig, Arrays, Arrays],
) -> None:
    path, _, arrays, meant = mixed
    model = load(path, quantize="auto")
    for name, weight in model.named_parameters():
        kind = MIXED.get(name.split(".")[-2], "F32")
        if not is_block_linear(name):
            assert isinstance(weight, Tensor), name
            np.testing.assert_array_equal(weight.numpy(), meant[name])
        elif kind in ("Q4_0", "Q4_1"):
            assert isinstance(weight, QuantizedTensor), name
            assert weight.kind == kind.lower()
            blocks, _ = stored(arrays[name], kind)
            assert weight.codes.tobytes() == blocks.tobytes()
            np.testing.assert_array_equal(weight.dequantize(), meant[name])
        else:
            assert weight.kind == "nf4", name
            expected = QuantizedTensor.quantize(meant[name], "nf4").to_arrays()
            assert {k: v.tobytes() for k, v in weight.to_arrays().items()} == {
                k: v.tobytes() for k, v in expected.items()
            }
    assert model.unquantized == {}


@pytest.mark.unit
@pytest.mark.parametrize(("quantize", "kind"), [("nf4", "nf4"), ("int4", "q4_1")])
@pytest.mark.parametrize("double", [True, False])
def test_a_forced_format_quantizes_every_block_linear_and_nothing_else(
    quantize: str, kind: str, double: bool, mixed: tuple[Path, LLaMAConfig, Arrays, Arrays]
) -> None:
    path, _, _, meant = mixed
    model = load(path, quantize=quantize, double_quantization=double)
    for name, weight in model.named_parameters():
        if is_block_linear(name):
            assert (weight.kind, weight.double_quantized) == (kind, double and kind == "nf4"), name
            expected = QuantizedTensor.quantize(meant[name], quantize, double_quantization=double)
            np.testing.assert_array_equal(weight.dequantize(), expected.dequantize())
        else:
            np.testing.assert_array_equal(weight.numpy(), meant[name])


@pytest.mark.unit
def test_bfloat16_rounds_the_matrices_and_freezes_them(mixed: tuple[Path, LLaMAConfig, Arrays, Arrays]) -> None:
    path, _, _, meant = mixed
    for quantize in (None, "auto"):
        for name, weight in load(path, dtype="bfloat16", quantize=quantize).named_parameters():
            if quantize and is_block_linear(name):
                assert isinstance(weight, QuantizedTensor), name
            elif weight.ndim == 2:
                assert (weight.dtype, weight.requires_grad) == ("bfloat16", False), name
                np.testing.assert_array_equal(weight.numpy(), meant[name].astype(ml_dtypes.bfloat16))
            else:
                assert weight.dtype == "float32", name
                np.testing.assert_array_equal(weight.numpy(), meant[name])


@pytest.mark.unit
@pytest.mark.parametrize(("quantize", "left"), [("auto", 2), ("nf4", 2), ("int4", 0)])
def test_rows_that_are_no_multiple_of_the_block_stay_and_are_reported(quantize: str, left: int, tmp_path: Path) -> None:
    config = small_config()  # down_proj has 96 columns: no multiple of 64, one of 32
    arrays = random_arrays(config)
    write_hf(tmp_path, config, arrays)
    model = load(tmp_path, quantize=quantize)
    names = [name for name in arrays if "down_proj" in name]
    assert list(model.unquantized) == names[:left]
    for name in names[:left]:
        assert model.unquantized[name] == "its 96 columns are no multiple of 64"
        np.testing.assert_array_equal(dict(model.named_parameters())[name].numpy(), arrays[name])


@pytest.mark.unit
def test_a_four_bit_model_computes_with_exactly_its_dequantized_weights(
    mixed: tuple[Path, LLaMAConfig, Arrays, Arrays],
) -> None:
    path, config, _, _ = mixed
    tokens = random_tokens(config, 2, 7)
    for quantize in ("auto", "nf4", "int4"):
        model = load(path, quantize=quantize)
        plain = model_of(config, weights_of(model))
        with no_grad():
            np.testing.assert_allclose(model(tokens).numpy(), plain(tokens).numpy(), atol=2e-4)


@pytest.mark.unit
def test_weights_that_are_no_numbers_cannot_become_four_bit(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    arrays["model.layers.1.self_attn.v_proj.weight"][3, 5] = np.nan
    write_hf(tmp_path, config, arrays)
    with pytest.raises(FormatError, match=r"the tensor model\.layers\.1\.self_attn\.v_proj\.weight cannot become nf4"):
        load(tmp_path, quantize="nf4")


# ---------------------------------------------------------------------- Hugging Face directories
@pytest.mark.unit
@pytest.mark.parametrize("dtype", HF_TYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_loads_exactly(dtype: str, shards: int, tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=shards == 3)
    expected = write_hf(tmp_path, config, random_arrays(config), dtype, shards)
    model = load(tmp_path)
    assert_same(weights_of(model), expected)
    assert model.config == config
    assert ("lm_head.weight" in expected) == (shards == 1)
    assert (model.head_weight is model.model.embed_tokens.weight) == config.tie_word_embeddings


@pytest.mark.unit
def test_a_tied_head_stored_again_and_old_buffers_are_no_obstacle(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=True)
    arrays = random_arrays(config)
    again = {
        "lm_head.weight": arrays["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    write_hf(tmp_path, config, arrays | again)
    assert_same(weights_of(load(tmp_path)), arrays)


@pytest.mark.unit
def test_gguf_and_directory_give_the_same_model(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    write_hf(tmp_path / "hf", config, arrays)
    write_gguf(tmp_path / "model.gguf", config, arrays)
    tokens = random_tokens(config, 1, 20)
    a, b = load(tmp_path / "hf"), load(tmp_path / "model.gguf")
    np.testing.assert_array_equal(a(tokens).numpy(), b(tokens).numpy())
    opened = Checkpoint.open(tmp_path / "hf")
    assert_same(weights_of(LLaMAModel.from_pretrained(opened)), weights_of(a))


# ---------------------------------------------------------------------- what is refused
@pytest.mark.unit
def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize='nf5' is unknown; choose None, 'auto', 'nf4' or 'int4'"):
        load(tmp_path, quantize="nf5")
    with pytest.raises(ConfigError, match="dtype='float16' is unknown; choose 'float32' or 'bfloat16'"):
        load(tmp_path, dtype="float16")


@pytest.mark.memory
def test_a_checkpoint_that_cannot_fit_is_refused_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(hidden_size=256, intermediate_size=256)
    write_hf(tmp_path, config, random_arrays(config))
    monkeypatch.setattr(budget, "available_memory", lambda: 3 * config.num_parameters())
    monkeypatch.setattr(weights._Loader, "__call__", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(MemoryBudgetError, match="use a 4-bit base"):
        load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(budget, "available_memory", lambda: 3 * config.num_parameters())
    assert load(tmp_path, quantize="nf4").unquantized == {}
    assert load(tmp_path, dtype="bfloat16").config == config


@pytest.mark.chaos
def test_a_missing_path_or_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"absent\.gguf: no such file or directory; expected a GGUF file or"):
        load(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match=r"has no config\.json; expected a Hugging Face model directory"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_table(small_config())))
    with pytest.raises(FormatError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(tmp_path)


WRONG = {
    "missing": "the tensor {name} of shape .* is missing; the file is incomplete",
    "shape": "the tensor {name} has shape .*, expected",
    "transposed": "the tensor {name} has shape .*, expected",
}


def damage(arrays: Arrays, name: str, how: str) -> Arrays:
    arrays = dict(arrays)
    if how == "missing":
        del arrays[name]
    elif how == "shape":
        arrays[name] = arrays[name][:-1]
    else:
        arrays[name] = np.ascontiguousarray(arrays[name].T)
    return arrays


@pytest.mark.chaos
@pytest.mark.parametrize("how", WRONG)
def test_a_tensor_that_is_missing_or_misshapen_is_named(how: str, tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    for index, name in enumerate(arrays):
        square = arrays[name].shape == arrays[name].T.shape  # nothing tells a square matrix from its transpose
        if (how == "transposed" and square) or (how == "missing" and name == "lm_head.weight"):
            continue
        message = WRONG[how].format(name=name.replace(".", r"\."))
        write_hf(tmp_path / str(index), config, damage(arrays, name, how))
        with pytest.raises(FormatError, match=message):
            load(tmp_path / str(index))
    damaged = damage(arrays, "model.layers.1.mlp.up_proj.weight", how)
    write_gguf(tmp_path / "model.gguf", config, damaged)
    message = WRONG[how].format(name=r"model\.layers\.1\.mlp\.up_proj\.weight")
    with pytest.raises(FormatError, match=rf"model\.gguf: {message}"):
        load(tmp_path / "model.gguf")


@pytest.mark.chaos
def test_an_untied_model_without_its_head_is_incomplete(tmp_path: Path) -> None:
    config = small_config()
    write_hf(tmp_path, config, damage(random_arrays(config), "lm_head.weight", "missing"))
    with pytest.raises(FormatError, match=r"the tensor lm_head\.weight of shape \(67, 64\) is missing"):
        load(tmp_path)


@pytest.mark.chaos
def test_a_tensor_that_belongs_to_no_layer_is_named(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    write_hf(tmp_path / "hf", config, arrays | bias)
    with pytest.raises(FormatError, match=r"self_attn\.q_proj\.bias belongs to no LLaMA layer"):
        load(tmp_path / "hf")
    for name in ("blk.0.attn_q.bias", "blk.2.attn_q.weight", "blk.x.attn_q.weight", "cls.weight"):
        write_gguf(tmp_path / "a.gguf", config, arrays, extra={name: np.zeros((64, 64), np.float32)})
        with pytest.raises(FormatError, match="belongs to no LLaMA layer"):
            load(tmp_path / "a.gguf")


@pytest.mark.chaos
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_integer_codes_are_never_taken_for_weights(dtype: Any, tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    name = "model.layers.0.mlp.up_proj.weight"
    arrays[name] = np.ones_like(arrays[name], dtype)
    save_file(arrays, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(hf_table(config)))
    with pytest.raises(FormatError, match=rf"the tensor {name} holds integers \([IU]\d+\), expected F32, F16 or BF16"):
        load(tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"model.norm.weight": "../outside.safetensors"},
            "names the shard '../outside.safetensors', expected a file",
        ),
        ({"model.norm.weight": "/etc/passwd"}, "names the shard '/etc/passwd', expected a file in the same folder"),
        ({"model.norm.weight": "sub/inside.safetensors"}, "names the shard 'sub/inside.safetensors'"),
        ({"model.norm.weight": ".."}, "no such file"),
        ({"model.norm.weight": "gone.safetensors"}, r"gone\.safetensors: no such file"),
        ({"model.norm.weight": 3}, "3.*: no such file|the shard 3"),
        ({"model.norm.weight": ["a"]}, r"a.*: no such file|index\.json: "),
        ([1, 2], r"index\.json: "),
        (None, r"index\.json: "),
        ("text", r"index\.json: "),
    ],
)
def test_a_hostile_index_is_refused(weight_map: Any, message: str, tmp_path: Path) -> None:
    config = small_config()
    directory = tmp_path / "model"
    for outside in (tmp_path, directory / "sub"):  # files that an index must not reach
        write_hf(outside, config, random_arrays(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (directory / "sub" / "model.safetensors").rename(directory / "sub" / "inside.safetensors")
    (directory / "config.json").write_text(json.dumps(hf_table(config)))
    write_index(directory, weight_map)
    with pytest.raises(FormatError, match=message):
        load(directory)


@pytest.mark.chaos
def test_an_index_that_does_not_match_its_shards_is_refused(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    write_hf(tmp_path, config, arrays, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    write_index(tmp_path, good | {"model.layers.7.mlp.up_proj.weight": good["model.norm.weight"]})
    with pytest.raises(FormatError, match=r"promises the tensor model\.layers\.7\.mlp\.up_proj\.weight"):
        load(tmp_path)
    for text in ("", "{", "[]", "{}", "[" * 100_000):
        index.write_text(text)
        with pytest.raises(FormatError, match=r"model\.safetensors\.index\.json: "):
            load(tmp_path)
    write_index(tmp_path, good)
    assert_same(weights_of(load(tmp_path)), arrays)
    (tmp_path / good["model.norm.weight"]).unlink()
    with pytest.raises(FormatError, match=rf"{good['model.norm.weight']}: no such file"):
        load(tmp_path)


# ---------------------------------------------------------------------- damaged files
def cut_points(size: int, head: int) -> Iterator[int]:
    """Every part of a header of `head` bytes, then through the data, and one byte short."""
    yield from range(0, min(64, size))
    yield from range(64, head, max(1, head // 60))
    yield from range(head, size, max(1, (size - head) // 20))
    yield size - 1


@pytest.mark.chaos
def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1)
    write_gguf(tmp_path / "whole.gguf", config, random_arrays(config))
    whole = (tmp_path / "whole.gguf").read_bytes()
    head = len(whole) - 4 * config.num_parameters()
    path = tmp_path / "cut.gguf"
    for size in cut_points(len(whole), head):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"cut\.gguf: "):
            load(path)


@pytest.mark.chaos
def test_a_shard_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1)
    write_hf(tmp_path, config, random_arrays(config))
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in cut_points(len(whole), len(whole) - 4 * config.num_parameters()):
        file.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"model\.safetensors: "):
            load(tmp_path)


@pytest.mark.chaos
def test_another_file_is_not_taken_for_gguf(tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, random_arrays(config))
    whole = path.read_bytes()
    path.write_bytes(b"GGML" + whole[4:])
    with pytest.raises(FormatError, match="starts with b'GGML', expected b'GGUF'; it is not a GGUF file"):
        load(path)
    path.write_bytes(whole[:4] + b"\x09\0\0\0" + whole[8:])
    with pytest.raises(FormatError, match="is GGUF version 9, expected one of"):
        load(path)
    write_gguf(path, config, random_arrays(config), architecture="gpt2")
    with pytest.raises(ConfigError, match=r"model\.gguf: general\.architecture is 'gpt2', expected 'llama'"):
        load(path)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.attention.head_count": 2**40, "llama.attention.key_length": 2**20}, "has shape .*, expected"),
        ({"llama.block_count": 2**50}, "num_hidden_layers: is .*, expected at most"),
        ({"llama.vocab_size": 2**45}, "has shape .*, expected"),
        ({"llama.embedding_length": 2**63}, "hidden_size: is an integer of 64 bits"),
        ({"llama.attention.head_count": 0}, "num_attention_heads: is 0, expected at least 1"),
        ({"llama.feed_forward_length": None}, "llama.feed_forward_length is missing"),
        ({"llama.attention.head_count_kv": 3}, "expected a multiple of"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, expected the head size 16"),
    ],
)
def test_metadata_that_promise_too_much_are_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    if "llama.attention.key_length" in metadata:
        metadata = metadata | {"llama.rope.dimension_count": None}
    write_gguf(path, config, random_arrays(config), metadata=metadata)
    with pytest.raises(EntrenarError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.chaos
def test_rotary_factors_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    for factors in (np.ones(7, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)):
        write_gguf(path, config, random_arrays(config), extra={"rope_freqs.weight": factors})
        with pytest.raises(ConfigError, match=r"model\.gguf: .*rope_frequency_factors: expected 8 positive numbers"):
            load(path)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_flipped_bytes_in_a_header_never_crash_the_loader(kind: str, tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=1, vocab_size=8, hidden_size=32, intermediate_size=32)
    arrays = random_arrays(config)
    if kind == "gguf":
        path = file = tmp_path / "model.gguf"
        write_gguf(path, config, arrays)
    else:
        path, file = tmp_path, tmp_path / "model.safetensors"
        write_hf(path, config, arrays)
    whole = file.read_bytes()
    head = len(whole) - 4 * config.num_parameters()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(4 if kind == "gguf" else 0, head, rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            load(path)
        except EntrenarError as error:
            refused += 1
            assert str(tmp_path) in str(error)
    assert refused > 75


# ---------------------------------------------------------------------- saving
@pytest.mark.unit
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_with_the_same_bits(tied: bool, tmp_path: Path) -> None:
    model = random_model(small_config(tie_word_embeddings=tied, eos_token_id=2))
    model.save_pretrained(tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert ("lm_head.weight" in load_file(tmp_path / "a" / "model.safetensors")) == (not tied)
    back = load(tmp_path / "a")
    assert back.config == model.config
    assert_same(weights_of(back), weights_of(model))


@pytest.mark.unit
def test_a_large_model_is_saved_in_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path, max_shard_bytes=30_000)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 5
    assert all(sum(a.nbytes for a in load_file(shard).values()) <= 30_000 for shard in shards)
    total = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == 4 * model.config.num_parameters()
    assert_same(weights_of(load(tmp_path)), weights_of(model))


@pytest.mark.unit
def test_bfloat16_and_four_bit_models_are_saved_as_what_they_mean(
    mixed: tuple[Path, LLaMAConfig, Arrays, Arrays], tmp_path: Path
) -> None:
    four_bit = load(mixed[0], quantize="auto")
    four_bit.save_pretrained(tmp_path / "f")
    assert_same(weights_of(load(tmp_path / "f")), weights_of(four_bit))
    four_bit.save_pretrained(tmp_path / "b", dtype="bfloat16")
    stored_arrays = load_file(tmp_path / "b" / "model.safetensors")
    assert {a.dtype for a in stored_arrays.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, array in weights_of(four_bit).items():
        np.testing.assert_array_equal(stored_arrays[name], array.astype(ml_dtypes.bfloat16))
    load(tmp_path / "b", dtype="bfloat16").save_pretrained(tmp_path / "c")
    assert_same(weights_of(load(tmp_path / "c")), weights_of(load(tmp_path / "b")))


@pytest.mark.chaos
@pytest.mark.parametrize("existing", [True, False])
def test_a_save_that_fails_leaves_what_was_there(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    before = random_model(seed=1)
    if existing:
        before.save_pretrained(target)
    arrays = weights._arrays

    def fails(*args: Any) -> Iterator[tuple[str, np.ndarray]]:
        for index, item in enumerate(arrays(*args)):
            if index == 9:
                raise OSError(28, "No space left on device")
            yield item

    monkeypatch.setattr(weights, "_arrays", fails)
    with pytest.raises(OSError, match="No space left"):
        random_model(seed=2).save_pretrained(target, max_shard_bytes=20_000)
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if existing else [])
    if existing:
        assert_same(weights_of(load(target)), weights_of(before))
        monkeypatch.undo()
        after = random_model(seed=2)
        after.save_pretrained(target, max_shard_bytes=20_000)
        assert_same(weights_of(load(target)), weights_of(after))  # nothing of the old files is in the way
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.unit
def test_a_model_that_is_saved_over_its_own_file_is_the_same_model(tmp_path: Path) -> None:
    config = small_config()
    write_hf(tmp_path / "m", config, random_arrays(config))
    model = load(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    assert_same(weights_of(load(tmp_path / "m")), weights_of(model))


@pytest.mark.unit
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = random_model()
    with pytest.raises(ConfigError, match="dtype='float16' is unknown"):
        model.save_pretrained(tmp_path / "a", dtype="float16")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError, match="file: is a file; expected a folder"):
        model.save_pretrained(tmp_path / "file")
    model.to_lora(LoRAConfig(rank=2))
    with pytest.raises(ConfigError, match=r"has LoRA adapters \(model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight"):
        model.save_pretrained(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.unit
def test_gguf_names_are_those_of_llama_cpp() -> None:
    for name in small_config().parameter_shapes():
        assert weights.hugging_face_name(gguf_name(name)) == name
    for other in ("blk.0.attn_q.bias", "blk..attn_q.weight", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight", "x"):
        assert weights.hugging_face_name(other) is None

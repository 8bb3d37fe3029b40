"""Checkpoints in and out: every GGUF type and Hugging Face dtype exactly, what is quantized kept, damage refused."""

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
from safetensors.numpy import load_file

from entrenar import matmul_precision
from entrenar.autograd import QuantizedTensor, Tensor, no_grad
from entrenar.autograd.weight_types import gguf_weight_type
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models import export, storage, weights
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.gguf_model import hugging_face_names

from .builders import (
    HF_TYPES,
    Arrays,
    assert_same,
    gguf_name,
    model_of,
    random_arrays,
    random_model,
    random_tokens,
    small_config,
    stored,
    weights_of,
    write_gguf,
    write_hf,
)

GGUF_TYPES = ["F32", "F16", *(type_name.name for type_name in gguf.quants._type_traits)]
DECODER_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(path: Path, **options: Any) -> LLaMAModel:
    return LLaMAModel.from_pretrained(path, **options)


def is_decoder_linear(name: str) -> bool:
    return name.split(".")[-2] in DECODER_LINEARS


# ---------------------------------------------------------------------- GGUF
@pytest.mark.unit
@pytest.mark.parametrize("type_name", GGUF_TYPES)
def test_every_type_that_gguf_dequantizes_loads_exactly(type_name: str, tmp_path: Path) -> None:
    config = small_config(vocab_size=8, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    expected = write_gguf(path, config, random_arrays(config), type_name)
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
    assert replace(loaded.config, rope_frequency_factors=None) == config
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
def test_auto_keeps_the_values_of_the_file_and_makes_nf4_of_the_rest(
    mixed: tuple[Path, LLaMAConfig, Arrays, Arrays],
) -> None:
    path, _, arrays, meant = mixed
    model = load(path, quantize="auto")
    for name, weight in model.named_parameters():
        type_name = MIXED.get(name.split(".")[-2], "F32")
        own = gguf_weight_type(type_name)
        if weight.ndim == 1 or (not is_decoder_linear(name) and (own is None or not own.is_quantized)):
            assert isinstance(weight, Tensor), name
            np.testing.assert_array_equal(weight.numpy().astype(np.float32), meant[name])
        elif own is not None and own.is_quantized:
            assert isinstance(weight, QuantizedTensor), name
            assert weight.weight_type == type_name.lower()
            blocks, _ = stored(arrays[name], type_name)
            assert weight.quantized_values.tobytes() == blocks.tobytes()
            np.testing.assert_array_equal(weight.dequantize(), meant[name])
        else:
            assert weight.weight_type == "nf4", name
            expected = QuantizedTensor.quantize(meant[name], "nf4").to_arrays()
            assert {k: v.tobytes() for k, v in weight.to_arrays().items()} == {
                k: v.tobytes() for k, v in expected.items()
            }
    assert model.unquantized == {}


@pytest.mark.chaos
def test_a_kept_block_with_a_scale_that_is_not_finite_is_named(tmp_path: Path) -> None:
    config = small_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, random_arrays(config), "Q8_0")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    damaged = bytearray(path.read_bytes())
    damaged[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"model\.gguf: the tensor token_embd\.weight of type Q8_0 cannot be used: "):
        load(path, quantize="auto")


@pytest.mark.unit
@pytest.mark.parametrize(("quantize", "type_name"), [("nf4", "nf4"), ("int4", "q4_1")])
@pytest.mark.parametrize("double", [True, False])
def test_a_forced_format_quantizes_every_block_linear_and_nothing_else(
    quantize: str, type_name: str, double: bool, mixed: tuple[Path, LLaMAConfig, Arrays, Arrays]
) -> None:
    path, _, _, meant = mixed
    model = load(path, quantize=quantize, double_quantization=double)
    for name, weight in model.named_parameters():
        if is_decoder_linear(name):
            assert (weight.weight_type, weight.double_quantized) == (type_name, double and type_name == "nf4"), name
            expected = QuantizedTensor.quantize(meant[name], quantize, double_quantization=double)
            np.testing.assert_array_equal(weight.dequantize(), expected.dequantize())
        else:
            np.testing.assert_array_equal(weight.numpy(), meant[name])


@pytest.mark.unit
def test_bfloat16_rounds_the_matrices_and_freezes_them(mixed: tuple[Path, LLaMAConfig, Arrays, Arrays]) -> None:
    path, _, _, meant = mixed
    for quantize in (None, "auto"):
        for name, weight in load(path, dtype="bfloat16", quantize=quantize).named_parameters():
            own = gguf_weight_type(MIXED.get(name.split(".")[-2], "F32"))
            if quantize and (is_decoder_linear(name) or (own is not None and own.is_quantized)):
                assert isinstance(weight, QuantizedTensor), name
            elif weight.ndim == 2:
                assert (weight.dtype, weight.requires_grad) == ("bfloat16", False), name
                np.testing.assert_array_equal(weight.numpy(), meant[name].astype(ml_dtypes.bfloat16))
            else:
                assert weight.dtype == "float32", name
                np.testing.assert_array_equal(weight.numpy(), meant[name])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Arrays]]:
    """Checkpoints in 16 bits by format: where they are, and what they mean."""
    config = small_config(hidden_size=64, intermediate_size=128)
    arrays, folder = random_arrays(config), tmp_path_factory.mktemp("half")
    return {
        "hf": (folder / "hf", write_hf(folder / "hf", config, arrays, "bfloat16")),
        "gguf": (folder / "gguf", write_gguf(folder / "gguf", config, arrays, "BF16")),
        "hf float16": (folder / "hf16", write_hf(folder / "hf16", config, arrays, "float16")),
        "gguf float16": (folder / "gguf16", write_gguf(folder / "gguf16", config, arrays, "F16")),
    }


@pytest.mark.unit
@pytest.mark.parametrize("file", ["hf", "gguf", "hf float16", "gguf float16"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32", "int16"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_16_bits_stay_as_stored_where_nothing_else_is_asked_for(
    file: str, dtype: str, quantize: str | None, half: dict[str, tuple[Path, Arrays]]
) -> None:
    path, meant = half[file]
    own = "float16" if file.endswith("float16") else "bfloat16"
    for name, weight in load(path, dtype=dtype, quantize=quantize).named_parameters():
        if quantize and is_decoder_linear(name):
            assert weight.weight_type == "nf4", name
        elif weight.ndim == 2 and (dtype in ("auto", own) or (dtype, name) == ("int16", storage.EMBEDDING)):
            assert (weight.dtype, weight.requires_grad) == (own, False), name
            assert weight.numpy().astype(np.float32).tobytes() == meant[name].tobytes(), name
            reordered = file.startswith("gguf") and name.split(".")[-2] in ("q_proj", "k_proj")
            assert weight.numpy().flags.writeable == reordered, name  # what is mapped is read-only
        elif weight.ndim == 2 and dtype in ("float16", "bfloat16"):
            assert (weight.dtype, weight.requires_grad) == (dtype, False), name
            rounded = meant[name].astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
            assert weight.numpy().tobytes() == rounded.tobytes(), name
        elif weight.ndim == 2 and dtype == "int16":
            assert weight.weight_type == "int16", name
        else:
            assert (weight.dtype, weight.requires_grad) == ("float32", True), name
            assert weight.numpy().tobytes() == meant[name].tobytes(), name


@pytest.mark.unit
def test_stored_bfloat16_at_an_odd_address_is_copied(half: dict[str, tuple[Path, Arrays]], tmp_path: Path) -> None:
    path, meant = half["hf"]
    data = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(odd)
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    for name, weight in load(tmp_path, dtype="auto").named_parameters():
        assert weight.numpy().astype(np.float32).tobytes() == meant[name].tobytes(), name


@pytest.mark.gradient
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("file", ["hf", "hf float16"])
def test_adapters_over_16_bits_as_stored_have_the_bits_of_float32(
    file: str, precision: str, half: dict[str, tuple[Path, Arrays]]
) -> None:
    found = []
    for dtype in ("auto", "float32"):
        model = load(half[file][0], dtype=dtype)
        model.to_lora(LoRAConfig(rank=4, target_modules=["all-linear"]))
        tokens = random_tokens(model.config, 2, 33)
        with matmul_precision(precision):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        found.append((loss.item(), [weight.grad.numpy().tobytes() for _, weight in model.trainable_parameters()]))
    assert found[0] == found[1]


@pytest.mark.unit
@pytest.mark.parametrize("tied", [False, True])
def test_int16_holds_every_matrix_and_the_model_still_answers(tied: bool, tmp_path: Path) -> None:
    config = small_config(intermediate_size=128, tie_word_embeddings=tied)
    arrays = random_arrays(config)
    write_hf(tmp_path, config, arrays)
    model = load(tmp_path, dtype="int16")
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            assert isinstance(weight, QuantizedTensor) and weight.weight_type == "int16", name
            expected = QuantizedTensor.quantize(arrays[name], "int16").dequantize()
            np.testing.assert_array_equal(weight.dequantize(), expected)
        else:
            np.testing.assert_array_equal(weight.numpy(), arrays[name])
    tokens = random_tokens(config, 2, 20)
    exact, found = model_of(config, arrays)(tokens).numpy(), model(tokens).numpy()
    assert 0 < np.linalg.norm(found - exact) < 1e-3 * np.linalg.norm(exact)
    model.to_lora(LoRAConfig(rank=4))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(tensor.grad is not None for _, tensor in model.trainable_parameters())


@pytest.mark.unit
def test_a_4_bit_base_beside_int16_and_rows_that_fit_neither(tmp_path: Path) -> None:
    config = small_config()  # down_proj has 96 columns
    write_hf(tmp_path, config, random_arrays(config))
    type_names = {
        name: weight.dtype for name, weight in load(tmp_path, dtype="int16", quantize="nf4").named_parameters()
    }
    assert type_names["model.embed_tokens.weight"] == type_names["lm_head.weight"] == "int16"
    assert type_names["model.layers.0.self_attn.q_proj.weight"] == "nf4"
    assert type_names["model.layers.0.mlp.down_proj.weight"] == "float32"


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
    with pytest.raises(
        FormatError, match=r"the tensor model\.layers\.1\.self_attn\.v_proj\.weight of type F32 cannot become nf4"
    ):
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


# ---------------------------------------------------------------------- saving
@pytest.mark.unit
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_with_the_same_bits(tied: bool, tmp_path: Path) -> None:
    model = random_model(small_config(tie_word_embeddings=tied, eos_token_id=2))
    model.save_pretrained(tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
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
    arrays = export._arrays

    def fails(*args: Any) -> Iterator[tuple[str, np.ndarray]]:
        for index, item in enumerate(arrays(*args)):
            if index == 9:
                raise OSError(28, "No space left on device")
            yield item

    monkeypatch.setattr(export, "_arrays", fails)
    with pytest.raises(FormatError, match=r"model: cannot be written \(No space left on device\); make room"):
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
    with pytest.raises(ConfigError, match="dtype='int8' is unknown; choose 'float32', 'float16' or 'bfloat16'"):
        model.save_pretrained(tmp_path / "a", dtype="int8")
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
    names = hugging_face_names(small_config())
    for name in small_config().parameter_shapes():
        assert names[gguf_name(name)] == name
    for other in ("blk.0.attn_q.bias", "blk..attn_q.weight", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight", "x"):
        assert other not in names


@pytest.mark.chaos
def test_a_weight_beyond_float16_is_named(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = -7e4
    write_hf(tmp_path, config, arrays)
    with pytest.raises(
        FormatError, match=r"up_proj\.weight of type F32 is -70000 at \[3, 5\], beyond float16, .* 65504"
    ):
        load(tmp_path, dtype="float16")

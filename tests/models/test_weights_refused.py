"""Checkpoints that are damaged, incomplete, hostile or too large: one sentence that names the file and the tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from entrenar.errors import ConfigError, EntrenarError, FormatError, MemoryBudgetError
from entrenar.llama import LLaMAModel
from entrenar.models import budget, weights
from entrenar.models.checkpoint import Checkpoint

from .builders import (
    Arrays,
    assert_same,
    hf_table,
    random_arrays,
    small_config,
    weights_of,
    write_gguf,
    write_hf,
    write_index,
)


def load(path: Path, **options: Any) -> LLaMAModel:
    return LLaMAModel.from_pretrained(path, **options)


# ---------------------------------------------------------------------- what is refused
@pytest.mark.unit
def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize='nf5' is unknown; choose None, 'auto', 'nf4' or 'int4'"):
        load(tmp_path, quantize="nf5")
    with pytest.raises(ConfigError, match="dtype='float64' is unknown; choose one of auto, float32, float16, bfloat16"):
        load(tmp_path, dtype="float64")


@pytest.mark.memory
def test_a_checkpoint_that_cannot_fit_is_refused_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(hidden_size=256, intermediate_size=256)
    write_hf(tmp_path, config, random_arrays(config))
    monkeypatch.setattr(budget, "available_memory", lambda: 3 * config.num_parameters())
    monkeypatch.setattr(weights.WeightLoader, "__call__", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(MemoryBudgetError, match="use a 4-bit base"):
        load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(budget, "available_memory", lambda: 3 * config.num_parameters())
    assert load(tmp_path, quantize="nf4").unquantized == {}
    assert load(tmp_path, dtype="bfloat16").config == config


@pytest.mark.unit
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_directory_is_told_from_a_gguf_file(name: str, tmp_path: Path) -> None:
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_text("{}")
    message = f"{name}: is one file of a Hugging Face directory, .* give {re.escape(str(tmp_path))}\\."
    with pytest.raises(FormatError, match=message):
        load(tmp_path / name)


@pytest.mark.chaos
def test_a_missing_path_or_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"absent\.gguf: no such file .* on this machine \(no model is fetched by its"
    ):
        load(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match=r"The model's path is empty; expected a GGUF file or a Hugging Face"):
        load("")
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
    message = WRONG[how].format(name=r"blk\.1\.ffn_up\.weight")
    with pytest.raises(FormatError, match=rf"model\.gguf: {message}"):
        load(tmp_path / "model.gguf")


@pytest.mark.chaos
def test_an_untied_model_without_its_head_is_incomplete(tmp_path: Path) -> None:
    config = small_config()
    write_hf(tmp_path, config, damage(random_arrays(config), "lm_head.weight", "missing"))
    with pytest.raises(FormatError, match=r"the tensor lm_head\.weight is missing, and config\.json does not say"):
        load(tmp_path)


@pytest.mark.chaos
def test_a_tensor_that_belongs_to_no_layer_is_named(tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    write_hf(tmp_path / "hf", config, arrays | bias)
    with pytest.raises(FormatError, match=r"self_attn\.q_proj\.bias is a bias, which the models of this family"):
        load(tmp_path / "hf")
    for name, message in {
        "blk.0.attn_q.bias": "is a bias, which the models of this family do not have",
        "blk.2.attn_q.weight": "belongs to a layer beyond llama.block_count",
        "blk.x.attn_q.weight": "belongs to no LLaMA layer",
        "blk.0.ffn_up_exps.weight": "belongs to a mixture of experts",
        "blk.0.ffn_gate_inp.weight": "belongs to a mixture of experts",
        "rope_factors_long.weight": r"has shape \(64, 64\), expected one number for each rotated pair",
        "cls.weight": "belongs to no LLaMA layer",
    }.items():
        write_gguf(tmp_path / "a.gguf", config, arrays, extra={name: np.zeros((64, 64), np.float32)})
        with pytest.raises(FormatError, match=rf"a\.gguf: the tensor {name} {message}"):
            load(tmp_path / "a.gguf")


@pytest.mark.chaos
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_integers_are_never_taken_for_weights(dtype: Any, tmp_path: Path) -> None:
    config = small_config()
    arrays = random_arrays(config)
    name = "model.layers.0.mlp.up_proj.weight"
    arrays[name] = np.ones_like(arrays[name], dtype)
    save_file(arrays, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(hf_table(config)))
    with pytest.raises(
        FormatError, match=rf"the tensor {name} has type [IU]\d+, which holds no weights by itself; expected F32"
    ):
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
        ({"model.norm.weight": ".."}, "is a directory"),
        ({"model.norm.weight": "gone.safetensors"}, r"gone\.safetensors: no such file"),
        ({"model.norm.weight": 3}, "the shard 3"),
        ({"model.norm.weight": ["a"]}, r"index\.json: names the shard \['a'\]"),
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
    with pytest.raises(
        FormatError, match="begins with the bytes 47 47 4d 4c, expected 47 47 55 46 \\(GGUF\\); it is not a GGUF file"
    ):
        load(path)
    path.write_bytes(whole[:4] + b"\x09\0\0\0" + whole[8:])
    with pytest.raises(FormatError, match="is GGUF version 9, expected 2 or 3"):
        load(path)
    write_gguf(path, config, random_arrays(config), architecture="gpt2")
    with pytest.raises(ConfigError, match=r"model\.gguf: general\.architecture is 'gpt2', expected 'llama'"):
        load(path)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.attention.head_count": 2**40, "llama.attention.key_length": 2**20}, "head_count is .* from 1 to"),
        (
            {
                "llama.attention.head_count": 2**20,
                "llama.attention.key_length": 2**20,
                "llama.attention.value_length": 2**20,
            },
            "blk.0.attn_q.weight has shape .* by llama.attention.head_count x",
        ),
        ({"llama.block_count": 2**50}, "llama.block_count is 1125899906842624, expected an integer from 1 to 10000"),
        ({"llama.block_count": 10_000}, r"the tensor blk\.1\.attn_norm\.weight of shape \(64,\) is missing"),
        ({"llama.vocab_size": 2**45}, "llama.vocab_size is .*, expected an integer from 1 to"),
        ({"llama.embedding_length": 2**63}, "llama.embedding_length is .*, expected an integer from 1 to"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0, expected an integer from 1"),
        ({"llama.feed_forward_length": None}, "llama.feed_forward_length is missing"),
        (
            {"llama.attention.head_count_kv": 3},
            "llama.attention.head_count is 4 and llama.attention.head_count_kv is 3",
        ),
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
    for factors, message in (
        (np.ones(7, np.float32), r"has shape \(7,\), expected \(8,\) by half of llama.attention.key_length"),
        (np.zeros(8, np.float32), "of type F32 is 0.0 at 0, expected positive numbers"),
        (np.full(8, np.nan, np.float32), "of type F32 is nan at 0, expected positive numbers"),
    ):
        write_gguf(path, config, random_arrays(config), extra={"rope_freqs.weight": factors})
        with pytest.raises(FormatError, match=rf"model\.gguf: the tensor rope_freqs\.weight {message}"):
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


@pytest.mark.unit
def test_a_gguf_files_tokenizer_is_refused_with_the_file(tmp_path: Path) -> None:
    config = small_config()
    tokens = [f"t{index}" for index in range(config.vocab_size)]
    metadata = {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": tokens}
    write_gguf(tmp_path / "model.gguf", config, random_arrays(config), metadata=metadata)
    with pytest.raises(EntrenarError, match=rf"^{re.escape(str(tmp_path))}/model\.gguf: .*'rwkv'"):
        Checkpoint.open(tmp_path / "model.gguf").tokenizer()

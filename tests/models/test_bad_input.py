"""What is wrong with a model's files: one sentence with file, tensor or key, found, expected, what to do."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, save_adapter

from .builders import Arrays, random_arrays, random_model, small_config, write_gguf, write_hf

CONFIG = small_config()
UP = "model.layers.1.mlp.up_proj.weight"


def directory(folder: Path, table: dict[str, Any] | None = None, *, shards: int = 1, **changes: Any) -> Path:
    """A sound directory but for keys of config.json and tensors (None: without it)."""
    arrays: Arrays = {name: a for name, a in (random_arrays(CONFIG) | changes).items() if a is not None}
    write_hf(folder, CONFIG, arrays, shards=shards)
    values = json.loads((folder / "config.json").read_text()) | (table or {})
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def retyped(path: Path, name: str, type_name: str) -> None:
    """Say that a matrix of a GGUF file has another type."""
    data, word = bytearray(path.read_bytes()), name.encode()
    at = data.index(word) + len(word) + 4 + 2 * 8
    data[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType[type_name])
    path.write_bytes(data)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def without_a_shard(path: Path) -> None:
    (path / "model-00002-of-00003.safetensors").unlink()


DIRECTORIES: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "key heads": (
        {"table": {"num_key_value_heads": 3}}, None,
        r"config\.json: num_attention_heads is 4, expected a multiple of num_key_value_heads = 3",
    ),
    "heads": (
        {"table": {"num_attention_heads": 5, "head_dim": None}}, None,
        r"config\.json: hidden_size is 64, expected a multiple of num_attention_heads = 5",
    ),
    "a tensor that is missing": (
        {UP: None}, None, rf"m: the tensor {re.escape(UP)} of shape \(96, 64\) is missing; the file is incomplete",
    ),
    "a layer too many": (
        {UP.replace("1", "2"): np.ones((96, 64), np.float32)}, None,
        r"m: the tensor model\.layers\.2\.mlp\.up_proj\.weight belongs to a layer beyond .*num_hidden_layers = 2",
    ),
    "a tensor of no layer": (
        {"other.weight": np.ones((2, 2), np.float32)}, None, r"m: the tensor other\.weight has no place in a LLaMA",
    ),
    "another shape": (
        {UP: np.ones((95, 64), np.float32)}, None,
        r"shape \(95, 64\), expected \(96, 64\) by intermediate_size and hidden_size of config\.json",
    ),
    "no head, and not tied": (
        {"table": {"tie_word_embeddings": False}, "lm_head.weight": None}, None,
        r"m: the tensor lm_head\.weight is missing, and config\.json does not say that the head is tied; take",
    ),
    "a shard that is missing": (
        {"shards": 3}, without_a_shard, r"m/model-00002-of-00003\.safetensors: no such file; .*index\.json names it",
    ),
    "a file that is cut off": (
        {}, lambda path: cut(path / "model.safetensors", 40), r"m/model\.safetensors: is truncated, damaged or no saf",
    ),
}  # fmt: skip
FILES: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "key heads": (
        {"metadata": {"llama.attention.head_count_kv": 3}}, None,
        r"m\.gguf: llama\.attention\.head_count is 4 and llama\.attention\.head_count_kv is 3, expected .* a multiple",
    ),
    "rows of a K-quant": (
        {"type_name": "Q8_0"}, lambda path: retyped(path, "blk.0.attn_q.weight", "Q4_K"),
        r"m\.gguf: .*'blk\.0\.attn_q\.weight' of type Q4_K has rows of 64 elements, expected a multiple of 256; fetch",
    ),
    "a tensor that is missing": (
        {"drop": ["blk.1.ffn_up.weight"]}, None,
        r"m\.gguf: the tensor blk\.1\.ffn_up\.weight of shape \(96, 64\) is missing; .*llama\.block_count = 2 is wrong",
    ),
    "a layer too many": (
        {"extra": {"blk.2.ffn_up.weight": np.ones((96, 64), np.float32)}}, None,
        r"m\.gguf: the tensor blk\.2\.ffn_up\.weight belongs to a layer beyond llama\.block_count = 2",
    ),
    "a file that is cut off": (
        {}, lambda path: cut(path, 100), r"m\.gguf: is truncated or damaged: the tensor 'output\.weight' of type F32",
    ),
}  # fmt: skip


@pytest.mark.chaos
@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    changes, damage, message = DIRECTORIES[name]
    path = directory(tmp_path / "m", **changes)
    if damage is not None:
        damage(path)
    with pytest.raises((ConfigError, FormatError), match=message) as caught:
        LLaMAModel.from_pretrained(path)
    assert str(caught.value).count("\n") == 0


@pytest.mark.chaos
@pytest.mark.parametrize("name", FILES)
def test_a_gguf_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    changes, damage, message = FILES[name]
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, random_arrays(CONFIG), **changes)
    if damage is not None:
        damage(path)
    with pytest.raises((ConfigError, FormatError), match=message) as caught:
        LLaMAModel.from_pretrained(path, quantize="auto")
    assert str(caught.value).count("\n") == 0


@pytest.mark.chaos
def test_special_tokens_outside_the_vocabulary_are_said(tmp_path: Path) -> None:
    path = directory(tmp_path / "m", {"eos_token_id": [2, 99], "bos_token_id": 67})
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 500}))
    said = LLaMAModel.from_pretrained(path).remarks
    assert [re.sub(r".*/m/", "", remark) for remark in said] == [
        "config.json: bos_token_id has 67, expected less than vocab_size = 67; no token has this id: take the "
        "file of the same model as the weights.",
        "config.json: eos_token_id has 99, expected less than vocab_size = 67; no token has this id and no text ends "
        "at it: take the file of the same model as the weights.",
        "generation_config.json: eos_token_id has 500, expected less than vocab_size = 67; no token has this id and no "
        "text ends at it: take the file of the same model as the weights.",
    ]
    for key in ("eos", "eot"):
        metadata = {f"tokenizer.ggml.{key}_token_id": 67}
        write_gguf(tmp_path / "m.gguf", CONFIG, random_arrays(CONFIG), metadata=metadata)
        (remark,) = LLaMAModel.from_pretrained(tmp_path / "m.gguf").remarks
        assert remark == f"m.gguf: tokenizer.ggml.{key}_token_id is 67 and ignored: the vocabulary has 67 tokens."


@pytest.mark.chaos
def test_a_head_that_is_stored_although_it_is_tied_is_used_and_said(tmp_path: Path) -> None:
    model = LLaMAModel.from_pretrained(directory(tmp_path / "m", {"tie_word_embeddings": True}))
    assert model.lm_head is not None
    (remark,) = model.remarks
    assert re.search(
        r"config\.json: tie_word_embeddings is true, and the file's lm_head\.weight is not its emb", remark
    )


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 64}, r"has shape \(2, 96\), expected \(2, 64\); the adapter is one over another model"),
        ({"num_hidden_layers": 3}, r"layers\.2\..* is missing; .* its adapter is one over another model"),
        ({"num_hidden_layers": 1}, r"layers\.1\..* belongs to no layer .* give the model that it was trained over"),
    ],
)
def test_an_adapter_over_another_model_is_refused(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    model.to_lora(LoRAConfig(rank=2, target_modules=["down_proj"]))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(FormatError, match=rf"adapter_model\.safetensors: the tensor .*{message}"):
        load_adapter(random_model(small_config(**changes)), tmp_path / "adapter")

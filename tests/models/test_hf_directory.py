"""Hugging Face directories that contradict themselves, lack a prefix or a head, or hold something else than a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint

from .builders import Arrays, hf_table, random_arrays, random_tokens, small_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CONFIG = small_config()
ARRAYS = random_arrays(CONFIG, std=0.3)
TIED = {"tie_word_embeddings": True}


def directory(folder: Path, change: dict[str, Any] | None = None, arrays: Arrays | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_table(CONFIG) | (change or {})))
    save_file(ARRAYS if arrays is None else arrays, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def without(*names: str) -> Arrays:
    return {name: array for name, array in ARRAYS.items() if name not in names}


def logits(folder: Path) -> np.ndarray:
    return LLaMAModel.from_pretrained(folder)(random_tokens(CONFIG, 1, 20)).numpy()


@pytest.mark.unit
def test_a_stored_head_is_kept_where_config_json_says_it_is_the_embedding(tmp_path: Path) -> None:
    expected = logits(directory(tmp_path / "untied"))
    both = directory(tmp_path / "both", TIED)
    np.testing.assert_array_equal(logits(both), expected)
    checkpoint = Checkpoint.open(both)
    assert not checkpoint.config.tie_word_embeddings
    assert checkpoint.remarks == [
        f"{both}/config.json: tie_word_embeddings is true, and the file's lm_head.weight is not its embedding: the "
        "stored head is used, as transformers does."
    ]
    LLaMAModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(logits(tmp_path / "saved"), expected)


@pytest.mark.unit
def test_a_head_that_is_the_embedding_again_is_tied(tmp_path: Path) -> None:
    expected = logits(directory(tmp_path / "tied", TIED, without(HEAD)))
    for name, arrays in {
        "again": without(HEAD) | {HEAD: ARRAYS[EMBEDDING].copy()},
        "in another type": without(HEAD) | {HEAD: ARRAYS[EMBEDDING].astype(np.float64)},
        "the head alone": without(HEAD, EMBEDDING) | {HEAD: ARRAYS[EMBEDDING]},
    }.items():
        folder = directory(tmp_path / name, TIED, arrays)
        model = LLaMAModel.from_pretrained(folder)
        assert model.lm_head is None, name
        np.testing.assert_array_equal(logits(folder), expected)
        assert Checkpoint.open(folder).remarks == []


@pytest.mark.unit
def test_a_bare_decoder_is_read_with_a_tied_head_and_refused_without_one(tmp_path: Path) -> None:
    expected = logits(directory(tmp_path / "tied", TIED, without(HEAD)))
    bare = {name.removeprefix("model."): array for name, array in without(HEAD).items()}
    np.testing.assert_array_equal(logits(directory(tmp_path / "bare", TIED, bare)), expected)
    with pytest.raises(FormatError, match=r"the tensor lm_head\.weight is missing, and config\.json does not say"):
        logits(directory(tmp_path / "headless", {}, bare))
    np.testing.assert_array_equal(
        logits(directory(tmp_path / "head", {}, bare | {HEAD: ARRAYS[HEAD]})), logits(directory(tmp_path / "whole"))
    )


@pytest.mark.unit
def test_the_inner_rope_theta_counts_and_the_outer_is_said_to_be_ignored(tmp_path: Path) -> None:
    inner = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    expected = logits(directory(tmp_path / "plain", {"rope_theta": 500.0}))
    both = directory(tmp_path / "both", inner | {"rope_theta": 10000.0})
    np.testing.assert_array_equal(logits(both), expected)
    (remark,) = Checkpoint.open(both).remarks
    assert "rope_theta is 10000.0 at the top level and 500.0 in rope_parameters, which is used" in remark


@pytest.mark.unit
def test_values_of_eight_bits_without_a_scale_are_the_values_themselves(tmp_path: Path) -> None:
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        rounded = {name: array.astype(kind) for name, array in ARRAYS.items()}
        plain = {name: array.astype(np.float32) for name, array in rounded.items()}
        expected = logits(directory(tmp_path / "plain", {}, plain))
        folder = directory(tmp_path / "f8", {}, plain)
        _store_as_f8(folder / "model.safetensors", rounded, "F8_E4M3" if kind is ml_dtypes.float8_e4m3fn else "F8_E5M2")
        np.testing.assert_array_equal(logits(folder), expected)


def _store_as_f8(file: Path, arrays: dict[str, np.ndarray], kind: str) -> None:
    """Write them by hand: the library's NumPy side has no such type."""
    header, start = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, start + array.size]}
        start += array.size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1; training goes without it."),
        ({"residual_multiplier": 2.0}, "the key 'residual_multiplier' is unknown and not read."),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}},
            "rope_scaling.beta_fast is not read by type 'linear'.",
        ),
        (
            {
                "pretraining_tp": 2,
                "use_cache": False,
                "_name_or_path": "x",
                "temperature": 0.5,
                "rope_interleaved": False,
            },
            None,
        ),
        ({}, None),
    ],
)
def test_what_is_not_followed_is_said_and_what_changes_nothing_is_not(
    change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    folder = directory(tmp_path / "m", change)
    assert LLaMAModel.from_pretrained(folder).remarks == ([f"{folder}/config.json: {said}"] if said else [])


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"bitsandbytes \(fp4\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"bitsandbytes \(int8\)"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"bits": 4}, "an unnamed method"),
        ("gptq", "'gptq'"),
    ],
)
def test_a_quantized_directory_says_by_what(change: Any, message: str, tmp_path: Path) -> None:
    folder = directory(tmp_path / "m", {"quantization_config": change})
    with pytest.raises(
        ConfigError, match=f"quantization_config says that the weights are quantized by {message}, which"
    ):
        Checkpoint.open(folder)


@pytest.mark.chaos
def test_tensors_of_a_quantized_matrix_are_known_by_their_names(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    for part, method in ((".qweight", "GPTQ or AWQ"), (".weight_scale_inv", "fp8"), (".SCB", "bitsandbytes")):
        folder = directory(tmp_path / "m", {}, ARRAYS | {name + part: np.ones((8, 8), np.int32)})
        with pytest.raises(FormatError, match=rf"holds {name}{part}: its weights are quantized by {method}"):
            Checkpoint.open(folder)


@pytest.mark.chaos
def test_a_folder_of_something_else_is_called_what_it_is(tmp_path: Path) -> None:
    folder = directory(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    expectations: list[tuple[str, str]] = [("m", r"holds pytorch_model\.bin, whose reading can run code")]
    adapter = directory(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    expectations.append(("adapter", r"holds an adapter \(adapter_config\.json\) over 'some/base', expected a model"))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "x.gguf").write_bytes(b"")
    expectations.append(("gguf", r"has no config\.json; .*; give the file in it, x\.gguf"))
    other = directory(tmp_path / "other")
    (other / "model.safetensors").rename(other / "model.fp16.safetensors")
    expectations.append(("other", r"'model\.fp16\.safetensors' in it is none of these names"))
    for name, message in expectations:
        with pytest.raises(EntrenarError, match=message):
            Checkpoint.open(tmp_path / name)


@pytest.mark.chaos
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(file: str, tmp_path: Path) -> None:
    folder = directory(tmp_path / "m")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(FormatError, match=rf"{file}: is no regular file"):
        Checkpoint.open(folder)

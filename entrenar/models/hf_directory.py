"""Hugging Face model directories: configuration, how the model generates, and the tensors of safetensors files.

Names and tied heads follow `AutoModelForCausalLM` of transformers 5: a checkpoint of the bare decoder has no `model.`
in front; a head that is stored is kept where it differs from the embedding, whatever tie_word_embeddings says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.bitsandbytes import NF4Tensor, gathered
from entrenar.io.json_file import read_json_object
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import FLOAT_TYPES, open_safetensors_directory
from entrenar.models.config import LLaMAConfig
from entrenar.models.generation import GENERATION_FILE, read_generation
from entrenar.models.hf_config import is_nf4
from entrenar.models.origin import Origin

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPARED_ROWS = 1024  # of embedding and head at a time
QUANTIZED_PARTS = {  # the end of a tensor's name, and what writes such tensors
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".SCB": "bitsandbytes (int8)",
    ".weight.absmax": "bitsandbytes (4 bits)",
    ".weight.quant_map": "bitsandbytes (4 bits)",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or fp8",
    ".weight_scale_inv": "fp8",
    ".scales": "GPTQ, AWQ or MLX",
}


def read_hf(path: Path) -> tuple[LLaMAConfig, dict[str, LazyTensor], Origin, list[str]]:
    """Configuration, tensors by name, origin, and remarks on what is not followed.

    Raises FormatError or ConfigError for a directory that is damaged, quantized, an adapter, or of another model.
    """
    remarks: list[str] = []
    file = path / "config.json"
    _check_kind(path, file)
    table = read_json_object(file, "a Hugging Face config.json")
    config = LLaMAConfig.from_hf(file, remarks)
    written, generation = read_generation(path, table)
    remarks += generation.remarks(str(path / (GENERATION_FILE if written is not None else "config.json")))
    remarks += _outside_vocabulary(file, table, config) + _outside_vocabulary(
        path / GENERATION_FILE, written or {}, config
    )
    tensors = _named(path, _unpacked(path, table, open_safetensors_directory(path)), config)
    config = _with_head(path, config, tensors, remarks)
    _check_types(path, config, tensors)
    return config, tensors, Origin(path, generation, False, table, written), remarks


def _outside_vocabulary(file: Path, table: Mapping[str, Any], config: LLaMAConfig) -> list[str]:
    """A remark for each special token of the file that the vocabulary does not have."""
    remarks = []
    for key in ("bos_token_id", "eos_token_id"):
        value = table.get(key)
        beyond = [
            i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and i >= config.vocab_size
        ]
        if beyond:
            end = " and no text ends at it" if key == "eos_token_id" else ""
            remarks.append(
                f"{file}: {key} has {beyond[0]}, expected less than vocab_size = {config.vocab_size}; no token has "
                f"this id{end}: take the file of the same model as the weights."
            )
    return remarks


def _check_kind(path: Path, config_file: Path) -> None:
    """FormatError where the folder holds an adapter or no model at all."""
    adapter = path / "adapter_config.json"
    if adapter.exists():
        base = read_json_object(adapter, "an adapter's configuration").get("base_model_name_or_path")
        raise FormatError(
            f"{path}: holds an adapter (adapter_config.json) over {shown(base)}, expected a model; give the base "
            "model, or the folder of a merged one."
        )
    if not config_file.exists():
        inside = sorted(file.name for file in path.glob("*.gguf"))
        folders = sorted(file.parent.name for file in path.glob("*/config.json"))
        hint = f"; give the folder {folders[0]} in it, which has one" if folders else ""
        hint = f"; give the file in it, {inside[0]}" if inside else hint
        raise FormatError(f"{path}: has no config.json; expected a Hugging Face model directory{hint}.")


def _unpacked(path: Path, table: Mapping[str, Any], stored: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """The tensors with each matrix that bitsandbytes has quantized as one, where config.json says so."""
    if not is_nf4(table.get("quantization_config")):
        return stored
    tensors = gathered(str(path), stored)
    if not any(isinstance(tensor, NF4Tensor) for tensor in tensors.values()):
        raise FormatError(
            f"{path / 'config.json'}: quantization_config says that the weights are quantized by bitsandbytes (nf4), "
            "and the files have none that is; take both from one model."
        )
    return tensors


def _named(path: Path, stored: Mapping[str, LazyTensor], config: LLaMAConfig) -> dict[str, LazyTensor]:
    """The tensors by the names of a causal language model; buffers that follow from the configuration are left out."""
    expected = config.parameter_shapes().keys() | {HEAD}
    tensors: dict[str, LazyTensor] = {}
    for stored_name, tensor in stored.items():
        name = stored_name
        if name.startswith("model.") and name.removeprefix("model.") in expected:
            name = name.removeprefix("model.")
        elif f"model.{name}" in expected:
            name = f"model.{name}"
        if name in tensors:
            raise FormatError(
                f"{path}: holds {name} twice, as {tensors[name].name} and as {stored_name}; expected one of them."
            )
        if not name.endswith("rotary_emb.inv_freq"):
            tensors[name] = tensor
    _refuse_quantized(path, tensors)
    return tensors


def _refuse_quantized(path: Path, names: Iterable[str]) -> None:
    for name in names:
        for ending, method in QUANTIZED_PARTS.items():
            if name.endswith(ending):
                raise FormatError(
                    f"{path}: holds {name}: its weights are quantized by {method}, which is not read; give the model "
                    "in F32, F16 or BF16, or a GGUF file of it."
                )


def _with_head(path: Path, config: LLaMAConfig, tensors: dict[str, LazyTensor], remarks: list[str]) -> LLaMAConfig:
    """The configuration with the head that the file has: tied where it is the embedding or one of both is absent."""
    if not config.tie_word_embeddings:
        if HEAD not in tensors and EMBEDDING in tensors:  # without either `check` says how the tensors are named
            raise FormatError(
                f"{path}: the tensor {HEAD} is missing, and config.json does not say that the head is tied; take "
                "the files of the causal language model, or set tie_word_embeddings to true if its head is tied."
            )
        return config
    if HEAD not in tensors:
        return config
    if EMBEDDING not in tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)
        return config
    if _equal(tensors[EMBEDDING], tensors[HEAD]):
        del tensors[HEAD]  # some writers store the tied head again
        return config
    remarks.append(
        f"{path / 'config.json'}: tie_word_embeddings is true, and the file's {HEAD} is not its embedding: the stored "
        "head is used, as transformers does."
    )
    return replace(config, tie_word_embeddings=False)


def _equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether both hold the same values."""
    if first.shape != second.shape or not {first.type, second.type} <= FLOAT_TYPES or not first.shape:
        return False
    starts = range(0, first.shape[0], COMPARED_ROWS)
    ends = (min(start + COMPARED_ROWS, first.shape[0]) for start in starts)
    return all(
        np.array_equal(first.load_rows(start, end), second.load_rows(start, end))
        for start, end in zip(starts, ends, strict=True)
    )


def _check_types(path: Path, config: LLaMAConfig, tensors: Mapping[str, LazyTensor]) -> None:
    for name in config.parameter_shapes():
        if name in tensors and tensors[name].type not in FLOAT_TYPES and not isinstance(tensors[name], NF4Tensor):
            raise FormatError(
                f"{path}: the tensor {name} has type {tensors[name].type}, which holds no weights by itself; expected "
                "F32, F16 or BF16, or give a GGUF file of the model."
            )

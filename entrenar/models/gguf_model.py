"""GGUF files as checkpoints: tensor names, row order, configuration.

GGUF names are mapped to Hugging Face's. Where the family's row says so, the rows of q and k matrices are stored for an
interleaved rotary embedding; `half_split_rows` says how they come back into half-split order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import from_table
from entrenar.errors import ConfigError, FormatError
from entrenar.io.gguf import GGUFFile, GGUFTensor
from entrenar.io.lazy import LazyTensor
from entrenar.models.config import LLaMAConfig
from entrenar.models.families import BIASES, FAMILIES, PARTS, Family, gguf_name
from entrenar.models.gguf_keys import (
    EMBEDDING,
    FEED_FORWARD,
    HEADS,
    KEY_HEADS,
    KEY_LENGTH,
    LAYERS,
    LONG_FACTORS,
    ROPE_FACTORS,
    TOKENS,
    VOCABULARY,
    config_values,
)

HEAD = "output.weight"


def hugging_face_names(config: LLaMAConfig) -> dict[str, str]:
    """The Hugging Face name of every tensor of such a GGUF file, by the file's own name."""
    family = FAMILIES[config.family]
    return {gguf_name(family, name): name for name in config.parameter_shapes()}


def half_split_rows(count: int, head_dim: int) -> np.ndarray:
    """The GGUF row that holds each row of a half-split q or k matrix: rows (2 i, 2 i + 1) of a head were halves."""
    rows = np.arange(count).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


def interleaved_rows(count: int, head_dim: int) -> np.ndarray:
    """The half-split row that GGUF files have as each of their rows of a q or k matrix: undoes `half_split_rows`."""
    rows = np.arange(count).reshape(-1, 2, head_dim // 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


def read_gguf(path: Path) -> tuple[LLaMAConfig, dict[str, LazyTensor], dict[str, Any], list[str]]:
    """Configuration, tensors by Hugging Face name, metadata, and remarks on what is ignored.

    Raises FormatError for a file that is damaged, contradicts itself or has other tensors than its family, ConfigError
    for metadata that we do not support.
    """
    file = GGUFFile(path)
    try:
        stored = {key: file.tensors[name] for key, name in LONG_FACTORS.items() if name in file.tensors}
        values, remarks = config_values(file.metadata, {key: _factors(path, t) for key, t in stored.items()})
        values |= _biases(FAMILIES[values["family"]], file.tensors)
        tied = HEAD not in file.tensors
        config = from_table(LLaMAConfig, values | {"tie_word_embeddings": tied}, "model")
        _check_tensors(path, config, file.tensors)
        if ROPE_FACTORS in file.tensors:
            config = replace(config, rope_frequency_factors=_factors(path, file.tensors[ROPE_FACTORS]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    names = hugging_face_names(config)
    tensors: dict[str, LazyTensor] = {names[name]: t for name, t in file.tensors.items() if name in names}
    return config, tensors, file.metadata, [f"{path.name}: {remark}" for remark in remarks]


def _biases(family: Family, tensors: Collection[str]) -> dict[str, bool]:
    """attention_bias and mlp_bias, which no key holds: whether the linears of the first layer have them."""
    linears = {"attention_bias": ("q", "k", "v", "output"), "mlp_bias": ("gate", "up", "down")}
    parts = {"attention_bias": "attn", "mlp_bias": "ffn"}
    return {
        key: all(f"blk.0.{parts[key]}_{linear}.bias" in tensors for linear in linears[key])
        for key in BIASES
        if key in family.own and family.gguf_biases
    }


def _check_tensors(path: Path, config: LLaMAConfig, tensors: Mapping[str, GGUFTensor]) -> None:
    """Every tensor that the metadata ask for is there in its shape and in a type of weights, and no other."""
    family = FAMILIES[config.family]
    expected = {gguf_name(family, name): shape for name, shape in config.parameter_shapes().items()}
    if ROPE_FACTORS in tensors and family.rope_factors:
        expected[ROPE_FACTORS] = (config.rotated // 2,)
    if family.long_factors:
        expected |= {name: (config.rotated // 2,) for name in LONG_FACTORS.values() if name in tensors}
    for name in tensors:
        if name not in expected or (name == HEAD and family.gguf_head == "never"):
            raise FormatError(f"{path}: the tensor {name} {_foreign(name, expected, config)}.")
    if family.gguf_head == "always":
        expected |= {HEAD: (config.vocab_size, config.hidden_size)}
    for name, shape in expected.items():
        if name not in tensors:
            layers = f", or its {family.architecture}.{LAYERS} = {config.num_hidden_layers} is wrong"
            wrong = layers if name.startswith("blk.") else ""
            raise FormatError(f"{path}: the tensor {name} of shape {shape} is missing; the file is incomplete{wrong}.")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise FormatError(
                f"{path}: the tensor {name} has shape {tensor.shape}, expected {shape} by "
                f"{_shape_keys(name, len(shape), family)}; the file contradicts itself."
            )
        if not tensor.weights:
            raise FormatError(
                f"{path}: the tensor {name} has type {tensor.type}, expected F32, F16, BF16 or a quantized type that "
                "the gguf library dequantizes; use a file of another quantization."
            )


def _factors(path: Path, tensor: GGUFTensor) -> list[float]:
    """The divisors of rotary frequencies that a tensor holds."""
    if tensor.type != "F32":  # llama.cpp takes no other
        raise FormatError(f"{path}: the tensor {tensor.name} has type {tensor.type}, expected F32; convert it again.")
    if len(tensor.shape) != 1:
        raise FormatError(
            f"{path}: the tensor {tensor.name} has shape {tensor.shape}, expected one number for each rotated pair; "
            "the file contradicts itself."
        )
    factors = [float(factor) for factor in tensor.load()]
    for index, factor in enumerate(factors):
        if not 0 < factor < math.inf:
            raise FormatError(
                f"{path}: the tensor {tensor.name} of type {tensor.type} is {factor} at {index}, expected positive "
                "numbers; fetch the file again."
            )
    return factors


def _shape_keys(name: str, axes: int, family: Family) -> str:
    """The metadata that give the shape of this tensor."""
    architecture = family.architecture
    words = {
        "vocabulary": f"the entries of {TOKENS} (or {architecture}.{VOCABULARY})",
        "hidden": f"{architecture}.{EMBEDDING}",
        "inner": f"{architecture}.{FEED_FORWARD}",
        "queries": f"{architecture}.{HEADS} x {architecture}.{KEY_LENGTH}",
        "keys": f"{architecture}.{KEY_HEADS} x {architecture}.{KEY_LENGTH}",
        "head": f"{architecture}.{KEY_LENGTH}",
        "queries, keys and values": f"({architecture}.{HEADS} + 2 x {architecture}.{KEY_HEADS}) x "
        f"{architecture}.{KEY_LENGTH}",
        "gate and up": f"2 x {architecture}.{FEED_FORWARD}",
    }
    if name in (ROPE_FACTORS, *LONG_FACTORS.values()):
        return f"half of {words['head']}"
    part = next(part for part in {**family.parts, **PARTS, **family.parts}.values() if part.gguf == name.split(".")[-2])
    return " and ".join(words[size] for size in part.sizes(axes))


def _foreign(name: str, expected: Collection[str], config: LLaMAConfig) -> str:
    """What to say of a tensor that a model of this configuration has no place for."""
    part = name.split(".")[-2] if name.count(".") else name
    layers = f"{FAMILIES[config.family].architecture}.{LAYERS} = {config.num_hidden_layers}"
    first = re.sub(r"^blk\.\d+\.", "blk.0.", name)
    if name == HEAD:
        return f"is a head of its own, which the models of {FAMILIES[config.family].title} do not have"
    if first in expected:
        return f"belongs to a layer beyond {layers}; the file contradicts itself"
    if first.endswith(".bias") and first.removesuffix("bias") + "weight" in expected:
        return "is a bias, which the models of this family do not have"
    if "exp" in part or part == "ffn_gate_inp":
        return "belongs to a mixture of experts, which is not supported"
    if part.startswith("rope_factors"):
        return "belongs to a longrope scaling, which is not supported"
    return f"belongs to no {FAMILIES[config.family].title} layer; this architecture is not supported"

"""The tensors of a PEFT adapter: every one that its configuration promises, with its shape, finite, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from entrenar.errors import FormatError
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import open_safetensors

PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
TYPES = ("F64", "F32", "F16", "BF16")
# What else tools write or train, by a part of a tensor's name.
OTHERS = {
    "lora_magnitude_vector": "the magnitudes of DoRA, of which adapter_config.json says nothing",
    "lora_embedding_": "an adapter of an embedding, of which adapter_config.json says nothing",
    "modules_to_save": "a layer that was trained as a whole, under a name that PEFT has in memory only",
    ".base_layer.": "a weight of the base that was saved with the adapter, which is not supported",
    "embed_tokens": "the embedding, saved with the adapter, of which adapter_config.json says nothing",
    "lm_head": "the head, saved with the adapter, of which adapter_config.json says nothing",
    "lora_a": "a name of mlx-lm; merge the adapter there",
    "lora_b": "a name of mlx-lm; merge the adapter there",
    "lora_bias": "a bias of an adapter, which is not supported",
    "bias": "a trained bias, of which adapter_config.json says nothing",
}


def read_weights(path: Path, expected: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, np.ndarray]:
    """The tensors by the names of `expected`, in float32; FormatError, naming the tensor, for whatever differs.

    `prefix` begins the part of a tensor's name that the kind of adapter gives it ("lora_").
    """
    stored = _by_name(open_weights(path), {_in_memory(name, prefix): name for name in expected}, path)
    known = next((name for name in expected if name in stored), None)
    for name, shape in expected.items():
        if name not in stored:
            raise FormatError(_missing(path, name, shape, _with(prefix, stored), known is not None))
        if stored[name].shape != shape:
            raise FormatError(
                f"{path}: the tensor {name} has shape {stored[name].shape}, expected {shape}; the adapter is one "
                "over another model, or its adapter_config.json is that of another adapter."
            )
    unknown = sorted(name for name in set(stored) - set(expected) if not _of_an_adapted_embedding(name, expected))
    if unknown:
        what = next((what for part, what in OTHERS.items() if part in unknown[0]), None)
        if what is not None:
            raise FormatError(
                f"{path}: the tensor {unknown[0]} is {what}; merge the adapter in PEFT and use the merged model."
            )
        raise FormatError(
            f"{path}: the tensor {unknown[0]} belongs to no layer that adapter_config.json names and the "
            "model has; take both files from one adapter, and give the model that it was trained over."
        )
    return {name: _finite(stored[name], path) for name in expected}


def _of_an_adapted_embedding(name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this is the base's embedding, which PEFT writes beside an adapter on it, frozen as it was."""
    return f"{name.removesuffix('.base_layer.weight')}.lora_embedding_A" in expected


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """The tensors of the file; FormatError that says what lies there in its place."""
    if not path.exists():
        if (path.parent / PICKLED_FILE).exists():
            raise FormatError(
                f"{path}: no such file; {PICKLED_FILE} beside it is pickled and is not read: load it in PEFT and save "
                "it again, which writes safetensors."
            )
        parts = sorted(file.name for file in path.parent.glob("*.safetensors*"))
        if parts:
            raise FormatError(
                f"{path}: no such file; {parts[0]} beside it is not what PEFT calls an adapter's weights, which "
                "are one file."
            )
    return open_safetensors(path)


def _in_memory(name: str, prefix: str) -> str:
    """PEFT's name in memory, which has that of the adapter in it: it loads a file with those for "default"."""
    return re.sub(rf"(.*\.{prefix}\w+)", r"\1.default", name)


def _by_name(tensors: Mapping[str, LazyTensor], in_memory: Mapping[str, str], path: Path) -> dict[str, LazyTensor]:
    """The tensors by the names that PEFT saves them under; `in_memory` has those by the names in memory."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        saved = in_memory.get(name, name)
        if saved in found:
            raise FormatError(
                f"{path}: the tensors {found[saved].name} and {name} are the same weight; expected one of them."
            )
        found[saved] = tensor
    return found


def _with(prefix: str, names: Iterable[str]) -> str | None:
    """A name, of whatever tool, of a tensor of this kind of adapter."""
    return next((name for name in sorted(names) if prefix.rstrip("_") in name.lower()), None)


def _missing(path: Path, name: str, shape: tuple[int, ...], found: str | None, others: bool) -> str:
    text = f"{path}: the tensor {name} of shape {shape} is missing"
    if others or found is None:
        return f"{text}; the file is incomplete, or its adapter is one over another model or for other layers."
    return f"{text}; the file's tensors have other names (as {found}), under which PEFT does not load them either."


def _finite(tensor: LazyTensor, path: Path) -> np.ndarray:
    if tensor.type not in TYPES:
        raise FormatError(
            f"{path}: the tensor {tensor.name} has type {tensor.type}; expected F32, F16 or BF16 weights."
        )
    values = tensor.load()
    if not np.isfinite(values).all():
        raise FormatError(
            f"{path}: the tensor {tensor.name} holds values that are NaN, infinite or too large for float32; "
            "fetch it again."
        )
    return values

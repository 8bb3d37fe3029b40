"""Models -> GGUF files that llama.cpp runs and `LLaMAModel.from_pretrained` reads back, one run of rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.weight_types import gguf_weight_type
from entrenar.errors import ConfigError, FormatError
from entrenar.io.gguf_writer import OutputTensor, write_gguf
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_metadata import tokenizer_metadata
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.families import FAMILIES, Family, gguf_name, has_offset, is_interleaved
from entrenar.models.gguf_metadata import (
    NO_TOKENIZER,
    architecture_metadata,
    checked_tokenizer,
    kept_metadata,
    rope_tensors,
    window_sentences,
)
from entrenar.models.gguf_rows import RowEncoder, stored_type
from entrenar.models.gguf_types import KEEP, checked_type, file_type_number, tensor_types
from entrenar.models.merged import PlainWeight, merge_sentences, plain_weights

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel

QUANTIZATION_VERSION = 2  # of the blocks, as ggml counts


@dataclass(frozen=True)
class ExportedGGUF:
    """What was written: the GGUF type of each tensor by its name in the file, and remarks, a sentence each."""

    types: Mapping[str, str]
    remarks: list[str]


def save_gguf(
    model: LLaMAModel,
    path: str | Path,
    *,
    type: str = "F32",
    tokenizer: Tokenizer | Mapping[str, Any] | None = None,
    merge: bool = False,
) -> ExportedGGUF:
    """Write the model as one GGUF file; `merge` merges each matrix that an adapter is on as it is written.

    `type` is one of `gguf_types.FILE_TYPES`, which decides the type of each tensor as llama.cpp's llama-quantize does,
    or "keep": each in the type that the model holds it in, F32 where GGUF has none. Quantized values whose type stays
    are written as they are. `tokenizer` (or its tokenizer.* metadata): unset is that of the place that the model was
    loaded from. Raises ConfigError for an unknown type, for adapters without `merge`, for what llama.cpp cannot be
    told of the model and where that place is gone, FormatError where the place refuses the file, for values that a type
    cannot hold and tokenizers that no file can.
    """
    type = checked_type(type)
    config = model.config
    family = FAMILIES[config.family]
    weights = plain_weights(model, merge=merge)
    architecture = architecture_metadata(config)
    if family.gguf_head == "always" and config.tie_word_embeddings:
        weights.append(replace(weights[0], name="lm_head.weight"))
    types = tensor_types(config, type, {weight.name: stored_type(weight.base) for weight in weights})
    remarks = [*merge_sentences(weights), *window_sentences(config), *_second_quantization(weights, types)]
    source = _source(model)
    general, vocabulary = _origin_metadata(model, source, tokenizer, remarks)
    metadata = {
        "general.architecture": family.architecture,
        "general.type": "model",
        **general,
        "general.file_type": _file_type(source, types, type),
        **architecture,
        **vocabulary,
    }
    if any(_is_quantized(name) for name in types.values()):
        metadata["general.quantization_version"] = QUANTIZATION_VERSION
    encoder = RowEncoder()
    tensors = [_output(weight, types[weight.name], family, config.head_size, encoder) for weight in weights]
    for name, factors in rope_tensors(config).items():
        tensors.insert(0, OutputTensor(name, factors.shape, "F32", partial(list, [factors])))
    write_gguf(path, metadata, tensors)
    return ExportedGGUF(
        {tensor.name: tensor.type for tensor in tensors}, [*remarks, *_type_sentences(tensors, encoder)]
    )


def _file_type(source: Checkpoint | None, types: Mapping[str, str], type: str) -> int:
    """general.file_type: that of the file that the model was loaded from, where it is kept and so is every type."""
    if type == KEEP and source is not None:
        number = (source.metadata or {}).get("general.file_type")
        if isinstance(number, int) and {name: lazy.type for name, lazy in source.tensors.items()} == types:
            return number
    return file_type_number(types, type)


def _is_quantized(type: str) -> bool:
    row = gguf_weight_type(type)
    return row is not None and row.is_quantized


def _output(weight: PlainWeight, type: str, family: Family, head_size: int, encoder: RowEncoder) -> OutputTensor:
    name = gguf_name(family, weight.name)
    head_dim = head_size if is_interleaved(family, weight.name) else None
    rows = partial(_rows, weight, name, type, head_dim, encoder)
    if has_offset(family, weight.name):
        return OutputTensor(name, weight.shape, type, lambda: (np.float32(1) + part for part in rows()))
    return OutputTensor(name, weight.shape, type, rows)


def _rows(weight: PlainWeight, name: str, type: str, head_dim: int | None, encoder: RowEncoder) -> Iterator[np.ndarray]:
    return encoder(name, weight.load(), type, head_dim)


def _second_quantization(weights: list[PlainWeight], types: Mapping[str, str]) -> list[str]:
    """What is to be said of quantized matrices that become another quantized type."""
    again = [
        weight.base.weight_type
        for weight in weights
        if isinstance(weight.base, QuantizedTensor)
        and _is_quantized(types[weight.name])
        and types[weight.name] != stored_type(weight.base)
    ]
    if not again:
        return []
    held = ", ".join(f"{count} of {kind}" for kind, count in Counter(again).items())
    return [
        f"{len(again)} {_matrices(len(again))} quantized a second time ({held}), which costs accuracy; the type 'keep' "
        "leaves the model's own."
    ]


def _matrices(count: int) -> str:
    return "matrix is" if count == 1 else "matrices are"


def _type_sentences(tensors: list[OutputTensor], encoder: RowEncoder) -> list[str]:
    """How many matrices have which type, and how much that changed the values of those that were not kept."""
    sentences = []
    for type, count in Counter(tensor.type for tensor in tensors if len(tensor.shape) > 1).items():
        rounded = encoder.rounded.get(type)
        change = "without rounding"
        if rounded is not None:
            by = f"rounded by {100 * rounded.relative:.2g} % (relative rms)"
            kept = count - rounded.matrices
            change = f"{rounded.matrices} of them {by} and {kept} {change}" if kept else by
        sentences.append(f"{count} {_matrices(count)} written as {type}, {change}.")
    return sentences


def _source(model: LLaMAModel) -> Checkpoint | None:
    """The GGUF file that the model was loaded from, where there is one and it is still there."""
    origin = model.origin
    return Checkpoint.open(origin.path) if origin is not None and origin.is_gguf and origin.path.exists() else None


def _origin_metadata(
    model: LLaMAModel, source: Checkpoint | None, tokenizer: Tokenizer | Mapping[str, Any] | None, remarks: list[str]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(general, tokenizer) keys: those of the place that the model was loaded from, where nothing else is given."""
    origin, general, kept = model.origin, {}, None
    if origin is not None:
        general = {"general.name": origin.path.resolve().name}
        if not origin.path.exists() and tokenizer is None:
            raise ConfigError(
                f"{origin.path}: is gone, and the model's tokenizer came from it; pass save_gguf(..., tokenizer=...) "
                "the one to write."
            )
        if source is not None:
            general, kept = kept_metadata(source.metadata or {})
        elif tokenizer is None and origin.tokenizer_files():
            tokenizer = copy(Tokenizer.from_directory(origin.path))
            ends = (*tokenizer.eos_ids, *origin.generation.end_tokens)
            tokenizer.eos_ids = tuple(dict.fromkeys(ends))
            try:
                return general, _vocabulary(tokenizer, model.config.vocab_size, remarks)
            except FormatError as error:  # which does not know where the tokenizer is from
                raise FormatError(f"{origin.path}: {error}") from error
    return general, _vocabulary(kept if tokenizer is None else tokenizer, model.config.vocab_size, remarks)


def _vocabulary(
    tokenizer: Tokenizer | Mapping[str, Any] | None, vocab_size: int, remarks: list[str]
) -> Mapping[str, Any]:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer_metadata(tokenizer, vocab_size, remarks)
    if not tokenizer:
        remarks.append("The model comes without a tokenizer, and the file has none: programs cannot give it text.")
        return NO_TOKENIZER
    return checked_tokenizer(tokenizer, vocab_size)

"""Models -> GGUF files that llama.cpp runs and `LLaMAModel.from_pretrained` reads back, one run of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.errors import ConfigError
from entrenar.io.gguf_writer import OutputTensor, write_gguf
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.export import refuse_adapters
from entrenar.models.families import FAMILIES, gguf_name, is_interleaved
from entrenar.models.gguf_metadata import architecture_metadata, kept_metadata, rope_factors, tokenizer_block
from entrenar.models.gguf_model import ROPE_FACTORS, interleaved_rows
from entrenar.nn.module import Weight

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel

FILE_TYPES = {"F32": 0}  # general.file_type, as llama.cpp numbers them
ROW_BYTES = 32 << 20  # of float32 rows that are converted at a time


def save_gguf(
    model: LLaMAModel, path: str | Path, *, type: str = "F32", tokenizer: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Write the model as one GGUF file; returns the GGUF type of each tensor by its name in the file.

    `tokenizer`: the tokenizer.* metadata; unset are those of the GGUF file that the model was loaded from. Raises
    ConfigError for an unknown type and where adapters are still attached, FormatError where the place refuses the file.
    """
    if type not in FILE_TYPES:
        raise ConfigError(f"type={type!r} is unknown; choose {', '.join(FILE_TYPES)}.")
    refuse_adapters(model)
    config = model.config
    family = FAMILIES[config.family]
    general, kept = _origin_metadata(model)
    metadata = {
        "general.architecture": family.architecture,
        "general.type": "model",
        **general,
        "general.file_type": FILE_TYPES[type],
        **architecture_metadata(config),
        **tokenizer_block(kept if tokenizer is None else tokenizer, config.vocab_size),
    }
    tensors = []
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(OutputTensor(ROPE_FACTORS, factors.shape, "F32", lambda: [factors]))
    for name, weight in model.named_parameters():
        head_dim = config.head_size if is_interleaved(family, name) else None
        rows = partial(_float_rows, weight, head_dim)
        tensors.append(OutputTensor(gguf_name(family, name), tuple(weight.shape), "F32", rows))
    write_gguf(path, metadata, tensors)
    return {tensor.name: tensor.type for tensor in tensors}


def _origin_metadata(model: LLaMAModel) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the file keeps of the one that the model was loaded from: (general, tokenizer or None)."""
    origin = model.origin
    if origin is None or not origin.is_gguf:
        return {} if origin is None else {"general.name": origin.path.resolve().name}, None
    metadata = Checkpoint.open(origin.path).metadata
    assert metadata is not None
    general, tokenizer = kept_metadata(metadata)
    return general, tokenizer or None


def _float_rows(weight: Weight, head_dim: int | None) -> Iterator[np.ndarray]:
    """The weight in float32, a run of rows at a time, in the order that the file has them."""
    unit = head_dim or 1
    step = max(unit, ROW_BYTES // (4 * (weight.shape[-1] if weight.ndim > 1 else 1)) // unit * unit)
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        rows = _load_rows(weight, start, stop)
        yield rows if head_dim is None else rows[interleaved_rows(len(rows), head_dim)]


def _load_rows(weight: Weight, start: int, stop: int) -> np.ndarray:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize_rows(start, stop)
    return np.asarray(weight.numpy()[start:stop], np.float32)

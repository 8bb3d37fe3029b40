"""Models -> Hugging Face directories: configuration, weights, tokenizer, how the model generates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.choices import SAVED_DTYPES
from entrenar.errors import ConfigError
from entrenar.io.atomic import atomic_files
from entrenar.io.safetensors import DeferredArray, save_sharded, weight_files
from entrenar.io.tokenizer import OVERRIDING, Tokenizer
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.generation import GENERATION_FILE, METADATA, SETTINGS
from entrenar.models.hf_config import WRITTEN
from entrenar.models.merged import PlainWeight, merge_sentences, plain_weights
from entrenar.models.origin import Origin
from entrenar.models.rounded import numpy_type, rounded

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel


def save(
    model: LLaMAModel,
    directory: str | Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    tokenizer: Tokenizer | None = None,
    merge: bool = False,
) -> list[str]:
    """Write a directory that transformers (4 and 5) and `LLaMAModel.from_pretrained` read.

    What an earlier save left of the same goes, other files stay as they are; a process that is killed meanwhile leaves
    the old model, the new one, or a folder without config.json.

    It holds `config.json` with the other keys of the one that was loaded, `generation_config.json` (as it was loaded,
    else the model's end tokens), safetensors (sharded beyond `max_shard_bytes`), and the tokenizer: `tokenizer`, else
    the files of the directory that the model was loaded from, else what its GGUF file has. Quantized matrices are
    dequantized to `dtype` one at a time, and with `merge` those that an adapter is on merged. Returns what precision
    merging keeps and how many are rounded, in sentences. Raises ConfigError for adapters without `merge`, where the
    place that the tokenizer came from is gone, and for the rotary factors of a GGUF file that config.json cannot
    express; FormatError for weights beyond float16.
    """
    if dtype not in SAVED_DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; choose 'float32', 'float16' or 'bfloat16'.")
    weights = plain_weights(model, merge=merge)
    config = config_table(model, dtype)
    directory = Path(directory)
    if (directory / "adapter_config.json").exists():
        raise ConfigError(
            f"{directory}: holds an adapter (adapter_config.json), which readers would put on the model or take in its "
            "place; save the model in another folder."
        )

    def stale(new: list[str]) -> list[str]:
        others = ["tokenizer.json", *OVERRIDING] if {"tokenizer.json", "tokenizer.model"} & set(new) else []
        return [GENERATION_FILE, *weight_files(directory), *others]

    with atomic_files(directory, key="config.json", stale=stale) as folder:
        _save_tokenizer(folder, model.origin, tokenizer)
        _write_json(folder / "config.json", config)
        generation = generation_table(model)
        if generation:
            _write_json(folder / GENERATION_FILE, generation)
        save_sharded(folder, _arrays(weights, dtype), max_shard_bytes)
    return [*merge_sentences(weights), *_rounding_sentence(weights, dtype)]


def config_table(model: LLaMAModel, dtype: str) -> dict[str, Any]:
    """The model's config.json: its shape, and what else the one that it was loaded with has."""
    kept = {} if model.origin is None else {k: v for k, v in model.origin.config.items() if k not in WRITTEN}
    return kept | model.config.to_hf() | {"torch_dtype": dtype}


def generation_table(model: LLaMAModel) -> dict[str, Any]:
    """The model's generation_config.json; empty where nothing says how it generates."""
    origin, config = model.origin, model.config
    if origin is not None and origin.generation_config is not None:
        return dict(origin.generation_config)
    kept = {} if origin is None else {k: v for k, v in origin.config.items() if k in SETTINGS - METADATA}
    table = kept | {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    if origin is not None and origin.is_gguf and len(origin.generation.end_tokens) > 1:
        table["eos_token_id"] = list(origin.generation.end_tokens)  # config.json names the first alone
    return {name: value for name, value in table.items() if value is not None}


def _rounding_sentence(weights: list[PlainWeight], dtype: str) -> list[str]:
    """How many matrices are rounded to `dtype`; none where it is float32, or what the model holds."""
    plain = [weight for weight in weights if len(weight.shape) > 1]
    kept = sum(
        weight.adapter is None and not isinstance(weight.base, QuantizedTensor) and weight.base.dtype == dtype
        for weight in plain
    )
    if dtype == "float32" or kept == len(plain):
        return []
    return [f"{len(plain) - kept} of {len(plain)} matrices are rounded to {dtype}."]


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _save_tokenizer(folder: Path, origin: Origin | None, tokenizer: Tokenizer | None) -> None:
    if tokenizer is None and origin is not None:
        if not origin.path.exists():
            raise ConfigError(
                f"{origin.path}: is gone, and the model's tokenizer came from it; pass save_pretrained(..., "
                "tokenizer=...) the one to write."
            )
        if origin.is_gguf:
            checkpoint = Checkpoint.open(origin.path)
            if checkpoint.metadata and checkpoint.metadata.get("tokenizer.ggml.tokens"):
                tokenizer = checkpoint.tokenizer()
        for source in origin.tokenizer_files():
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / source.name)
    if tokenizer is not None:
        tokenizer.save(folder)


def _arrays(weights: Iterable[PlainWeight], dtype: str) -> Iterator[tuple[str, DeferredArray]]:
    for weight in weights:
        yield weight.name, DeferredArray(weight.shape, numpy_type(dtype), partial(_array, weight, dtype))


def _array(plain: PlainWeight, dtype: str) -> np.ndarray:
    weight = plain.load()
    array = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.numpy()
    if array.dtype == numpy_type(dtype):
        return array
    array = array.astype(np.float32, copy=False)
    return array if dtype == "float32" else rounded(plain.name, array, dtype)

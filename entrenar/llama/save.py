"""Models -> Hugging Face directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.errors import ConfigError
from entrenar.io.checkpoint import atomic_directory
from entrenar.io.safetensors import save_sharded
from entrenar.llama.model import LLaMAModel

SAVED_DTYPES = ("float32", "bfloat16")


def save(model: LLaMAModel, directory: str | Path, *, dtype: str = "float32", max_shard_bytes: int = 5 * 10**9) -> None:
    """Write `config.json` and safetensors (sharded beyond `max_shard_bytes`), in a temporary folder that is renamed.

    Codes are dequantized to `dtype` one at a time. Raises ConfigError where LoRA adapters are still attached.
    """
    if dtype not in SAVED_DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; choose 'float32' or 'bfloat16'.")
    names = [name for name, _ in model.named_parameters()]
    adapters = [name for name in names if ".lora_" in name]
    if adapters:
        raise ConfigError(f"The model still has LoRA adapters ({adapters[0]}); merge them or save the adapter instead.")
    config = model.config.to_hf() | {"torch_dtype": dtype}
    with atomic_directory(directory) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_sharded(folder, _arrays(model, dtype), max_shard_bytes)


def _arrays(model: LLaMAModel, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, weight in model.named_parameters():
        array = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.numpy()
        if dtype == "bfloat16":
            import ml_dtypes

            array = array.astype(ml_dtypes.bfloat16)
        yield name, array.astype(np.float32, copy=False) if dtype == "float32" else array

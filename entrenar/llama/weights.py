"""Checkpoints <-> models: names, shapes, dtypes and codes, one tensor in memory at a time.

Hugging Face names are the model's own. GGUF names are mapped, and the rows of its q and k matrices, stored for an
interleaved rotary embedding, are put back into half-split order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import BLOCK_SIZE, QuantizedTensor
from entrenar.errors import ConfigError, FormatError, QuantizationError
from entrenar.io.checkpoint import atomic_directory
from entrenar.io.gguf import GGUFFile
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import open_safetensors_directory, save_sharded
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama.budget import check_weights_fit
from entrenar.llama.config import LLaMAConfig
from entrenar.llama.model import LLaMAModel
from entrenar.llama.modules import Weight

QUANTIZE = (None, "auto", "nf4", "int4")
SAVED_DTYPES = ("float32", "bfloat16")
DTYPES = ("auto", *SAVED_DTYPES, "int16")
EMBEDDING = "model.embed_tokens.weight"
INTEGERS = ("I8", "I16", "I32", "I64", "U8", "BOOL")  # codes whose meaning some other tensor holds
GGUF_4BIT = ("Q4_0", "Q4_1")
GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_TOP = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
ROW_CHUNK_BYTES = 32 << 20  # what a conversion holds in float32 beside the tensor it fills


def hugging_face_name(gguf_name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None for one that is no weight of a LLaMA (rope_freqs)."""
    if gguf_name in GGUF_TOP:
        return GGUF_TOP[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in GGUF_LAYER and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.weight"
    return None


def half_split_rows(count: int, head_dim: int) -> np.ndarray:
    """The GGUF row that holds each row of a half-split q or k matrix: rows (2 i, 2 i + 1) of a head were halves."""
    rows = np.arange(count).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


class Checkpoint:
    """The tensors of a checkpoint by Hugging Face name, with the model's configuration."""

    def __init__(
        self,
        path: Path,
        config: LLaMAConfig,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.config, self.tensors = path, config, tensors
        self.metadata = metadata  # of a GGUF file

    def interleaved(self, name: str) -> bool:
        """Whether the rows of this matrix are stored for an interleaved rotary embedding."""
        return self.metadata is not None and name.split(".")[-2] in ("q_proj", "k_proj")

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """A GGUF file or a Hugging Face directory; FormatError where it is neither, is truncated, or is no LLaMA."""
        path = Path(path)
        if path.is_dir():
            return _open_directory(path)
        if not path.exists():
            raise FormatError(f"{path}: no such file or directory; expected a GGUF file or a Hugging Face directory.")
        return _open_gguf(path)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that comes with the weights."""
        return Tokenizer.from_directory(self.path) if self.metadata is None else Tokenizer.from_gguf(self.metadata)

    def check(self) -> None:
        """Every weight the configuration names is there with its shape, and nothing is left over."""
        expected = self.config.parameter_shapes()
        for name, shape in expected.items():
            if name not in self.tensors:
                raise FormatError(
                    f"{self.path}: the tensor {name} of shape {shape} is missing; the file is incomplete."
                )
            found = tuple(self.tensors[name].shape)
            if found != tuple(shape):
                raise FormatError(f"{self.path}: the tensor {name} has shape {found}, expected {tuple(shape)}.")
            if self.tensors[name].type in INTEGERS:
                raise FormatError(
                    f"{self.path}: the tensor {name} holds integers ({self.tensors[name].type}), expected F32, F16 or "
                    "BF16 weights; use a checkpoint that is not quantized, or a GGUF file."
                )
        unknown = [name for name in self.tensors if name not in expected]
        if unknown:
            raise FormatError(f"{self.path}: the tensor {unknown[0]} belongs to no LLaMA layer of this configuration.")


def _open_directory(path: Path) -> Checkpoint:
    config_file = path / "config.json"
    if not config_file.exists():
        raise FormatError(f"{path}: has no config.json; expected a Hugging Face model directory.")
    config = LLaMAConfig.from_hf(config_file)
    tensors = dict(open_safetensors_directory(path))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # some writers store the tied head again
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]  # a buffer that old checkpoints kept; it follows from the configuration
    return Checkpoint(path, config, tensors)


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    try:
        config = LLaMAConfig.from_gguf(file.metadata, tie_word_embeddings="output.weight" not in file.tensors)
        if ROPE_FACTORS in file.tensors:
            factors = [float(factor) for factor in file.tensors[ROPE_FACTORS].load().reshape(-1)]
            config = replace(config, rope_frequency_factors=factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        target = hugging_face_name(name)
        if target is None:
            raise FormatError(
                f"{path}: the tensor {name} belongs to no LLaMA layer; this architecture is not supported."
            )
        tensors[target] = tensor
    return Checkpoint(path, config, tensors, file.metadata)


def kept_matrices(checkpoint: Checkpoint, quantize: str | None, dtype: str) -> dict[str, str]:
    """The types of the matrices that stay as the file stores them unless they become 4-bit, by name: frozen, and mapped
    where their rows need no other order.

    Q8_0 outside the blocks under quantize="auto"; bfloat16 under dtype "auto" and "bfloat16". 16-bit codes would gain
    nothing for an embedding that no product reads, so under dtype "int16" too it stays in bfloat16.
    """

    def stays(name: str, lazy: LazyTensor) -> bool:
        if lazy.type == "BF16" and len(lazy.shape) == 2:
            looked_up = name == EMBEDDING and not checkpoint.config.tie_word_embeddings
            return dtype in ("auto", "bfloat16") or (dtype == "int16" and looked_up)
        return lazy.type == "Q8_0" and len(lazy.shape) == 2 and ".layers." not in name and quantize == "auto"

    return {name: lazy.type for name, lazy in checkpoint.tensors.items() if stays(name, lazy)}


class _Loader:
    """Makes the model's weights from a checkpoint, in the dtype or the codes that was asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantize: str | None,
        dtype: str,
        double_quantization: bool,
        kept: Mapping[str, str],
    ) -> None:
        self.checkpoint, self.quantize, self.dtype = checkpoint, quantize, dtype
        self.double_quantization = double_quantization
        self.kept = kept
        self.unquantized: dict[str, str] = {}  # matrices that could not become codes, and why

    def __call__(self, name: str, shape: tuple[int, ...]) -> Weight:
        lazy = self.checkpoint.tensors[name]
        head_dim = self.checkpoint.config.head_size if self.checkpoint.interleaved(name) else None
        if self.quantize is not None and ".layers." in name and len(shape) == 2:
            quantized = self._quantized(name, lazy, shape, head_dim)
            if quantized is not None:
                return quantized
        if name in self.kept:
            return self._stored(name, lazy, shape, head_dim)
        if self.dtype == "int16" and len(shape) == 2:
            coded = self._coded("int16", name, lazy, shape, head_dim)
            if coded is not None:
                return coded
        plain = "bfloat16" if len(shape) == 2 and self.dtype == "bfloat16" else "float32"
        return self._plain(lazy, shape, head_dim, plain)

    def _quantized(self, name: str, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None) -> Weight | None:
        if self.quantize == "auto" and lazy.type in GGUF_4BIT:
            return self._stored(name, lazy, shape, head_dim)
        kind = "nf4" if self.quantize == "auto" else self.quantize
        assert kind is not None
        return self._coded(kind, name, lazy, shape, head_dim)

    def _stored(self, name: str, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None) -> Weight:
        """The tensor in the elements or codes that the file has for it."""
        order = half_split_rows(shape[0], head_dim) if head_dim else None
        raw = lazy.raw() if order is None else lazy.read()  # what is copied need not stay mapped too
        if lazy.type == "BF16":
            return _bfloat16(raw if order is None else raw[order], shape)
        try:
            return QuantizedTensor.from_gguf_blocks(raw, lazy.type.lower(), shape, order)
        except QuantizationError as error:
            raise FormatError(f"{self.checkpoint.path}: the tensor {name} cannot be used: {error}") from error

    def _coded(
        self, kind: str, name: str, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None
    ) -> QuantizedTensor | None:
        """The tensor in the codes of `kind`, or None (and a note in `unquantized`) where its rows do not fit them."""
        if shape[1] % BLOCK_SIZE[kind]:
            self.unquantized[name] = f"its {shape[1]} columns are no multiple of {BLOCK_SIZE[kind]}"
            return None
        try:
            return QuantizedTensor.quantize_streaming(
                _rows(lazy, shape, head_dim), shape, kind, double_quantization=self.double_quantization
            )
        except QuantizationError as error:
            raise FormatError(f"{self.checkpoint.path}: the tensor {name} cannot become {kind}: {error}") from error

    def _plain(self, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None, dtype: str) -> Tensor:
        if dtype == "float32":
            target = np.empty(shape, np.float32)
        else:
            import ml_dtypes

            target = np.empty(shape, ml_dtypes.bfloat16)
        start = 0
        for rows in _rows(lazy, shape, head_dim):
            target[start : start + len(rows)] = rows
            start += len(rows)
        return Tensor.from_numpy(target, requires_grad=dtype == "float32")


def _bfloat16(raw: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """A frozen tensor over stored bytes; a copy where the file has them at an odd address."""
    import ml_dtypes

    values = raw.view(ml_dtypes.bfloat16).reshape(shape)
    return Tensor.from_numpy(values if values.flags.aligned else values.copy())


def _rows(lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None) -> Iterator[np.ndarray]:
    """The tensor in float32, a chunk of rows at a time; `head_dim` puts interleaved heads into half-split order."""
    if len(shape) == 1:
        yield lazy.load()
        return
    unit = head_dim or 1  # rows change places within their head only
    step = max(unit, ROW_CHUNK_BYTES // (4 * shape[1]) // unit * unit)
    for start in range(0, shape[0], step):
        rows = lazy.load_rows(start, min(start + step, shape[0]))
        yield rows[half_split_rows(len(rows), head_dim)] if head_dim else rows


def load(
    path: str | Path | Checkpoint,
    *,
    quantize: str | None = None,
    dtype: str = "float32",
    double_quantization: bool = True,
) -> LLaMAModel:
    """Load a GGUF file or a Hugging Face directory, or one that `Checkpoint.open` opened.

    `quantize`: None keeps every weight in `dtype`; "auto" keeps the 4-bit codes (Q4_0, Q4_1) that a GGUF file has and
    makes NF4 of the other block linears, and keeps an embedding or head that the file has in Q8_0; "nf4" and "int4"
    force one format. Embedding, norms and head never become 4-bit.
    `dtype` of what is not: "float32" is trainable; "bfloat16" and the finer "int16" (64 columns share a scale) are
    frozen storage, beside which norms stay float32; "auto" keeps matrices that the file has in bfloat16 as they are,
    frozen, and makes float32 of the others. Stored bfloat16 is mapped: the file must not be written to meanwhile. Under
    "int16" an embedding that is no head stays in stored bfloat16. A matrix whose rows are no multiple of the block size
    stays in full precision and is listed in the model's `unquantized`. Raises FormatError for a file that is missing,
    truncated or no LLaMA, ConfigError for an unknown option, MemoryBudgetError before anything is allocated.
    """
    if quantize not in QUANTIZE:
        raise ConfigError(f"quantize={quantize!r} is unknown; choose None, 'auto', 'nf4' or 'int4'.")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; choose 'auto', 'float32', 'bfloat16' or 'int16'.")
    checkpoint = path if isinstance(path, Checkpoint) else Checkpoint.open(path)
    checkpoint.check()
    kept = kept_matrices(checkpoint, quantize, dtype)
    check_weights_fit(checkpoint.config, dtype, quantize, double_quantization, kept)
    loader = _Loader(checkpoint, quantize, dtype, double_quantization, kept)
    model = LLaMAModel(checkpoint.config, weights=loader)
    model.unquantized = loader.unquantized
    return model


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

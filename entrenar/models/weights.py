"""Checkpoints -> models: dtypes and codes, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import BLOCK_SIZE, FOUR_BIT, QuantizedTensor
from entrenar.errors import ConfigError, FormatError, QuantizationError
from entrenar.io.lazy import LazyTensor
from entrenar.models.api import LLaMAModel
from entrenar.models.budget import check_weights_fit
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.gguf_model import half_split_rows
from entrenar.models.requantized import MEASURED_ROWS, Requantized
from entrenar.nn.module import Weight

QUANTIZE = (None, "auto", "nf4", "int4")
DTYPES = ("auto", "float32", "bfloat16", "int16")
EMBEDDING = "model.embed_tokens.weight"
GGUF_4BIT = ("Q4_0", "Q4_1")
FULL_PRECISION = ("F64", "F32", "F16", "BF16")
CHECKED_BYTES = 1 << 20  # of stored bfloat16, at a time
ROW_CHUNK_BYTES = 32 << 20  # what a conversion holds in float32 beside the tensor it fills


def kept_matrices(checkpoint: Checkpoint, quantize: str | None, dtype: str) -> dict[str, str]:
    """The types of the matrices that stay as the file stores them unless they become 4-bit, by name: frozen, and mapped
    where their rows need no other order.

    Q8_0 outside decoder layers under quantize="auto"; bfloat16 under dtype "auto" and "bfloat16". 16-bit codes would
    gain nothing for an embedding that no product reads, so under dtype "int16" too it stays in bfloat16.
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
        self.requantized: dict[tuple[str, str], Requantized] = {}  # by stored type and new one

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
            self._check_bfloat16(lazy, raw)
            return _bfloat16(raw if order is None else raw[order], shape)
        try:
            return QuantizedTensor.from_gguf_blocks(raw, lazy.type.lower(), shape, order)
        except QuantizationError as error:
            raise FormatError(f"{self._named(lazy)} cannot be used: {error}") from error

    def _coded(
        self, kind: str, name: str, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None
    ) -> QuantizedTensor | None:
        """The tensor in the codes of `kind`, or None (and a remark in `unquantized`) where its rows do not fit them."""
        if shape[1] % BLOCK_SIZE[kind]:
            self.unquantized[name] = f"its {shape[1]} columns are no multiple of {BLOCK_SIZE[kind]}"
            return None
        try:
            coded = QuantizedTensor.quantize_streaming(
                _rows(lazy, shape, head_dim), shape, kind, double_quantization=self.double_quantization
            )
        except QuantizationError as error:
            raise FormatError(f"{self._named(lazy)} cannot become {kind}: {error}") from error
        if lazy.type not in FULL_PRECISION and kind in FOUR_BIT:
            first = next(_rows(lazy, (head_dim or min(MEASURED_ROWS, shape[0]), shape[1]), head_dim))
            self.requantized.setdefault((lazy.type, kind), Requantized()).add(first, coded)
        return coded

    def _named(self, lazy: LazyTensor) -> str:
        return f"{self.checkpoint.path}: the tensor {lazy.name} of type {lazy.type}"

    def _plain(self, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None, dtype: str) -> Tensor:
        if dtype == "float32":
            target = np.empty(shape, np.float32)
        else:
            import ml_dtypes

            target = np.empty(shape, ml_dtypes.bfloat16)
        start = 0
        for rows in _rows(lazy, shape, head_dim):
            self._check_finite(lazy, rows, start)
            target[start : start + len(rows)] = rows
            start += len(rows)
        return Tensor.from_numpy(target, requires_grad=dtype == "float32")

    def _check_bfloat16(self, lazy: LazyTensor, raw: np.ndarray) -> None:
        """As `_check_finite`, of stored bytes: an exponent of ones is no finite number."""
        step = max(1, CHECKED_BYTES // max(raw.shape[1], 1))
        for start in range(0, len(raw), step):
            bits = raw[start : start + step].view("<u2")
            if ((bits & 0x7F80) == 0x7F80).any():
                self._check_finite(lazy, (bits.astype(np.uint32) << 16).view(np.float32), start)

    def _check_finite(self, lazy: LazyTensor, rows: np.ndarray, start: int) -> None:
        finite = np.isfinite(rows)
        if not finite.all():
            first = np.argwhere(~finite)[0]
            place = [start + int(first[0]), *map(int, first[1:])]
            raise FormatError(
                f"{self._named(lazy)} is {rows[tuple(first)]} at {place}, expected finite weights; fetch it again."
            )


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
    makes NF4 of the other decoder linears, and keeps an embedding or head that the file has in Q8_0; "nf4" and "int4"
    force one format. Embedding, norms and head never become 4-bit.
    `dtype` of what is not: "float32" is trainable; "bfloat16" and the finer "int16" (64 columns share a scale) are
    frozen storage, beside which norms stay float32; "auto" keeps matrices that the file has in bfloat16 as they are,
    frozen, and makes float32 of the others. Stored bfloat16 is mapped: the file must not be written to meanwhile. Under
    "int16" an embedding that is no head stays in stored bfloat16. A matrix whose rows are no multiple of the block size
    stays in full precision and is listed in the model's `unquantized`. What it costs to make 4-bit codes of a file's
    other codes is measured and said in the checkpoint's `remarks`. Raises FormatError for a file that is missing,
    truncated or no LLaMA, or has weights that are not finite, ConfigError for an unknown option, MemoryBudgetError
    before anything is allocated.
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
    model.unquantized, model.origin = loader.unquantized, checkpoint.origin
    costs = [cost.sentence(*types) for types, cost in loader.requantized.items()]
    checkpoint.remarks += [cost for cost in costs if cost not in checkpoint.remarks]
    model.remarks = list(checkpoint.remarks)
    return model

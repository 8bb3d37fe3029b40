"""A model to use: the base of a file, as it is stored, with adapters put on it; examples as rows to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from entrenar._kernels import cpu
from entrenar.adapters.gguf import check_gguf_adapter, load_gguf_adapter
from entrenar.adapters.peft import expected_shapes, load_adapter, read_adapter_config
from entrenar.autograd.precision import auto_precision, matmul_precision
from entrenar.data import Batch, SideReport, evaluation_batches
from entrenar.errors import ConfigError
from entrenar.io.hub import fetch_default_model
from entrenar.models.api import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.storage import Storage, StoragePolicy
from entrenar.models.weights import storage_of
from entrenar.train import dataset
from entrenar.train.config import Data, TrainConfig, Training
from entrenar.train.options import Rows, SourceOptions
from entrenar.train.vocabulary import padding


@dataclass
class Source(SourceOptions):
    """A model to use; its options, opened."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Threads and precision as they are asked for inside the block."""
        before = cpu.get_num_threads()
        if self.threads:
            cpu.set_num_threads(self.threads)
        try:
            with matmul_precision(auto_precision() if self.precision == "auto" else self.precision):
                yield
        finally:
            cpu.set_num_threads(before)

    def open(self) -> Checkpoint:
        """The checkpoint, checked; its weights are not read."""
        return open_checkpoint(self.model)

    def storage(self, checkpoint: Checkpoint) -> Storage:
        """The weight types of the model."""
        if self.quantize is None:
            return as_stored(checkpoint)
        return storage_of(checkpoint, StoragePolicy("auto", self.quantize))


def open_checkpoint(model: str | None) -> Checkpoint:
    """The checkpoint, checked; its weights are not read."""
    checkpoint = Checkpoint.open(fetch_default_model() if model is None else model)
    checkpoint.check()
    return checkpoint


class Base:
    """A base that is read once; models with other adapters share its weights."""

    def __init__(self, checkpoint: Checkpoint, storage: Storage) -> None:
        self._first = LLaMAModel.from_checkpoint(checkpoint, storage)
        self._weights = dict(self._first.named_parameters())
        self._given = False

    def model(self, adapter: str | None = None) -> LLaMAModel:
        """The base with `adapter` on it. Adapters replace modules and copy what they train: no weight changes."""
        model = self._first
        if self._given:
            model = LLaMAModel(self._first.config, weights=lambda name, shape: self._weights[name])
            model.unquantized, model.origin = self._first.unquantized, self._first.origin
        self._given = True
        if adapter is not None:
            put_adapter(model, adapter)
        return model


def as_stored(checkpoint: Checkpoint) -> Storage:
    """Every weight in the type that its file has; those of types that kernels do not read in float32."""
    kept = storage_of(checkpoint, StoragePolicy("auto", "auto")).weights
    plain = storage_of(checkpoint, StoragePolicy("auto"))
    weights = {name: kept[name] if kept[name].as_stored else weight for name, weight in plain.weights.items()}
    return Storage(plain.policy, weights)


def check_adapter(place: str | Path) -> None:
    """ConfigError or FormatError, before a model is read, where there is no adapter that is understood."""
    path = Path(place)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory; expected a PEFT adapter directory or a GGUF adapter.")
    if path.is_dir():
        read_adapter_config(path)


def check_fits(checkpoint: Checkpoint, place: str | Path) -> None:
    """As `check_adapter`, also where it is an adapter of another shape of model."""
    from entrenar.models.gguf_layout import GGUFLayout

    check_adapter(place)
    if Path(place).is_dir():
        expected_shapes(read_adapter_config(place), place, checkpoint.config)
    else:
        check_gguf_adapter(place, GGUFLayout(checkpoint.config, tied=checkpoint.config.tie_word_embeddings))


def put_adapter(model: LLaMAModel, place: str | Path) -> None:
    """Put a PEFT directory's adapter, or a GGUF file's, on the model."""
    (load_gguf_adapter if Path(place).is_file() else load_adapter)(model, place)


def evaluation_rows(rows: Rows, checkpoint: Checkpoint) -> tuple[Sequence[Batch], SideReport]:
    """The examples to evaluate, as batches of rows, and what became of them; raises as `dataset.held_out`."""
    length, fraction = min(rows.sequence_length, checkpoint.config.context), rows.held_out_fraction
    data = Data(
        path=rows.data,
        held_out_fraction=fraction if fraction < 1 else 0,
        max_examples=rows.max_examples,
        format=rows.format,
        train_on_prompt=rows.train_on_prompt,
        answers=rows.answers,
        too_long=rows.too_long,
    )
    config = TrainConfig(training=Training(sequence_length=length), data=data)
    tokenizer, vocabulary = checkpoint.tokenizer(), checkpoint.config.vocab_size
    samples, read = dataset.held_out(config, tokenizer, vocabulary, whole=fraction == 1)
    pad = padding(tokenizer, vocabulary) or 0
    return evaluation_batches(samples, rows.batch_size, length, config.data.packing, pad), read

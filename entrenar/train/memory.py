"""Peak memory of a training step, estimated item by item before anything is allocated."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entrenar.adapters.base import AdapterConfig
from entrenar.adapters.qlora import QLoRAConfig
from entrenar.autograd.ops.cross_entropy import HEAD_CHUNK_BYTES
from entrenar.data import eval_sources, sources_of
from entrenar.data.samples import HELD_BYTES
from entrenar.errors import ConfigError, MemoryBudgetError
from entrenar.models.config import LLaMAConfig
from entrenar.models.decoder import activations, recomputed_layers
from entrenar.models.storage import Storage, StoragePolicy
from entrenar.observe.hardware import available_memory
from entrenar.train.config import TrainConfig
from entrenar.train.updates import MUON, is_hidden_matrix
from entrenar.train.verify import PIECE_BYTES

RUNTIME_BYTES = 128 << 20  # Python, the libraries, the documentation's examples
# Of a file of examples, for each of its bytes: 5 bytes a token of four, 50 an example of a thousand, and what a buffer
# that grows has to spare.
DATA_SHARE = 1.6
DATA_INDEX_SHARE = 0.05  # what of it is not of tokens, which stand in a file where they are many
DATA_TOKEN_BYTES, DATA_EXAMPLE_BYTES = 5, 50
ENTRY_BYTES = 512  # of the tokenizer, for each entry of its vocabulary
PACKED_ROWS, PACKED_STEPS = 1024, 8192  # that a product packs at once, about (_kernels/gemm.pyx)
# What the allocator keeps of freed blocks where its footprint grows: at most a part of what is in use then and some
# more (autograd/allocator.c).
CACHED_PART, CACHED_BYTES = 4, 64 << 20
MARGIN = 1.1  # what an estimate may be off by, once layers are chosen to fit it
OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "schedulefree_adamw": 2, "muon": 2, "sgd": 1}  # floats for each trained
# Floats that are aside in evaluations, y: no gradient is there then, but the process keeps the memory of gradients.
OPTIMIZER_ASIDE = {"schedulefree_adamw": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by item; `total` is their sum."""

    items: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of everything together."""
        return sum(self.items.values())


class StepMemory:
    """What a training step holds at its peak, from the second step on, by how many layers are computed again.

    `adapter` None is full fine-tuning; `storage` has the weight types, None is float32 for all; `data_bytes` is what
    the examples take (`data_bytes`); `verifies` is of a run with steps that are computed again (train/verify.py).
    """

    def __init__(
        self,
        config: LLaMAConfig,
        *,
        adapter: AdapterConfig | None,
        storage: Storage | None = None,
        optimizer: str = "adamw",
        batch_size: int = 1,
        sequence_length: int = 512,
        data_bytes: int = 0,
        verifies: bool = False,
    ) -> None:
        self.config, self.full = config, adapter is None
        self.trains_logits = adapter is None or adapter.trains_logits(config)
        self.tokens = batch_size * sequence_length
        table = activations(config)
        adapted = 0 if adapter is None else adapter.activation_floats(config)
        self.table = replace(table, layer=table.layer + adapted)
        self.gradients = 4 * (config.num_parameters() if adapter is None else adapter.num_parameters(config))
        weights = (storage or StoragePolicy().storage(config.parameter_shapes())).nbytes
        self.fixed = {
            "weights": weights + (0 if self.full else self.gradients),
            "gradients": self.gradients,
            "optimizer": self.gradients * (OPTIMIZER_STATES[optimizer] + OPTIMIZER_ASIDE.get(optimizer, 0)),
        }
        hidden = hidden_matrices(config) if optimizer == "muon" else []  # which have one float less
        self.fixed["optimizer"] -= sum(4 * rows * columns for rows, columns in hidden)
        if verifies:
            self.fixed["verification"] = self._verified_piece() * (1 + OPTIMIZER_STATES[optimizer])
        self.sides = max(((min(shape), max(shape)) for shape in hidden), key=lambda s: s[0] * s[1], default=(0, 0))
        self.data_bytes = data_bytes

    def _verified_piece(self) -> int:
        """Of what is updated and verified at once, the weights, which are kept with their states; at most."""
        largest = 4 * self.table.logits * self.table.hidden if self.trains_logits else 0
        return min(self.gradients, max(PIECE_BYTES, largest))

    @property
    def chunks(self) -> int:
        """The parts in which the loss computes logits, one at a time."""
        return -(-self.table.logits * 4 * self.tokens // HEAD_CHUNK_BYTES)  # rounded up

    def estimate(self, checkpointing: bool | int) -> MemoryEstimate:
        """The items where `checkpointing` layers are computed again in backward, or True for all."""
        recomputed = recomputed_layers(self.config, checkpointing)
        activations = self._activations(recomputed)
        return MemoryEstimate(
            {
                **self.fixed,
                "activations": activations,
                "cache": max(0, self._working(recomputed) + self._kept(recomputed) - activations),
                "scratch": self._packed(),
                "data": self.data_bytes,
                "runtime": RUNTIME_BYTES + self.config.vocab_size * ENTRY_BYTES,
            }
        )

    def _activations(self, recomputed: int) -> int:
        """Beside the gradients: backward frees activations as it makes those, so at any moment the larger counts."""
        token_bytes, table = 4 * self.tokens, self.table
        saved, working = self._saved(recomputed), self._working(recomputed)
        head = 4 * table.logits * table.hidden if self.trains_logits else 0  # its gradient exists before any other
        logits = table.logits * token_bytes // self.chunks
        short, long = self.sides  # of Muon's largest: gradient, step, x, the next x; x x^T, its square and a product
        muon = 4 * (5 * short * long + 3 * short * short)
        return max(max(saved + head + max(logits, working), self.gradients + working) - self.gradients, muon)

    def _saved(self, recomputed: int) -> int:
        """What backward needs of forward."""
        table, kept_layers = self.table, self.config.num_hidden_layers - recomputed
        return 4 * self.tokens * (recomputed * table.hidden + kept_layers * table.layer + 2 * table.hidden)

    def _working(self, recomputed: int) -> int:
        """What backward of one layer needs beside that."""
        last = recomputed == self.config.num_hidden_layers  # else its own are free before a layer is computed again
        return 4 * self.tokens * (self.table.backward + (self.table.layer if last else 0))

    def _kept(self, recomputed: int) -> int:
        """Of the activations that backward has freed, what the allocator keeps while all gradients stand beside it."""
        return min(self._saved(recomputed), sum(self.fixed.values()) // CACHED_PART + CACHED_BYTES)

    def _packed(self) -> int:
        """A of a product, packed in the kernels' order: tokens by what they are multiplied with."""
        tokens, table, rows_of_logits = self.tokens, self.table, -(-self.tokens // self.chunks)
        operands = [(tokens, table.widest), (rows_of_logits, table.logits), self.sides]
        if self.full:  # the weights' gradients have it transposed
            operands += [(table.widest, tokens)]
        if self.trains_logits:
            operands += [(table.logits, rows_of_logits)]
        return 4 * max(min(rows, PACKED_ROWS) * min(steps, PACKED_STEPS) for rows, steps in operands)


def hidden_matrices(config: LLaMAConfig) -> list[tuple[int, ...]]:
    """The shapes of what Muon updates."""
    return [shape for name, shape in config.parameter_shapes().items() if is_hidden_matrix(name, shape)]


def data_bytes(config: TrainConfig, share: float = DATA_SHARE) -> int:
    """What the examples of a file take, of which tokens and training marks are kept and no text; 0 where it is none."""
    data, most = config.data, config.data.max_examples
    files = [] if data.path is None else sources_of(data.path)
    files += [] if data.eval_path is None else eval_sources(data.eval_path)
    size = sum(source.nbytes for source in files)
    rows = len(files) * most * (config.training.sequence_length * DATA_TOKEN_BYTES + DATA_EXAMPLE_BYTES)
    if share == DATA_SHARE and share * size > (held := HELD_BYTES * (4 if config.preference.method == "kto" else 2)):
        return min(int(DATA_INDEX_SHARE * size) + held, rows or sys.maxsize)
    return min(int(share * size), rows) if most else int(share * size)


def step_memory(
    shape: LLaMAConfig, config: TrainConfig, storage: Storage | None = None, data_share: float = DATA_SHARE
) -> StepMemory:
    """What the steps of a run hold."""
    t = config.training
    return StepMemory(
        shape,
        adapter=config.adapter,
        storage=storage,
        optimizer=t.optimizer,
        batch_size=t.batch_size * (2 if config.preference.method in ("dpo", "orpo") else 1),  # of pairs
        sequence_length=t.sequence_length,
        data_bytes=data_bytes(config, data_share),
        verifies=config.observe.verify_every > 0,
    )


def chosen(step: StepMemory, config: TrainConfig, available: int) -> tuple[int, MemoryEstimate]:
    """How many layers are computed again in backward, as few as fit where that is `auto`, and the estimate.

    ConfigError for more layers than the model has.
    """
    every, wanted = step.config.num_hidden_layers, config.training.gradient_checkpointing
    if wanted != "auto":
        numbered = wanted if isinstance(wanted, int) else {"on": every, "off": 0}[wanted]
        if numbered > every:
            raise ConfigError(
                f"training.gradient_checkpointing is {numbered}, and the model has {every} layers; give at most "
                f"{every}, on or auto."
            )
        count = recomputed_layers(step.config, numbered)
    elif step.estimate(0).total <= available:
        count = 0
    else:
        fitting = (count for count in range(1, every) if MARGIN * step.estimate(count).total <= available)
        count = next(fitting, every)
    return count, step.estimate(count)


def plan(
    shape: LLaMAConfig,
    config: TrainConfig,
    storage: Storage | None = None,
    data_share: float = DATA_SHARE,
) -> tuple[int, MemoryEstimate]:
    """How many layers to compute again in backward, and the estimate of the run; MemoryBudgetError where none fits."""
    available = available_memory()
    count, needed = chosen(step_memory(shape, config, storage, data_share), config, available)
    if needed.total > available:
        raise MemoryBudgetError(shortage(needed, available, remedies(shape, config, storage, available, data_share)))
    return count, needed


# ---------------------------------------------------------------------- what would make a run fit
@dataclass(frozen=True)
class Remedy:
    """Settings under which a run would fit, by key of a configuration file, and the bytes that it then needs."""

    settings: dict[str, Any]
    total: int

    def __str__(self) -> str:
        said = " and ".join(f"{key} = {value}" for key, value in self.settings.items())
        return f"{said} ({self.total / 2**30:.1f} GiB)"


def shortage(needed: MemoryEstimate, available: int, found: Sequence[Remedy]) -> str:
    """The sentence for a run that does not fit."""
    largest = sorted(needed.items.items(), key=lambda item: -item[1])[:2]
    parts = " and ".join(f"{size / 2**30:.1f} GiB of {name}" for name, size in largest)
    advice = " or ".join(map(str, found)) or "a smaller model: no setting makes this one fit"
    return (
        f"The run needs about {needed.total / 2**30:.1f} GiB ({parts}) and {available / 2**30:.1f} GiB is available; "
        f"use {advice}."
    )


def remedies(
    shape: LLaMAConfig,
    config: TrainConfig,
    storage: Storage | None,
    available: int,
    data_share: float = DATA_SHARE,
) -> list[Remedy]:
    """Each change of one setting that makes the run fit, else all of them together, if that does."""

    def tried(variant: Variant) -> tuple[int, bool]:
        """What it needs, and whether it fits with the margin, which `auto` has where all layers computed again do."""
        step = step_memory(shape, variant.config, variant.storage, data_share)
        total = chosen(step, variant.config, available)[1].total
        auto = variant.config.training.gradient_checkpointing == "auto"
        return total, total <= available and MARGIN * (step.estimate(True).total if auto else total) <= available

    found, together = [], Variant(config, storage, {})
    for change in (_again, _sixteen_bits, _four_bits, _rows, _length, _examples):
        for variant in change(shape, Variant(config, storage, {})):
            total, fits = tried(variant)
            if fits:
                found.append(Remedy(variant.settings, total))
                break
    if found:
        return found
    for change in (_again, _sixteen_bits, _four_bits, _rows, _length, _examples):
        for variant in change(shape, together):
            together, (total, fits) = variant, tried(variant)
            if fits:
                return [Remedy(variant.settings, total)]
    return []


@dataclass(frozen=True)
class Variant:
    """A run that is changed by some settings."""

    config: TrainConfig
    storage: Storage | None
    settings: dict[str, Any]

    def trained(self, **values: Any) -> Variant:
        """With other values in [training]."""
        config = replace(self.config, training=replace(self.config.training, **values))
        return replace(self, config=config, settings=self.settings | {f"training.{k}": v for k, v in values.items()})


def _again(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    if run.config.training.gradient_checkpointing != "auto":
        yield run.trained(gradient_checkpointing="auto")


def _sixteen_bits(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    """A frozen base in 16 bits where matrices of it are wider."""
    if run.storage is None or run.config.adapter is None or run.storage.policy.quantize is not None:
        return
    storage = replace(run.storage.policy, dtype="bfloat16").storage(shape.parameter_shapes())
    if storage.nbytes < run.storage.nbytes:
        yield Variant(run.config, storage, run.settings | {"model.dtype": "bfloat16"})


def _four_bits(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    """A base of a file in 4 bits, under the adapter that there is or, where all weights are trained, under one."""
    if run.storage is None or run.storage.policy.quantize is not None:
        return
    storage = StoragePolicy(run.storage.policy.dtype, "nf4").storage(shape.parameter_shapes())
    if run.config.adapter is None:
        t = run.config.training
        adapter = QLoRAConfig(target_modules=["all-linear"])
        settings, config = run.settings | {"model.adapter": "qlora"}, replace(run.config, adapter=adapter)
        if t.optimizer == MUON:  # which trains no adapters
            settings |= {"training.optimizer": "adamw"}
            config = replace(config, training=replace(t, optimizer="adamw"))
        yield Variant(config, storage, settings)
    elif isinstance(run.config.adapter, QLoRAConfig):
        yield Variant(run.config, storage, run.settings | {"qlora.quantize_4bit": "true"})
    else:
        yield Variant(run.config, storage, run.settings | {"model.quantize": "nf4"})


def _rows(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    """Fewer rows at once, in more parts of the same step."""
    t = run.config.training
    least = 2 if run.config.preference.method == "kto" else 1
    for size in range(t.batch_size // 2, least - 1, -1):
        if t.batch_size % size == 0:
            parts = t.gradient_accumulation * t.batch_size // size
            yield run.trained(batch_size=size, gradient_accumulation=parts)


def _length(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    length = run.config.training.sequence_length
    for part in (7, 6, 5, 4, 3, 2, 1):
        shorter = length * part // 8 // 64 * 64
        if shorter:
            yield run.trained(sequence_length=shorter)


def _examples(shape: LLaMAConfig, run: Variant) -> Iterator[Variant]:
    data = run.config.data
    for most in (100_000, 10_000, 1000):
        if data.path is not None and (not data.max_examples or data.max_examples > most):
            yield replace(
                run,
                config=replace(run.config, data=replace(data, max_examples=most)),
                settings=run.settings | {"data.max_examples": most},
            )

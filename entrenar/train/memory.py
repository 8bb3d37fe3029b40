"""Peak memory of a training step, estimated item by item before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from entrenar.adapters.base import AdapterConfig
from entrenar.autograd.ops.cross_entropy import HEAD_CHUNK_BYTES
from entrenar.errors import MemoryBudgetError
from entrenar.models.config import LLaMAConfig
from entrenar.models.decoder import recomputed_layers, saved_floats
from entrenar.models.storage import Storage, StoragePolicy
from entrenar.observe.hardware import available_memory
from entrenar.train.config import TrainConfig

RUNTIME_BYTES = 112 << 20  # Python, the libraries, the documentation's examples
# Of a file of examples, for each of its bytes: 5 bytes a token of four, 200 an example of a thousand, and the rows.
DATA_SHARE = 1.6
DATA_TOKEN_BYTES, DATA_EXAMPLE_BYTES = 5, 200
ENTRY_BYTES = 512  # of the tokenizer, for each entry of its vocabulary
PACKED_ROWS, PACKED_STEPS = 1024, 8192  # that a product packs at once, about (_kernels/gemm.pyx)
MARGIN = 1.1  # what an estimate may be off by, once layers are chosen to fit it
OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by item; `total` is their sum."""

    items: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of everything together."""
        return sum(self.items.values())


def layer_activation_floats(config: LLaMAConfig, adapter: AdapterConfig | None) -> int:
    """Floats a token that one decoder layer saves for its backward pass: its own, and what each adapter saves."""
    return saved_floats(config) + (adapter.activation_floats(config) if adapter else 0)


def estimate(
    config: LLaMAConfig,
    *,
    adapter: AdapterConfig | None,
    storage: Storage | None = None,
    optimizer: str = "adamw",
    batch_size: int = 1,
    sequence_length: int = 512,
    checkpointing: bool | int = False,
    data_bytes: int = 0,
) -> MemoryEstimate:
    """What training holds at its peak, from the second step on; `adapter` None is full fine-tuning.

    `storage` has the weight types, None is float32 for all; `checkpointing` is the number of layers whose activations
    are computed again, or True for all; `data_bytes` is what the examples take (`data_bytes`).
    """
    storage = storage or StoragePolicy().storage(config.parameter_shapes())
    if adapter is None:
        trainable = config.num_parameters()
    else:
        trainable = adapter.num_parameters(config)
    token_bytes = 4 * batch_size * sequence_length  # of one float a token
    layer, hidden = layer_activation_floats(config, adapter) * token_bytes, config.hidden_size * token_bytes
    recomputed = recomputed_layers(config, checkpointing)
    saved = recomputed * hidden + (config.num_hidden_layers - recomputed) * layer + 2 * hidden
    head = config.vocab_size * config.hidden_size * 4 if adapter is None else 0  # its gradient exists before any other
    chunks = -(-config.vocab_size * token_bytes // HEAD_CHUNK_BYTES)  # rounded up
    logits = config.vocab_size * token_bytes // chunks
    # the widest moment of a layer's backward: two gradients as wide as the feed-forward layer
    working = 3 * config.intermediate_size * token_bytes
    if recomputed == config.num_hidden_layers:  # else those of the last layer are free before one is computed again
        working += layer
    # backward frees activations as it makes gradients, so at any moment the larger of the two counts
    gradients = trainable * 4
    activations = max(saved + head + max(logits, working), gradients + working) - gradients
    # the left factor of a product, in the kernels' order: tokens by what they are multiplied with
    tokens = batch_size * sequence_length
    factors = [(tokens, config.intermediate_size), (-(-tokens // chunks), config.vocab_size)]
    if adapter is None:  # the weights' gradients have it transposed
        factors += [(config.intermediate_size, tokens), (config.vocab_size, -(-tokens // chunks))]
    packed = 4 * max(min(rows, PACKED_ROWS) * min(steps, PACKED_STEPS) for rows, steps in factors)
    return MemoryEstimate(
        {
            "weights": storage.nbytes + (gradients if adapter else 0),
            "gradients": gradients,
            "optimizer": gradients * OPTIMIZER_STATES[optimizer],
            "activations": activations,
            "scratch": packed,
            "data": data_bytes,
            "runtime": RUNTIME_BYTES + config.vocab_size * ENTRY_BYTES,
        }
    )


def data_bytes(config: TrainConfig, share: float = DATA_SHARE) -> int:
    """What the examples of a file take, of which tokens and training marks are held and no text; 0 where it is none."""
    path, most = config.data.path, config.data.max_examples
    try:
        size = 0 if path is None else Path(path).stat().st_size
    except (OSError, ValueError):
        return 0  # what is wrong with it is said when it is read
    rows = most * (config.training.sequence_length * DATA_TOKEN_BYTES + DATA_EXAMPLE_BYTES)
    return min(int(share * size), rows) if most else int(share * size)


def check_budget(needed: MemoryEstimate, available: int) -> None:
    """Raise MemoryBudgetError where the estimate exceeds what is available."""
    if needed.total <= available:
        return
    largest = sorted(needed.items.items(), key=lambda item: -item[1])[:2]
    parts = " and ".join(f"{size / 2**30:.1f} GiB of {name}" for name, size in largest)
    advice = "fewer examples (data.max_examples), " if "data" in dict(largest) else ""
    raise MemoryBudgetError(
        f"The run needs about {needed.total / 2**30:.1f} GiB ({parts}) and {available / 2**30:.1f} GiB is available; "
        f"use {advice}a shorter sequence, a smaller batch, gradient checkpointing, LoRA or a 4-bit base."
    )


def plan(
    shape: LLaMAConfig,
    config: TrainConfig,
    storage: Storage | None = None,
    data_share: float = DATA_SHARE,
) -> tuple[int, MemoryEstimate]:
    """How many layers to compute again in backward, and the estimate of the run; MemoryBudgetError where none fits."""
    t, examples = config.training, data_bytes(config, data_share)

    def needed(checkpointing: int) -> MemoryEstimate:
        return estimate(
            shape,
            adapter=config.adapter,
            storage=storage,
            optimizer=t.optimizer,
            batch_size=t.batch_size,
            sequence_length=t.sequence_length,
            checkpointing=checkpointing,
            data_bytes=examples,
        )

    every, wanted, available = shape.num_hidden_layers, t.gradient_checkpointing, available_memory()
    if wanted != "auto":
        checkpointing = recomputed_layers(shape, wanted if isinstance(wanted, int) else wanted == "on")
    elif needed(0).total <= available:
        checkpointing = 0
    else:
        fitting = (count for count in range(1, every) if MARGIN * needed(count).total <= available)
        checkpointing = next(fitting, every)
    check_budget(needed(checkpointing), available)
    return checkpointing, needed(checkpointing)

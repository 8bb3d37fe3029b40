"""Peak memory of a training step, estimated item by item before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from entrenar.errors import MemoryBudgetError
from entrenar.llama.budget import available_memory, weight_bytes
from entrenar.llama.config import LLaMAConfig
from entrenar.lora.config import LoRAConfig
from entrenar.train.config import TrainConfig

RUNTIME_BYTES = 120 << 20  # Python, the libraries, the tokenizer, scratch of the kernels
CHUNK_BYTES = 32 << 20  # of logits in the fused head
OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by item; `total` is their sum."""

    items: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


def block_activation_floats(config: LLaMAConfig, lora: LoRAConfig | None) -> int:
    """Floats a token that one block keeps for its backward pass.

    Residual input, norm output, q, k and v before and after the rotation, attention output and its log-sum-exp, second
    residual and norm output, gate, up and their product, each linear's x A^T.
    """
    q, kv = config.num_attention_heads * config.head_size, config.kv_heads * config.head_size
    floats = (
        4 * config.hidden_size + 2 * (q + kv) + kv + q + 2 * config.num_attention_heads + 3 * config.intermediate_size
    )
    return floats + (lora.rank * len(lora.target_modules) if lora else 0)


def estimate(
    config: LLaMAConfig,
    *,
    lora: LoRAConfig | None,
    dtype: str = "float32",
    quantize: str | None = None,
    optimizer: str = "adamw",
    batch_size: int = 1,
    sequence_length: int = 512,
    checkpointing: bool = False,
) -> MemoryEstimate:
    """What one training step holds at its peak; `lora` None is full fine-tuning."""
    if lora is None:
        trainable = config.num_parameters()
    else:
        trainable = config.num_lora_parameters(lora.rank, lora.target_modules)
    tokens = batch_size * sequence_length
    per_block = block_activation_floats(config, lora) * tokens * 4
    hidden = config.hidden_size * tokens * 4
    blocks = per_block + config.num_hidden_layers * hidden if checkpointing else per_block * config.num_hidden_layers
    # backward holds the gradients of a few activations of a block, widest in the feed-forward layers
    backward = (4 * config.intermediate_size + 6 * config.hidden_size) * tokens * 4
    head = config.vocab_size * config.hidden_size * 4 if lora is None else 0  # its gradient is made whole
    return MemoryEstimate(
        {
            "weights": weight_bytes(config, dtype, quantize) + (trainable * 4 if lora else 0),
            "gradients": trainable * 4,
            "optimizer": trainable * 4 * OPTIMIZER_STATES[optimizer],
            "activations": blocks + backward + 3 * hidden,
            "logits": min(CHUNK_BYTES, tokens * config.vocab_size * 4) + head,
            "runtime": RUNTIME_BYTES,
        }
    )


def check_budget(needed: MemoryEstimate) -> None:
    """Raise MemoryBudgetError where the estimate exceeds what is available."""
    available = available_memory()
    if needed.total <= available:
        return
    largest = sorted(needed.items.items(), key=lambda item: -item[1])[:2]
    parts = " and ".join(f"{size / 2**30:.1f} GiB of {name}" for name, size in largest)
    raise MemoryBudgetError(
        f"The run needs about {needed.total / 2**30:.1f} GiB ({parts}) and {available / 2**30:.1f} GiB is available; "
        "use a shorter sequence, a smaller batch, gradient checkpointing, LoRA or a 4-bit base."
    )


def plan(
    shape: LLaMAConfig, config: TrainConfig, dtype: str = "float32", quantize: str | None = None
) -> tuple[bool, MemoryEstimate]:
    """Whether to recompute blocks in backward, and the estimate of the run; MemoryBudgetError where nothing fits."""
    t = config.training

    def needed(checkpointing: bool) -> MemoryEstimate:
        return estimate(
            shape,
            lora=config.adapter,
            dtype=dtype,
            quantize=quantize,
            optimizer=t.optimizer,
            batch_size=t.batch_size,
            sequence_length=t.sequence_length,
            checkpointing=checkpointing,
        )

    checkpointing = t.gradient_checkpointing == "on" or (
        t.gradient_checkpointing == "auto" and needed(False).total > available_memory()
    )
    check_budget(needed(checkpointing))
    return checkpointing, needed(checkpointing)

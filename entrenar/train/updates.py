"""How the optimizer's groups of parameters and the schedule follow from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entrenar.autograd import Tensor
from entrenar.optim import (
    WSDLR,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    Optimizer,
    Schedule,
    StepLR,
    WarmupCosineLR,
)

if TYPE_CHECKING:
    from entrenar.train.config import LRSchedule, Training


def parameter_groups(t: Training, parameters: list[tuple[str, Tensor]]) -> list[Any]:
    """The pairs themselves where all are updated alike, else groups by whether they decay and how fast they learn.

    With loraplus_lr_ratio B and every vector learn faster, and the embedding's adapter at a rate of its own, as in
    PEFT's create_loraplus_optimizer.
    """
    keeps_small = bool(t.weight_decay) and not t.decay_norms
    groups: dict[tuple[float, bool], list[tuple[str, Tensor]]] = {(t.learning_rate, False): []}
    for name, tensor in parameters:
        small, rate = len(tensor.shape) < 2, t.learning_rate  # small: norms and biases
        if t.loraplus_lr_ratio is not None:
            if ".lora_embedding_" in name:
                rate = t.loraplus_lr_embedding
            elif small or ".lora_B." in name:
                rate *= t.loraplus_lr_ratio
        groups.setdefault((rate, small and keeps_small), []).append((name, tensor))
    if len(groups) == 1:
        return parameters
    return [
        {"params": pairs}
        | ({} if rate == t.learning_rate else {"lr": rate})
        | ({"weight_decay": 0.0} if undecayed else {})
        for (rate, undecayed), pairs in groups.items()
    ]


def schedule_of(s: LRSchedule, steps: int, optimizer: Optimizer) -> Schedule:
    """The schedule of [lr_schedule], its curve made for `steps`."""
    warmup = min(100, steps // 10) if s.warmup_steps is None else s.warmup_steps
    if s.name == "constant":
        return ConstantLR(optimizer, warmup)
    if s.name == "step":
        return StepLR(optimizer, s.step_size, 0.1 if s.gamma is None else s.gamma)
    if s.name == "exponential":
        assert s.gamma is not None  # held by the configuration
        return ExponentialLR(optimizer, s.gamma)
    if s.name == "cosine":
        return CosineAnnealingLR(optimizer, steps, s.min_lr)
    if s.name == "linear":
        return LinearLR(optimizer, warmup, steps, s.min_lr)
    if s.name == "wsd":
        falling = steps // 10 if s.decay_steps is None else s.decay_steps
        return WSDLR(optimizer, warmup, steps, falling, s.decay_shape, s.min_lr)
    return WarmupCosineLR(optimizer, warmup, steps, s.min_lr)

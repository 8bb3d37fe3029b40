"""How the optimizer's groups of parameters and the schedule follow from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import (
    SGD,
    WSDLR,
    Adam,
    AdamW,
    AdamWScheduleFree,
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


SCHEDULEFREE = "schedulefree_adamw"
ADAMS: dict[str, type[Adam]] = {"adamw": AdamW, "adam": Adam, SCHEDULEFREE: AdamWScheduleFree}
OPTIMIZERS = (*ADAMS, "sgd")


def check_updates(t: Training, s: LRSchedule) -> None:
    """ConfigError where the optimizer and the schedule, or keys of both, contradict each other."""
    if t.optimizer == SCHEDULEFREE and s.name != "constant":
        raise ConfigError(
            f"lr_schedule.name is {s.name}, and {SCHEDULEFREE} averages the weights in the place of a rate that falls; "
            "set lr_schedule.name to constant (with warmup_steps as you like)."
        )
    if t.optimizer == SCHEDULEFREE and not t.beta1:
        raise ConfigError(f"training.beta1 is 0, expected a number above 0 for {SCHEDULEFREE}: 0.9, or 0.95 to 0.98.")


def optimizer_of(t: Training, parameters: list[tuple[str, Tensor]]) -> Optimizer:
    """The optimizer of [training] over (name, tensor) pairs; ConfigError for a name that is none."""
    groups = parameter_groups(t, parameters)
    if t.optimizer == "sgd":
        return SGD(groups, lr=t.learning_rate, momentum=t.momentum, weight_decay=t.weight_decay)
    if t.optimizer not in ADAMS:
        raise ConfigError(f"training.optimizer is {t.optimizer!r:.80}, expected one of {', '.join(OPTIMIZERS)}.")
    betas = t.beta1, t.beta2
    return ADAMS[t.optimizer](groups, lr=t.learning_rate, betas=betas, eps=t.eps, weight_decay=t.weight_decay)


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

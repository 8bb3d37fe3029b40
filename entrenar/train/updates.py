"""How the optimizer's groups of parameters and the schedule follow from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entrenar.errors import ConfigError

if TYPE_CHECKING:
    from entrenar.adapters.base import AdapterConfig
    from entrenar.autograd import Tensor
    from entrenar.optim import Optimizer, Schedule
    from entrenar.train.config import LRSchedule, Training


SCHEDULEFREE, MUON = "schedulefree_adamw", "muon"
OPTIMIZERS = ("adamw", "adam", SCHEDULEFREE, MUON, "sgd")  # words alone: a configuration is read without the engine
SGD_MOMENTUM, MUON_MOMENTUM = 0.9, 0.95


def check_updates(t: Training, s: LRSchedule, adapter: AdapterConfig | None) -> None:
    """ConfigError where the optimizer, the schedule and what is trained, or keys of them, contradict each other."""
    if t.optimizer == SCHEDULEFREE and s.name != "constant":
        raise ConfigError(
            f"lr_schedule.name is {s.name}, and {SCHEDULEFREE} averages the weights in the place of a rate that falls; "
            "set lr_schedule.name to constant (--schedule constant), with warmup_steps as you like."
        )
    if t.optimizer == SCHEDULEFREE and not t.beta1:
        raise ConfigError(f"training.beta1 is 0, expected a number above 0 for {SCHEDULEFREE}: 0.9, or 0.95 to 0.98.")
    if t.optimizer == MUON and adapter is not None:
        raise ConfigError(
            f"training.optimizer is muon, which is for the matrices of a model, and [{adapter.section}] trains "
            "adapters in their place; choose adamw, or train all weights (--adapter none)."
        )


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates a weight: the matrices of the layers, and neither the embedding nor the head."""
    return ".layers." in name and len(shape) == 2


def optimizer_of(t: Training, parameters: list[tuple[str, Tensor]]) -> Optimizer:
    """The optimizer of [training] over (name, tensor) pairs; ConfigError for a name that is none."""
    from entrenar.optim import SGD, Adam, AdamW, AdamWScheduleFree, Muon

    adams: dict[str, type[Adam]] = {"adamw": AdamW, "adam": Adam, SCHEDULEFREE: AdamWScheduleFree}
    groups = parameter_groups(t, parameters)
    options: dict[str, Any] = {"lr": t.learning_rate, "weight_decay": t.weight_decay}
    if t.optimizer == "sgd":
        return SGD(groups, momentum=SGD_MOMENTUM if t.momentum is None else t.momentum, **options)
    options |= {"betas": (t.beta1, t.beta2), "eps": t.eps}
    if t.optimizer == MUON:
        return Muon(groups, momentum=MUON_MOMENTUM if t.momentum is None else t.momentum, **options)
    if t.optimizer not in adams:
        raise ConfigError(f"training.optimizer is {t.optimizer!r:.80}, expected one of {', '.join(OPTIMIZERS)}.")
    return adams[t.optimizer](groups, **options)


def parameter_groups(t: Training, parameters: list[tuple[str, Tensor]]) -> list[Any]:
    """The pairs themselves where all are updated alike, else groups by how: decay, rate, and Muon or AdamW.

    With loraplus_lr_ratio B and every vector learn faster, and the embedding's adapter at a rate of its own, as in
    PEFT's create_loraplus_optimizer.
    """
    keeps_small = bool(t.weight_decay) and not t.decay_norms
    groups: dict[tuple[tuple[str, Any], ...], list[tuple[str, Tensor]]] = {(): []}  # of options; the common rate first
    for name, tensor in parameters:
        options: dict[str, Any] = {}
        small = len(tensor.shape) < 2  # norms and biases
        if t.loraplus_lr_ratio is not None:
            if ".lora_embedding_" in name:
                options["lr"] = t.loraplus_lr_embedding
            elif small or ".lora_B." in name:
                options["lr"] = t.learning_rate * t.loraplus_lr_ratio
        if small and keeps_small:
            options["weight_decay"] = 0.0
        if t.optimizer == MUON and not is_hidden_matrix(name, tensor.shape):
            options["use_muon"] = False
        groups.setdefault(tuple(options.items()), []).append((name, tensor))
    if len(groups) == 1:
        return parameters
    return [{"params": pairs, **dict(options)} for options, pairs in groups.items()]


def schedule_of(s: LRSchedule, steps: int, optimizer: Optimizer) -> Schedule:
    """The schedule of [lr_schedule], its curve made for `steps`."""
    from entrenar.optim import (
        WSDLR,
        ConstantLR,
        CosineAnnealingLR,
        ExponentialLR,
        LinearLR,
        StepLR,
        WarmupCosineLR,
    )

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

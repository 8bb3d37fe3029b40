"""Learning-rate schedules, with the names and values of torch.optim.lr_scheduler and transformers.

A warmup of n steps trains at 1/n, 2/n, ..., 1 of the rate, where transformers' begins with a step at 0.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from entrenar.choices import FALLS
from entrenar.errors import ConfigError
from entrenar.optim.optimizer import Optimizer, check_range


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}, expected a positive number.")


def _steps(name: str, value: int, low: int, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= value <= min(high, 2**63):
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ConfigError(f"{name} is {value!r}, expected a whole number {limits}.")


class Schedule:
    """Sets every group's learning rate to its initial rate times `factor(step)`; step 0 is set at construction.

    Call `step()` once after each optimizer step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"{type(self).__name__} needs an optimizer, not {type(optimizer).__name__}.")
        self.optimizer = optimizer
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def rate(self, base: float) -> float:
        """The learning rate at `last_step` of a group that began with `base`."""
        raise NotImplementedError

    def warming(self, base: float, warmup_steps: int, low: float = 0.0) -> float:
        """The rate at `last_step` of a linear warmup from `low` to `base`, whose first step is above `low`."""
        return low + (base - low) * (self.last_step + 1) / warmup_steps

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rate(base)

    def step(self) -> None:
        """Advance by one optimizer step."""
        self.last_step += 1
        self._set()

    def rate_at(self, step: int) -> float:
        """The learning rate of the first group at `step`."""
        now, self.last_step = self.last_step, step
        try:
            return self.rate(self.base_lrs[0])
        finally:
            self.last_step = now

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue."""
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; ConfigError where it is of another optimizer."""
        if set(state) != {"last_step", "base_lrs"} or len(state["base_lrs"]) != len(self.base_lrs):
            raise ConfigError("The schedule's state does not belong to this optimizer.")
        self.last_step, self.base_lrs = state["last_step"], list(state["base_lrs"])
        self._set()


class ConstantLR(Schedule):
    """The initial rate, after a linear warmup of `warmup_steps`."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0) -> None:
        _steps("ConstantLR: warmup_steps", warmup_steps, 0)
        self.warmup_steps = warmup_steps
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        return self.warming(base, self.warmup_steps) if self.last_step < self.warmup_steps else base


class StepLR(Schedule):
    """base * gamma^floor(step / step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _steps("StepLR: step_size", step_size, 1)
        _positive("StepLR: gamma", gamma)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        return base * self.gamma ** (self.last_step // self.step_size)


class ExponentialLR(Schedule):
    """base * gamma^step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        _positive("ExponentialLR: gamma", gamma)
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        return base * self.gamma**self.last_step


class CosineAnnealingLR(Schedule):
    """From base to eta_min along half a cosine of T_max steps, and back up after (Loshchilov and Hutter, 2017)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        _steps("CosineAnnealingLR: T_max", T_max, 1)
        check_range("CosineAnnealingLR", "eta_min", eta_min, 0)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_step / self.T_max)) / 2


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


# The share of the rate that is left where so much of the way down is done.
SHAPES: dict[str, Callable[[float], float]] = dict(
    zip(FALLS, (_half_cosine, lambda progress: 1 - progress, lambda progress: 1 - math.sqrt(progress)), strict=True)
)


class _WarmupThenFall(Schedule):
    """Linear warmup over `warmup_steps`, then down to `min_lr` at `total_steps`, and constant after."""

    fall = "linear"

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> None:
        owner = type(self).__name__
        _steps(f"{owner}: total_steps", total_steps, 1)
        _steps(f"{owner}: warmup_steps", warmup_steps, 0, total_steps)
        check_range(owner, "min_lr", min_lr, 0)
        self.warmup_steps, self.total_steps, self.min_lr = warmup_steps, total_steps, min_lr
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        if self.last_step < self.warmup_steps:
            return self.warming(base, self.warmup_steps)
        progress = min(1.0, (self.last_step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.min_lr + (base - self.min_lr) * SHAPES[self.fall](progress)


class WarmupCosineLR(_WarmupThenFall):
    """Linear warmup, then half a cosine down to `min_lr` at `total_steps`, and constant after.

    With min_lr 0 the values after the warmup are those of transformers' get_cosine_schedule_with_warmup.
    """

    fall = "cosine"


class LinearLR(_WarmupThenFall):
    """Linear warmup, then a line down to `min_lr` at `total_steps`, and constant after.

    With min_lr 0 the values after the warmup are those of transformers' get_linear_schedule_with_warmup.
    """


class WSDLR(Schedule):
    """Linear warmup from `min_lr`, stable at the initial rate, and in the last `decay_steps` down to `min_lr` (WSD).

    Hu et al., "MiniCPM", 2024; the values after the warmup are those of transformers' get_wsd_schedule, whose
    decay_type is `decay` (cosine, linear or 1-sqrt).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int,
        decay_steps: int,
        decay: str = "cosine",
        min_lr: float = 0.0,
    ) -> None:
        _steps("WSDLR: total_steps", total_steps, 1)
        _steps("WSDLR: warmup_steps", warmup_steps, 0, total_steps)
        _steps("WSDLR: decay_steps", decay_steps, 0, total_steps - warmup_steps)
        check_range("WSDLR", "min_lr", min_lr, 0)
        if not isinstance(decay, str) or decay not in SHAPES:
            raise ConfigError(f"WSDLR: decay is {decay!r:.80}, expected one of {', '.join(SHAPES)}.")
        self.warmup_steps, self.total_steps, self.decay_steps = warmup_steps, total_steps, decay_steps
        self.decay, self.min_lr = decay, min_lr
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        if self.last_step < self.warmup_steps:
            return self.warming(base, self.warmup_steps, self.min_lr)
        done = self.last_step - (self.total_steps - self.decay_steps)
        if done < 0:
            return base
        progress = min(1.0, done / self.decay_steps) if self.decay_steps else 1.0
        return self.min_lr + (base - self.min_lr) * SHAPES[self.decay](progress)

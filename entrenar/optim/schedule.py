"""Learning-rate schedules, with torch.optim.lr_scheduler's names and values."""

from __future__ import annotations

import math
import numbers
from typing import Any

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
        return base * self.last_step / self.warmup_steps if self.last_step < self.warmup_steps else base


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


class WarmupCosineLR(Schedule):
    """Linear from 0 over `warmup_steps`, then half a cosine down to `min_lr` at `total_steps`, and constant after.

    With min_lr 0 the values are those of transformers' get_cosine_schedule_with_warmup.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> None:
        _steps("WarmupCosineLR: total_steps", total_steps, 1)
        _steps("WarmupCosineLR: warmup_steps", warmup_steps, 0, total_steps)
        check_range("WarmupCosineLR", "min_lr", min_lr, 0)
        self.warmup_steps, self.total_steps, self.min_lr = warmup_steps, total_steps, min_lr
        super().__init__(optimizer)

    def rate(self, base: float) -> float:
        if self.last_step < self.warmup_steps:
            return base * self.last_step / self.warmup_steps
        progress = min(1.0, (self.last_step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.min_lr + (base - self.min_lr) * (1 + math.cos(math.pi * progress)) / 2

"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import update
from entrenar.optim.optimizer import Entry, Optimizer, Parameters, check_range


class SGD(Optimizer):
    """SGD with momentum, dampening, Nesterov momentum and L2 weight decay, as torch.optim.SGD defines them.

    Each step, with g = gradient + weight_decay * p: buffer = momentum * buffer + (1 - dampening) * g (g itself at the
    first step), and p -= lr * buffer, or lr * (g + momentum * buffer) with Nesterov. Sutskever et al., ICML 2013.

    `params`: Tensors, (name, Tensor) pairs, or dicts with "params" and options of their own. Raises ConfigError for a
    frozen parameter or an option out of range.
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Tensor | Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, options)

    def check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_range("SGD", name, group[name], 0)
        check_range("SGD", "dampening", group["dampening"], float("-inf"))
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ConfigError("SGD: Nesterov momentum needs a momentum above 0 and no dampening.")

    def update(self, entries: list[Entry], group: dict[str, Any], gradient_scale: float) -> None:
        ready = []
        for parameter, gradient, state in entries:
            buffer = state.get("momentum_buffer")
            first = buffer is None
            if group["momentum"] and first:
                buffer = update.zeros_like(parameter)
            ready.append((parameter, gradient, buffer if group["momentum"] else None, first))
        update.sgd_step(
            ready,
            gradient_scale=gradient_scale,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )
        for (_, _, state), (_, _, buffer, _) in zip(entries, ready, strict=True):
            if buffer is not None:
                state["momentum_buffer"] = buffer

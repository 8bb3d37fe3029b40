"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import update
from entrenar.optim.optimizer import Entry, Optimizer, Parameters, check_range


class Adam(Optimizer):
    """Adam (Kingma and Ba, ICLR 2015); `weight_decay` is an L2 penalty added to the gradient, as in torch.optim.Adam.

    m = beta1 m + (1 - beta1) g and v = beta2 v + (1 - beta2) g^2; p -= lr m' / (sqrt(v') + eps), where m' and v' are
    divided by 1 - beta^t, computed in float64.

    `params`: Tensors, (name, Tensor) pairs, or dicts with "params" and options of their own. Raises ConfigError for a
    frozen parameter or an option out of range.
    """

    decoupled = False
    state_names: tuple[str, ...] = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Tensor | Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check(self, group: dict[str, Any]) -> None:
        for option in ("lr", "eps", "weight_decay"):
            check_range(self.name, option, group[option], 0)
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ConfigError(f"{self.name}: betas must be two numbers, not {group['betas']!r}.")
        for i, beta in enumerate(group["betas"]):
            check_range(self.name, f"betas[{i}]", beta, 0, 1)

    def update(self, entries: list[Entry], group: dict[str, Any], gradient_scale: float) -> None:
        for parameter, _, state in entries:
            if not state:
                state.update(step=0, exp_avg=update.zeros_like(parameter), exp_avg_sq=update.zeros_like(parameter))
        beta1, beta2 = group["betas"]
        update.adam_step(
            [(p, g, state["exp_avg"], state["exp_avg_sq"], state["step"] + 1) for p, g, state in entries],
            gradient_scale=gradient_scale,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self.decoupled,
        )
        for _, _, state in entries:  # counted once it is done
            state["step"] += 1


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019): p *= 1 - lr * weight_decay before the step.

    Options and errors as for `Adam`.
    """

    decoupled = True

    def __init__(
        self,
        params: Tensor | Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

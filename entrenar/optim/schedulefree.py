"""AdamW without a schedule: the average of the iterates takes the place of a falling learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import update
from entrenar.optim.adam import AdamW
from entrenar.optim.optimizer import Entry, Parameters


class AdamWScheduleFree(AdamW):
    """Schedule-free AdamW (Defazio et al., "The Road Less Scheduled", 2024; algorithm 1), as package schedulefree's.

    Gradients are taken at y = (1 - beta1) z + beta1 x: z moves as AdamW without momentum, whose decay acts at y, and x
    is the average of z, each weighted by the square of the largest learning rate so far. Parameters hold y, and after
    `eval()` x, which is the result; `train()` gives y back to the same bits. Options and errors as for `Adam`, and
    beta1 above 0. Warm the rate up (`ConstantLR` with warmup_steps) and let it stay.
    """

    state_names = ("step", "z", "exp_avg_sq", "weight_sum", "lr_max")
    numbers = ("step", "weight_sum", "lr_max")

    def __init__(
        self,
        params: Tensor | Parameters,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self._kept: dict[int, tuple[Tensor, np.ndarray]] = {}  # y of the parameters that hold x, by id

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if group["betas"][0] == 0:
            raise ConfigError(f"{self.name}: betas[0] must be above 0: y would be z, and nothing keep the average.")

    def update(self, entries: list[Entry], group: dict[str, Any], gradient_scale: float) -> None:
        if self.evaluates:
            raise ConfigError(f"{self.name}: the parameters hold the average; call train() before a step.")
        lr, ready = group["lr"], []
        for parameter, gradient, state in entries:
            if not state:
                z, squares = Tensor(parameter.numpy()), update.zeros_like(parameter)
                state.update(step=0, z=z, exp_avg_sq=squares, weight_sum=0.0, lr_max=0.0)
            highest = max(lr, state["lr_max"])
            total = state["weight_sum"] + highest**2
            average = highest**2 / total if total else 0.0
            ready.append((parameter, gradient, state["z"], state["exp_avg_sq"], state["step"] + 1, average))
        beta1, beta2 = group["betas"]
        update.schedulefree_step(
            ready,
            gradient_scale=gradient_scale,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
        for _, _, state in entries:  # counted once it is done
            highest = max(lr, state["lr_max"])
            state.update(step=state["step"] + 1, lr_max=highest, weight_sum=state["weight_sum"] + highest**2)

    # ------------------------------------------------------------------ weights of training and of the result
    def eval(self) -> None:
        """Have the parameters hold x; y is kept beside them, as large as they are."""
        for position, _, tensor, group in self._parameters():
            state = self.state.get(position)
            if state and id(tensor) not in self._kept:
                y = tensor.numpy().copy()
                self._kept[id(tensor)] = tensor, y
                tensor.numpy()[...] = _average(y, state["z"].numpy(), group["betas"][0])

    @property
    def evaluates(self) -> bool:
        return bool(self._kept)

    def train(self) -> None:
        """Have the parameters hold y."""
        for tensor, y in self._kept.values():
            tensor.numpy()[...] = y
        self._kept.clear()

    def trained(self, parameter: Tensor) -> np.ndarray:
        """y of a parameter."""
        _, y = self._kept.get(id(parameter), (None, None))
        return parameter.numpy() if y is None else y

    def results(self, weights: Mapping[str, np.ndarray], state_dict: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """x of the trained `weights`, y."""
        found, states = dict(weights), {int(key): entry for key, entry in state_dict["state"].items()}
        for position, name, _, group in self._parameters():
            if states.get(position):
                found[name] = _average(weights[name], states[position]["z"], group["betas"][0])
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `Optimizer.load_state_dict`; the parameters are to hold y, then or before."""
        super().load_state_dict(state_dict)
        self._kept.clear()


def _average(y: np.ndarray, z: np.ndarray, beta1: float) -> np.ndarray:
    """x where y = (1 - beta1) z + beta1 x."""
    return y + (z - y) * np.float32(1 - 1 / beta1)

"""Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.ops import linear, matmul
from entrenar.errors import ConfigError
from entrenar.optim import update
from entrenar.optim.adam import AdamW
from entrenar.optim.optimizer import Entry, Optimizer, Parameters, check_range

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of x, x x^T x and (x x^T)^2 x, chosen by Jordan for the slope at zero
SMALLEST_NORM = 1e-7  # that a matrix is divided by
MOST_STEPS = 100

# What the rate of a matrix of so many rows and columns is multiplied by, with torch.optim.Muon's names.
ADJUSTED: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


class Muon(AdamW):
    """Muon (Jordan, 2024), as torch.optim.Muon computes it, in float32 where that takes bfloat16.

    buffer = momentum buffer + (1 - momentum) g, and u = (1 - momentum) g + momentum buffer with Nesterov, else the
    buffer; p *= 1 - lr * weight_decay; p -= lr * adjusted * NS(u), where NS brings the singular values of u near 1 by
    `ns_steps` Newton-Schulz iterations.

    `adjust_lr_fn` "match_rms_adamw" (Liu et al., "Muon is scalable for LLM training", 2025) gives an update the size of
    AdamW's, so that one learning rate serves both kinds of parameters; "original" is Jordan's, torch's default. Groups
    with `use_muon` False are updated by AdamW with `betas` and `eps`: embeddings, the head, norms and biases.
    Options and errors as for `Adam`; ConfigError for a parameter of a Muon group that is no matrix.
    """

    def __init__(
        self,
        params: Tensor | Parameters,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        use_muon: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "betas": betas,
            "eps": eps,
            "use_muon": use_muon,
        }
        Optimizer.__init__(self, params, options)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        check_range(self.name, "momentum", group["momentum"], 0, 1)
        steps, adjust = group["ns_steps"], group["adjust_lr_fn"]
        if type(steps) is not int or not 0 < steps < MOST_STEPS:
            raise ConfigError(f"{self.name}: ns_steps is {steps!r:.80}, expected a whole number from 1 to 99.")
        if not isinstance(adjust, str) or adjust not in ADJUSTED:
            raise ConfigError(f"{self.name}: adjust_lr_fn is {adjust!r:.80}, expected one of {', '.join(ADJUSTED)}.")
        for name, tensor in zip(group["names"], group["params"], strict=False):
            if group["use_muon"] and len(tensor.shape) != 2:
                raise ConfigError(
                    f"{self.name}: {name} has shape {tensor.shape}, expected a matrix; put it into a group with "
                    "use_muon=False, which AdamW updates."
                )

    def state_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["use_muon"] else super().state_of(group)

    def update(self, entries: list[Entry], group: dict[str, Any], gradient_scale: float) -> None:
        if not group["use_muon"]:
            super().update(entries, group, gradient_scale)
            return
        lr, momentum = group["lr"], np.float32(group["momentum"])
        for parameter, gradient, state in entries:
            g = gradient.numpy() * np.float32(gradient_scale)
            if not state:
                state["momentum_buffer"] = update.zeros_like(parameter)
            buffer = state["momentum_buffer"].numpy()
            buffer += (g - buffer) * (1 - momentum)
            step = orthogonalized(g + (buffer - g) * momentum if group["nesterov"] else buffer, group["ns_steps"])
            weights, rate = parameter.numpy(), lr * ADJUSTED[group["adjust_lr_fn"]](*parameter.shape)
            weights *= np.float32(1 - lr * group["weight_decay"])
            weights -= step * np.float32(rate)


def orthogonalized(matrix: np.ndarray, steps: int) -> np.ndarray:
    """`matrix` with its singular values brought near 1, by `steps` Newton-Schulz iterations; zeros stay.

    Products are those of the precision in force, by kernels that give the same bits for any number of threads.
    """
    a, b, c = (np.float32(coefficient) for coefficient in COEFFICIENTS)
    tall = matrix.shape[0] > matrix.shape[1]
    x = Tensor(np.ascontiguousarray(matrix.T) if tall else matrix)
    x.numpy()[...] /= np.float32(max(math.sqrt(update.sum_squares([x])[0]), SMALLEST_NORM))
    for _ in range(steps):
        gram = linear(x, x)  # x x^T
        mixed = matmul(gram, gram)
        mixed.numpy()[...] = b * gram.numpy() + c * mixed.numpy()
        moved = matmul(mixed, x)
        moved.numpy()[...] += a * x.numpy()
        x = moved
    return x.numpy().T if tall else x.numpy()

"""Gradient clipping, by global norm and by value."""

from __future__ import annotations

import math

from entrenar.autograd import Tensor
from entrenar.errors import NumericsError
from entrenar.optim import update
from entrenar.optim.optimizer import Parameters, check_range, named


def clip_grad_norm(parameters: Tensor | Parameters, max_norm: float, error_if_nonfinite: bool = True) -> float:
    """Scale all gradients in place so that their joint 2-norm is at most `max_norm`; returns the norm before.

    `parameters`: Tensors or (name, Tensor) pairs; a tied one counts once, one without a gradient not at all. The norm
    is accumulated in float64; the factor is max_norm / (norm + 1e-6) as in torch. `max_norm` infinite only measures.
    Raises NumericsError naming the first parameter whose gradient is not finite, unless `error_if_nonfinite` is False;
    ConfigError for a negative `max_norm`.
    """
    if max_norm != math.inf:
        check_range("clip_grad_norm", "max_norm", max_norm, 0)
    total = 0.0
    gradients = []
    for name, tensor in named(parameters):
        if tensor.grad is None:
            continue
        squares = update.sum_squares(tensor.grad)
        if error_if_nonfinite and not math.isfinite(squares):
            raise NumericsError(
                f"The gradient of {name} has the norm {math.sqrt(squares)}, expected a finite one; "
                "lower the learning rate or look for a bad example."
            )
        total += squares
        gradients.append(tensor.grad)
    norm = math.sqrt(total)
    factor = max_norm / (norm + 1e-6) if max_norm != math.inf else 1.0
    if not factor >= 1:  # NaN too: what is not finite stays visible
        for gradient in gradients:
            update.scale_(gradient, factor)
    return norm


def clip_grad_value(parameters: Tensor | Parameters, clip_value: float) -> None:
    """Bring every element of every gradient into [-clip_value, clip_value] in place; NaN stays NaN."""
    check_range("clip_grad_value", "clip_value", clip_value, 0)
    for _, tensor in named(parameters):
        if tensor.grad is not None:
            update.clamp_(tensor.grad, clip_value)

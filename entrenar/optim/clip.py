"""Gradient clipping, by global norm and by value."""

from __future__ import annotations

import math

from entrenar.autograd import Tensor
from entrenar.errors import NumericsError
from entrenar.optim import update
from entrenar.optim.optimizer import Parameters, check_float, check_range, named


def grad_norm(parameters: Tensor | Parameters, error_if_nonfinite: bool = True) -> float:
    """The joint 2-norm of all gradients, accumulated in float64.

    `parameters`: Tensors or (name, Tensor) pairs; a tied one counts once, one without a gradient not at all. Raises
    NumericsError naming the first parameter whose gradient is not finite, unless `error_if_nonfinite` is False.
    """
    pairs = [(name, grad) for name, tensor in named(parameters) if (grad := tensor.grad) is not None]
    squares = update.sum_squares([gradient for _, gradient in pairs])
    for (name, _), square in zip(pairs, squares, strict=True):
        if error_if_nonfinite and not math.isfinite(square):
            raise NumericsError(
                f"The gradient of {name} has the norm {math.sqrt(square)}, expected a finite one; "
                "lower the learning rate or look for a bad example."
            )
    return math.sqrt(sum(squares))


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by so that it is at most `max_norm`, as in torch; NaN for NaN.

    `Optimizer.step(gradient_scale=...)` takes it, which saves the pass over memory that `clip_grad_norm` makes.
    """
    norm, max_norm = check_float("clip_factor", "norm", norm), check_float("clip_factor", "max_norm", max_norm)
    factor = max_norm / (norm + 1e-6) if max_norm != math.inf else 1.0
    return 1.0 if factor >= 1 else factor


def clip_grad_norm(parameters: Tensor | Parameters, max_norm: float, error_if_nonfinite: bool = True) -> float:
    """Scale all gradients in place so that their joint 2-norm is at most `max_norm`; returns the norm before.

    Parameters and NumericsError as for `grad_norm`; the factor is max_norm / (norm + 1e-6) as in torch. `max_norm`
    infinite only measures. ConfigError for a negative `max_norm`.
    """
    if check_float("clip_grad_norm", "max_norm", max_norm) != math.inf:
        check_range("clip_grad_norm", "max_norm", max_norm, 0)
    parameters = list(named(parameters))
    norm = grad_norm(parameters, error_if_nonfinite)
    factor = clip_factor(norm, max_norm)
    if factor != 1:  # NaN too: what is not finite stays visible
        for _, tensor in parameters:
            if (gradient := tensor.grad) is not None:
                update.scale_(gradient, factor)
    return norm


def clip_grad_value(parameters: Tensor | Parameters, clip_value: float) -> None:
    """Bring every element of every gradient into [-clip_value, clip_value] in place; NaN stays NaN."""
    check_range("clip_grad_value", "clip_value", clip_value, 0)
    for _, tensor in named(parameters):
        if (gradient := tensor.grad) is not None:
            update.clamp_(gradient, clip_value)

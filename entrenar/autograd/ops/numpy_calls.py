"""What NumPy's functions and Python's comparisons make of a Tensor: an operation of the tape, values, or an error.

The protocols are those of NumPy: https://numpy.org/neps/nep-0013-ufunc-overrides.html and nep-0018.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from entrenar.autograd.ops.activation import exp, log, pow, sqrt, tanh
from entrenar.autograd.ops.elementwise import add, div, mul, neg, sub
from entrenar.autograd.ops.matmul import matmul
from entrenar.autograd.ops.reduce import max, mean, sum
from entrenar.autograd.ops.shape import concatenate, reshape, transpose
from entrenar.autograd.tensor import Tensor
from entrenar.errors import GraphError, ShapeError

# As Py_LT to Py_GE number them.
COMPARISONS: tuple[Callable[[Any, Any], Any], ...] = (
    operator.lt,
    operator.le,
    operator.eq,
    operator.ne,
    operator.gt,
    operator.ge,
)
RECORDED: dict[Any, Callable[..., Tensor]] = {
    np.add: add,
    np.subtract: sub,
    np.multiply: mul,
    np.divide: div,
    np.negative: neg,
    np.matmul: matmul,
    np.power: pow,
    np.exp: exp,
    np.log: log,
    np.sqrt: sqrt,
    np.tanh: tanh,
    np.sum: sum,
    np.mean: mean,
    np.max: max,
    np.amax: max,
    np.concatenate: concatenate,
    np.reshape: reshape,
    np.transpose: transpose,
}
# How many arguments an operation takes by place, where NumPy's function and it mean the same by them, and by name.
NAMED = {np.sum: 2, np.mean: 2, np.max: 2, np.amax: 2, np.concatenate: 2, np.reshape: 2, np.transpose: 2}
OPTIONS = ("axis", "keepdims")
# Functions whose result has no gradient.
WITHOUT_GRADIENT = frozenset(
    {
        *(np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal, np.isfinite, np.isinf),
        *(np.isnan, np.signbit, np.logical_and, np.logical_or, np.logical_xor, np.logical_not, np.sign, np.floor),
        *(np.ceil, np.rint, np.array_equal, np.allclose, np.isclose, np.shape, np.ndim, np.size, np.argmax, np.argmin),
        *(np.argsort, np.any, np.all, np.count_nonzero, np.array2string, np.array_repr, np.array_str, np.copyto),
        *(np.nonzero, np.flatnonzero, np.shares_memory, np.may_share_memory, np.zeros_like, np.ones_like),
        *(np.empty_like, np.full_like, np.result_type, np.can_cast),
    }
)


def compared(tensor: Tensor, other: object, op: int) -> Any:
    """The comparison with a tensor, an array, a list or a number, elementwise, as a NumPy array of bools.

    NotImplemented for anything else. ShapeError where the shapes do not broadcast.
    """
    values = other.numpy() if isinstance(other, Tensor) else other
    if not isinstance(values, int | float | np.generic | np.ndarray | list | tuple):
        return NotImplemented
    try:
        return np.asarray(COMPARISONS[op](tensor.numpy(), values))
    except ValueError:
        raise ShapeError(
            f"A comparison of shapes {tensor.shape} and {np.shape(values)}, which do not broadcast; use `is` for "
            "the same tensor."
        ) from None


def called_ufunc(function: np.ufunc, method: str, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """`function(*inputs)` of NumPy where a tensor is among them: see `_called`."""
    plain = method == "__call__" and not options
    call = function if method == "__call__" else getattr(function, method)
    name = function.__name__ if method == "__call__" else f"{function.__name__}.{method}"
    return _called(function if plain else None, function, call, name, inputs, options)


def called_function(function: Callable[..., Any], inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """A function of NumPy that is no ufunc, where a tensor is among its arguments: see `_called`."""
    name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
    simple = len(inputs) <= NAMED.get(function, 0) and set(options) <= set(OPTIONS)
    return _called(function if simple else None, function, function, name, inputs, options)


def _called(
    recorded: Any,
    function: Any,
    call: Callable[..., Any],
    name: str,
    inputs: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Any:
    """The tape's operation of the same meaning, else the values of NumPy's; GraphError where a gradient would be lost.

    As with torch, tensors that require no gradient are arrays to NumPy.
    """
    operation = None if recorded is None else RECORDED.get(recorded)
    if operation is not None:
        return operation(*inputs, **options)
    if function not in WITHOUT_GRADIENT and (_takes_gradient(inputs) or _takes_gradient(tuple(options.values()))):
        own = RECORDED.get(call)
        advice = "" if own is None else f"; entrenar.autograd.{own.__name__} records it"
        raise GraphError(
            f"numpy.{name} of a tensor that requires a gradient would leave the graph{advice}; give it "
            "tensor.numpy() where no gradient is to flow through it."
        )
    return call(*_values(inputs), **{key: _values(value) for key, value in options.items()})


def _takes_gradient(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(map(_takes_gradient, value))


def _values(value: Any) -> Any:
    """`value` with arrays in the place of tensors."""
    if isinstance(value, Tensor):
        return value.numpy()
    return type(value)(map(_values, value)) if type(value) in (list, tuple) else value

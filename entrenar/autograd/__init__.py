"""Tensors, the compiled tape, and the operations that are recorded on it."""

from entrenar.autograd import ops
from entrenar.autograd.ops.dropout import dropout
from entrenar.autograd.ops.elementwise import add, div, mul, neg, sub
from entrenar.autograd.ops.reduce import max, mean, sum
from entrenar.autograd.ops.shape import concatenate, reshape, slice, transpose
from entrenar.autograd.random import manual_seed
from entrenar.autograd.tape import backward, checkpoint, enable_grad, grad_enabled, no_grad
from entrenar.autograd.tensor import Tensor, empty_cache, memory_stats, register_operators, reset_peak_memory

OPS: tuple[str, ...] = (
    "add",
    "concatenate",
    "div",
    "dropout",
    "max",
    "mean",
    "mul",
    "neg",
    "reshape",
    "slice",
    "sub",
    "sum",
    "transpose",
)
for _name in OPS:
    setattr(ops, _name, globals()[_name])
register_operators(ops)

__all__ = [
    "Tensor",
    "backward",
    "checkpoint",
    "empty_cache",
    "enable_grad",
    "grad_enabled",
    "manual_seed",
    "memory_stats",
    "no_grad",
    "reset_peak_memory",
    *OPS,
]

"""Tensors, the compiled tape, and the operations that are recorded on it."""

from entrenar.autograd import ops
from entrenar.autograd.ops import *  # noqa: F403
from entrenar.autograd.ops import OPS
from entrenar.autograd.ops.activation import *  # noqa: F403 (mypy does not follow two lists of names)
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.random import manual_seed
from entrenar.autograd.tape import backward, checkpoint, enable_grad, grad_enabled, no_grad
from entrenar.autograd.tensor import Tensor, empty_cache, memory_stats, register_operators, reset_peak_memory

register_operators(ops, backward)

__all__ = [
    "OPS",
    "QuantizedTensor",
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
]
__all__ += ops.__all__

"""Tensors, the compiled tape, and the operations that are recorded on it."""

from entrenar.autograd.tape import backward, checkpoint, enable_grad, grad_enabled, no_grad
from entrenar.autograd.tensor import Tensor, empty_cache, memory_stats, reset_peak_memory

OPS: tuple[str, ...] = ()

__all__ = [
    "Tensor",
    "backward",
    "checkpoint",
    "empty_cache",
    "enable_grad",
    "grad_enabled",
    "memory_stats",
    "no_grad",
    "reset_peak_memory",
    *OPS,
]

"""The operations of the tape, a file a family; their kernels have the same stem in entrenar/_kernels."""

from entrenar.autograd.ops import activation
from entrenar.autograd.ops.activation import *  # noqa: F403
from entrenar.autograd.ops.attention import attention, cached_attention
from entrenar.autograd.ops.cross_entropy import cross_entropy, linear_cross_entropy
from entrenar.autograd.ops.dropout import dropout
from entrenar.autograd.ops.elementwise import add, div, mul, neg, sub
from entrenar.autograd.ops.embedding import embedding
from entrenar.autograd.ops.matmul import LowRankUpdate, grouped_linear, linear, lora_linear, matmul
from entrenar.autograd.ops.norm import layer_norm, rms_norm
from entrenar.autograd.ops.numpy_calls import called_function, called_ufunc, compared  # noqa: F401 (Tensor's)
from entrenar.autograd.ops.reduce import max, mean, sum
from entrenar.autograd.ops.rope import rope, rope_table
from entrenar.autograd.ops.shape import concatenate, reshape, slice, transpose
from entrenar.autograd.ops.softmax import log_softmax, softmax

__all__ = [
    "LowRankUpdate",
    "add",
    "attention",
    "cached_attention",
    "concatenate",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "grouped_linear",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "lora_linear",
    "matmul",
    "max",
    "mean",
    "mul",
    "neg",
    "reshape",
    "rms_norm",
    "rope",
    "rope_table",
    "slice",
    "softmax",
    "sub",
    "sum",
    "transpose",
]
__all__ += activation.__all__

# Every operation that computes a tensor from tensors: each has cases in tests/kernels/cases (swish is silu).
OPS = tuple(name for name in __all__ if name not in ("LowRankUpdate", "rope_table", "swish"))

"""entrenar: fine-tune LLaMA-family models on ordinary CPUs."""

from entrenar.autograd.precision import get_matmul_precision, matmul_precision, set_matmul_precision

__all__ = ["get_matmul_precision", "matmul_precision", "set_matmul_precision"]

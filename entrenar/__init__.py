"""entrenar: fine-tune LLaMA-family models on ordinary CPUs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrenar.autograd.precision import get_matmul_precision, matmul_precision, set_matmul_precision

__all__ = ["get_matmul_precision", "matmul_precision", "set_matmul_precision"]


def __getattr__(name: str) -> Any:
    """The public names, loaded when asked for: a program can catch what goes wrong while the engine starts."""
    if name not in __all__:
        raise AttributeError(f"module 'entrenar' has no attribute {name!r}")
    from entrenar.autograd import precision

    return getattr(precision, name)

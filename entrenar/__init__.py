"""entrenar: fine-tune LLaMA-family models on ordinary CPUs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrenar._kernels.cpu import get_num_threads, set_num_threads
    from entrenar.autograd.precision import get_matmul_precision, matmul_precision, set_matmul_precision

__all__ = [
    "get_matmul_precision",
    "get_num_threads",
    "matmul_precision",
    "set_matmul_precision",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """The public names, loaded when asked for: a program can catch what goes wrong while the engine starts."""
    if name not in __all__:
        raise AttributeError(f"module 'entrenar' has no attribute {name!r}")
    from entrenar._kernels import cpu
    from entrenar.autograd import precision

    return getattr(cpu if name.endswith("threads") else precision, name)

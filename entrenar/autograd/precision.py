"""How precisely matrices are multiplied: for the process, for a block of code, or "auto" for what fine-tuning wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from entrenar._kernels.cpu import effective_precision, get_matmul_precision, set_matmul_precision

__all__ = [
    "auto_precision",
    "effective_precision",
    "get_matmul_precision",
    "matmul_precision",
    "set_matmul_precision",
]


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply with the precision `name` inside the block; see `set_matmul_precision`."""
    before = get_matmul_precision()
    set_matmul_precision(name)
    try:
        yield
    finally:
        set_matmul_precision(before)


def auto_precision() -> str:
    """What "auto" means here: "high" where the tier in use has it, else "highest"."""
    return effective_precision("high")

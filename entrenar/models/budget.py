"""What a model's weights need in memory, asked before anything is allocated."""

from __future__ import annotations

from entrenar.errors import MemoryBudgetError
from entrenar.models.storage import Storage
from entrenar.observe.hardware import available_memory


def check_weights_fit(storage: Storage) -> None:
    """Raise MemoryBudgetError where the weights alone exceed the available memory."""
    needed, available = storage.nbytes, available_memory()
    if needed > available:
        advice = "a smaller model" if storage.policy.quantize else "a 4-bit base (quantize='nf4') or a smaller model"
        raise MemoryBudgetError(
            f"The weights of this {storage.size / 1e9:.1f}-billion-parameter model need "
            f"{needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is available; use {advice}."
        )

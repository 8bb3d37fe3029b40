"""What a comparison of two runs lets pass."""

from __future__ import annotations

from dataclasses import dataclass

from entrenar.config import check_dataclass, option


@dataclass
class Tolerance:
    """How much the second run may differ from the first."""

    loss_tolerance: float = option(
        0.01, help="relative difference of the losses, training and held-out, in either direction", minimum=0.0
    )
    speed_tolerance: float = option(0.05, help="how much slower a step may be, relative", minimum=0.0)

    def __post_init__(self) -> None:
        check_dataclass(self, "compare")

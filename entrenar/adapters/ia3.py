"""IA3: a trained vector that scales what a frozen linear makes, or what it is given.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022 (arXiv
2205.05638).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from entrenar.adapters.base import Adapter, copied
from entrenar.adapters.linears import LinearAdapterConfig
from entrenar.adapters.options import IA3Options
from entrenar.adapters.peft_table import NEUTRAL, UNSUPPORTED, PeftTable
from entrenar.adapters.targets import Shaped, check_pattern, full_matches, is_quick, listed
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.nn.layers import Linear

FEEDFORWARD = "down_proj"  # what PEFT takes for the feed-forward module of a LLaMA

PEFT = PeftTable(
    peft_type="IA3",
    prefix="ia3_",
    settings={
        "target_modules": "target_modules",
        "feedforward_modules": "feedforward_modules",
        "exclude_modules": "exclude_modules",
        "init_ia3_weights": "init_ia3_weights",
    },
    required={"target_modules": "the names of its layers", "feedforward_modules": "those whose input is scaled"},
    optional=("exclude_modules",),
    unsupported=UNSUPPORTED,
    without_effect=NEUTRAL,
)


class IA3Linear(Adapter):
    """y = l * (x W^T + bias) with l (out_features, 1), or y = (l * x) W^T + bias with l (1, in_features).

    l starts as ones, so a new adapter changes nothing; shapes and name are PEFT's.
    """

    def __init__(self, base: Linear, ia3_l: np.ndarray, is_feedforward: bool) -> None:
        super().__init__(base)
        self.is_feedforward = is_feedforward
        self.ia3_l = Tensor.from_numpy(ia3_l, requires_grad=True)

    @classmethod
    def from_base(
        cls,
        base: Linear,
        config: IA3Config,
        settings: bool,
        rng: np.random.Generator,
        original: Callable[[], np.ndarray | None],
    ) -> IA3Linear:
        shape = (1, base.in_features) if settings else (base.out_features, 1)
        ones = config.init_ia3_weights
        return cls(base, np.ones(shape, np.float32) if ones else rng.standard_normal(shape, np.float32), settings)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "ia3_l", self.ia3_l

    def prepare(self, x: Tensor) -> Tensor:
        return x * self.ia3_l.reshape(self.in_features) if self.is_feedforward else x

    def finish(self, y: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        return y if self.is_feedforward else y * self.ia3_l.reshape(self.out_features)

    def merged(self) -> Linear:
        """A float32 linear with the columns or the rows of W scaled; with its rows, the bias as well."""
        scales, bias = self.ia3_l.numpy(), self.bias
        if bias is not None and not self.is_feedforward:
            bias = Tensor.from_numpy(bias.numpy() * scales[:, 0])
        return Linear(Tensor.from_numpy(self.dequantized() * scales), bias)


@dataclass
class IA3Config(IA3Options, LinearAdapterConfig):
    """IA3 (Liu et al., 2022): y = l * (W x), or y = W (l * x) for feed-forward modules.

    Raises ConfigError for a value out of range. Names and patterns mean what they do in `LinearAdapterConfig`; names in
    `feedforward_modules` are ends, also within a part of a name, as in PEFT.
    """

    title: ClassVar[str] = "IA3"
    peft: ClassVar[PeftTable] = PEFT
    layer: ClassVar[type[Adapter]] = IA3Linear

    def __post_init__(self) -> None:
        super().__post_init__()
        targets, chosen = self.target_modules, listed(self.feedforward_modules)
        where = f"{self.section}.feedforward_modules"
        if chosen is None:
            chosen = [FEEDFORWARD] if isinstance(targets, str) else [t for t in targets if t.endswith(FEEDFORWARD)]
        elif isinstance(chosen, str):
            check_pattern(chosen, where)
        elif isinstance(targets, list) and (others := sorted(set(chosen) - set(targets))):
            raise ConfigError(f"{where} has {others[0]!r}, which target_modules has not; expected names of it.")
        self.feedforward_modules = chosen

    def layers(self, model: Shaped) -> dict[str, bool]:
        """Whether the input is scaled, of every linear that gets an adapter; see `LinearAdapterConfig.layers`."""
        names, chosen = self.targets(model), self.feedforward_modules
        assert chosen is not None  # filled in by __post_init__
        if isinstance(chosen, list):
            return {name: name.endswith(tuple(chosen)) for name in names}
        where = f"{self.section}.feedforward_modules"
        (matches,) = full_matches([chosen], names, where, quick=is_quick([chosen]))
        return {name: name in matches for name in names}

    def weight_shapes(self, settings: bool, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        return {"ia3_l": (1, in_features) if settings else (out_features, 1)}

    def saved_floats(self, settings: bool, out_features: int, in_features: int) -> int:
        """What is multiplied by l."""
        return in_features if settings else out_features

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json."""
        assert self.feedforward_modules is not None  # filled in by __post_init__
        return super().to_peft(base_model) | {
            "feedforward_modules": copied(self.feedforward_modules),
            "init_ia3_weights": self.init_ia3_weights,
        }

"""How the weights of a model lie in its GGUF file: what a file beside it, such as an adapter, must agree with."""

from __future__ import annotations

import numpy as np

from entrenar.models.config import LLaMAConfig
from entrenar.models.families import FAMILIES, gguf_name, is_interleaved
from entrenar.models.gguf_model import half_split_rows


class GGUFLayout:
    """The architecture name, the tensor names and the row orders of a model of this configuration.

    `tied` says whether embedding and head are one tensor of the file; unset, the configuration says it.
    """

    def __init__(self, config: LLaMAConfig, tied: bool | None = None) -> None:
        self._config, self._family = config, FAMILIES[config.family]
        self.architecture = self._family.architecture
        self.tied = config.tie_word_embeddings if tied is None else tied

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by Hugging Face name, in the model's order."""
        return self._config.parameter_shapes()

    def name(self, weight: str) -> str:
        """The file's name for a weight of the model."""
        return gguf_name(self._family, weight)

    def rows(self, weight: str) -> np.ndarray | None:
        """The row of the file that holds each row of this weight; None where both have the same order."""
        if not is_interleaved(self._family, weight):
            return None
        return half_split_rows(self.parameter_shapes()[weight][0], self._config.head_size)

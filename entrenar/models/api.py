"""LLaMAModel: the model that people hold: made, loaded, run, adapted and saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from entrenar.errors import ConfigError
from entrenar.models.budget import check_weights_fit
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.config import LLaMAConfig
from entrenar.models.decoder import Decoder, WeightProvider
from entrenar.models.families import FAMILIES
from entrenar.models.generation import Generation
from entrenar.models.gguf_layout import GGUFLayout
from entrenar.models.storage import Storage, StoragePolicy
from entrenar.models.weights import WeightLoader, storage_of
from entrenar.nn.init import random_weights

if TYPE_CHECKING:
    from pathlib import Path

    from entrenar.models.gguf_export import ExportedGGUF
    from entrenar.models.origin import Origin


class AdapterRecipe(Protocol):
    """What `to_lora` and `to_qlora` take: the configuration of an adapter, whose `apply` puts it on a model."""

    section: str

    def apply(self, model: Any, seed: int = 0) -> None:
        """Freeze `model` and put adapters on it, in place; `seed` draws their initial weights."""


class LLaMAModel(Decoder):
    """A LLaMA-family causal language model.

    ``LLaMAModel(config)`` draws random weights; ``LLaMAModel.from_pretrained(path)`` loads a checkpoint. Raises
    MemoryBudgetError before anything is allocated where the weights cannot fit into the available memory.
    """

    def __init__(self, config: LLaMAConfig, *, seed: int = 0, weights: WeightProvider | None = None) -> None:
        if weights is None:
            check_weights_fit(StoragePolicy().storage(config.parameter_shapes()))
            norm = 0.0 if FAMILIES[config.family].norm_offset else 1.0
            weights = random_weights(seed, config.initializer_range, norm)
        super().__init__(config, weights)
        self.remarks: list[str] = []  # what of the loaded files is not followed, and what their conversion cost
        self.origin: Origin | None = None  # what the weights were loaded from

    @staticmethod
    def from_pretrained(
        path: str | Path | Checkpoint,
        *,
        quantize: str | None = None,
        dtype: str = "float32",
        double_quantization: bool = True,
    ) -> LLaMAModel:
        """Load a Hugging Face directory or a GGUF file, or one that `Checkpoint.open` opened, one tensor at a time.

        The options are those of `entrenar.models.storage.StoragePolicy`. Raises FormatError for a file that is missing,
        truncated or no model of these families, or has weights that are not finite, MemoryBudgetError before anything
        is allocated.
        """
        policy = StoragePolicy(dtype, quantize, double_quantization)
        checkpoint = path if isinstance(path, Checkpoint) else Checkpoint.open(path)
        checkpoint.check()
        return LLaMAModel.from_checkpoint(checkpoint, storage_of(checkpoint, policy))

    @staticmethod
    def from_checkpoint(checkpoint: Checkpoint, storage: Storage) -> LLaMAModel:
        """The model of a checkpoint that was checked, with weights of these types; raises as `from_pretrained`.

        A matrix whose rows are no multiple of the block size stays in full precision and is listed in the model's
        `unquantized`. What it costs to replace a file's quantized values by others is measured and said in the
        checkpoint's `remarks`.
        """
        check_weights_fit(storage)
        loader = WeightLoader(checkpoint, storage)
        model = LLaMAModel(checkpoint.config, weights=loader)
        model.unquantized = {name: w.unquantized for name, w in storage.weights.items() if w.unquantized}
        model.origin, model.originals = checkpoint.origin, loader.original
        checkpoint.remarks += [cost for cost in loader.costs() if cost not in checkpoint.remarks]
        model.remarks = list(checkpoint.remarks)
        return model

    def save_pretrained(self, directory: str | Path, **options: Any) -> list[str]:
        """Write a Hugging Face directory; see `entrenar.models.export.save`."""
        from entrenar.models.export import save

        return save(self, directory, **options)

    def save_gguf(self, path: str | Path, **options: Any) -> ExportedGGUF:
        """Write a GGUF file; see `entrenar.models.gguf_export.save_gguf`."""
        from entrenar.models.gguf_export import save_gguf

        return save_gguf(self, path, **options)

    @property
    def gguf_layout(self) -> GGUFLayout:
        """How the weights lie in the GGUF file of the base, where a head that an adapter untied is no tensor."""
        return GGUFLayout(self.config, tied=self.head_weight is self.model.embed_tokens.weight)

    @property
    def generation(self) -> Generation:
        """How the model generates: as its generation_config.json says, else with its configuration's end tokens."""
        return Generation(self.config.eos_ids) if self.origin is None else self.origin.generation

    def generate(self, tokens: np.ndarray | list[int], **options: Any) -> list[int]:
        """Continue one sequence; see `entrenar.models.generate.generate`."""
        from entrenar.models.generate import generate

        return generate(self, tokens, **options)

    def to_lora(self, config: AdapterRecipe, *, seed: int = 0) -> LLaMAModel:
        """Freeze the model and put LoRA adapters on its target modules, in place; `seed` draws their initial A."""
        if config.section != "lora":
            raise ConfigError(
                f"to_lora: got a {type(config).__name__}, expected a LoRAConfig; to_qlora takes the other."
            )
        config.apply(self, seed)
        return self

    def to_qlora(self, config: AdapterRecipe, *, seed: int = 0) -> LLaMAModel:
        """Quantize the decoder linears that are not quantized and put LoRA adapters on them; `seed` as in to_lora."""
        if config.section != "qlora":
            raise ConfigError(
                f"to_qlora: got a {type(config).__name__}, expected a QLoRAConfig; to_lora takes the other."
            )
        config.apply(self, seed)
        return self

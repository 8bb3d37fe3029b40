"""Prefix tuning: trained keys and values that every layer's attention sees before those of the sequence.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021 (arXiv 2101.00190).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from entrenar.adapters.base import AdapterConfig, tensors_of
from entrenar.adapters.options import PrefixOptions
from entrenar.adapters.peft_table import NEUTRAL, UNSUPPORTED, PeftTable
from entrenar.adapters.targets import Shaped
from entrenar.autograd import Tensor
from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.nn.module import Module
from entrenar.nn.prefix import KeyValuePrefix, PrefixedAttention

FILE_NAME = "prompt_embeddings"  # of the one tensor: (virtual tokens, layers * 2 * kv heads * head size)
KEYS, VALUES = "prefix.keys", "prefix.values"
SIZES = ("num_layers", "num_attention_heads", "token_dim")  # of PEFT's file: of the model that it was trained over

PEFT = PeftTable(
    peft_type="PREFIX_TUNING",
    prefix="prompt_",
    settings={"num_virtual_tokens": "num_virtual_tokens", "init_weights": "init_weights"},
    # without its task PEFT puts no prefix before anything
    required={"num_virtual_tokens": "the length of the prefix", "task_type": "'CAUSAL_LM'"},
    optional=("init_weights",),
    unsupported={
        **{key: off for key, off in UNSUPPORTED.items() if key != "fan_in_fan_out"},
        "num_transformer_submodules": (1, None),
        "task_type": ("CAUSAL_LM",),
    },
    without_effect=NEUTRAL
    | {
        "prefix_projection": "is of training: a file holds what the projection made",
        "encoder_hidden_size": "is read only with prefix_projection",
        **dict.fromkeys(SIZES, "is held against the model"),
    },
)


@dataclass
class PrefixConfig(PrefixOptions, AdapterConfig):
    """Prefix tuning (Li and Liang, 2021): `num_virtual_tokens` keys and values before those of every sequence.

    The tokens of a sequence stand at the positions after the prefix, as in PEFT and transformers. Raises ConfigError
    for a value out of range. PEFT's prefix_projection, a network that makes the prefix, is not trained here.
    """

    title: ClassVar[str] = "prefix"
    peft: ClassVar[PeftTable] = PEFT
    sizes: ClassVar[Mapping[str, Any]] = {}  # SIZES of the model that it is on, or that a file names

    @property
    def added_positions(self) -> int:
        return self.num_virtual_tokens

    def named_in_budget(self) -> tuple[str, str]:
        return f"The prefix of {self.num_virtual_tokens} tokens", "use fewer"

    # ------------------------------------------------------------------ the model
    def adapter_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, width in _widths(model).items():
            shapes[f"{name}.{KEYS}"] = shapes[f"{name}.{VALUES}"] = (self.num_virtual_tokens, width)
        return shapes

    def activation_floats(self, model: Shaped) -> int:
        """Keys and values behind the prefix, while they are put there."""
        return 2 * max(_widths(model).values())

    def install(self, model: Module, seed: int) -> None:
        rng, widths = np.random.Generator(np.random.Philox(seed)), _widths(model)
        attentions = list(_attentions(model))
        if [name for name, _ in attentions] != list(widths):
            raise ConfigError("A prefix needs a model whose attentions take one; train LoRA adapters instead.")
        for name, _ in attentions:
            shape = (self.num_virtual_tokens, widths[name])
            zero = self.init_weights == "zero"
            keys, values = (
                Tensor.from_numpy(
                    np.zeros(shape, np.float32) if zero else rng.standard_normal(shape, np.float32), requires_grad=True
                )
                for _ in range(2)
            )
            model.replace(f"{name}.prefix", KeyValuePrefix(keys, values))

    def resolved(self, model: Module) -> PrefixConfig:
        """With the model's sizes, which PEFT's file has."""
        heads = {attention.kv_heads for _, attention in _attentions(model)}
        widths = list(_widths(model).values())
        return self._sized({"num_layers": len(widths), "num_attention_heads": max(heads), "token_dim": max(widths)})

    def _sized(self, sizes: Mapping[str, Any]) -> PrefixConfig:
        found = copy(self)
        vars(found)["sizes"] = sizes
        return found

    def merge_into(self, model: Module) -> None:
        raise ConfigError("A prefix is no change of weights and cannot be merged into them; save the adapter instead.")

    # ------------------------------------------------------------------ PEFT's files
    def file_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        widths = list(_widths(model).values())
        found = {"num_layers": len(widths), "token_dim": max(widths)}
        if isinstance(model, Module):
            found["num_attention_heads"] = next(attention.kv_heads for _, attention in _attentions(model))
        for key, value in found.items():
            if self.sizes.get(key, value) not in (value, None):
                raise ConfigError(
                    f"{key} is {shown(self.sizes[key])}, and the model has {value}; give the model that it was "
                    "trained over."
                )
        return {FILE_NAME: (self.num_virtual_tokens, 2 * sum(widths))}

    def file_arrays(self, model: Module) -> dict[str, np.ndarray]:
        weights = tensors_of(model)
        return {FILE_NAME: np.concatenate([weights[name].numpy() for name in self.adapter_shapes(model)], axis=1)}

    def load_arrays(self, model: Module, arrays: Mapping[str, np.ndarray]) -> None:
        weights, start = tensors_of(model), 0
        for name, (_, width) in self.adapter_shapes(model).items():
            weights[name].numpy()[...] = arrays[FILE_NAME][:, start : start + width]
            start += width

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json."""
        return super().to_peft(base_model) | {
            "num_virtual_tokens": self.num_virtual_tokens,
            "init_weights": None if self.init_weights == "random" else self.init_weights,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            "encoder_hidden_size": self.sizes.get("token_dim"),
            **{key: self.sizes.get(key) for key in SIZES},
        }

    @classmethod
    def from_peft(cls, table: Mapping[str, Any], where: str = "adapter_config.json") -> PrefixConfig:
        for key in SIZES:
            value = table.get(key)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{where}: {key} is {shown(value)}, expected a number of at least 1.")
        return super().from_peft(table, where)._sized({key: table.get(key) for key in SIZES})


def _attentions(model: Module) -> Iterator[tuple[str, PrefixedAttention]]:
    for name, module in model.named_modules():
        if isinstance(module, PrefixedAttention):
            yield name, module


def _widths(model: Shaped) -> dict[str, int]:
    """kv heads * head size of every attention by name, as the shapes of its linears say it."""
    shapes, widths = model.parameter_shapes(), {}
    for weight, shape in shapes.items():
        name, _, part = weight.rpartition(".self_attn.")
        if part == "k_proj.weight":
            widths[f"{name}.self_attn"] = shape[0]
        elif part == "qkv_proj.weight":  # q, k and v in one; o_proj has q's width
            widths[f"{name}.self_attn"] = (shape[0] - shapes[f"{name}.self_attn.o_proj.weight"][1]) // 2
    if not widths:
        raise ConfigError("A prefix needs a model with layers of attention, and none of its modules is one.")
    return widths

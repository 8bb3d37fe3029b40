"""A checkpoint: the tensors of a Hugging Face directory or a GGUF file by name, with the model's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar.errors import ConfigError, FormatError
from entrenar.io.lazy import LazyTensor
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_gguf import end_ids
from entrenar.models.config import LLaMAConfig
from entrenar.models.families import FAMILIES, has_offset, is_interleaved
from entrenar.models.generation import Generation
from entrenar.models.gguf_model import read_gguf
from entrenar.models.hf_config import shape_keys
from entrenar.models.hf_directory import read_hf
from entrenar.models.origin import Origin

INTEGERS = ("I8", "I16", "I32", "I64", "U8", "BOOL")  # quantized values whose scales some other tensor holds

PARTS_OF_A_DIRECTORY = (".safetensors", ".bin", ".json")


def _hub_hint(path: str) -> str:
    """What to do where a path that does not exist reads like a model's name on a hub."""
    name = path.removeprefix("hf:")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:]+)?", name):
        return " (no model is fetched by its name)"
    repository = name.partition(":")[0]
    return (
        f"; if it is a name on a hub, fetch it with `entrenar pull hf:{name}`, which says what to give here, or with "
        f"`hf download {repository}`"
    )


class Checkpoint:
    """The tensors of a checkpoint by Hugging Face name, with the model's configuration."""

    def __init__(
        self,
        path: Path,
        config: LLaMAConfig,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, Any] | None = None,
        remarks: Sequence[str] = (),
        origin: Origin | None = None,
    ) -> None:
        self.path, self.config, self.tensors = path, config, tensors
        self.metadata = metadata  # of a GGUF file
        self.origin = origin or Origin(path, Generation(config.eos_ids), metadata is not None)
        self.remarks = list(remarks)  # a sentence for each thing that is ignored or converted

    def interleaved(self, name: str) -> bool:
        """Whether the rows of this matrix are stored for an interleaved rotary embedding."""
        return self.metadata is not None and is_interleaved(FAMILIES[self.config.family], name)

    def has_offset(self, name: str) -> bool:
        """Whether the file holds 1 + this weight."""
        return self.metadata is not None and has_offset(FAMILIES[self.config.family], name)

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """A GGUF file or a Hugging Face directory; FormatError where it is neither, is truncated or is of no family."""
        if not str(path):
            raise FormatError("The model's path is empty; expected a GGUF file or a Hugging Face directory.")
        path = Path(path)
        if path.is_dir():
            config, tensors, origin, remarks = read_hf(path)
            return Checkpoint(path, config, tensors, remarks=remarks, origin=origin)
        if not path.exists():
            raise FormatError(
                f"{path}: no such file or directory; expected a GGUF file or a Hugging Face directory on this machine"
                f"{_hub_hint(str(path))}."
            )
        if path.suffix in PARTS_OF_A_DIRECTORY and (path.parent / "config.json").exists():
            raise FormatError(
                f"{path}: is one file of a Hugging Face directory, expected a GGUF file or the directory itself; give "
                f"{path.parent}."
            )
        config, tensors, metadata, remarks = read_gguf(path)
        ends = tuple(dict.fromkeys((*config.eos_ids, *end_ids(metadata))))
        return Checkpoint(path, config, tensors, metadata, remarks, Origin(path, Generation(ends), is_gguf=True))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that comes with the weights."""
        if self.metadata is None:
            return Tokenizer.from_directory(self.path)
        try:
            return Tokenizer.from_gguf(self.metadata)
        except (ConfigError, FormatError) as error:  # the metadata do not name their file
            raise type(error)(f"{self.path}: {error}") from error

    def check(self) -> None:
        """Every weight the configuration names is there with its shape, and nothing is left over."""
        expected, family = self.config.parameter_shapes(), FAMILIES[self.config.family]
        for name, shape in expected.items():
            if name not in self.tensors:
                stray = next((f", and there is {other}" for other in self.tensors if other not in expected), "")
                raise FormatError(
                    f"{self.path}: the tensor {name} of shape {shape} is missing{stray}; the file is incomplete, "
                    f"{self._layers(name)}or its tensors have other names than those of a {family.title}."
                )
            found = tuple(self.tensors[name].shape)
            if found != tuple(shape):
                raise FormatError(
                    f"{self.path}: the tensor {name} has shape {found}, expected {tuple(shape)} by "
                    f"{shape_keys(family, name, len(shape))} of config.json; take both from one model."
                )
            if self.tensors[name].type in INTEGERS:
                raise FormatError(
                    f"{self.path}: the tensor {name} holds integers ({self.tensors[name].type}), expected F32, F16 or "
                    "BF16 weights; use a checkpoint that is not quantized, or a GGUF file."
                )
        unknown = [name for name in self.tensors if name not in expected]
        if unknown:
            raise FormatError(f"{self.path}: the tensor {unknown[0]} {self._foreign(unknown[0])}.")

    def _layers(self, name: str) -> str:
        key = "attention_bias" if ".self_attn." in name else "mlp_bias"
        if name.endswith(".bias") and getattr(self.config, key):
            return f"config.json's {key} = true is wrong, "
        return f"config.json's num_hidden_layers = {self.config.num_hidden_layers} is wrong, " * (".layers." in name)

    def _foreign(self, name: str) -> str:
        """What to say of a tensor that a model of this configuration has no place for."""
        if re.sub(r"\.layers\.\d+\.", ".layers.0.", name) in self.config.parameter_shapes():
            return f"belongs to a layer beyond config.json's num_hidden_layers = {self.config.num_hidden_layers}"
        if name.endswith(".bias"):
            return "is a bias, which the models of this family do not have"
        return (
            f"has no place in a {FAMILIES[self.config.family].title}; expected the files of a causal language model of "
            "that architecture alone"
        )

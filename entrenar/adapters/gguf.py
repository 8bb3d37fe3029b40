"""LoRA adapters as GGUF files, which llama.cpp and Ollama apply to the GGUF file of the base.

A file holds, for each linear W (out, in), `NAME.lora_a` (rank, in) and `NAME.lora_b` (out, rank) under the base's own
tensor NAME, and one `adapter.lora.alpha`: a linear adds (alpha / rank) B A x, the rank being its own.
Source: llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from entrenar.adapters import gguf_head, registry
from entrenar.adapters.base import Adapter, AdapterConfig, check_no_adapters, set_training
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.lora_embedding import PARTS as EMBEDDING_PARTS
from entrenar.adapters.lora_embedding import LoRAEmbedding
from entrenar.adapters.lora_init import takes_from_base
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.adapters.peft import CONFIG_FILE, expected_shapes, read_adapter_table
from entrenar.adapters.peft_weights import PREFIX, WEIGHTS_FILE, open_weights, read_weights
from entrenar.adapters.prefix import PrefixConfig
from entrenar.adapters.trained_weights import EMBEDDING, HEAD
from entrenar.config import shown
from entrenar.errors import ConfigError, FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.gguf_writer import OutputTensor, write_gguf
from entrenar.io.lazy import LazyTensor

TYPES: dict[str, tuple[type[np.floating[Any]], int]] = {"F32": (np.float32, 0), "F16": (np.float16, 1)}
TYPE_KEY, ARCHITECTURE_KEY = "general.type", "general.architecture"
ADAPTER_KEY, ALPHA_KEY = "adapter.type", "adapter.lora.alpha"
NOTES = ("adapter.lora.task_name", "adapter.lora.prompt_prefix")  # for people: they change no computation
PARTS = ("lora_a", "lora_b")
LINEAR_PARTS = ("lora_A.weight", "lora_B.weight")
ADVICE = "merge the adapter and export the model"
RUN = "it cannot be merged either: run it in transformers with PEFT"


class Layout(Protocol):
    """How the base's weights lie in its GGUF file; see `entrenar.models.gguf_layout.GGUFLayout`."""

    architecture: str
    tied: bool

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every weight by Hugging Face name."""

    def name(self, weight: str) -> str:
        """The file's name for a weight of the model."""

    def rows(self, weight: str) -> np.ndarray | None:
        """The row of the file that holds each row of this weight; None where both have the same order."""


@dataclass(frozen=True)
class Update:
    """scaling * B A, added to the linear of one weight: A (rank, in), B (out, rank), float32.

    Of an embedding it is added to the rows, transposed: A (rank, vocabulary), B (hidden, rank).
    """

    a: np.ndarray
    b: np.ndarray
    scaling: float


# ---------------------------------------------------------------------- out
def save_gguf_adapter(model: Any, path: str | Path, *, type: str = "F32") -> None:
    """Write the LoRA adapter that is on the model; `type` is that of its tensors, "F32" or "F16".

    Raises ConfigError for what such a file cannot express: adapters of another kind, weights that were trained beside
    the adapters, and an adapter of an embedding that is the head too.
    """
    config, layout = model.adapter_config, model.gguf_layout
    if config is None:
        raise ConfigError("The model has no adapters to save.")
    _check_expressible(config, "The model")
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Adapter | LoRAEmbedding)]
    updates = {f"{name}.weight": _update(name, layer) for name, layer in layers}
    _check_tied(updates, layout, "The model")
    own = {f"{name}.{part}" for name, layer in layers for part, _ in layer.adapter_weights()}
    others = [name for name, _ in model.trainable_parameters() if name not in own]
    if others:
        raise ConfigError(f"The model: {others[0]} was trained too, which a GGUF adapter cannot hold; {ADVICE}.")
    write_gguf_adapter(path, updates, layout, type=type)


def convert_adapter(directory: str | Path, layout: Layout, path: str | Path, *, type: str = "F32") -> None:
    """Write the LoRA adapter of a PEFT directory for the base that `layout` describes, of which no weight is read.

    Embedding and head may have adapters too, where they are two tensors. Raises as `load_adapter`, and ConfigError for
    what a GGUF adapter cannot express.
    """
    where = str(Path(directory) / CONFIG_FILE)
    table = read_adapter_table(directory)
    with_head = gguf_head.has_head(table)
    inner = gguf_head.without_head(table) if with_head else table
    has_others = not with_head or bool(inner["target_modules"])
    config = registry.from_peft(inner if has_others else {**inner, "target_modules": ["q_proj"]}, where)
    _check_expressible(config, where)
    assert isinstance(config, LoRAConfig)
    head = gguf_head.settings_of(table, config, where) if with_head else None
    tensors = _tensors(Path(directory), config if has_others else None, layout, None if head is None else head[0])
    bias = next((name for name in tensors if name.endswith(".bias")), None)
    if bias is not None or takes_from_base(config.init_lora_weights):
        what = "the part of the base that PiSSA took" if bias is None else bias.removeprefix(PREFIX)
        raise ConfigError(f"{directory}: {what} cannot be held by a GGUF adapter; {ADVICE}.")
    named = config.layers(layout) if has_others else {}
    named |= {HEAD: head} if head is not None else {}
    updates = {}
    for parts, group in ((LINEAR_PARTS, named), (EMBEDDING_PARTS, config.embeddings(layout) if has_others else {})):
        for name, (rank, alpha) in group.items():
            a, b = (tensors[f"{PREFIX}{name}.{part}"] for part in parts)
            updates[f"{name}.weight"] = Update(a, b, config.scaling_of(rank, alpha))
    _check_tied(updates, layout, where)
    write_gguf_adapter(path, updates, layout, type=type)


def _tensors(directory: Path, config: LoRAConfig | None, layout: Layout, head: int | None) -> dict[str, np.ndarray]:
    """Those of the file by their names there: of the modules of `config`, and of the head if that has a rank."""
    file = directory / WEIGHTS_FILE
    expected = {} if config is None else expected_shapes(config, directory, layout)
    if head is not None:
        shape = layout.parameter_shapes().get(f"{HEAD}.weight", layout.parameter_shapes()[f"{EMBEDDING}.weight"])
        expected |= gguf_head.file_shapes(head, shape, open_weights(file))
    return read_weights(file, expected, LoRAConfig.peft.prefix)


def _check_tied(updates: Mapping[str, Update], layout: Layout, where: str) -> None:
    ends = [weight for weight in updates if weight in (f"{EMBEDDING}.weight", f"{HEAD}.weight")]
    if layout.tied and ends:
        advice = ADVICE if ends == [f"{EMBEDDING}.weight"] else "merge it in PEFT and export the merged model"
        raise ConfigError(
            f"{where}: {ends[0]} has an adapter, and embedding and head are one tensor of this model's GGUF file, on "
            f"which llama.cpp applies none; {advice}."
        )


def _check_expressible(config: AdapterConfig, where: str) -> None:
    if not isinstance(config, LoRAConfig):
        advice = RUN if isinstance(config, PrefixConfig) else ADVICE
        raise ConfigError(f"{where}: {config.title} has no form in a GGUF adapter, which holds LoRA alone; {advice}.")
    if config.use_dora:
        raise ConfigError(f"{where}: DoRA has no form in a GGUF adapter, which holds LoRA alone; {ADVICE}.")
    if config.modules_to_save:
        name = config.modules_to_save[0]
        raise ConfigError(f"{where}: {name} was trained whole, which a GGUF adapter cannot hold; {ADVICE}.")


def _update(name: str, layer: Adapter | LoRAEmbedding) -> Update:
    if isinstance(layer, LoRAEmbedding):
        return Update(layer.lora_embedding_A.numpy(), layer.lora_embedding_B.numpy(), layer.scaling)
    weights = dict(layer.saved_weights()) if isinstance(layer, LoRALinear) else {}
    if not isinstance(layer, LoRALinear) or tuple(weights) != LINEAR_PARTS:
        other = next(iter(set(weights) - set(LINEAR_PARTS)), "other weights")
        raise ConfigError(f"{name}: its adapter has {other}, which a GGUF adapter cannot hold; {ADVICE}.")
    a, b = weights.values()
    return Update(a, b, layer.scaling)


def write_gguf_adapter(
    path: str | Path, updates: Mapping[str, Update], layout: Layout, *, type: str = "F32", name: str = "adapter"
) -> None:
    """Write the updates, by the Hugging Face name of the weight that each is added to."""
    if type not in TYPES:
        raise ConfigError(f"type={type!r} is unknown; choose {' or '.join(map(repr, TYPES))}.")
    alpha = file_alpha(updates)
    metadata = {
        TYPE_KEY: "adapter",
        ARCHITECTURE_KEY: layout.architecture,
        "general.name": name,
        "general.file_type": TYPES[type][1],
        ADAPTER_KEY: "lora",
        ALPHA_KEY: float(alpha),
    }
    tensors = []
    for weight, update in updates.items():
        for ending, values in zip(PARTS, _stored(weight, update, alpha, layout), strict=True):
            rows = _of_type(values, type, weight)
            tensors.append(OutputTensor(f"{layout.name(weight)}.{ending}", rows.shape, type, partial(_whole, rows)))
    write_gguf(path, metadata, tensors)


def _whole(rows: np.ndarray) -> list[np.ndarray]:
    return [rows]


def file_alpha(updates: Mapping[str, Update]) -> np.float32:
    """The alpha that the most layers have, so that the fewest values of B are changed."""
    counts = Counter(np.float32(update.scaling * len(update.a)) for update in updates.values())
    alpha = max(counts, key=counts.__getitem__)
    return alpha if 0 < alpha < np.inf else np.float32(1)  # llama.cpp takes an alpha of 0 for a scaling of 1


def _stored(weight: str, update: Update, alpha: np.float32, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the file has them: B takes what alpha / rank does not say of the scaling, in the file's row order."""
    b, factor = update.b, update.scaling / (float(alpha) / len(update.a))
    if np.float32(factor) != 1:
        b = (b.astype(np.float64) * factor).astype(np.float32)
    order = layout.rows(weight)
    if order is not None:
        rows = np.empty_like(b)
        rows[order] = b
        b = rows
    return update.a.T if _is_embedding(weight) else update.a, b  # llama.cpp looks rows of A up by token


def _is_embedding(weight: str) -> bool:
    return weight == f"{EMBEDDING}.weight"


def _of_type(values: np.ndarray, type: str, weight: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(values, dtype=TYPES[type][0])
    if not np.isfinite(made).all():
        raise ConfigError(f"{weight}: its adapter has values that {type} cannot hold; write the adapter as F32.")
    return made


# ---------------------------------------------------------------------- in
def load_gguf_adapter(model: Any, path: str | Path) -> None:
    """Put the LoRA adapter of a GGUF file on the model; where anything is wrong the model is unchanged.

    Its dropout is off, as after `load_adapter`. Raises FormatError for a file that is no adapter, or one for another
    model.
    """
    check_no_adapters(model)
    file, layout = GGUFFile(path), model.gguf_layout
    alpha = _checked_alpha(file, layout)
    pairs = _pairs(file, layout)
    ranks = {weight.removesuffix(".weight"): pair["lora_b"].shape[1] for weight, pair in pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    config = LoRAConfig(
        rank=rank,
        alpha=alpha or rank,
        target_modules=list(ranks),
        rank_pattern={name: other for name, other in ranks.items() if other != rank},
        # an alpha of 0 is a scaling of 1 in llama.cpp
        alpha_pattern={} if alpha else {name: float(other) for name, other in ranks.items()},
    )
    values = {weight: _values(weight, pair, layout, file.path) for weight, pair in pairs.items()}
    config.apply(model)
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear | LoRAEmbedding):
            for (_, weight), new in zip(layer.adapter_weights(), values[f"{name}.weight"], strict=True):
                weight.numpy()[...] = new
    set_training(model, False)


def check_gguf_adapter(path: str | Path, layout: Layout) -> None:
    """FormatError where the file is no LoRA adapter, or one for another model; raises as `load_gguf_adapter`."""
    file = GGUFFile(path)
    _checked_alpha(file, layout)
    _pairs(file, layout)


def _checked_alpha(file: GGUFFile, layout: Layout) -> float:
    for key, expected in ((TYPE_KEY, "adapter"), (ADAPTER_KEY, "lora"), (ARCHITECTURE_KEY, layout.architecture)):
        if file.metadata.get(key) != expected:
            found = shown(file.metadata[key]) if key in file.metadata else "missing"
            raise FormatError(
                f"{file.path}: {key} is {found}, expected {expected!r}; give a GGUF LoRA adapter for this model."
            )
    known = (ADAPTER_KEY, ALPHA_KEY, *NOTES)
    unknown = next((key for key in file.metadata if key.startswith("adapter.") and key not in known), None)
    if unknown is not None:  # as those of an aLoRA, which is on behind some tokens alone
        raise FormatError(
            f"{file.path}: {unknown} is {shown(file.metadata[unknown])}, which is not supported (expected no key but "
            f"{', '.join(known)}); run the adapter in llama.cpp."
        )
    alpha = file.metadata.get(ALPHA_KEY, 0.0)
    if not isinstance(alpha, float) or not 0 <= alpha < np.inf:
        raise FormatError(f"{file.path}: {ALPHA_KEY} is {shown(alpha)}, expected a positive number stored as a float.")
    return alpha


def _pairs(file: GGUFFile, layout: Layout) -> dict[str, dict[str, LazyTensor]]:
    """A and B by the weight of the model that they are for, in the model's order, their shapes checked."""
    shapes = layout.parameter_shapes()
    weights = {layout.name(weight): weight for weight, shape in shapes.items() if len(shape) == 2}
    found: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in file.tensors.items():
        base, _, ending = name.rpartition(".")
        if ending not in PARTS or base not in weights:
            raise FormatError(
                f"{file.path}: the tensor {name} belongs to no linear of this model; give the model that the adapter "
                "was trained over."
            )
        if weights[base] == f"{HEAD}.weight" or (layout.tied and _is_embedding(weights[base])):
            raise FormatError(
                f"{file.path}: the tensor {name} is of an adapter of the head, which is not supported; merge it with "
                "llama-export-lora and use the merged model."
            )
        found.setdefault(weights[base], {})[ending] = tensor
    if not found:
        raise FormatError(f"{file.path}: holds no tensor, expected those of a LoRA adapter; fetch it again.")
    for weight, pair in found.items():
        missing = [ending for ending in PARTS if ending not in pair]
        if missing:
            raise FormatError(f"{file.path}: the tensor {layout.name(weight)}.{missing[0]} is missing; fetch it again.")
        out, width = reversed(shapes[weight]) if _is_embedding(weight) else shapes[weight]
        a, b = pair["lora_a"].shape, pair["lora_b"].shape
        wanted = f"({width}, rank)" if _is_embedding(weight) else f"(rank, {width})"
        rank = b[-1]
        if not rank or a != ((width, rank) if _is_embedding(weight) else (rank, width)) or b != (out, rank):
            raise FormatError(
                f"{file.path}: the tensors of {layout.name(weight)} have shapes {a} and {b}, expected {wanted} and "
                f"({out}, rank); give the model that the adapter was trained over."
            )
    return {weight: found[weight] for weight in shapes if weight in found}


def _values(weight: str, pair: Mapping[str, LazyTensor], layout: Layout, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A and B in float32, B in the model's row order."""
    a, b = (pair[ending].load() for ending in PARTS)
    for ending, values in zip(PARTS, (a, b), strict=True):
        if not np.isfinite(values).all():
            raise FormatError(
                f"{path}: the tensor {layout.name(weight)}.{ending} holds values that are NaN or infinite; fetch it "
                "again."
            )
    order = layout.rows(weight)
    return a.T if _is_embedding(weight) else a, b if order is None else b[order]

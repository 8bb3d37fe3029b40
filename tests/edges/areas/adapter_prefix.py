"""Prefixes: every key of PEFT's PrefixTuningConfig set to something else, or left out; the tensor; what we write."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import peft
import torch

from entrenar.lora import PrefixConfig, load_adapter, save_adapter

from ..harness import Variation, Verdict, Wrong, judge
from ..peft_side import TOKENS, Arrays, difference, edit, edit_tensors, make_prefix, our_base, their_base

AREA, REFERENCE, COMPARED = "prefixes", "PEFT", "logits within 1e-5"
NAME = "prompt_embeddings"
# What PEFT itself makes: key -> settings
MADE: dict[str, list[dict[str, Any]]] = {
    "num_virtual_tokens": [{"num_virtual_tokens": count} for count in (1, 8)],
    "init_weights": [{"init_weights": "zero"}],
    "prefix_projection": [{"prefix_projection": True, "encoder_hidden_size": 24}],
    "num_layers": [{"num_layers": 2}],
    "num_transformer_submodules": [{"num_transformer_submodules": 1}],
    "inference_mode": [{"inference_mode": True}],
    "revision": [{"revision": "v2"}],
    "base_model_name_or_path": [{"base_model_name_or_path": "someone/another-base"}],
}
# What is written into the file in the place of a sound value.
EDITED: dict[str, list[Any]] = {
    "peft_type": ["LORA", "PROMPT_TUNING", "prefix_tuning"],
    "task_type": ["SEQ_CLS"],
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}],
    "peft_version": ["99.0.0"],
    "num_virtual_tokens": [4, 0, -3, "3", 3.0],
    "num_layers": [1, 3, "2"],
    "num_attention_heads": [4, 1],
    "token_dim": [64, 16],
    "num_transformer_submodules": [2, 0],
    "modules_to_save": [["lm_head"]],
    "encoder_hidden_size": [99],
    "init_weights": ["ones"],
}
# What a refusal names where it is not the key itself.
NAMED = {
    "peft_type = 'LORA'": ["encoder_hidden_size"],
    "num_virtual_tokens = 4": [NAME],
    "num_virtual_tokens, another type: True": [""],
}
OTHER_TYPES = (None, True, 1.5, "x", [], {})
FIELDS = [field.name for field in dataclasses.fields(peft.PrefixTuningConfig)]
Tensors = dict[str, Any]


def theirs(folder: Path) -> Arrays:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(their_base(), str(folder)).eval()
        return {"logits": model(torch.from_numpy(TOKENS)).logits.numpy().copy()}


def ours(folder: Path) -> Arrays:
    model = our_base()
    load_adapter(model, folder)
    return {"logits": model(TOKENS).numpy().copy()}


def compare(folder: Path, names: list[str]) -> Verdict:
    return judge(
        lambda: ours(folder),
        lambda: theirs(folder),
        names=names,
        folder=folder,
        difference=difference,
        compared=COMPARED,
    )


def made(settings: dict[str, Any], names: list[str], folder: Path) -> Verdict:
    make_prefix(folder, **settings)
    return compare(folder, names)


def edited(change: Callable[[dict[str, Any]], object], names: list[str], folder: Path) -> Verdict:
    make_prefix(folder)
    edit(folder, change)
    return compare(folder, names)


def with_tensors(change: Callable[[Tensors], object], names: list[str], folder: Path) -> Verdict:
    make_prefix(folder)
    edit_tensors(folder, change)
    return compare(folder, names)


def unknown_key(key: str, folder: Path) -> Verdict:
    raise Wrong(f"PEFT has the key {key}, for which no value is chosen here")


def variation(name: str, check: Callable[[Path], Verdict]) -> Variation:
    return Variation(AREA, name, REFERENCE, check)


def with_value(name: str, key: str, value: Any) -> Variation:
    def change(table: dict[str, Any]) -> None:
        table[key] = value

    return variation(name, partial(edited, change, NAMED.get(name, [key])))


def of_keys() -> Iterator[Variation]:
    for key in FIELDS:
        if key not in MADE and key not in EDITED:
            yield variation(f"{key}: new in PEFT", partial(unknown_key, key))
        for settings in MADE.get(key, []):
            shown = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
            yield variation(f"{key}, made by PEFT: {shown}", partial(made, settings, [key]))
        for value in EDITED.get(key, []):
            yield with_value(f"{key} = {value!r}", key, value)
        for value in OTHER_TYPES:
            yield with_value(f"{key}, another type: {value!r}", key, value)
        yield variation(f"{key} left out", partial(edited, lambda table, key=key: table.pop(key, None), [key]))
    for key in sorted({*MADE, *EDITED} - set(FIELDS)):
        yield variation(f"{key}: no longer in PEFT", partial(unknown_key, key))


def each(new: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({NAME: new(tensors[NAME])})


WEIGHTS: dict[str, tuple[Callable[[Tensors], object], list[str]]] = {
    "as PEFT wrote it": (lambda tensors: None, []),
    "float16": (each(lambda values: values.astype(np.float16)), []),
    "bfloat16": (each(lambda values: values.astype(ml_dtypes.bfloat16)), []),
    "int32": (each(lambda values: values.astype(np.int32)), ["I32"]),
    "one token fewer": (each(lambda values: values[1:].copy()), [NAME]),
    "a layer fewer": (each(lambda values: values[:, :64].copy()), [NAME]),
    "three dimensions": (each(lambda values: values[None].copy()), [NAME]),
    "NaN": (each(lambda values: values * np.float32(np.nan)), [NAME]),
    "missing": (lambda tensors: tensors.clear(), [NAME]),
    "under another name": (lambda tensors: tensors.update({"prompt": tensors.pop(NAME)}), [NAME]),
    "a LoRA beside it": (
        lambda tensors: tensors.update({"q_proj.lora_A.weight": np.ones((4, 64), np.float32)}),
        ["lora"],
    ),
}


def written(settings: dict[str, Any], folder: Path) -> Verdict:
    """Ours, saved; PEFT's of the same file."""
    model = our_base()
    PrefixConfig(**settings).apply(model, seed=3)
    save_adapter(model, folder / "adapter")
    logits = {"logits": model(TOKENS).numpy().copy()}
    return judge(lambda: logits, lambda: theirs(folder / "adapter"), names=[], difference=difference, compared=COMPARED)


VARIATIONS = [
    *of_keys(),
    *(variation(f"tensors: {name}", partial(with_tensors, *change)) for name, change in WEIGHTS.items()),
    variation("written by entrenar: the defaults", partial(written, {})),
    variation(
        "written by entrenar: one zero token", partial(written, {"num_virtual_tokens": 1, "init_weights": "zero"})
    ),
]

"""Prefixes: every key of PEFT's PrefixTuningConfig set to something else, or left out; the tensor; what we write."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import peft
import torch

from entrenar.lora import PrefixConfig, load_adapter, save_adapter

from ..adapter_keys import Adapters
from ..harness import Verdict, judge
from ..peft_side import TOKENS, Arrays, compare, difference, make_prefix, our_base, their_base

COMPARED = "logits within 1e-5"
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


ADAPTERS = Adapters("prefixes", make_prefix, partial(compare, ours=ours, theirs=theirs, compared=COMPARED), named=NAMED)


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
WRITTEN: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one zero token": {"num_virtual_tokens": 1, "init_weights": "zero"},
}


def written(settings: dict[str, Any], folder: Path) -> Verdict:
    """Ours, saved; PEFT's of the same file."""
    model = our_base()
    PrefixConfig(**settings).apply(model, seed=3)
    save_adapter(model, folder / "adapter")
    logits = {"logits": model(TOKENS).numpy().copy()}
    return judge(lambda: logits, lambda: theirs(folder / "adapter"), names=[], difference=difference, compared=COMPARED)


VARIATIONS = [
    *ADAPTERS.of_keys(peft.PrefixTuningConfig, MADE, EDITED, OTHER_TYPES),
    *(ADAPTERS.with_tensors(name, *change) for name, change in WEIGHTS.items()),
    *(
        ADAPTERS.variation(f"written by entrenar: {name}", partial(written, settings))
        for name, settings in WRITTEN.items()
    ),
]

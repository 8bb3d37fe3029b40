"""Hugging Face directories for the edges: a sound one changed in one place, and what both sides make of it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from entrenar.llama import LLaMAModel
from tests.models.builders import Arrays, hf_table, random_arrays, random_tokens, small_config

from .harness import Variation, Verdict, Wrong, close, judge

COMPARED = "logits within 1e-4 of the largest"
CONFIG = small_config()
TOKENS = random_tokens(CONFIG, 1, 32, seed=3)
REMOVED = object()  # as a value: the key is not there

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@functools.cache
def sound_arrays(model_type: str = "llama") -> Arrays:
    """The weights of the sound model, large enough for every change to show in the logits."""
    return random_arrays(dataclasses.replace(CONFIG, family=model_type), std=0.3)


def sound_table(model_type: str = "llama") -> dict[str, Any]:
    """Its config.json in the spelling of transformers 5."""
    table = hf_table(CONFIG)
    theta = table.pop("rope_theta")
    table |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "bos_token_id": 1, "eos_token_id": 2}
    if model_type == "mistral":
        table |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    elif model_type != "llama":
        table |= {"model_type": model_type, "architectures": [f"{model_type.capitalize()}ForCausalLM"]}
    return table


def changed(table: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The table with these keys set, or taken out where the value is REMOVED."""
    return {key: value for key, value in {**table, **change}.items() if value is not REMOVED}


def write_directory(
    folder: Path,
    table: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """config.json, model.safetensors and, where given, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sound_table() if table is None else table))
    save_file(dict(sound_arrays() if arrays is None else arrays), str(folder / "model.safetensors"), {"format": "pt"})
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def our_logits(folder: Path) -> np.ndarray:
    """(batch, seq, vocab) as entrenar computes them from the directory."""
    return LLaMAModel.from_pretrained(folder)(TOKENS).numpy()


def peer_model(folder: Path) -> Any:
    """The directory as AutoModelForCausalLM loads it, in float32; Wrong where it had to draw weights itself."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    if report["missing_keys"]:
        raise Wrong(f"transformers initialised {sorted(report['missing_keys'])} anew")
    return model.eval()


def peer_logits(folder: Path) -> np.ndarray:
    """The same from transformers."""
    with torch.no_grad():
        return peer_model(folder)(torch.from_numpy(TOKENS)).logits.numpy()


def same_logits(folder: Path, named: str) -> Verdict:
    """Both sides read `folder`; a refusal has to name one of the words in `named`, which "|" separates."""
    verdict = judge(
        lambda: our_logits(folder),
        lambda: peer_logits(folder),
        names=[],
        folder=folder.parent,
        difference=close(1e-4),
        compared=COMPARED,
    )
    if verdict.kind == "refused" and not any(name in verdict.note for name in named.split("|")):
        raise Wrong(f"the message names none of {named}: {verdict.note}")
    return verdict


def logits_variation(area: str, name: str, named: str, build: Callable[[Path], Any]) -> Variation:
    """A variation whose logits are compared: `build` writes the directory."""

    def check(folder: Path) -> Verdict:
        model = folder / "model"
        model.mkdir()
        build(model)
        return same_logits(model, named)

    return Variation(area, name, "transformers", check)


def shown(value: Any) -> str:
    """A value in the name of a variation."""
    return "absent" if value is REMOVED else json.dumps(value)


def no_value_chosen(area: str, what: str, fields: set[str]) -> list[Variation]:
    """A failing variation for each field of a peer that nobody has chosen a value for."""

    def failing(field: str) -> Variation:
        def check(folder: Path) -> Verdict:
            raise Wrong(f"{what}.{field} is new; choose a value for it in tests/edges/areas")

        return Variation(area, f"{what}.{field}", "transformers", check)

    return [failing(field) for field in sorted(fields)]

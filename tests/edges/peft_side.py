"""A tiny base in entrenar and in transformers, and what an adapter directory makes of each."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file

from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import load_adapter, merge
from tests.models.builders import hf_table, model_of, random_arrays, random_tokens, weights_of

from .harness import Verdict, close, judge

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
COMPARED = "logits and merged weights within 1e-5"
SHAPE = LLaMAConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
TOKENS = random_tokens(SHAPE, 2, 9)
Arrays = dict[str, np.ndarray]
SETTINGS: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "down_proj"],
}
PREFIX_SETTINGS: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
IA3_SETTINGS: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "target_modules": ["k_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}


@functools.cache
def arrays() -> Arrays:
    return random_arrays(SHAPE)


@functools.cache
def _their_base() -> Any:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_table(SHAPE)))
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays().items()})
    return model.eval()


def their_base(weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """The base in transformers, or one with other weights; a model of its own each time."""
    model = copy.deepcopy(_their_base())
    if weights is not None:
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return model


def our_base() -> LLaMAModel:
    return model_of(SHAPE, arrays())


def results(model: LLaMAModel) -> Arrays:
    """The logits of an adapted model, and its weights once it is merged."""
    logits = model(TOKENS).numpy().copy()
    merge(model)
    return {"logits": logits} | weights_of(model)


def ours(folder: Path) -> Arrays:
    model = our_base()
    load_adapter(model, folder)
    return results(model)


def theirs(folder: Path, base: Any = None) -> Arrays:
    """The same from PEFT."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(their_base() if base is None else base, str(folder)).eval()
        logits = model(torch.from_numpy(TOKENS)).logits.numpy().copy()
        merged = model.merge_and_unload().state_dict()
    return {"logits": logits} | {name: tensor.numpy() for name, tensor in merged.items()}


def difference(found: Arrays, expected: Arrays) -> str | None:
    if found.keys() != expected.keys():
        return f"has {sorted(found.keys() ^ expected.keys())[:3]} on one side only"
    wrong = ((name, close(1e-5)(found[name], array)) for name, array in expected.items())
    return next((f"{name} {text}" for name, text in wrong if text is not None), None)


def compare(
    folder: Path,
    names: list[str],
    ours: Callable[[Path], Arrays] = ours,
    theirs: Callable[[Path], Arrays] = theirs,
    compared: str = COMPARED,
) -> Verdict:
    """The adapter in `folder`, here and in PEFT; a refusal must contain `names`."""
    return judge(
        lambda: ours(folder),
        lambda: theirs(folder),
        names=names,
        folder=folder,
        difference=difference,
        compared=compared,
    )


# ---------------------------------------------------------------------- adapters that PEFT makes
@functools.cache
def _made(kind: str, trained: str, text: str) -> tuple[str, dict[str, Any]]:
    """The configuration's text and the tensors of an adapter that PEFT made with these settings, `trained` filled."""
    import tempfile

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = peft.get_peft_model(their_base(), getattr(peft, kind)(**json.loads(text)))
        for name, parameter in model.named_parameters():
            if trained in name:
                parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape))
        model.save_pretrained(folder)
        return (Path(folder) / CONFIG_FILE).read_text(), load_file(Path(folder) / WEIGHTS_FILE)


def make(folder: Path, **settings: Any) -> None:
    """An adapter that PEFT made, whose B is not zero."""
    _write(folder, *_made("LoraConfig", "lora_B", json.dumps(SETTINGS | settings)))


def make_ia3(folder: Path, **settings: Any) -> None:
    """An IA3 adapter that PEFT made, whose scales are not one."""
    _write(folder, *_made("IA3Config", "ia3_l", json.dumps(IA3_SETTINGS | settings)))


def make_prefix(folder: Path, **settings: Any) -> None:
    """A prefix that PEFT made."""
    _write(folder, *_made("PrefixTuningConfig", "prompt_encoder", json.dumps(PREFIX_SETTINGS | settings)))


def _write(folder: Path, text: str, tensors: dict[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(text)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the table of adapter_config.json."""
    table = json.loads((folder / CONFIG_FILE).read_text())
    change(table)
    (folder / CONFIG_FILE).write_text(json.dumps(table))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of adapter_model.safetensors."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})

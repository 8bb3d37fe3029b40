"""transformers and PEFT beside our models: a base of the same values, an adapter on it, logits and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import merge
from entrenar.adapters.peft import load_adapter
from entrenar.llama import LLaMAConfig, LLaMAModel

from ..models.builders import random_arrays, relative_error, weights_of, write_hf
from .reference import IGNORED, logits_of


def base_arrays(model: LLaMAModel, config: LLaMAConfig) -> dict[str, np.ndarray]:
    """What the base's weights stand for, in float32."""
    return {name: values for name, values in weights_of(model).items() if name in random_arrays(config)}


def hf_base(directory: Path, config: LLaMAConfig, arrays: dict[str, np.ndarray]) -> Any:
    """A transformers model of these weights, written to `directory`."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    write_hf(directory, config, arrays)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))  # of the configuration's own family
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def peft_model(base: Any, adapter: Path | Any, *, trainable: bool = True) -> Any:
    """The base with an adapter: one that is stored, or a new one of these settings."""
    peft = pytest.importorskip("peft")
    if isinstance(adapter, Path):
        return peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable)
    return peft.get_peft_model(base, adapter)


def randomized(model: Any, scale: float = 0.1, *parts: str) -> Any:
    """The trained weights of a PEFT model moved by noise, those with one of `parts` in their names."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (not parts or any(part in name for part in parts)):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def gradients(model: Any, tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the mean loss of every trained weight, by the name that a file has for it."""
    torch = pytest.importorskip("torch")
    model.eval()
    found = model(torch.from_numpy(tokens)).logits
    torch.nn.functional.cross_entropy(
        found.reshape(-1, found.shape[-1]), torch.from_numpy(targets).reshape(-1), ignore_index=IGNORED
    ).backward()
    return {saved(name): p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def saved(name: str) -> str:
    """A parameter's name in PEFT's memory as a file has it."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """The same names, shapes and, relative to each array's norm, values."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert np.linalg.norm(expected) > 0, name
        assert relative_error(ours[name], expected) < tolerance, name


def assert_logits(model: LLaMAModel, tokens: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits_of(model, tokens), expected, rtol=0, atol=1e-4)


def assert_loads_merges_and_saves(
    base: LLaMAModel, adapter: Path, folder: Path, tokens: np.ndarray, expected: np.ndarray
) -> None:
    """The adapter loaded onto the base, merged while it is written, merged in memory and saved: the same logits."""
    load_adapter(base, adapter)
    assert_logits(base, tokens, expected)
    base.save_pretrained(folder / "streamed", merge=True)
    assert_logits(LLaMAModel.from_pretrained(folder / "streamed"), tokens, expected)
    merge(base)
    assert_logits(base, tokens, expected)
    base.save_pretrained(folder / "merged")
    assert_logits(LLaMAModel.from_pretrained(folder / "merged"), tokens, expected)

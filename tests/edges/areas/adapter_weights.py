"""An adapter's tensors and folder: names of PEFT and of other tools, types, shapes, what is missing or extra.

The reverse as well: every kind of adapter that entrenar writes, read by PEFT.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from entrenar.adapters.base import adapter_layers
from entrenar.lora import LoRAConfig, save_adapter, set_training
from entrenar.qlora import QLoRAConfig
from tests.models.builders import weights_of

from ..adapter_keys import Adapters
from ..harness import Verdict, judge
from ..peft_side import (
    COMPARED,
    CONFIG_FILE,
    TOKENS,
    WEIGHTS_FILE,
    compare,
    difference,
    make,
    our_base,
    results,
    their_base,
    theirs,
)

ADAPTERS = Adapters("adapter weights", make)
PREFIX = "base_model.model."
Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
Tensors = dict[str, Any]
Edit = Callable[[Tensors], object]


def renamed(new: Callable[[str], str]) -> Edit:
    """Every tensor under another name."""

    def change(tensors: Tensors) -> None:
        items = {new(name): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(items)

    return change


def typed(dtype: Any) -> Edit:
    return lambda tensors: tensors.update({name: value.astype(dtype) for name, value in tensors.items()})


def put(name: str, value: np.ndarray) -> Edit:
    return lambda tensors: tensors.update({name: value})


def turned(tensors: Tensors) -> None:
    tensors.update({name: np.ascontiguousarray(value.T) for name, value in tensors.items()})


def changed(value: float) -> Edit:
    """One element of B that is another."""

    def change(tensors: Tensors) -> None:
        tensors[B][3, 1] = value

    return change


def mlx(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")


F32 = np.float32
# name -> (change of the tensors, what a refusal must name)
TENSORS: dict[str, tuple[Edit, list[str]]] = {
    "as PEFT wrote them": (lambda tensors: None, []),
    "PEFT's names in memory (.default.)": (renamed(lambda name: name.replace(".weight", ".default.weight")), []),
    "another adapter's name in memory": (renamed(lambda name: name.replace(".weight", ".mine.weight")), [A]),
    "no prefix": (renamed(lambda name: name.removeprefix(PREFIX)), [A]),
    "prefix base_model. alone": (renamed(lambda name: name.replace(PREFIX, "base_model.")), [A]),
    "prefix of a wrapped trainer (module.)": (renamed(lambda name: f"module.{name}"), [A]),
    "prefix of a compiled model (_orig_mod.)": (renamed(lambda name: f"_orig_mod.{name}"), [A]),
    "names of the bare decoder": (renamed(lambda name: name.replace(f"{PREFIX}model.", PREFIX)), [A]),
    "names of mlx-lm": (renamed(mlx), ["lora_a"]),
    "names of the original LoRA (lora_A)": (renamed(lambda name: name.removesuffix(".weight")), [A]),
    "names of a text model in a larger one": (
        renamed(lambda n: n.replace("model.layers", "language_model.layers")),
        [A],
    ),
    "names of diffusers (lora.down)": (
        renamed(lambda n: n.replace("lora_A", "lora.down").replace("lora_B", "lora.up")),
        [A],
    ),
    "float16": (typed(np.float16), []),
    "bfloat16": (typed(ml_dtypes.bfloat16), []),
    "float64": (typed(np.float64), []),
    "float64 beyond float32": (put(B, np.full((64, 4), 1e300)), [B]),
    "int32": (typed(np.int32), ["I32"]),
    "int8": (typed(np.int8), ["I8"]),
    "bool": (typed(np.bool_), ["BOOL"]),
    "float8": (typed(ml_dtypes.float8_e4m3fn), ["F8_E4M3"]),
    "transposed": (turned, [A]),
    "another rank in one layer": (put(A, np.zeros((5, 64), F32)), [A]),
    "one dimension": (put(B, np.zeros(256, F32)), [B]),
    "three dimensions": (put(A, np.zeros((4, 64, 1), F32)), [A]),
    "no elements": (put(A, np.zeros((0, 64), F32)), [A]),
    "NaN": (changed(np.nan), [B]),
    "infinity": (changed(np.inf), [B]),
    "a huge value": (changed(1e30), []),
    "A missing": (lambda tensors: tensors.pop(A), [A]),
    "B missing": (lambda tensors: tensors.pop(B), [B]),
    "a whole layer missing": (lambda tensors: (tensors.pop(A), tensors.pop(B)), [A]),
    "no tensors": (lambda tensors: tensors.clear(), ["missing"]),
    "a layer more": (put(f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.weight", np.zeros((4, 64), F32)), ["up_proj"]),
    "a layer beyond the model": (
        put(f"{PREFIX}model.layers.9.mlp.up_proj.lora_A.weight", np.zeros((4, 64), F32)),
        [".9."],
    ),
    "magnitudes of DoRA": (put(f"{Q0}.lora_magnitude_vector", np.ones(64, F32)), ["lora_magnitude_vector"]),
    "an embedding's adapter": (put(f"{PREFIX}model.embed_tokens.lora_embedding_A", np.ones((4, 40), F32)), ["embed"]),
    "the embedding": (put(f"{PREFIX}model.embed_tokens.weight", np.ones((40, 64), F32)), ["embed_tokens"]),
    "the head": (put(f"{PREFIX}lm_head.weight", np.ones((40, 64), F32)), ["lm_head"]),
    "a layer saved as a whole": (
        put(f"{PREFIX}lm_head.modules_to_save.weight", np.ones((40, 64), F32)),
        ["modules_to"],
    ),
    "a bias of B": (put(f"{Q0}.lora_B.bias", np.ones(64, F32)), ["lora_B.bias"]),
    "a bias of the base": (put(f"{Q0}.bias", np.ones(64, F32)), ["q_proj.bias"]),
    "a norm": (put(f"{PREFIX}model.norm.weight", np.ones(64, F32)), ["model.norm.weight"]),
    "both names of one weight": (put(f"{Q0}.lora_A.default.weight", np.ones((4, 64), F32)), ["lora_A.default"]),
}


# ---------------------------------------------------------------------- the folder
def sharded(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    for number, part in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        save_file({name: tensors[name] for name in part}, folder / f"adapter_model-0000{number}-of-00002.safetensors")
    (folder / WEIGHTS_FILE).unlink()


def pickled(folder: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / WEIGHTS_FILE).items()}
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()


def both(folder: Path) -> None:
    kept = (folder / WEIGHTS_FILE).read_bytes()
    pickled(folder)
    (folder / WEIGHTS_FILE).write_bytes(kept)


def inside(folder: Path) -> None:
    (folder / "default").mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.move(folder / name, folder / "default" / name)


def cut(size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:size])


def as_mlx(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapters.safetensors")


FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no configuration": (lambda folder: (folder / CONFIG_FILE).unlink(), [CONFIG_FILE]),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), [WEIGHTS_FILE]),
    "nothing": (lambda folder: [file.unlink() for file in folder.iterdir()], [CONFIG_FILE]),
    "pickled weights alone": (pickled, ["adapter_model.bin"]),
    "pickled weights beside safetensors": (both, []),
    "weights in parts": (sharded, ["adapter_model-00001-of-00002.safetensors"]),
    "in a folder of the adapter's name": (inside, ["default"]),
    "weights under mlx-lm's name": (as_mlx, ["adapters.safetensors"]),
    "weights of no bytes": (cut(0), [WEIGHTS_FILE]),
    "weights cut in the header": (cut(100), [WEIGHTS_FILE]),
    "weights cut at the end": (cut(-1), [WEIGHTS_FILE]),
    "weights with bytes behind them": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes() + b"more"),
        [WEIGHTS_FILE],
    ),
    "a model card and a trainer's state beside": (
        lambda folder: [(folder / name).write_text("x") for name in ("README.md", "training_args.bin", "optimizer.pt")],
        [],
    ),
}


def with_folder(change: Callable[[Path], object], names: list[str], folder: Path) -> Verdict:
    make(folder)
    change(folder)
    return compare(folder, names)


# ---------------------------------------------------------------------- adapters that entrenar writes
QV = ["q_proj", "v_proj"]
WRITTEN: dict[str, LoRAConfig] = {
    "the defaults": LoRAConfig(),
    "all linears": LoRAConfig(rank=3, target_modules="all-linear"),
    "rsLoRA": LoRAConfig(rank=5, alpha=2.5, use_rslora=True),
    "dropout": LoRAConfig(rank=2, dropout=0.5),
    "whole names": LoRAConfig(rank=2, target_modules=["model.layers.1.mlp.up_proj", "layers.0.self_attn.k_proj"]),
    "a pattern": LoRAConfig(rank=2, target_modules=r".*\.1\.(self_attn|mlp)\.(k|up)_proj"),
    "excluded names": LoRAConfig(rank=2, target_modules=QV, exclude_modules=["0.self_attn.q_proj"]),
    "an excluded pattern": LoRAConfig(rank=2, target_modules=QV, exclude_modules=r".*\.0\..*q_proj"),
    "one layer": LoRAConfig(rank=2, target_modules=QV, layers_to_transform=[1]),
    "one layer and a whole name": LoRAConfig(
        rank=2, target_modules=["v_proj", "model.layers.0.mlp.up_proj"], layers_to_transform=[1]
    ),
    "other ranks": LoRAConfig(rank=2, target_modules=QV, rank_pattern={"v_proj": 5, r"0\.self_attn\.q_proj": 3}),
    "two ranks for one layer, the first wins": LoRAConfig(
        rank=2, target_modules=QV, alpha_pattern={"v_proj": 5, "0.self_attn.v_proj": 3.5}
    ),
    "other ranks and strengths with rsLoRA": LoRAConfig(
        rank=2,
        target_modules=QV,
        rank_pattern={"v_proj": 5},
        alpha_pattern={"1.self_attn.[qv]_proj": 7},
        use_rslora=True,
    ),
    "over NF4": QLoRAConfig(rank=2, target_modules="all-linear", rank_pattern={"v_proj": 5}, double_quantization=False),
    "over NF4, doubly quantized": QLoRAConfig(rank=2, target_modules=QV),
    "over int4": QLoRAConfig(rank=2, target_modules="all-linear", quantize="int4"),
}


def written(config: LoRAConfig, folder: Path) -> Verdict:
    """Ours, saved; PEFT's of the same file over what our base means."""
    model = our_base()
    config.apply(model)
    assert not isinstance(config, QLoRAConfig) or any(
        weight.dtype != "float32" for _, weight in model.named_parameters()
    )
    set_training(model, False)
    rng = np.random.default_rng(1)
    for _, layer in adapter_layers(model):
        layer.lora_B.numpy()[...] = 0.1 * rng.standard_normal(layer.lora_B.shape)
    save_adapter(model, folder / "adapter")
    plain = {name: array for name, array in weights_of(model).items() if ".lora_" not in name}
    without = their_base(plain)(_tokens()).logits.detach().numpy()
    adapted = results(model)
    assert np.abs(adapted["logits"] - without).max() > 1e-3, "the adapter changes nothing"
    return judge(
        lambda: adapted,
        lambda: theirs(folder / "adapter", their_base(plain)),
        names=[],
        difference=difference,
        compared=COMPARED,
    )


def _tokens() -> Any:
    import torch

    return torch.from_numpy(TOKENS)


VARIATIONS = [
    *(ADAPTERS.with_tensors(name, *change) for name, change in TENSORS.items()),
    *(ADAPTERS.variation(f"folder: {name}", partial(with_folder, *change)) for name, change in FOLDERS.items()),
    *(ADAPTERS.variation(f"written by entrenar: {name}", partial(written, c)) for name, c in WRITTEN.items()),
]

"""IA3 adapters: every key of PEFT's IA3Config set to something else, or left out; tensors; what we write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import peft

from entrenar.adapters.ia3 import IA3Config
from entrenar.lora import save_adapter
from tests.models.builders import weights_of

from ..adapter_keys import Adapters
from ..harness import Verdict, judge
from ..peft_side import (
    COMPARED,
    SHAPE,
    difference,
    make_ia3,
    our_base,
    results,
    their_base,
    theirs,
)

K0 = "model.layers.0.self_attn.k_proj"
L = f"base_model.model.{K0}.ia3_l"
# What PEFT itself makes: key -> settings
MADE: dict[str, list[dict[str, Any]]] = {
    "task_type": [{"task_type": None}, {"task_type": "FEATURE_EXTRACTION"}],
    "target_modules": [
        {"target_modules": None, "feedforward_modules": None},
        {"target_modules": ["q_proj", "down_proj", "1.mlp.up_proj"]},
        *({"target_modules": names, "feedforward_modules": []} for names in ([K0], ["self_attn.o_proj"], ["lm_head"])),
        *({"target_modules": text} for text in (r".*\.(k|down)_proj", r".*layers\.1\..*_proj", K0)),
        *(
            {"target_modules": text, "feedforward_modules": r".*\.down_proj"}
            for text in ("all-linear", "All-Linear", "(.*)head|.*k_proj")
        ),
    ],
    "feedforward_modules": [
        *({"feedforward_modules": names} for names in ([], ["k_proj"], ["k_proj", "down_proj"], None)),
        *({"feedforward_modules": text} for text in (r".*\.down_proj", r".*\.1\..*", "none", ".*")),
        {"target_modules": r".*_proj", "feedforward_modules": ["_proj"]},
        {"target_modules": r".*_proj", "feedforward_modules": ["o_proj", "nothing"]},
        {"target_modules": "all-linear", "feedforward_modules": ["down_proj"]},
    ],
    "exclude_modules": [
        *({"exclude_modules": names} for names in (["k_proj"], [K0], ["w_proj"], ["down_proj", K0])),
        *({"exclude_modules": text} for text in (r".*\.1\..*", "none")),
    ],
    "fan_in_fan_out": [{"fan_in_fan_out": True}],
    "modules_to_save": [{"modules_to_save": [name]} for name in ("lm_head", "embed_tokens", "norm")],
    "init_ia3_weights": [{"init_ia3_weights": False}],
    "inference_mode": [{"inference_mode": True}],
    "revision": [{"revision": "v2"}],
    "base_model_name_or_path": [{"base_model_name_or_path": "someone/another-base"}],
}
# What is written into the file in the place of a sound value.
EDITED: dict[str, list[Any]] = {
    "peft_type": ["LORA", "ia3", "LOHA"],
    "task_type": ["SEQ_CLS"],
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}],
    "peft_version": ["99.0.0"],
    "target_modules": ["k_proj", "(", ["all-linear"], ["k_proj", 3], ["k_prj", "down_proj"], ["v_proj", "down_proj"]],
    "feedforward_modules": ["down_proj", "(", ["up_proj"], ["down_proj", 3], ["all-linear"]],
    "exclude_modules": ["k_proj", "(", [3]],
    "init_ia3_weights": ["yes"],
}
# What a refusal names where it is not the key itself: a key of another kind, or the tensor that is not as promised.
NAMED = {
    "peft_type = 'LORA'": ["feedforward_modules"],
    "target_modules = ['v_proj', 'down_proj']": ["v_proj.ia3_l"],
    "feedforward_modules, another type: []": ["down_proj.ia3_l"],
}
OTHER_TYPES = (None, True, 1.5, "x", [], {})
Tensors = dict[str, Any]
ADAPTERS = Adapters("IA3 adapters", make_ia3, named=NAMED)


def every(new: Callable[[str, Any], tuple[str, Any]]) -> Callable[[Tensors], object]:
    """Each tensor under another name, with other values."""

    def change(tensors: Tensors) -> None:
        items = dict(new(name, value) for name, value in tensors.items())
        tensors.clear()
        tensors.update(items)

    return change


def put(name: str, value: np.ndarray) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


WEIGHTS: dict[str, tuple[Callable[[Tensors], object], list[str]]] = {
    "as PEFT wrote them": (lambda tensors: None, []),
    "PEFT's names in memory (.default)": (every(lambda n, v: (f"{n}.default", v)), []),
    "another adapter's name in memory": (every(lambda n, v: (f"{n}.mine", v)), [L]),
    "names that end in .weight": (every(lambda n, v: (f"{n}.weight", v)), [L]),
    "no prefix": (every(lambda n, v: (n.removeprefix("base_model.model."), v)), [L]),
    "float16": (every(lambda n, v: (n, v.astype(np.float16))), []),
    "bfloat16": (every(lambda n, v: (n, v.astype(ml_dtypes.bfloat16))), []),
    "int32": (every(lambda n, v: (n, v.astype(np.int32))), ["I32"]),
    "one dimension": (every(lambda n, v: (n, v.reshape(-1))), ["has shape"]),
    "transposed": (every(lambda n, v: (n, np.ascontiguousarray(v.T))), ["has shape"]),
    "NaN": (put(L, np.full((32, 1), np.nan, np.float32)), [L]),
    "zeros": (put(L, np.zeros((32, 1), np.float32)), []),
    "one missing": (lambda tensors: tensors.pop(L), [L]),
    "no tensors": (lambda tensors: tensors.clear(), ["missing"]),
    "a layer more": (put(L.replace("k_proj", "v_proj"), np.ones((32, 1), np.float32)), ["v_proj"]),
    "a LoRA beside it": (put(f"base_model.model.{K0}.lora_A.weight", np.ones((4, 64), np.float32)), ["lora_A"]),
}
WRITTEN: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "all linears": {"target_modules": "all-linear"},
    "inputs": {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": ["q_proj", "up_proj"]},
    "outputs": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": []},
    "patterns": {"target_modules": r".*\.1\..*_proj", "feedforward_modules": r".*\.(up|down)_proj"},
    "whole names": {"target_modules": [K0, "model.layers.1.mlp.down_proj"]},
    "excluded names": {"exclude_modules": [K0]},
    "random first weights": {"init_ia3_weights": False},
}


def written(settings: dict[str, Any], folder: Path) -> Verdict:
    """Ours, saved; PEFT's of the same file."""
    model, rng = our_base(), np.random.default_rng(1)
    IA3Config(**settings).apply(model)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += 0.3 * rng.standard_normal(tensor.shape)
    save_adapter(model, folder / "adapter")
    plain = {name: array for name, array in weights_of(model).items() if name in SHAPE.parameter_shapes()}
    adapted = results(model)
    return judge(
        lambda: adapted,
        lambda: theirs(folder / "adapter", their_base(plain)),
        names=[],
        difference=difference,
        compared=COMPARED,
    )


VARIATIONS = [
    *ADAPTERS.of_keys(peft.IA3Config, MADE, EDITED, OTHER_TYPES),
    *(ADAPTERS.with_tensors(name, *change) for name, change in WEIGHTS.items()),
    *(
        ADAPTERS.variation(f"written by entrenar: {name}", partial(written, settings))
        for name, settings in WRITTEN.items()
    ),
]

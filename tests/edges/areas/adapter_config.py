"""adapter_config.json: every key of PEFT's LoraConfig set to something else, of another type, or left out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import config as peft_config

from ..adapter_keys import Adapters, setting, unknown_key
from ..harness import Variation, Verdict
from ..peft_side import CONFIG_FILE, compare, make

Q0, ALL = (
    "model.layers.0.self_attn.q_proj",
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
UNSLOTH = (  # as a widely used trainer writes its targets
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|"
    r"feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|down_proj)))"
)
TWO = {"target_modules": ["q_proj", "v_proj"]}
# What PEFT itself makes: key -> (settings, of which the first has the key's value)
MADE: dict[str, list[dict[str, Any]]] = {
    "task_type": [{"task_type": None}, {"task_type": "FEATURE_EXTRACTION"}],
    "r": [{"r": 1}, {"r": 7}],
    "lora_alpha": [{"lora_alpha": 16}, {"lora_alpha": 2.5}, {"lora_alpha": 0}, {"lora_alpha": -4}],
    "lora_dropout": [{"lora_dropout": 0.25}, {"lora_dropout": 1.0}],
    "use_rslora": [{"use_rslora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}],
    "target_modules": [
        *(
            {"target_modules": names}
            for names in (ALL, ["self_attn.q_proj"], [Q0], [Q0, "down_proj"], ["1.mlp.up_proj"])
        ),
        *({"target_modules": text} for text in ("all-linear", "All-Linear", Q0, r".*\.(q|v)_proj", UNSLOTH)),
        *(
            {"target_modules": text}
            for text in (r".*layers\.1\..*_proj", "(.*)head|.*k_proj", r"model\.layers\.[0]\.mlp\.up_proj")
        ),
        *(
            {"target_modules": names}
            for names in (None, ["q_proj", "nothing"], ["q_proj", "lm_head"], ["embed_tokens"])
        ),
        {"target_modules": [name for layer in "01" for name in (f"model.layers.{layer}.mlp.up_proj",)]},
    ],
    "exclude_modules": [
        *(TWO | {"exclude_modules": names} for names in (["v_proj"], [Q0], ["self_attn.v_proj", Q0], ["w_proj"])),
        *(TWO | {"exclude_modules": text} for text in (r".*\.1\..*", r".*(v_proj|0).*", "none")),
    ],
    "layers_to_transform": [
        *(TWO | {"layers_to_transform": layers} for layers in (0, 1, [1], [0, 1], [], [0, 7])),
        {"target_modules": [Q0, "v_proj"], "layers_to_transform": [1]},
    ],
    "layers_pattern": [
        *(
            TWO | {"layers_to_transform": [1], "layers_pattern": text}
            for text in ("layers", ["layers"], "", [], "lay.*")
        ),
    ],
    "rank_pattern": [
        *({"rank_pattern": {key: 2}} for key in ("q_proj", Q0, "layers.1.self_attn.q_proj", r"layers\.[01]\..*q_proj")),
        *({"rank_pattern": {key: 3}} for key in (f"^{Q0}", "(q|k)_proj", "proj", "q_pro.")),
    ],
    "alpha_pattern": [
        *({"alpha_pattern": {key: 2}} for key in ("q_proj", Q0, "1.mlp.down_proj", r".*\.mlp\..*", "w_proj")),
        {"alpha_pattern": {"q_proj": 0.5, "down_proj": 9}, "rank_pattern": {"down_proj": 2}, "use_rslora": True},
    ],
    "fan_in_fan_out": [{"fan_in_fan_out": True}],
    "bias": [{"bias": "all"}, {"bias": "lora_only"}],
    "modules_to_save": [
        *({"modules_to_save": [name]} for name in ("lm_head", "embed_tokens", "norm", "1.mlp", "k_proj")),
        {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": "all-linear"},
    ],
    "init_lora_weights": [
        {"init_lora_weights": value}
        for value in (False, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_2", "mica")
    ],
    "trainable_token_indices": [{"trainable_token_indices": value} for value in ([1, 2], {"embed_tokens": [3]})],
    "use_dora": [
        *({"use_dora": True, "use_rslora": value} for value in (False, True)),
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        {"use_dora": True, "rank_pattern": {"q_proj": 1}, "target_modules": "all-linear"},
    ],
    "qalora_group_size": [{"qalora_group_size": 8}],
    "layer_replication": [{"layer_replication": [[0, 2], [1, 2]]}],
    "lora_bias": [{"lora_bias": True}],
    "target_parameters": [{"target_parameters": ["mlp.up_proj.weight"]}],
    "alora_invocation_tokens": [{"alora_invocation_tokens": [1, 2]}],
    "ensure_weight_tying": [{"ensure_weight_tying": True}],
    "inference_mode": [{"inference_mode": True}],
    "revision": [{"revision": "v2"}],
    "base_model_name_or_path": [{"base_model_name_or_path": "someone/another-base"}],
}
# What is written into the file in the place of a sound value, where PEFT cannot make it from these settings alone.
EDITED: dict[str, list[Any]] = {
    "peft_type": ["IA3", "lora", "LOHA"],
    "task_type": ["SEQ_CLS", "causal_lm"],
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}],
    "peft_version": ["99.0.0", "0.4.0"],
    "bias": ["some"],
    "target_modules": ["q_proj", "(", ["all-linear"], ["q_proj", 3], [["q_proj"]], ".*", ["layers.0"], ["self_attn"]],
    "exclude_modules": ["v_proj", "(", [3]],
    "rank_pattern": [{"q_proj": 0}, {"q_proj": "4"}, {"q_proj": 4.0}, {"q_proj": True}, {"(": 4}],
    "alpha_pattern": [{"q_proj": "4"}, {"q_proj": None}, {"(?i)Q_PROJ": 4}, {"q_proj": 2.0, Q0: 3}],
    "init_lora_weights": ["eva", "corda", "loftq", "lora_ga", "true", "Gaussian"],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "megatron_core": ["megatron.other"],
    "use_qalora": [True],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "layers_pattern": ["layers"],
    "r": [4.0, "4", 0, -4],
    "lora_alpha": ["6"],
    "lora_dropout": [-0.5, "0.1"],
}
OTHER_TYPES = (None, True, 1.5, "x", [], {})
SUB_CONFIGURATIONS = {
    "loftq_config": "LoftQConfig",
    "eva_config": "EvaConfig",
    "corda_config": "CordaConfig",
    "lora_ga_config": "LoraGAConfig",
    "velora_config": "VeloraConfig",
    "monteclora_config": "MontecloraConfig",
    "use_bdlora": "BdLoraConfig",
    "arrow_config": "ArrowConfig",
    "kasa_config": "KasaConfig",
    "runtime_config": "LoraRuntimeConfig",
}
NAMED = {  # what a refusal names where it is not the key itself
    "peft_type = 'IA3'": ["bias is"],  # which keys are there depends on the kind
    "use_dora, another type: True": ["lora_magnitude_vector"],
}
UNKNOWN: list[dict[str, Any]] = [
    {"lora_aplha": 32},
    {"use_next_lora": True},
    {"next_config": {"a": 1}},
    {"use_next_lora": False, "next_config": None},
]
ADAPTERS = Adapters("adapter configurations", make, named=NAMED)


def another(field: dataclasses.Field[Any]) -> Any:
    """A value of the field's type other than its default."""
    default = None if field.default is dataclasses.MISSING else field.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return type(default)(default * 2) if default != 0.99 else 0.5
    return {"corda_method": "kpm", "init_type": "random"}.get(field.name, [1] if default is None else default)


def of_sub_configurations() -> Iterator[Variation]:
    classes = {name for name, cls in inspect.getmembers(peft_config, inspect.isclass) if name.endswith("Config")}
    for name in sorted(classes - {*SUB_CONFIGURATIONS.values(), "LoraConfig", "PeftConfig"}):
        yield ADAPTERS.variation(f"{name}: new in PEFT", partial(unknown_key, name))
    for key, name in SUB_CONFIGURATIONS.items():
        for field in dataclasses.fields(getattr(peft_config, name)):
            value = another(field)
            yield ADAPTERS.edited(f"{key}.{field.name} = {value!r}", setting(key, {field.name: value}), [key])


def written(content: bytes | Callable[[bytes], bytes], names: list[str], folder: Path) -> Verdict:
    make(folder)
    path = folder / CONFIG_FILE
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return compare(folder, [CONFIG_FILE, *names])


FILES: dict[str, bytes | Callable[[bytes], bytes]] = {
    "empty": b"",
    "no JSON": b"r = 4",
    "a list": b"[]",
    "an object without keys": b"{}",
    "cut off": lambda content: content[:40],
    "UTF-8 with a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "nested 5,000 deep": b"[" * 5000,
    "an integer of 5,000 digits": lambda content: content.replace(b'"r": 4', b'"r": ' + b"4" * 5000),
    "a key twice, the last sound": lambda content: content.replace(b'"r": 4', b'"r": 5, "r": 4'),
    "of mlx-lm": b'{"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 2.0}}',
    "NaN as alpha": lambda content: content.replace(b'"lora_alpha": 6', b'"lora_alpha": NaN'),
}

# PEFT sorts the patterns when it saves, so that others come first when it loads; it refuses its own file then.
SORTED = [{"q_proj": 2, Q0: 3}, {"self_attn.q_proj": 3, "q_proj": 2}]

VARIATIONS = [
    *ADAPTERS.of_keys(peft.LoraConfig, MADE, EDITED, OTHER_TYPES, tuple(SUB_CONFIGURATIONS)),
    *(
        ADAPTERS.made(f"rank_pattern, two that match: {table}", {"rank_pattern": table}, ["has shape"])
        for table in SORTED
    ),
    *of_sub_configurations(),
    *(
        ADAPTERS.edited(f"unknown keys {table}", lambda t, table=table: t.update(table), list(table)[:1])
        for table in UNKNOWN
    ),
    *(ADAPTERS.variation(f"file: {name}", partial(written, content, [])) for name, content in FILES.items()),
]

"""PEFT's adapter_config.json: what each of its keys must hold for entrenar to compute what PEFT computes (0.21)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from entrenar.adapters.targets import is_name
from entrenar.config import nearest, shown
from entrenar.errors import ConfigError

# Settings that change the result and that entrenar does not compute, with the values that mean "off".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "megatron_config": (None, {}),
    # the other initialisations (PiSSA, OLoRA, CorDA, LoftQ, ...) change the base weights when PEFT loads the adapter
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    # biases that were trained are tensors of the file, which are refused there
    "bias": ("none", "all", "lora_only"),
    "task_type": ("CAUSAL_LM", None),
    "layers_pattern": (None, [], "", "layers", ["layers"]),
}
# Settings that entrenar has as well.
SETTINGS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "use_rslora": "use_rslora",
    "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers_to_transform",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
# Keys that change nothing about an adapter that is trained, with the reason.
WITHOUT_EFFECT = {
    "peft_type": "checked before",
    "auto_mapping": "names classes of Python",
    "peft_version": "says who wrote the file",
    "base_model_name_or_path": "says where the base was",
    "revision": "says which version of the base",
    "inference_mode": "says whether PEFT shall train it",
    "loftq_config": "is read only with init_lora_weights 'loftq'",
    "eva_config": "only chose the first weights",
    "corda_config": "is read only with init_lora_weights 'corda'",
    "lora_ga_config": "is read only with init_lora_weights 'lora_ga'",
    "megatron_core": "names a library that megatron_config needs",
    "qalora_group_size": "is read only with use_qalora",
    "runtime_config": "is not read by PEFT either",
    "ensure_weight_tying": "is about embedding and head, which get no adapters here",
}
SUB_CONFIGURATIONS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config")
KNOWN = (*UNSUPPORTED, *SETTINGS, *WITHOUT_EFFECT)
OF_OTHER_TOOLS = {"fine_tune_type": "mlx-lm", "lora_parameters": "mlx-lm", "lora_layers": "mlx-lm"}


def settings_of(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of LoRAConfig that an adapter_config.json says; ConfigError, naming the key, for what does not fit."""
    _check_kind(table, where)
    for key, off in UNSUPPORTED.items():
        if key in table and not any(table[key] == value and type(table[key]) is type(value) for value in off):
            raise ConfigError(
                f"{where}: {key} is {shown(table[key])}, which is not supported (expected "
                f"{' or '.join(map(json.dumps, off))}); merge the adapter in PEFT and use the merged model."
            )
    for key, value in table.items():
        if key not in KNOWN and value not in (None, False, "", [], {}):
            hint = nearest(key, KNOWN)
            advice = hint if hint.startswith("did you") else "remove it if it does not."
            raise ConfigError(
                f"{where}: {key} is {shown(value)}, and it is not known whether that changes the result; {advice}"
            )
    for key in SUB_CONFIGURATIONS:
        if not isinstance(table.get(key, None), dict | None):
            raise ConfigError(f"{where}: {key} is {shown(table[key])}, expected an object.")
    _check_targets(table, where)
    optional = ("use_rslora", "exclude_modules", "layers_to_transform")
    found = {ours: table[key] for key, ours in SETTINGS.items() if key in table}
    found = {name: value for name, value in found.items() if value is not None or name not in optional}
    found.setdefault("alpha", 8)
    if isinstance(found.get("layers_to_transform"), int):
        found["layers_to_transform"] = [found["layers_to_transform"]]
    return found


def in_terms_of_peft(text: str, section: str) -> str:
    """A message about a setting of ours with the key that PEFT has for it."""
    for key, ours in SETTINGS.items():
        rest = text.removeprefix(f"{section}.{ours}")
        if rest != text and rest[0] in ": ":
            return f"{key}{rest}".replace("expected a table", "expected an object")
    return text


def _check_kind(table: Mapping[str, Any], where: str) -> None:
    tool = next((tool for key, tool in OF_OTHER_TOOLS.items() if key in table), None)
    if tool is not None and "peft_type" not in table:
        raise ConfigError(f"{where}: is of an adapter of {tool}, expected one of PEFT; merge it with {tool} first.")
    if "peft_type" not in table:
        raise ConfigError(f"{where}: peft_type is missing, expected 'LORA'; it is no configuration of a PEFT adapter.")
    if table["peft_type"] != "LORA":
        raise ConfigError(f"{where}: peft_type is {shown(table['peft_type'])}, expected 'LORA'.")


def _check_targets(table: Mapping[str, Any], where: str) -> None:
    for key, expected in (("r", "the rank of the adapter"), ("target_modules", "the names of its layers")):
        if key not in table or (key == "target_modules" and table[key] is None):
            raise ConfigError(f"{where}: {key} is {'null' if key in table else 'missing'}, expected {expected}.")
    for key in ("target_modules", "exclude_modules"):
        names = table.get(key)
        if names is None:
            continue
        if isinstance(names, str):
            if is_name(names) and not (key == "target_modules" and names.lower() == "all-linear"):
                raise ConfigError(
                    f"{where}: {key} is the text {names!r}, which PEFT takes for a pattern of whole names; expected a "
                    f"list of layer names; write [{json.dumps(names)}] for the layers whose names end so."
                )
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: {key} is {shown(names)}, expected a list of layer names.")
        elif "all-linear" in names:
            raise ConfigError(
                f"{where}: {key} has 'all-linear' in a list, where PEFT takes it for a layer's name; "
                'write "all-linear" without the list.'
            )
    pattern, layers = isinstance(table["target_modules"], str), table.get("layers_to_transform")
    if layers is not None and pattern:
        raise ConfigError(f"{where}: layers_to_transform is {shown(layers)}, and target_modules is no list.")
    if table.get("layers_pattern") and (layers is None or pattern):
        raise ConfigError(f"{where}: layers_pattern has no meaning without layers_to_transform and a list of targets.")

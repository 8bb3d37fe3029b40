"""PEFT's adapter_config.json: what each key must hold for entrenar to compute what PEFT computes (0.21)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar

from entrenar.adapters.targets import ALL_LINEAR, is_name
from entrenar.config import nearest, shown
from entrenar.errors import ConfigError

# Settings of every kind that change the result and that entrenar does not compute, with the values that mean "off".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "task_type": ("CAUSAL_LM", None),
}
# Keys of every kind that change nothing about an adapter that is trained, with the reason.
NEUTRAL = {
    "peft_type": "checked before",
    "auto_mapping": "names classes of Python",
    "peft_version": "says who wrote the file",
    "base_model_name_or_path": "says where the base was",
    "revision": "says which version of the base",
    "inference_mode": "says whether PEFT shall train it",
}
Config = TypeVar("Config", bound=type[Any])
LISTS_OF_NAMES = ("target_modules", "exclude_modules", "feedforward_modules")
OF_OTHER_TOOLS = {"fine_tune_type": "mlx-lm", "lora_parameters": "mlx-lm", "lora_layers": "mlx-lm"}


@dataclass(frozen=True)
class PeftTable:
    """The keys of one kind's adapter_config.json; every key of PEFT's is a setting, unsupported or without effect."""

    peft_type: str
    prefix: str  # of what its tensors are called within a layer
    settings: Mapping[str, str]  # keys that entrenar has as well, with its names for them
    unsupported: Mapping[str, tuple[Any, ...]]  # keys that change the result, with the values that mean "off"
    without_effect: Mapping[str, str]  # keys that change nothing about a trained adapter, with the reason
    required: Mapping[str, str]  # keys that must be there, with what they are
    optional: Sequence[str] = ()  # our names of settings that null leaves as they are by default
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of our names, where PEFT's are others than ours
    objects: Sequence[str] = ()  # keys without effect whose values are objects

    @property
    def known(self) -> tuple[str, ...]:
        """Every key that the table says something of."""
        return (*self.unsupported, *self.settings, *self.without_effect)

    def settings_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The configuration's fields that an adapter_config.json says.

        ConfigError, naming the key, for what does not fit.
        """
        check_kind(table, where, [self.peft_type])
        self._check_unsupported(table, where)
        for key in self.objects:
            if not isinstance(table.get(key, None), dict | None):
                raise ConfigError(f"{where}: {key} is {shown(table[key])}, expected an object.")
        self._check_names(table, where)
        found = {ours: table[key] for key, ours in self.settings.items() if key in table}
        found = {name: value for name, value in found.items() if value is not None or name not in self.optional}
        found = {**self.defaults, **found}
        if isinstance(found.get("layers_to_transform"), int):
            found["layers_to_transform"] = [found["layers_to_transform"]]
        return found

    def in_terms_of_peft(self, text: str, section: str) -> str:
        """A message about a setting of ours with the key that PEFT has for it."""
        for key, ours in self.settings.items():
            rest = text.removeprefix(f"{section}.{ours}")
            if rest != text and rest[0] in ": ":
                return f"{key}{rest}".replace("expected a table", "expected an object")
        return text

    def _check_unsupported(self, table: Mapping[str, Any], where: str) -> None:
        for key, off in self.unsupported.items():
            if key in table and not any(table[key] == value and type(table[key]) is type(value) for value in off):
                raise ConfigError(
                    f"{where}: {key} is {shown(table[key])}, which is not supported (expected "
                    f"{' or '.join(map(json.dumps, off))}); merge the adapter in PEFT and use the merged model."
                )
        for key, value in table.items():
            if key not in self.known and value not in (None, False, "", [], {}):
                hint = nearest(key, self.known)
                advice = hint if hint.startswith("did you") else "remove it if it does not."
                raise ConfigError(
                    f"{where}: {key} is {shown(value)}, and it is not known whether that changes the result; {advice}"
                )

    def _check_names(self, table: Mapping[str, Any], where: str) -> None:
        for key, expected in self.required.items():
            if key not in table or (key in LISTS_OF_NAMES and table[key] is None):
                raise ConfigError(f"{where}: {key} is {'null' if key in table else 'missing'}, expected {expected}.")
        for key in LISTS_OF_NAMES:
            if key in self.settings and table.get(key) is not None:
                _check_list(key, table[key], where)
        pattern, layers = isinstance(table.get("target_modules"), str), table.get("layers_to_transform")
        if layers is not None and pattern:
            raise ConfigError(f"{where}: layers_to_transform is {shown(layers)}, and target_modules is no list.")
        if table.get("layers_pattern") and (layers is None or pattern):
            raise ConfigError(
                f"{where}: layers_pattern has no meaning without layers_to_transform and a list of targets."
            )


def check_kind(table: Mapping[str, Any], where: str, peft_types: Sequence[str]) -> None:
    """ConfigError where an adapter_config.json is of none of these kinds, or of another tool."""
    expected = " or ".join(map(repr, peft_types))
    tool = next((tool for key, tool in OF_OTHER_TOOLS.items() if key in table), None)
    if tool is not None and "peft_type" not in table:
        raise ConfigError(f"{where}: is of an adapter of {tool}, expected one of PEFT; merge it with {tool} first.")
    if "peft_type" not in table:
        raise ConfigError(
            f"{where}: peft_type is missing, expected {expected}; it is no configuration of a PEFT adapter."
        )
    if table["peft_type"] not in peft_types:
        raise ConfigError(f"{where}: peft_type is {shown(table['peft_type'])}, expected {expected}.")


def _check_list(key: str, names: Any, where: str) -> None:
    """ConfigError where PEFT would take names for something else than they are taken for here."""
    if isinstance(names, str):
        if is_name(names) and not (key == "target_modules" and names.lower() == ALL_LINEAR):
            raise ConfigError(
                f"{where}: {key} is the text {names!r}, which PEFT takes for a pattern of whole names; expected a "
                f"list of layer names; write [{json.dumps(names)}] for the layers whose names end so."
            )
    elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: {key} is {shown(names)}, expected a list of layer names.")
    elif ALL_LINEAR in names:
        raise ConfigError(
            f"{where}: {key} has 'all-linear' in a list, where PEFT takes it for a layer's name; "
            'write "all-linear" without the list.'
        )


def takes_peft_names(config: Config) -> Config:
    """Let a configuration be made with PEFT's names (`r`, `lora_alpha`) too, and with what PEFT has and is off.

    ConfigError for a key under both names, and for a setting of PEFT's that is not computed here.
    """
    made, section, table = config.__init__, config.section, config.peft
    own = {spec.name for spec in fields(config)}

    @wraps(made)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        for theirs, value in list(options.items()):
            ours = theirs if theirs in own else table.settings.get(theirs, theirs)
            if theirs in table.unsupported and theirs not in own:
                if options.pop(theirs) not in table.unsupported[theirs]:
                    raise ConfigError(f"{section}: {theirs}={value!r:.80} is not supported; leave it out.")
            elif ours != theirs and ours in options:
                raise ConfigError(f"{section}: got {theirs}={value!r:.80} and {ours}={options[ours]!r:.80}; keep one.")
            else:
                options[ours] = options.pop(theirs)
        made(self, *arguments, **options)

    config.__init__ = init
    return config

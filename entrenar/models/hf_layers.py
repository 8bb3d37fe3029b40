"""What config.json says of layers that differ: which have a sliding window, and the rotation of those that have.

The rules are those of transformers 5; `Family` says which keys a family heeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.models.families import FULL, LAYER_TYPES, SLIDING, Family, default_layer_types, one_of

PATTERN = "sliding_window_pattern"  # of families whose windowed layers have a rotation of their own


def window_values(table: Mapping[str, Any], family: Family, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`sliding_window` and `layer_types`, as far as the family has them.

    Raises ConfigError, naming the key, for values of another type and for windows where transformers has none.
    """
    types, window = _layer_types(table, family, where), _window(table, family, where)
    context = values["max_position_embeddings"]
    hides = window is not None and isinstance(context, int) and window < context
    if "sliding_window" not in family.own:
        if hides:
            raise ConfigError(
                f"{where}: sliding_window is {window}, less than the context of {context}; windows are not supported "
                f"where model_type is {family.model_type!r}; remove it if the weights go without, or set their "
                "model_type."
            )
        return {}
    if "layer_types" not in family.own:
        if types is not None and hides:
            raise ConfigError(
                f"{where}: layer_types is given, which a {family.model_type.capitalize()} with a sliding_window does "
                "not heed; remove it, or set model_type to 'ministral'."
            )
        return {"sliding_window": window}
    if family.window_switch and window is None and SLIDING in (types or ()):
        raise ConfigError(
            f"{where}: layer_types has {SLIDING!r}, and there is no window without a use_sliding_window of true and a "
            "sliding_window; set both, or remove layer_types."
        )
    if types is None and (window is not None or family.full_every):
        types = _default_types(table, family, values["num_hidden_layers"], where)
    return {"sliding_window": window, "layer_types": types}


def _window(table: Mapping[str, Any], family: Family, where: str) -> int | None:
    """The window, null where a switch is off."""
    window = table.get("sliding_window", family.default_window)
    if family.window_switch:
        _check_window_keys(table, where)
        if not table.get("use_sliding_window", False):
            return None
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"{where}: sliding_window is {shown(window)}, expected an integer of at least 1, or null.")
    return window


def _check_window_keys(table: Mapping[str, Any], where: str) -> None:
    """Their types, which transformers holds whether or not windows are on."""
    for key, kinds, expected in (
        ("use_sliding_window", (bool,), "true or false"),
        ("max_window_layers", (int,), "an integer"),
        ("sliding_window", (int, type(None)), "an integer or null"),
    ):
        if key in table and type(table[key]) not in kinds:
            raise ConfigError(f"{where}: {key} is {shown(table[key])}, expected {expected}.")


def _layer_types(table: Mapping[str, Any], family: Family, where: str) -> list[str] | None:
    """The key's value, where it is one that the family can have."""
    types, layers = table.get("layer_types"), table.get("num_hidden_layers")
    if types is None:
        return None
    allowed = LAYER_TYPES if "layer_types" in family.own else (FULL,)
    if not isinstance(types, list) or set(map(str, types)) - {*allowed, "attention"}:
        raise ConfigError(
            f"{where}: layer_types is {shown(types)}, expected {one_of(allowed)} for each layer where model_type is "
            f"{family.model_type!r}; no other type is supported."
        )
    if family.layer_types_need_window and table.get("sliding_window", family.default_window) is None:
        raise ConfigError(
            f"{where}: layer_types is given and sliding_window is null, with which transformers cannot run a "
            f"{family.model_type.capitalize()}; remove layer_types."
        )
    if len(types) != layers:
        raise ConfigError(f"{where}: layer_types has {len(types)} entries, expected num_hidden_layers = {layers}.")
    return [FULL if kind == "attention" else kind for kind in types]


def _default_types(table: Mapping[str, Any], family: Family, layers: Any, where: str) -> list[str] | None:
    """The layers with a window where no layer_types names them."""
    if not isinstance(layers, int):
        return None  # which is refused later
    if family.window_switch:
        first = table.get("max_window_layers", 28)
        return [SLIDING if layer >= first else FULL for layer in range(layers)]
    every = table.get(PATTERN, family.full_every) if family.local_rope else family.full_every
    if isinstance(every, bool) or not isinstance(every, int) or (PATTERN in table and family.local_rope and every < 1):
        raise ConfigError(f"{where}: {PATTERN} is {shown(every)}, expected an integer of at least 1.")
    return default_layer_types(family, layers, every)


def local_rope(table: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Any]:
    """(config.json with the rotation of layers without a window in the common place, rope_theta of those with one).

    Raises ConfigError where layers with a window have another kind of rotation than the plain one.
    """
    rope, scaling = table.get("rope_parameters") or {}, table.get("rope_scaling") or {}
    for key, part in (("rope_parameters", rope), ("rope_scaling", scaling)):
        if not isinstance(part, Mapping):
            raise ConfigError(f"{where}: {key} is {shown(part)}, expected an object.")
    stray = sorted(set(rope) - {SLIDING, FULL})
    if stray:
        raise ConfigError(
            f"{where}: rope_parameters.{stray[0]} is not read by transformers; expected an object for each of "
            f"{SLIDING!r} and {FULL!r}."
        )
    sliding, full = rope.get(SLIDING) or {}, rope.get(FULL) or {}
    for key, part in ((SLIDING, sliding), (FULL, full)):
        if not isinstance(part, Mapping):
            raise ConfigError(f"{where}: rope_parameters.{key} is {shown(part)}, expected an object.")
    kind = sliding.get("rope_type", sliding.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"{where}: rope_parameters.{SLIDING}.rope_type is {shown(kind)}, expected 'default'; no other is supported "
            "in layers with a window."
        )
    theta = sliding.get("rope_theta", table.get("rope_local_base_freq", defaults["rope_local_base_freq"]))
    full = {"rope_theta": table.get("rope_theta", defaults["rope_theta"]), **full, **scaling}
    kept = {key: value for key, value in table.items() if key not in ("rope_theta", "rope_scaling", "rope_parameters")}
    return kept | {"rope_scaling" if scaling else "rope_parameters": full}, theta

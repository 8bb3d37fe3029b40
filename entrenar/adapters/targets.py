"""Which linears of a module tree an adapter's settings mean, by the rules of PEFT (peft/tuners/tuners_utils.py).

A name in a list means the module of that whole name and every module whose name ends in it; a text is a regular
expression that whole names match. Patterns come from files of others: those that could take long are matched by a
process of their own, which is ended after a while.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from entrenar.config import nearest
from entrenar.errors import ConfigError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a decoder layer
# of families that keep several in one
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ALL_LINEAR = "all-linear"  # all of them
DECODER_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\..+")
NAME = re.compile(r"[\w.-]*")  # what a list holds; any other text is a pattern
QUICK = re.compile(r"[^(*+?{]*([*+?{][^(*+?{]*){0,3}")  # at most three repeats, none within another
END = r"(.*\.)?({})"  # what PEFT makes of a key of rank_pattern and alpha_pattern
LONGEST_PATTERN = 10_000
SECONDS = 10
MATCHER = """
import json, re, sys
patterns, names = json.load(sys.stdin)
found = [[name for name in names if re.fullmatch(pattern, name)] for pattern in patterns]
json.dump(found, sys.stdout)
"""


class Shaped(Protocol):
    """A module tree, or what a plan has of one before any weight is allocated."""

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every weight by name, in the tree's order; that of a linear is (out_features, in_features)."""


def is_name(text: str) -> bool:
    """Whether the text is a module's name, or the end of one, and no pattern."""
    return NAME.fullmatch(text) is not None


def is_quick(patterns: Sequence[str]) -> bool:
    """Whether matching these takes no time worth a process."""
    return all(QUICK.fullmatch(pattern) for pattern in patterns)


def check_pattern(pattern: str, where: str, form: str = "{}") -> None:
    """ConfigError where the text, put into `form`, is no regular expression, or too long to be one."""
    if len(pattern) > LONGEST_PATTERN:
        raise ConfigError(f"{where} is a pattern of {len(pattern)} characters, expected {LONGEST_PATTERN} or fewer.")
    try:
        re.compile(pattern)
        re.compile(form.format(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{where}: {pattern[:200]!r} is no regular expression ({error}).") from error


def full_matches(patterns: Sequence[str], names: Sequence[str], where: str, *, quick: bool) -> list[set[str]]:
    """For each pattern the names that match it as a whole; ConfigError where that takes longer than SECONDS."""
    if quick:
        return [{name for name in names if re.fullmatch(pattern, name)} for pattern in patterns]
    return [set(found) for found in _matched_elsewhere(tuple(patterns), tuple(names), where)]


@functools.lru_cache(maxsize=64)  # a memory plan calls it repeatedly
def _matched_elsewhere(patterns: tuple[str, ...], names: tuple[str, ...], where: str) -> list[list[str]]:
    try:
        matcher = subprocess.run(
            [sys.executable, "-I", "-S", "-c", MATCHER],
            input=json.dumps([patterns, names]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{where}: the pattern {patterns[0][:200]!r} takes more than {SECONDS} seconds to match the model's names; "
            "list the names instead."
        ) from error
    except (subprocess.CalledProcessError, OSError) as error:
        raise ConfigError(f"{where}: the pattern {patterns[0][:200]!r} could not be matched ({error}).") from error
    found: list[list[str]] = json.loads(matcher.stdout)
    return found


def listed(names: Any) -> Any:
    """A text of names as a list of them; a pattern, a list and whatever is neither stay as they are."""
    if not isinstance(names, str):
        return names
    parts = [part.strip() for part in names.split(",")]
    if not all(map(is_name, parts)):
        return names
    return [ALL_LINEAR if part.lower() == ALL_LINEAR else part for part in parts] if names else []


def checked_targets(names: list[str], where: str, adapts: Callable[[str], bool]) -> list[str]:
    """The names of linears in the order of a decoder layer, longer names after them.

    ConfigError for an empty list, and for a name whose end is none that the kind `adapts`: a linear of a decoder layer.
    """
    others = [name for name in names if adapts(name) and not is_linear(name)]
    wanted = [*LINEARS, *others] if ALL_LINEAR in names else names
    if not wanted:
        raise ConfigError(f"{where} is empty, expected at least one linear layer.")
    for name in wanted:
        if not adapts(name):
            raise ConfigError(
                f"{where}: {name!r} is no linear of a decoder layer; {nearest(name, (*LINEARS, *FUSED, ALL_LINEAR))}"
            )
    longer = sorted({name for name in wanted if name not in LINEARS})
    return [name for name in LINEARS if name in wanted] + longer


def chosen_of(wanted: list[str] | str, names: Sequence[str]) -> list[str] | str:
    """The settings for a model with modules of these names: linears that it keeps in one mean that one."""
    if isinstance(wanted, str):
        return wanted
    there, found = {name.rsplit(".", 1)[-1] for name in names}, list(wanted)
    for fused, parts in FUSED.items():
        if fused in there and not there.intersection(parts) and set(parts) <= set(found):
            found[found.index(parts[0])] = fused
            found = [name for name in found if name not in parts]
    return found


def is_linear(name: str) -> bool:
    """Whether the module of this name is a linear of a decoder layer."""
    return name.rsplit(".", 1)[-1] in (*LINEARS, *FUSED)


def decoder_layer(name: str) -> int | None:
    """The number of the decoder layer that the module of this whole name belongs to; None outside all of them."""
    match = DECODER_LAYER.fullmatch(name)
    return int(match[1]) if match else None


def module_names(weights: Iterable[str]) -> list[str]:
    """The names of transformers' modules for a decoder with these weights, those without weights as well."""
    found = {"lm_head": None, "model.rotary_emb": None}
    for weight in weights:
        parts = weight.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        if parts[-1] == "gate_proj":
            found[".".join([*parts[:-1], "act_fn"])] = None
    return list(found)


def named(wanted: Sequence[str] | str, names: Sequence[str], where: str) -> set[str]:
    """The names that a list of names or a pattern means; ConfigError where an entry of it means none."""
    if isinstance(wanted, str):
        (found,) = full_matches([wanted], names, where, quick=is_quick([wanted]))
        if not found:
            raise ConfigError(
                f"{where}: the pattern {wanted[:200]!r} matches no whole name of a module; they are like "
                "'model.layers.0.self_attn.q_proj'."
            )
        return found
    found = set()
    for entry in wanted:
        meant = {name for name in names if name == entry or name.endswith(f".{entry}")}
        if not meant:
            raise ConfigError(f"{where}: {entry!r} matches no module of the model{_in_one_with(entry, names)}.")
        found |= meant
    return found


def _in_one_with(entry: str, names: Sequence[str]) -> str:
    """What a message says of a linear that the model keeps in one with others."""
    there, last = {name.rsplit(".", 1)[-1] for name in names}, entry.rsplit(".", 1)[-1]
    fused = next((name for name, parts in FUSED.items() if last in parts and name in there), None)
    return "" if fused is None else f", which has {fused}"


def first_matches(patterns: Iterable[str], names: Sequence[str], where: str) -> dict[str, str]:
    """For each name the first pattern that matches its end; ConfigError for a pattern that matches none of them."""
    keys = list(patterns)
    matches = full_matches([END.format(key) for key in keys], names, where, quick=is_quick(keys))
    found: dict[str, str] = {}
    for key, meant in zip(keys, matches, strict=True):
        if not meant:
            raise ConfigError(f"{where}: {key!r} matches none of the layers that get adapters.")
        for name in meant:
            found.setdefault(name, key)
    return found

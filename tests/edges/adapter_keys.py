"""Variations of an adapter of one kind: every key of PEFT's configuration, and its tensors, set to something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .harness import Variation, Verdict, Wrong
from .peft_side import compare, edit, edit_tensors

Change = Callable[[dict[str, Any]], object]


def setting(key: str, value: Any) -> Change:
    return lambda table: table.update({key: value})


def unknown_key(key: str, folder: Path) -> Verdict:
    raise Wrong(f"PEFT has the key {key}, for which no value is chosen here")


@dataclass(frozen=True)
class Adapters:
    """An area of variations: `make` writes a sound adapter with settings of PEFT, `compare` gives the verdict on it."""

    area: str
    make: Callable[..., None]
    compare: Callable[[Path, list[str]], Verdict] = compare
    named: Mapping[str, list[str]] = field(default_factory=dict)  # what a refusal names where it is not the key itself

    def variation(self, name: str, check: Callable[[Path], Verdict]) -> Variation:
        return Variation(self.area, name, "PEFT", check)

    def made(self, name: str, settings: dict[str, Any], names: list[str]) -> Variation:
        """What PEFT itself makes with these settings."""
        return self.variation(name, partial(self._changed, settings, None, None, names))

    def edited(self, name: str, change: Change, names: list[str]) -> Variation:
        """A change of the table of adapter_config.json."""
        return self.variation(name, partial(self._changed, {}, change, None, self.named.get(name, names)))

    def with_tensors(self, name: str, change: Change, names: list[str]) -> Variation:
        """A change of the tensors."""
        return self.variation(f"tensors: {name}", partial(self._changed, {}, None, change, names))

    def _changed(
        self, settings: dict[str, Any], table: Change | None, tensors: Change | None, names: list[str], folder: Path
    ) -> Verdict:
        self.make(folder, **settings)
        if table is not None:
            edit(folder, table)
        if tensors is not None:
            edit_tensors(folder, tensors)
        return self.compare(folder, names)

    def of_keys(
        self,
        config: type,
        made: Mapping[str, Sequence[dict[str, Any]]],
        edited: Mapping[str, Sequence[Any]],
        other_types: Sequence[Any],
        elsewhere: Sequence[str] = (),
    ) -> Iterator[Variation]:
        """Every field of PEFT's `config`: as PEFT makes it, edited, of other types, left out; none of `elsewhere`."""
        fields = [spec.name for spec in dataclasses.fields(config)]
        chosen = {*made, *edited, *elsewhere}
        for key in fields:
            if key not in chosen:
                yield self.variation(f"{key}: new in PEFT", partial(unknown_key, key))
            for settings in made.get(key, ()):
                shown = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
                yield self.made(f"{key}, made by PEFT: {shown}", settings, [key])
            for value in edited.get(key, ()):
                yield self.edited(f"{key} = {value!r}", setting(key, value), [key])
            for value in other_types:
                yield self.edited(f"{key}, another type: {value!r}", setting(key, value), [key])
            yield self.edited(f"{key} left out", lambda table, key=key: table.pop(key, None), [key])
        for key in sorted(chosen - set(fields)):
            yield self.variation(f"{key}: no longer in PEFT", partial(unknown_key, key))

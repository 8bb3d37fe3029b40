"""The verb `finetune`: flags from the configuration's own definition, then `entrenar.train.finetune`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.adapters.options import OPTIONS, AdapterOptions, LoRAOptions
from entrenar.adapters.presets import PRESETS
from entrenar.cli.flags import CONFIG, PRESET, Parser, config_from, early, parser_for
from entrenar.config import BASE_KEYS, add_arguments, load_toml, names_of, nearest, print_out, without
from entrenar.errors import ConfigError
from entrenar.train.config import NO_ADAPTER, Pretrained, TrainConfig, shape_hint

if TYPE_CHECKING:
    from entrenar.train.run import Result

DESCRIPTION = """Fine-tune a pretrained LLaMA on CPUs: by default SmolLM2-135M on Python's documentation.

    entrenar finetune --model DIRECTORY_OR_GGUF --data my_examples.jsonl --steps 200
    entrenar finetune --adapter lora --dtype bfloat16 --rank 8 --target-modules q_proj,v_proj
    entrenar finetune --preset mlp --data my_examples.jsonl

The adapter that is written loads in PEFT; --adapter none trains all weights and writes a model.
"""
ADAPTER, CONTINUE, DEFAULT, NONE = "--adapter", "--continue-adapter", "qlora", NO_ADAPTER
# The defaults of the program, for a kind that has such a key.
SETTINGS: dict[str, Any] = {"rank": 16, "alpha": 32.0, "target_modules": ["all-linear"]}


def main(
    arguments: Sequence[str] | None = None,
    *,
    kind: str | None = None,
    description: str = DESCRIPTION,
    prog: str | None = None,
) -> Result | None:
    """Parse the flags and fine-tune; None where --print-config asks for the configuration alone.

    With `kind` (a section of an adapter) the program has no --adapter.

    EntrenarError for what is wrong with the input; SystemExit, with one sentence, for what is wrong with a flag.
    """
    asked = asked_for(sys.argv[1:] if arguments is None else arguments, description, prog, kind=kind)
    config, base = asked.config, asked.base
    from entrenar.io.hub import fetch_default_model
    from entrenar.train.finetune import finetune
    from entrenar.train.written import whole_toml

    shape = _shape(asked.path) if asked.path is not None else {}
    if asked.parsed.print_config:
        print_out(whole_toml(config, base, shape), end="")
        return None
    model = fetch_default_model() if base.path is None else base.path
    return finetune(model, config, dtype=base.dtype, quantize=base.quantize, shape=shape)


@dataclass(frozen=True)
class Asked:
    """What a command line says of a run: its flags, its configuration, its base, and the file of its defaults."""

    parsed: argparse.Namespace
    config: TrainConfig
    base: Pretrained
    path: str | None


def asked_for(
    arguments: Sequence[str],
    description: str,
    prog: str | None,
    *,
    kind: str | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
    add: Callable[[Parser], None] = lambda parser: None,
) -> Asked:
    """Parse the flags; with `only`, those of these keys by section. `add` puts others of the program there."""
    arguments = _continuing(arguments)
    path = early(arguments, CONFIG, prog=prog)
    written = TrainConfig.from_file(path, _defaults()) if path is not None else None
    base = Pretrained.from_file(path) if path is not None else Pretrained()
    begun = early(arguments, CONTINUE, written.training.continue_adapter if written else None, prog=prog)
    start = None if begun is None else _begun(begun)
    chosen = kind or _chosen(arguments, written, base, start, prog)
    preset = early(arguments, PRESET, choices=PRESETS, prog=prog)
    adapter = _adapter(chosen, path, written, preset, start, by_flag=kind is None)
    defaults = written or TrainConfig()
    if path is None or "directory" not in load_toml(path).get("checkpointing", {}):
        folder = "outputs/full" if chosen == NONE else f"outputs/{chosen}"
        defaults = replace(defaults, checkpointing=replace(defaults.checkpointing, directory=folder))
    parser = parser_for(description, defaults, config=path, adapter=adapter, prog=prog, only=only)
    if kind is None:
        _add_choices(parser, chosen, adapter, base)
    _add_base(parser, base)
    _add_presets(parser, adapter)
    add(parser)
    parsed = parser.parse_args(arguments)
    config = config_from(parsed, adapter)
    # a section with storage of its own has a key of this name itself
    own = kind is None and adapter is not None and "quantize" not in names_of(type(adapter))
    quantize = parsed.quantize if own else base.quantize
    return Asked(
        parsed, config, Pretrained(parsed.model, parsed.dtype, quantize, NONE if adapter is None else None), path
    )


def _continuing(arguments: Sequence[str]) -> list[str]:
    """The arguments with --adapter FOLDER, which continues that adapter, as the flag of its own."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{ADAPTER}=") else [word])]
    for at, word in enumerate(words[:-1]):
        value = words[at + 1]
        if word != ADAPTER or value in (*OPTIONS, NONE):
            continue
        if Path(value).is_dir():
            words[at] = CONTINUE
        elif "/" in value:
            raise ConfigError(
                f"{ADAPTER} is {value}, and there is no such folder; expected that of an adapter, which is trained on, "
                f"or one of {', '.join((*OPTIONS, NONE))}."
            )
    return words


def _begun(folder: str) -> AdapterOptions:
    """The settings of the adapter that is continued; raises as `read_adapter_config`."""
    from entrenar.adapters.peft import read_adapter_config

    return read_adapter_config(folder)


def _defaults() -> dict[str, dict[str, Any]]:
    """The program's defaults by section, for what a file leaves out."""
    known = {section: names_of(kind) for section, kind in OPTIONS.items()}
    return {section: {key: value for key, value in SETTINGS.items() if key in keys} for section, keys in known.items()}


def _add_choices(parser: Parser, chosen: str, adapter: AdapterOptions | None, base: Pretrained) -> None:
    """What a program for one kind alone has no flags for: the kind, and 4 bits where its section does not say them."""
    kinds = [*OPTIONS, NONE]
    parser.add_argument(
        ADAPTER,
        choices=kinds,
        metavar="KIND",
        help="what is trained; none is all weights, the folder of an adapter continues it "
        f"({', '.join(kinds)}; default: {chosen})",
    )
    if adapter is not None and "quantize" not in names_of(type(adapter)):
        add_arguments(parser, Pretrained, base, only=("quantize",))


def _add_presets(parser: Parser, adapter: AdapterOptions | None) -> None:
    """Advised settings, where the kind has them; the other flags change what they say."""
    if isinstance(adapter, LoRAOptions):
        named = "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
        parser.add_argument(PRESET, choices=tuple(PRESETS), metavar="NAME", help=f"{named} (default: unset)")


def _add_base(parser: Parser, base: Pretrained) -> None:
    """Which model, and how its frozen weights are stored."""
    add_arguments(parser, Pretrained, base, {"path": "model"}, only=("path", "dtype"))


def _chosen(
    arguments: Sequence[str],
    written: TrainConfig | None,
    base: Pretrained,
    start: AdapterOptions | None,
    prog: str | None,
) -> str:
    """The kind of adapter that --adapter names, or the file has, or that is continued, or that is the default."""
    section = base.adapter or (DEFAULT if start is None else start.section)
    if written is not None and written.adapter is not None:
        section = written.adapter.section
        if base.adapter not in (None, section):
            raise ConfigError(f"model.adapter is {base.adapter}, and the file has a [{section}] section; keep one.")
    chosen = early(arguments, ADAPTER, section, choices=[*OPTIONS, NONE], prog=prog)
    assert chosen is not None
    return chosen


def _adapter(
    chosen: str,
    path: str | None,
    written: TrainConfig | None,
    preset: str | None,
    start: AdapterOptions | None,
    *,
    by_flag: bool,
) -> AdapterOptions | None:
    """The adapter with the file's values, or those of the one that is continued, or the program's defaults.

    ConfigError where the file has another's.
    """
    found = written.adapter if written is not None else None
    if found is not None:
        if found.section != chosen:
            wanted = f"{ADAPTER} is {chosen}; give one of both" if by_flag else f"this program reads [{chosen}]"
            raise ConfigError(f"{path}: has a [{found.section}] section, and {wanted}.")
        if preset is not None:
            raise ConfigError(
                f"{path}: has a [{found.section}] section, and {PRESET} is {preset}; give one of both, or write "
                f'preset = "{preset}" in the section.'
            )
        return found
    if chosen == NONE:
        return None
    known = names_of(OPTIONS[chosen])
    if start is not None and issubclass(OPTIONS[chosen], OPTIONS[start.section]):
        return OPTIONS[chosen](**{key: getattr(start, key) for key in names_of(type(start)) if key in known})
    settings = SETTINGS if preset is None or not issubclass(OPTIONS[chosen], LoRAOptions) else PRESETS[preset].settings
    return OPTIONS[chosen](**{key: value for key, value in settings.items() if key in known})


def _shape(path: str) -> dict[str, Any]:
    """The keys of [model] that the file sets, checked."""
    table = load_toml(path).get("model", {})
    if isinstance(table, dict) and not without(table, BASE_KEYS):
        return {}
    from entrenar.models.config import LLaMAConfig

    def hint(key: str) -> str:
        return shape_hint(key) or nearest(key, [*BASE_KEYS, *names_of(LLaMAConfig)])

    config = LLaMAConfig.from_file(path, hint)  # which refuses what is no table
    return {key: getattr(config, key) for key in without(table, BASE_KEYS)}

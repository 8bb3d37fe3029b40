"""Flags for every key of a run's configuration, whose defaults a TOML file may set (--config)."""

from __future__ import annotations

import argparse
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from entrenar.adapters.options import OPTIONS, AdapterOptions
from entrenar.config import ArgumentParser, add_arguments, from_arguments, names_of, nearest, shown, text_argument
from entrenar.train import synonyms
from entrenar.train.config import TrainConfig
from entrenar.train.synonyms import FLAGS

CONFIG, PRESET, PRINT = "--config", "--preset", "--print-config"


class Parser(ArgumentParser):
    """Knows what other programs call our flags, and which kinds of adapters have those that the chosen one has not."""

    adapter: str | None = None  # the section of the chosen kind

    def hint(self, flag: str) -> str:
        if not flag.startswith("-"):
            return "a value stands after its flag (--data FILE)."
        if flag == PRESET:
            return "presets are of LoRA: --adapter lora or qlora."
        key = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        having = [section for section, kind in OPTIONS.items() if key in names_of(kind)]
        if having:
            chosen = "a run without an adapter" if self.adapter is None else f"the kind {self.adapter}"
            return f"{chosen} has no such option; {' and '.join(having)} {'has' if len(having) == 1 else 'have'} it."
        return synonyms.hint(flag, self.flags()) or super().hint(flag)


def early(
    arguments: Sequence[str] | None,
    flag: str,
    default: str | None = None,
    *,
    choices: Collection[str] = (),
    prog: str | None = None,
) -> str | None:
    """What `flag` says, which is read before the others because their defaults follow from it."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, prog=prog)
    parser.add_argument(flag, default=default, type=text_argument, dest="value")
    given = sys.argv[1:] if arguments is None else arguments
    parser.refuse_repeated(given)
    value = parser.parse_known_args(given)[0].value
    if choices and value is not None and value not in choices:
        parser.error(f"argument {flag}: {shown(value)} is not known; {nearest(value, choices)}")
    return value


def add_adapter(parser: Parser) -> None:
    """--adapter, of a verb that uses one."""
    what = "PEFT adapter directory or GGUF adapter that is put on the model"
    parser.add_argument("--adapter", metavar="PATH", type=text_argument, help=f"{what} (default: unset)")


def add_adapters(parser: Parser, use: str) -> None:
    """--adapter, of a verb that uses several of one base; `use` says for what."""
    what = f"PEFT adapter directories or GGUF adapters, {use}"
    parser.add_argument(
        "--adapter", nargs="+", default=[], metavar="PATH", type=text_argument, help=f"{what} (default: unset)"
    )


def parser_for(
    description: str | None,
    defaults: TrainConfig,
    *,
    config: str | None,
    adapter: AdapterOptions | None,
    prog: str | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Parser:
    """Flags for every section, with the values of `defaults` as defaults, and for `adapter` where there is one.

    With `only`, keys by section, the program starts no run: other keys keep their defaults, and nothing is printed.
    """
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        CONFIG, metavar="FILE", help=f"TOML file that sets the defaults of the flags (default: {config or 'unset'})"
    )
    if only is None:
        parser.add_argument(
            PRINT, action="store_true", help="print the whole commented TOML of this run and end (default: false)"
        )
    if adapter is not None:
        parser.adapter = adapter.section
        add_arguments(parser, type(adapter), adapter)
    for name in ("training", "lr_schedule", "data", "checkpointing", "observe", "preference"):
        section, called = getattr(defaults, name), FLAGS.get(name, {})
        if only is not None:
            parser.set_defaults(**{called.get(key, key): getattr(section, key) for key in names_of(type(section))})
        if only is None or name in only:
            add_arguments(parser, type(section), section, called, only=() if only is None else only[name])
    return parser


def config_from(parsed: argparse.Namespace, adapter: AdapterOptions | None) -> TrainConfig:
    """The configuration that the flags say; ConfigError for a value out of range."""
    sections: dict[str, Any] = {
        spec.name: from_arguments(spec.default_factory, parsed, FLAGS.get(spec.name))  # type: ignore[arg-type]
        for spec in fields(TrainConfig)
        if spec.name != "adapter"
    }
    if adapter is not None:
        from entrenar.adapters.registry import KINDS

        sections["adapter"] = from_arguments(KINDS[adapter.section], parsed)
    return TrainConfig(**sections)

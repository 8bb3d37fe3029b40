"""The verb `completion`: a script that completes verbs, flags, values and paths, for bash, zsh and fish."""

from __future__ import annotations

import argparse
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from entrenar.adapters.options import OPTIONS
from entrenar.config import HELP, ArgumentParser, ArgumentType, print_out, text_argument
from entrenar.io.atomic import atomic_file
from entrenar.train.config import NO_ADAPTER

DESCRIPTION = """Print a script by which a shell completes entrenar's verbs, flags, values and paths.

    entrenar completion --output ~/.local/share/bash-completion/completions/entrenar bash
    entrenar completion --output ~/.config/fish/completions/entrenar.fish fish
    source <(entrenar completion bash)

For zsh, write it as _entrenar into a folder of $fpath. The script holds every flag: completing starts no program.
"""
KINDS = [[], *(["--adapter", kind] for kind in (*OPTIONS, NO_ADAPTER))]  # of which each has flags of its own
WITH_KINDS = ("finetune", "memory")
GLOBAL = ("--help", "--version", "--debug")


@dataclass
class Flag:
    """A flag: what it takes is one of `values`, or a path, or something else, or (`alone`) nothing."""

    name: str
    help: str
    values: list[str] = field(default_factory=list)
    path: bool = False
    alone: bool = False


@dataclass
class Verb:
    """A verb with its flags, and the words that its first argument may be."""

    name: str
    help: str
    flags: list[Flag]
    words: list[str]


def main(arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None) -> str:
    """Print or write the script; SystemExit for a wrong flag, OSError or FormatError where it cannot be written."""
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("shell", choices=tuple(SHELLS), metavar="SHELL", help=f"{', '.join(SHELLS)} (required)")
    parser.add_argument(
        "--output", metavar="FILE", type=text_argument, help="write it into this file (default: standard output)"
    )
    parsed = parser.parse_args(arguments)
    script = SHELLS[parsed.shell](verbs())
    if parsed.output is None:
        print_out(script, end="")
    else:
        with atomic_file(Path(parsed.output).expanduser()) as part:
            part.write_text(script, encoding="utf-8")
    return script


def verbs() -> list[Verb]:
    """Every verb, from the parsers that read its command line."""
    from entrenar.cli.main import DEBUG, VERBS

    found = []
    for name, purpose in VERBS.items():
        parsers = [parser_of(name, words) for words in (KINDS if name in WITH_KINDS else [[]])]
        flags = {flag.name: flag for parser in parsers for flag in _flags(parser)}
        flags[DEBUG] = Flag(DEBUG, "print the traceback of an error too", alone=True)
        words = [list(map(str, a.choices)) for a in parsers[0]._actions if not a.option_strings and a.choices]
        found.append(Verb(name, purpose, list(flags.values()), words[0] if words else []))
    return found


def parser_of(verb: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a verb's command line that begins with these words."""
    found: list[argparse.ArgumentParser] = []
    token = HELP.set(found.append)
    try:
        with suppress(SystemExit):
            import_module(f"entrenar.cli.{verb}").main([*words, "--help"], prog=f"entrenar {verb}")
    finally:
        HELP.reset(token)
    return found[0]


def _flags(parser: argparse.ArgumentParser) -> Iterable[Flag]:
    for action in parser._actions:
        help = _short((action.help or "").replace("%%", "%"))
        for name in action.option_strings:
            if not name.startswith("--"):
                continue
            kind = action.type
            given = kind.offered if isinstance(kind, ArgumentType) else ()
            values = [str(value) for value in action.choices or given]
            text = kind.is_text if isinstance(kind, ArgumentType) else kind in (text_argument, None)
            alone = action.nargs == 0
            yield Flag(name, help, values, path=text and not values and not alone, alone=alone)


def _short(help: str) -> str:
    """The first part of a help text, without what a shell would have to quote."""
    return re.sub(r"[^\w .,/+%-]", "", re.split(r"[;(:]", help)[0]).strip()


def _by_use(found: Verb) -> tuple[list[Flag], list[str], list[str]]:
    """The flags with values to choose from, the names of those that take a path, and of those that take neither."""
    takes = [flag for flag in found.flags if not flag.alone]
    return (
        [flag for flag in takes if flag.values],
        [flag.name for flag in takes if flag.path],
        [flag.name for flag in takes if not flag.values and not flag.path],
    )


def _cases(found: Sequence[Verb], choose: str, files: str) -> str:
    """The cases of "VERB FLAG" before the word that is completed; other words of a verb complete as paths."""
    lines = []
    for verb in found:
        chosen, paths, others = _by_use(verb)
        lines += [
            f'        "{verb.name} {flag.name}") {choose.format(" ".join(flag.values))}; return ;;' for flag in chosen
        ]
        for names, what in ((paths, f"{files}; return"), (others, "return")):
            if names:
                lines.append(f"        {'|'.join(_quoted(verb.name, name) for name in names)}) {what} ;;")
    return "\n".join(lines)


def _quoted(verb: str, flag: str) -> str:
    return f'"{verb} {flag}"'


def bash(found: Sequence[Verb]) -> str:
    """A function that fills COMPREPLY; --flag=value comes as three words."""
    flags = "\n".join(f'            {v.name}) reply "{" ".join(flag.name for flag in v.flags)}" ;;' for v in found)
    words = "\n".join(f'        "{v.name} {v.name}") reply "{" ".join(v.words)}"; return ;;' for v in found if v.words)
    names = " ".join([*(verb.name for verb in found), *GLOBAL])
    return f"""# bash completion of entrenar, to be sourced or put into ~/.local/share/bash-completion/completions/
_entrenar() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}"
    reply() {{ mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur"); }}
    paths() {{ compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); }}
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        reply "{names}"
        return
    fi
    if [[ $cur == = ]]; then
        cur=""
    elif [[ $prev == = ]]; then
        prev="${{COMP_WORDS[COMP_CWORD-2]}}"
    fi
    case "$verb $prev" in
{_cases(found, 'reply "{}"', "paths")}
    esac
    if [[ $cur == -* ]]; then
        case "$verb" in
{flags}
        esac
        return
    fi
    case "$verb $prev" in
{words}
    esac
    paths
}}
complete -F _entrenar entrenar
"""


def zsh(found: Sequence[Verb]) -> str:
    """A function for compdef: verbs and flags with what they are for."""
    flags = "\n".join(
        f"        {v.name}) options=({' '.join(_described(flag.name, flag.help) for flag in v.flags)}) ;;"
        for v in found
    )
    words = "\n".join(
        f'        "{v.name} {v.name}") compadd -- {" ".join(v.words)}; return ;;' for v in found if v.words
    )
    return f"""#compdef entrenar
_entrenar() {{
    local cur="$words[CURRENT]" prev="$words[CURRENT-1]" verb="$words[2]"
    local -a options
    if (( CURRENT == 2 )); then
        options=({" ".join(_described(verb.name, _short(verb.help)) for verb in found)})
        _describe verb options
        compadd -- {" ".join(GLOBAL)}
        return
    fi
    case "$verb $prev" in
{_cases(found, "compadd -- {}", "_files")}
    esac
    if [[ "$cur" == -* ]]; then
        case "$verb" in
{flags}
        esac
        _describe flag options
        return
    fi
    case "$verb $prev" in
{words}
    esac
    _files
}}
if [[ "$funcstack[1]" == _entrenar ]]; then
    _entrenar "$@"
elif (( $+functions[compdef] )); then
    compdef _entrenar entrenar
fi
"""


def _described(name: str, help: str) -> str:
    return f"'{name}:{help}'" if help else f"'{name}'"


def fish(found: Sequence[Verb]) -> str:
    """A `complete` for each verb and flag."""
    lines = ["# fish completion of entrenar"]
    first = "-n __fish_use_subcommand"
    for verb in found:
        lines.append(f"complete -c entrenar {first} -f -a {verb.name} -d '{_short(verb.help)}'")
    lines += [f"complete -c entrenar {first} -l {name.removeprefix('--')}" for name in GLOBAL]
    for verb in found:
        within = f"complete -c entrenar -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            lines.append(f"{within} -a '{' '.join(verb.words)}'")
        for flag in verb.flags:
            takes = "" if flag.alone else " -r -F" if flag.path else f" -x -a '{' '.join(flag.values)}'"
            lines.append(f"{within} -l {flag.name.removeprefix('--')}{takes} -d '{flag.help}'")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}

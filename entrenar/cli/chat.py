"""The verb `chat`: a conversation with a model in the terminal."""

from __future__ import annotations

import contextlib
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from entrenar.cli.flags import Parser, add_adapter
from entrenar.cli.generate import say
from entrenar.config import add_arguments, from_arguments, nearest, shown
from entrenar.errors import ConfigError, ShapeError
from entrenar.train.options import Sampling, SourceOptions

if TYPE_CHECKING:
    from entrenar.train.answers import Speaker

DESCRIPTION = """Talk with a model; each turn costs its own tokens alone.

    entrenar chat --model DIRECTORY_OR_GGUF
    entrenar chat --model base.gguf --adapter outputs/qlora/adapter --temperature 0.7 --top-p 0.9

Ctrl-C ends an answer, not the program. /reset begins anew, /undo takes back the last turn, /exit or Ctrl-D leaves.
"""
COMMANDS = ("/exit", "/quit", "/reset", "/undo")
PROMPT = "> "


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> list[dict[str, str]]:
    """Talk until the input ends; the messages. EntrenarError for a wrong input, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_adapter(parser)
    add_arguments(parser, SourceOptions)
    add_arguments(parser, Sampling)
    parsed = parser.parse_args(arguments)
    from entrenar.train.answers import Speaker
    from entrenar.train.loading import Source

    source = from_arguments(Source, parsed)
    with source.computing():
        speaker = Speaker.load(source, parsed.adapter, from_arguments(Sampling, parsed))
        if not speaker.tokenizer.has_template:
            raise ConfigError("The model has no chat template; continue texts with `entrenar generate --raw`.")
        return _talk(speaker)


def _talk(speaker: Speaker) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() then edits its line)
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                say("\n")
            return messages
        except KeyboardInterrupt:  # at the prompt there is nothing to end
            say("\n/exit or Ctrl-D leaves.\n")
            continue
        except UnicodeDecodeError:
            say("The line is not UTF-8 text; it is left out.\n")
            continue
        if line.startswith("/") and line.split()[0] not in COMMANDS and line[1:2].isalpha():
            say(f"{shown(line.split()[0])} is no command; {nearest(line.split()[0], COMMANDS)}\n")
        elif line in ("/exit", "/quit"):
            return messages
        elif line == "/reset":
            messages.clear()
        elif line == "/undo":
            del messages[-2:]
        elif line:
            _turn(speaker, messages, line)


def _turn(speaker: Speaker, messages: list[dict[str, str]], line: str) -> None:
    """Answer one message; what does not fit the context leaves the conversation as it was."""
    asked = [*messages, {"role": "user", "content": line}]
    try:
        text = speaker.answer(speaker.chat_tokens(asked), say).text
    except KeyboardInterrupt:
        text = speaker.partial.text
        say(" [interrupted]")
    except ShapeError as error:
        say(f"{error} /undo takes back a turn, /reset begins anew.\n")
        return
    say("\n")
    messages[:] = [*asked, {"role": "assistant", "content": text}]

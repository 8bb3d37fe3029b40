"""The verb `generate`: what a model answers to prompts, or how it continues texts."""

from __future__ import annotations

import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.cli.flags import Parser, add_adapter
from entrenar.config import add_arguments, from_arguments, named_stdout, text_argument
from entrenar.errors import ConfigError, FormatError, safe
from entrenar.train.options import Sampling, SourceOptions

if TYPE_CHECKING:
    from entrenar.train.answers import Answer

DESCRIPTION = """Let a model answer prompts, or continue texts (--raw), token by token as they come.

    entrenar generate --model DIRECTORY_OR_GGUF "What is a list in Python?"
    entrenar generate --model base.gguf --adapter outputs/qlora/adapter --file questions.txt --lines --json
    echo "Once upon a time" | entrenar generate --raw --temperature 0.8 --top-p 0.95

The prompt is the argument, else the file, else standard input. With a chat template it is a user's message.
"""
LARGEST = 64 << 20  # bytes of a file of prompts


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> list[Answer]:
    """Generate and print; the answers. EntrenarError for a wrong input, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", type=text_argument, help="what is answered or continued")
    parser.add_argument(
        "--file", metavar="FILE", type=text_argument, help="take the prompt from this file (default: unset)"
    )
    parser.add_argument(
        "--lines", action="store_true", help="each line of the file or input is a prompt (default: false)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the text as it stands, without the chat template (default: false)",
    )
    add_adapter(parser)
    add_arguments(parser, SourceOptions)
    add_arguments(parser, Sampling)
    parser.add_argument("--json", action="store_true", help="print an object a prompt, a line each (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.train.answers import Speaker
    from entrenar.train.loading import Source

    prompts = list(_prompts(parsed.prompt, parsed.file, parsed.lines))
    source, sampling = from_arguments(Source, parsed), from_arguments(Sampling, parsed)
    if parsed.raw and sampling.system is not None:
        raise ConfigError("--system is a message of the chat template, which --raw leaves out; give one of both.")
    with source.computing():
        speaker = Speaker.load(source, parsed.adapter, sampling)
        chats = speaker.tokenizer.has_template and not parsed.raw
        if sampling.system is not None and not chats:
            raise ConfigError("--system is a message of the chat template, and this model has none; leave it out.")
        answers = []
        for text in prompts:
            tokens = speaker.chat_tokens([{"role": "user", "content": text}]) if chats else speaker.plain_tokens(text)
            found = speaker.answer(tokens, (lambda part: None) if parsed.json else say)
            answers.append(found)
            say(json.dumps({"prompt": text} | found.table()) + "\n" if parsed.json else "\n")
    return answers


def say(text: str) -> None:
    """Print a part of an answer at once."""
    with named_stdout():
        sys.stdout.write(safe(text))
        sys.stdout.flush()


def _prompts(argument: str | None, file: str | None, lines: bool) -> Iterator[str]:
    """The prompts: of the argument, the file, or standard input. ConfigError where both are given or none has text."""
    if argument is not None and file is not None:
        raise ConfigError("A prompt and --file are both given; expected one of them.")
    if argument is not None and lines:
        raise ConfigError("--lines is about the lines of a file or of standard input; a prompt is given too.")
    text, where = argument, "The prompt"
    if text is None:
        where = file or "standard input"
        text = _read(file)
    found = [line for line in text.splitlines() if line.strip()] if lines else [text if argument else text.rstrip("\n")]
    if not any(part.strip() for part in found):
        raise ConfigError(f"{where}: has no text; give a prompt, --file FILE, or text on standard input.")
    yield from found


def _read(file: str | None) -> str:
    """The text of a file, or of standard input."""
    name = file or "standard input"
    try:
        if file is None:
            data: Any = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(LARGEST + 1)
    except OSError as error:
        raise FormatError(f"{name}: cannot be read ({error.strerror}); expected a text file of prompts.") from error
    if len(data) > LARGEST:
        raise FormatError(f"{name}: has more than {LARGEST >> 20} MiB, expected the text of prompts.")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error

"""The program `entrenar`: a verb, whose file has its flags and its work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import entrenar
from entrenar.cli.run import run
from entrenar.config import ArgumentParser, named_stdout, nearest, shown

PROGRAM, DEBUG = "entrenar", "--debug"
# What each verb is for. A verb is a file beside this one with `main(arguments, prog=...)`, and a row.
VERBS = {
    "finetune": "train an adapter of a pretrained model, or all its weights, on examples",
    "export": "write a model, with an adapter merged into it, for other programs",
    "merge": "merge an adapter into its base",
    "quantize": "write a model as a GGUF file of another type",
    "pull": "fetch a model from a hub",
    "train": "train a tokenizer and a model from scratch",
    "generate": "answer prompts, or continue texts, with a model and an adapter",
    "chat": "talk with a model and an adapter in the terminal",
    "evaluate": "measure the loss and perplexity of a model, or of adapters over one base, on examples",
    "doctor": "say what this machine and installation are, and measure what they can do",
    "inspect": "show what a model, adapter or checkpoint holds: tensors, types, sizes, metadata",
    "data": "check a data file: counts, lengths, faults, and samples with what is trained",
    "memory": "say what memory a run would need, by part, and what would make it fit",
    "completion": "print a script by which a shell completes verbs, flags and paths",
    "serve": "answer over HTTP, as the OpenAI API does",
    "analyze": "find the slow and the unusual steps of a run, and why they were",
    "compare": "say how two runs differ, or what became slower in a history of benchmarks",
    "report": "write what a run did as one HTML file: curves, timeline, anomalies, kernels",
}


class _Parser(ArgumentParser):
    """What stands before the verb."""

    def hint(self, flag: str) -> str:
        if not flag.startswith("-"):
            return f"a verb stands first: {PROGRAM} {flag} --help."
        return f"flags stand after the verb: {PROGRAM} {' or '.join(VERBS)} {flag}."

    def format_help(self) -> str:
        width = max(map(len, VERBS)) + 2
        verbs = "\n".join(f"  {verb:{width}}{purpose}" for verb, purpose in VERBS.items())
        return (
            f"usage: {PROGRAM} VERB [FLAGS]\n\nFine-tune LLaMA-family models on ordinary CPUs.\n\n{verbs}\n\n"
            f"  {PROGRAM} VERB --help lists the flags of a verb; {PROGRAM} --version says which version this is.\n"
            f"  {DEBUG} prints the traceback of an error too.\n\n"
            "exit status: 0 done, 1 an error (one sentence on the error stream), 2 a wrong command line, 130 Ctrl-C,\n"
            "  143 SIGTERM, 129 SIGHUP; a run that was stopped says how to resume it.\n"
        )


def main() -> NoReturn:
    """The console script: exits as `run` says, 2 where the command is wrong."""
    words, debug = without_debug(sys.argv[1:])
    run(lambda: dispatch(words), debug=debug)


def without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without --debug, which may stand anywhere before a --, and whether it stood there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != DEBUG]
    return [*kept, *words[end:]], len(kept) < end


def dispatch(words: Sequence[str]) -> object:
    """Do what a command line says, its program left out; what the verb returns."""
    parser = _Parser(prog=PROGRAM, allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    if not words:
        parser.error(f"expected a verb ({', '.join(VERBS)}); {PROGRAM} --help says what they do.")
    verb, *arguments = words
    if verb.startswith("-"):
        parser.parse_args(words)
        with named_stdout():
            print(PROGRAM, entrenar._version(Path(entrenar.__path__[0])))
        return None
    if verb not in VERBS:
        parser.error(f"{shown(verb)} is no verb; {nearest(verb, VERBS)}")
    return import_module(f"entrenar.cli.{verb}").main(arguments, prog=f"{PROGRAM} {verb}")

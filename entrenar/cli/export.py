"""The verb `export`: flags from the settings' own definition, then `entrenar.train.export`."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from entrenar.cli.flags import Parser
from entrenar.config import add_arguments, from_arguments
from entrenar.train.options import ExportOptions

DESCRIPTION = """Write a model, with an adapter merged into it or beside it, for llama.cpp, Ollama and transformers.

    entrenar export --model base.gguf --adapter outputs/qlora/adapter --type Q4_K_M --output tuned.gguf
    entrenar export --model DIRECTORY --to gguf --type Q8_0 --output model.gguf
    entrenar export --model base.gguf --adapter outputs/qlora/adapter --to hf --dtype bfloat16 --output tuned
    entrenar export --model base.gguf --adapter outputs/qlora/adapter --to gguf-adapter --output tuned.gguf

Each matrix is merged in float32 as it is written. With --data the loss of examples is shown before and after.
"""


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> list[str]:
    """Parse the flags and write; EntrenarError for what is wrong with the input, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_arguments(parser, ExportOptions)
    parsed = parser.parse_args(arguments)
    from entrenar.train.export import Export, export

    return export(from_arguments(Export, parsed))

"""The verb `quantize`: a model as a GGUF file of another type, by `entrenar.train.export`."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from entrenar.cli.flags import Parser
from entrenar.config import add_arguments
from entrenar.train.options import ExportOptions

DESCRIPTION = """Write a model as a GGUF file of a type, each matrix as llama-quantize decides.

    entrenar quantize --model DIRECTORY_OR_GGUF --type Q4_K_M --output model-Q4_K_M.gguf
    entrenar quantize --model model.gguf --type Q8_0 --output model-Q8_0.gguf --data examples.jsonl

With --data the loss of examples is shown before and after. `entrenar export` and `merge` take an adapter too.
"""
KEYS = ("model", "type", "output", "data", "held_out_fraction", "sequence_length", "modelfile", "overwrite")


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> list[str]:
    """Quantize and write; what there is to know of the output. Raises as `entrenar.cli.export.main`."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_arguments(parser, ExportOptions, only=KEYS, required=("type",))
    values = vars(parser.parse_args(arguments))
    from entrenar.train.export import Export, export

    return export(Export(**values))

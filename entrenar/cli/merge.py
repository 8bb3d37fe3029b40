"""The verb `merge`: an adapter into its base, by `entrenar.train.export`."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from entrenar.cli.flags import Parser
from entrenar.config import add_arguments
from entrenar.train.options import GGUF, HF, ExportOptions

DESCRIPTION = """Merge an adapter into its base: a model that needs no adapter any more.

    entrenar merge --model base.gguf --adapter outputs/qlora/adapter --output tuned.gguf
    entrenar merge --model DIRECTORY --adapter outputs/lora/adapter --output tuned --dtype bfloat16

An output that ends in .gguf is a GGUF file, any other a Hugging Face directory. `entrenar export` writes other forms.
"""
ENDING = ".gguf"
KEYS = (
    *("model", "adapter", "output", "type", "dtype", "max_shard_gb"),
    *("data", "held_out_fraction", "sequence_length", "modelfile", "overwrite"),
)


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> list[str]:
    """Merge and write; what there is to know of the output. Raises as `entrenar.cli.export.main`."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_arguments(parser, ExportOptions, only=KEYS, required=("adapter",))
    values = vars(parser.parse_args(arguments))
    from entrenar.train.export import Export, export

    return export(Export(to=GGUF if values["output"].lower().endswith(ENDING) else HF, **values))

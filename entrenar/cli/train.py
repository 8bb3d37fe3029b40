"""The verb `train`: the shape from a file, everything else from the file or from flags, then `pretrain`."""

from __future__ import annotations

from collections.abc import Sequence

from entrenar.cli.flags import CONFIG, config_from, early, parser_for
from entrenar.llama import LLaMAConfig
from entrenar.train import Result, TrainConfig, pretrain

DESCRIPTION = """Train a tokenizer and a LLaMA from scratch, of the shape and with the settings of a configuration file.

    entrenar train --config llama2/tiny
    entrenar train --config my_model.toml --data texts.jsonl --steps 2000

The text is the standard library's documentation unless --data names a file of examples.
"""
DEFAULT_FILE = "llama2/tiny"


def main(arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None) -> Result:
    """Parse the flags and train.

    EntrenarError for what is wrong with the input; SystemExit, with one sentence, for what is wrong with a flag.
    """
    path = early(arguments, CONFIG, DEFAULT_FILE, prog=prog)
    assert path is not None
    defaults, shape = TrainConfig.from_file(path), LLaMAConfig.from_file(path)
    parser = parser_for(description, defaults, config=path, adapter=defaults.adapter, prog=prog)
    return pretrain(shape, config_from(parser.parse_args(arguments), defaults.adapter))

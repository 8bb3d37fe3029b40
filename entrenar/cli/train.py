"""The program that trains from scratch: the shape from a file, everything else from the file or from flags."""

from __future__ import annotations

from collections.abc import Sequence

from entrenar.cli.arguments import config_from, config_path, parser_for
from entrenar.llama import LLaMAConfig
from entrenar.train import Result, TrainConfig, pretrain


def main(config_file: str, description: str | None, arguments: Sequence[str] | None = None) -> Result:
    """Parse the flags and train; `config_file` is the default of --config."""
    path = config_path(arguments, config_file)
    assert path is not None
    defaults, shape = TrainConfig.from_file(path), LLaMAConfig.from_file(path)
    parser = parser_for(description, defaults, config=path, adapter=defaults.adapter)
    return pretrain(shape, config_from(parser.parse_args(arguments), defaults.adapter))

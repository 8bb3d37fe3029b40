"""The verb `train`: the shape from a file, everything else from the file or from flags, then `pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entrenar.cli.flags import CONFIG, config_from, early, parser_for
from entrenar.config import print_out
from entrenar.errors import ConfigError
from entrenar.train.config import Pretrained, TrainConfig, shape_hint

if TYPE_CHECKING:
    from entrenar.train.run import Result

DESCRIPTION = """Train a tokenizer and a LLaMA from scratch, of the shape and with the settings of a configuration file.

    entrenar train --config llama2/tiny
    entrenar train --config my_model.toml --data texts.jsonl --steps 2000

The text is the standard library's documentation unless --data names a file of examples.
"""
DEFAULT_FILE = "llama2/tiny"


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> Result | None:
    """Parse the flags and train; None where --print-config asks for the configuration alone.

    EntrenarError for what is wrong with the input; SystemExit, with one sentence, for what is wrong with a flag.
    """
    path = early(arguments, CONFIG, DEFAULT_FILE, prog=prog)
    assert path is not None
    defaults = TrainConfig.from_file(path)
    if Pretrained.from_file(path) != Pretrained():
        raise ConfigError(
            f"{path}: its [model] names a model to fine-tune, which training from scratch does not use; leave path, "
            "dtype and quantize out, or run entrenar finetune."
        )
    parser = parser_for(description, defaults, config=path, adapter=defaults.adapter, prog=prog)
    parsed = parser.parse_args(arguments)
    from entrenar.models.config import LLaMAConfig
    from entrenar.train.pretrain import pretrain
    from entrenar.train.written import whole_toml

    shape = LLaMAConfig.from_file(path, shape_hint)
    config = config_from(parsed, defaults.adapter)
    if parsed.print_config:
        print_out(whole_toml(config, shape), end="")
        return None
    return pretrain(shape, config)

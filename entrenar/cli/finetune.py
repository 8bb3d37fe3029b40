"""The program behind the fine-tuning examples: flags from the configuration's own definition, then `finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entrenar.adapters.base import AdapterConfig
from entrenar.cli.arguments import config_from, config_path, parser_for
from entrenar.config import load_toml, text_argument
from entrenar.errors import ConfigError
from entrenar.io.hub import fetch_default_model
from entrenar.llama import LLaMAConfig
from entrenar.models.storage import DTYPES
from entrenar.train import Result, TrainConfig, finetune
from entrenar.train.config import Checkpointing


def main(
    adapter: AdapterConfig, output: str, description: str | None, arguments: Sequence[str] | None = None
) -> Result:
    """Parse the flags and fine-tune; `adapter` and `output` are the defaults of the program."""
    path = config_path(arguments)
    defaults = TrainConfig(checkpointing=Checkpointing(directory=output))
    shape = {}
    if path is not None:
        defaults, shape = _from_file(path, adapter), _shape(path)
        adapter = defaults.adapter or adapter
    parser = parser_for(description, defaults, config=path, adapter=adapter)
    parser.add_argument(
        "--model",
        type=text_argument,
        help="GGUF file or Hugging Face directory (default: SmolLM2-135M-Instruct, fetched once)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the frozen weights that are not in 4 bits; auto keeps bfloat16 as it is stored and makes float32 of "
        "the others (default: auto)",
    )
    parsed = parser.parse_args(arguments)
    config = config_from(parsed, adapter)
    model = fetch_default_model() if parsed.model is None else parsed.model
    return finetune(model, config, dtype=parsed.dtype, shape=shape)


def _shape(path: str) -> dict[str, Any]:
    """The keys of [model] that the file sets, checked."""
    keys = load_toml(path).get("model")
    if keys is None:
        return {}
    config = LLaMAConfig.from_file(path)
    return {key: getattr(config, key) for key in keys}


def _from_file(path: str, adapter: AdapterConfig) -> TrainConfig:
    """The sections of a file that fit this program."""
    config = TrainConfig.from_file(path)
    if config.adapter is not None and config.adapter.section != adapter.section:
        raise ConfigError(
            f"{path}: has a [{config.adapter.section}] section, and this program reads [{adapter.section}]."
        )
    return config

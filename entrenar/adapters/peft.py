"""Adapters of any kind in PEFT's files.

A directory holds `adapter_config.json` and `adapter_model.safetensors`, whose keys are
`base_model.model.` + the model's own name, as PEFT 0.4 and newer write and read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entrenar.adapters import registry
from entrenar.adapters.base import AdapterConfig, check_no_adapters, set_training
from entrenar.adapters.peft_weights import PREFIX, WEIGHTS_FILE, read_weights
from entrenar.adapters.targets import Shaped
from entrenar.config import names_of
from entrenar.errors import ConfigError, FormatError
from entrenar.io.atomic import atomic_files
from entrenar.io.json_file import read_json_object
from entrenar.io.safetensors import save_safetensors
from entrenar.nn.module import Module

CONFIG_FILE = "adapter_config.json"


def save_adapter(model: Module, directory: str | Path, *, base_model: str | None = None) -> None:
    """Write the adapter so that `peft.PeftModel.from_pretrained` and `load_adapter` read it.

    Other files in `directory` stay as they are; a process that is killed meanwhile leaves the old adapter, the new one,
    or a folder without adapter_config.json.
    """
    config = model.adapter_config
    if config is None:
        raise ConfigError("The model has no adapters to save.")
    if (Path(directory) / "config.json").exists():
        raise ConfigError(
            f"{directory}: holds a model (config.json), which readers would no longer take for itself with an adapter "
            "beside it; save the adapter in another folder."
        )
    tensors = config.file_arrays(model)
    with atomic_files(directory, key=CONFIG_FILE) as folder:
        text = json.dumps(dict(sorted(config.to_peft(base_model).items())), indent=2)  # the order of patterns matters
        (folder / CONFIG_FILE).write_text(text + "\n")
        save_safetensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def read_adapter_config(directory: str | Path) -> AdapterConfig:
    """The configuration of a PEFT adapter directory; FormatError or ConfigError where it is missing or unsupported."""
    return registry.from_peft(read_adapter_table(directory), str(Path(directory) / CONFIG_FILE))


def read_adapter_table(directory: str | Path) -> dict[str, Any]:
    """The content of a directory's adapter_config.json; FormatError where there is none."""
    path = Path(directory) / CONFIG_FILE
    try:
        return read_json_object(path, "a PEFT adapter directory")
    except FormatError as error:
        if isinstance(error.__cause__, FileNotFoundError) and (inner := sorted(path.parent.glob(f"*/{CONFIG_FILE}"))):
            name = inner[0].parent.name
            raise FormatError(f"{path}: no such file; the folder {name} in it has one, give that folder.") from error
        raise


def expected_shapes(config: AdapterConfig, directory: str | Path, model: Shaped) -> dict[str, tuple[int, ...]]:
    """The tensors that a directory with this configuration has for a model of this shape, by their names in the file.

    Raises ConfigError, in PEFT's terms, where a setting names what the model does not have.
    """
    try:
        return config.file_shapes(model)
    except ConfigError as error:
        text = config.peft.in_terms_of_peft(str(error), config.section)
        raise ConfigError(f"{Path(directory) / CONFIG_FILE}: {text}") from error


def continue_adapter(model: Module, directory: str | Path, config: AdapterConfig, seed: int = 0) -> None:
    """Put adapters as `config` says on the model, with the weights of a PEFT directory.

    ConfigError where a setting is not that of the directory, dropout excepted, or a weight does not fit.
    """
    found = read_adapter_config(directory)
    check_no_adapters(model)
    if not isinstance(config, type(found)):
        raise ConfigError(f"{directory}: is an adapter of [{found.section}], and the run has [{config.section}].")
    ours, theirs = config.resolved(model), found.resolved(model)
    for name in names_of(type(theirs)):
        a, b = (_unordered(getattr(settings, name)) for settings in (ours, theirs))
        if a != b and name != "dropout":
            raise ConfigError(
                f"{config.section}.{name} is {getattr(config, name)!r:.80}, and {directory} has "
                f"{getattr(found, name)!r:.80}; give the same."
            )
    tensors = read_weights(Path(directory) / WEIGHTS_FILE, expected_shapes(found, directory, model), found.peft.prefix)
    config.apply(model, seed)
    config.load_arrays(model, {name.removeprefix(PREFIX): values for name, values in tensors.items()})


def _unordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def load_adapter(model: Module, directory: str | Path) -> None:
    """Put the adapter of a PEFT directory on the model; every tensor must be there with its shape, and no other.

    As in PEFT, its dropout is off until `set_training(model, True)`, and nothing holds the base that it was made over
    against this model. Where anything is wrong the model is unchanged.
    """
    config = read_adapter_config(directory)
    check_no_adapters(model)
    expected = expected_shapes(config, directory, model)
    tensors = read_weights(Path(directory) / WEIGHTS_FILE, expected, config.peft.prefix)
    config.apply(model)
    config.load_arrays(model, {name.removeprefix(PREFIX): values for name, values in tensors.items()})
    set_training(model, False)

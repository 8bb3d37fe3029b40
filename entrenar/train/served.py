"""What an export writes for llama.cpp and Ollama without reading a weight of the model: a GGUF adapter, a Modelfile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from entrenar.adapters.gguf import TYPES, check_gguf_adapter, convert_adapter
from entrenar.errors import ConfigError
from entrenar.io.atomic import atomic_file
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.gguf_layout import GGUFLayout
from entrenar.models.modelfile import modelfile_of

ENDING = ".Modelfile"
ADAPTER_TYPES = tuple(TYPES)


@dataclass(frozen=True)
class Modelfile:
    """The text of a Modelfile and its place, None where none is written; and what is to be known, a sentence each."""

    path: Path | None = None
    text: str = ""
    remarks: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Write it, if it has a place."""
        if self.path is not None:
            with atomic_file(self.path) as part:
                part.write_text(self.text, encoding="utf-8")


def beside(output: str | Path) -> Path:
    """The Modelfile's place beside a GGUF file: model.gguf has model.Modelfile."""
    output = Path(output)
    return output.with_name(output.name.removesuffix(".gguf") + ENDING)


def of_model(checkpoint: Checkpoint, output: str | Path) -> Modelfile:
    """That of a GGUF file which is written of this checkpoint."""
    place = beside(output)
    return Modelfile(place, *modelfile_of(checkpoint, place, base=output))


def of_adapter(checkpoint: Checkpoint, output: str | Path) -> Modelfile:
    """That of a GGUF adapter which is written for this checkpoint; none for a Hugging Face directory."""
    if checkpoint.metadata is None:
        remark = f"{output}: has no Modelfile, which would name the base's GGUF file; give that as the model for one."
        return Modelfile(remarks=[remark])
    place = beside(output)
    return Modelfile(place, *modelfile_of(checkpoint, place, base=checkpoint.path, adapter=output))


def of_files(checkpoint: Checkpoint, output: str | Path, adapter: str | Path | None) -> Modelfile:
    """That of a GGUF model that is there, under a GGUF adapter where there is one; ConfigError for a directory."""
    if checkpoint.metadata is None:
        raise ConfigError(
            f"{checkpoint.path}: is a directory, and Ollama serves GGUF files; write one first (--to gguf)."
        )
    if adapter is not None:
        check_gguf_adapter(adapter, GGUFLayout(checkpoint.config))
    return Modelfile(Path(output), *modelfile_of(checkpoint, output, base=checkpoint.path, adapter=adapter))


def write_adapter(checkpoint: Checkpoint, adapter: str | Path, output: str | Path, type: str) -> None:
    """Make a GGUF adapter, with tensors of this type, of a PEFT directory; raises as `convert_adapter`."""
    convert_adapter(adapter, GGUFLayout(checkpoint.config), output, type=type)

"""A model, with an adapter merged into it, to the files that other programs run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from entrenar.config import check_dataclass
from entrenar.data import Batch
from entrenar.errors import ConfigError
from entrenar.io.atomic import real_file, real_folder
from entrenar.models.api import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.file_types import KEEP
from entrenar.models.gguf_types import checked_type
from entrenar.train import report, served
from entrenar.train.evaluate import Evaluation, evaluate
from entrenar.train.loading import as_stored, check_adapter, evaluation_rows, put_adapter
from entrenar.train.options import (
    FLOAT32,
    GGUF,
    GGUF_ADAPTER,
    HF,
    LARGEST_SHARD,
    MODELFILE,
    ROW,
    ExportOptions,
    Rows,
)


@dataclass
class Export(ExportOptions):
    """What is written of which model. Raises ConfigError for a value out of range, and for one that has no effect."""

    def __post_init__(self) -> None:
        check_dataclass(self, "export")
        self.type = checked_type(self.type)
        for name, default, only in (
            ("type", KEEP, (GGUF, GGUF_ADAPTER)),
            ("dtype", FLOAT32, (HF,)),
            ("max_shard_gb", LARGEST_SHARD, (HF,)),
            ("data", None, (GGUF, HF)),
            ("modelfile", True, (GGUF, GGUF_ADAPTER)),
        ):
            if getattr(self, name) != default and self.to not in only:
                raise ConfigError(
                    f"export.{name} is {getattr(self, name)}, which has no effect where export.to is {self.to}; leave "
                    f"it out, or write {' or '.join(only)}."
                )
        for name, default in (("held_out_fraction", 1.0), ("sequence_length", ROW)):
            if self.data is None and getattr(self, name) != default:
                raise ConfigError(
                    f"export.{name} is {getattr(self, name)}, which has no effect without export.data; leave it out, "
                    "or give the examples."
                )
        if self.to == GGUF_ADAPTER and self.type not in (KEEP, *served.ADAPTER_TYPES):
            kinds = " or ".join(served.ADAPTER_TYPES)
            raise ConfigError(f"export.type is {self.type}, expected {kinds} where export.to is {self.to}.")
        if self.to == GGUF_ADAPTER and self.adapter is None:
            raise ConfigError("export.adapter is unset, expected the PEFT adapter directory to make a GGUF adapter of.")


def export(settings: Export, console: Console | None = None) -> list[str]:
    """Write what `settings` say and show it; returns what there is to know of the output, a sentence each.

    Raises EntrenarError with one clear sentence; then, and where the process ends meanwhile, nothing stands under the
    output's name that was not there.
    """
    console = console or report.Output()
    _check_output(settings)
    _check_adapter(settings)
    checkpoint = Checkpoint.open(settings.model)
    checkpoint.check()
    if settings.to == MODELFILE:
        found = served.of_files(checkpoint, settings.output, settings.adapter)
    elif settings.to == HF or not settings.modelfile:
        found = served.Modelfile()
    else:
        found = (served.of_model if settings.to == GGUF else served.of_adapter)(checkpoint, settings.output)
    if settings.to in WRITERS:
        return _export_model(settings, checkpoint, found, console)
    if settings.to == GGUF_ADAPTER:
        assert settings.adapter is not None
        served.write_adapter(
            checkpoint, settings.adapter, settings.output, "F32" if settings.type == KEEP else settings.type
        )
    found.write()
    report.summary(console, "Exported", _rows(settings, checkpoint, found))
    report.remarks(console, [*checkpoint.remarks, *found.remarks])
    return [*checkpoint.remarks, *found.remarks]


def _export_model(settings: Export, checkpoint: Checkpoint, modelfile: served.Modelfile, console: Console) -> list[str]:
    """The model's weights, with the adapter merged into them, and what that costs."""
    rows = Rows(settings.data or "", settings.held_out_fraction, settings.sequence_length) if settings.data else None
    batches = [] if rows is None else evaluation_rows(rows, checkpoint)[0]
    with console.status("reading the model"):
        model = _loaded(checkpoint)
        if settings.adapter is not None:
            put_adapter(model, settings.adapter)
    before = _evaluated(model, batches, console)
    with console.status(f"writing {settings.output}"):
        remarks = [*checkpoint.remarks, *WRITERS[settings.to](model, settings), *modelfile.remarks]
        modelfile.write()
    del model
    report.summary(console, "Exported", _rows(settings, checkpoint, modelfile))
    report.remarks(console, remarks)
    if before is not None:
        try:
            written = Checkpoint.open(settings.output)
            written.check()
            after = _evaluated(_loaded(written), batches, console)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"{settings.output} is written; its loss was not evaluated.") from interrupt
        report.comparison(console, before, after)
    return remarks


def _write_gguf(model: LLaMAModel, settings: Export) -> list[str]:
    return model.save_gguf(settings.output, type=settings.type, merge=True).remarks


def _write_hf(model: LLaMAModel, settings: Export) -> list[str]:
    size = int(settings.max_shard_gb * 10**9)
    return model.save_pretrained(settings.output, dtype=settings.dtype, max_shard_bytes=size, merge=True)


WRITERS: dict[str, Callable[[LLaMAModel, Export], list[str]]] = {GGUF: _write_gguf, HF: _write_hf}


def _check_output(settings: Export) -> None:
    """ConfigError where something is there that is not to be replaced, or that is read."""
    output = Path(settings.output)
    if settings.to in (GGUF, GGUF_ADAPTER) and settings.modelfile and not settings.overwrite:
        modelfile = served.beside(output)
        if modelfile.exists():
            raise ConfigError(f"{modelfile}: is there already; choose another output, --overwrite, or --no-modelfile.")
    for name, place in (("model", settings.model), ("adapter", settings.adapter)):
        if place is not None and output.exists() and Path(place).exists() and output.samefile(place):
            raise ConfigError(f"export.output is {output}, the {name} that is read; choose another place.")
    taken = any(output.iterdir()) if output.is_dir() else output.exists()
    if taken and not settings.overwrite:
        raise ConfigError(f"{output}: is there already; choose another place, or --overwrite (overwrite=True).")
    if settings.to == HF:
        real_folder(output)
        return
    real_file(output)
    if settings.to != MODELFILE and settings.modelfile:
        real_file(served.beside(output))


def _check_adapter(settings: Export) -> None:
    """ConfigError where nothing is in the adapter's place, or what this export does not read."""
    if settings.adapter is None:
        return
    check_adapter(settings.adapter)
    place = Path(settings.adapter)
    if settings.to == GGUF_ADAPTER and not place.is_dir():
        raise ConfigError(
            f"{place}: is a file, expected the PEFT adapter directory to make a GGUF adapter of; a GGUF adapter needs "
            "a Modelfile alone (--to modelfile)."
        )
    if settings.to == MODELFILE and place.is_dir():
        raise ConfigError(
            f"{place}: is a folder, expected the GGUF adapter that the Modelfile names; write one first (--to "
            "gguf-adapter), which comes with its Modelfile."
        )


def _loaded(checkpoint: Checkpoint) -> LLaMAModel:
    return LLaMAModel.from_checkpoint(checkpoint, as_stored(checkpoint))


def _evaluated(model: LLaMAModel, batches: Sequence[Batch], console: Console) -> Evaluation | None:
    return evaluate(model, report.track(console, batches, "held-out set")) if batches else None


def _rows(settings: Export, checkpoint: Checkpoint, modelfile: served.Modelfile) -> dict[str, str]:
    """The table of what was written."""
    output = Path(settings.output)
    files = [file for file in output.rglob("*") if file.is_file()] if output.is_dir() else [output]
    types = Counter(tensor.type for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1)
    found = "matrices: " + ", ".join(f"{count} of {type}" for type, count in types.items())
    rows = {"model": f"{settings.model} ({found})"}
    if settings.adapter is not None:
        rows["adapter"] = settings.adapter + (", merged" if settings.to in WRITERS else "")
    rows["output"] = f"{settings.output} ({report.gib(sum(file.stat().st_size for file in files))})"
    if modelfile.path is not None and settings.to != MODELFILE:
        rows["Modelfile"] = str(modelfile.path)
    return rows

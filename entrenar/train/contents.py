"""What a file or folder holds: tensors, shapes, types, sizes and metadata, of everything that is read here.

Headers alone are read, with the bounds of the readers; no weight is. A model of a family that is not known is listed
too: whether it loads is one of the answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entrenar.adapters.peft import read_adapter_config
from entrenar.config import names_of, shown
from entrenar.errors import EntrenarError, FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.json_file import read_json_object
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import INDEX_FILE, SINGLE_FILE, open_safetensors, open_safetensors_directory
from entrenar.models.checkpoint import Checkpoint
from entrenar.train import checkpoint as run_state

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", ADAPTER_CONFIG)
SUFFIX, MAGIC = ".safetensors", b"GGUF"
LISTED, DEEPEST = 16, 6  # entries of a list that are given, and the levels of nested values
GGUF_KINDS = {"adapter": "GGUF adapter", "mmproj": "GGUF projector"}
EXPECTED = (
    "expected a GGUF file, a safetensors file, a Hugging Face directory, an adapter's directory or a run's checkpoint"
)


@dataclass
class Contents:
    """What is there. `problem` says why it does not load as a model or adapter; None where it does, or is none.

    `damaged` says that the problem is the files', and not that this version lacks something.
    """

    path: str
    kind: str
    files: dict[str, int]  # bytes of each
    tensors: list[LazyTensor]
    metadata: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)  # family and shape, where it loads
    problem: str | None = None
    damaged: bool = False
    remarks: list[str] = field(default_factory=list)

    def types(self) -> dict[str, dict[str, int]]:
        """Tensors, elements and bytes of each type."""
        found: dict[str, dict[str, int]] = {}
        for tensor in self.tensors:
            row = found.setdefault(tensor.type, {"tensors": 0, "elements": 0, "bytes": 0})
            for key, value in (("tensors", 1), ("elements", math.prod(tensor.shape)), ("bytes", tensor.nbytes)):
                row[key] += value
        return found

    def table(self) -> dict[str, Any]:
        """Everything as values that JSON holds."""
        return {
            "path": self.path,
            "kind": self.kind,
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
            "bytes": sum(self.files.values()),
            "elements": sum(math.prod(tensor.shape) for tensor in self.tensors),
            "types": self.types(),
            "model": plain(self.model),
            "problem": self.problem,
            "remarks": self.remarks,
            "metadata": plain(self.metadata),
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "type": t.type, "bytes": t.nbytes} for t in self.tensors
            ],
        }


def contents(path: str | Path) -> Contents:
    """What is at `path`; FormatError where it is missing, damaged or nothing that is read here."""
    if not str(path):
        raise FormatError(f"The path is empty; {EXPECTED}.")
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FormatError(f"{path}: no such file or directory; {EXPECTED}.")
    if path.suffix == SUFFIX:
        return _safetensors(path)
    if path.suffix == ".json":
        raise FormatError(f"{path}: is a JSON file; {EXPECTED}: give {path.parent}.")
    return _gguf(path)


def _gguf(path: Path) -> Contents:
    file = GGUFFile(path)
    kind = GGUF_KINDS.get(str(file.metadata.get("general.type")), "GGUF model")
    found = Contents(str(path), kind, _sizes(file.paths), list(file.tensors.values()), dict(file.metadata))
    return _model(found, path) if kind == "GGUF model" else found


def _safetensors(path: Path) -> Contents:
    metadata: dict[str, Any] = {}
    tensors = open_safetensors(path, metadata=metadata)
    return Contents(str(path), "safetensors file", _sizes([path]), list(tensors.values()), metadata)


def _folder(path: Path) -> Contents:
    """A model, an adapter, a checkpoint of a run, the newest of several, or what a run's folder holds."""
    if (path / ADAPTER_CONFIG).exists():
        return _adapter(path)
    if (path / run_state.VALUES).exists():
        return _checkpoint(path)
    if any((path / name).exists() for name in ("config.json", SINGLE_FILE, INDEX_FILE)):
        files = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.json")), *sorted(path.glob("*.model"))]
        tensors = list(open_safetensors_directory(path).values())
        found = Contents(str(path), "Hugging Face directory", _sizes(files), tensors, _configs(path))
        return _model(found, path)
    steps = run_state.steps_in(path) or run_state.steps_in(path / "checkpoint")
    inside = [str(path / name) for name in ("adapter", "model") if (path / name).is_dir()] + list(map(str, steps[:1]))
    inside += sorted(str(file) for ending in ("gguf", "safetensors") for file in path.glob(f"*.{ending}"))
    hint = f"; in it there is {', '.join(inside[:4])}" if inside else ""
    raise FormatError(f"{path}: holds neither config.json nor adapter_config.json nor a checkpoint{hint}; {EXPECTED}.")


def _adapter(path: Path) -> Contents:
    tensors = list(open_safetensors(path / ADAPTER_WEIGHTS).values())
    files = [path / ADAPTER_WEIGHTS, *sorted(path.glob("*.json"))]
    found = Contents(str(path), "PEFT adapter", _sizes(files), tensors, _configs(path))
    try:
        config = read_adapter_config(path)
        found.model = {"adapter": config.section} | {name: getattr(config, name) for name in names_of(type(config))}
    except EntrenarError as error:
        found.problem = str(error)
    return found


def _checkpoint(path: Path) -> Contents:
    """A run's state; its numbers beside the arrays as metadata."""
    files = [path / name for name in (run_state.VALUES, run_state.ARRAYS, run_state.SUMS) if (path / name).exists()]
    tensors = list(run_state.open_arrays(path).values())
    state = read_json_object(path / run_state.VALUES, "the state of a run").get("dict")
    pairs = state if isinstance(state, list) else []
    values: dict[Any, Any] = {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2}
    metadata = {key: value.get("value", value) for key, value in values.items() if isinstance(value, dict)}
    wrong = run_state.damage(path)
    found = Contents(str(path), "checkpoint of a run", _sizes(files), tensors, metadata, damaged=wrong is not None)
    if found.damaged:
        found.problem = f"{path}: is damaged ({wrong}); use another checkpoint of the run, or start it anew."
    return found


def _model(found: Contents, path: Path) -> Contents:
    """With its family and shape where it loads as a model, else with the reason."""
    try:
        opened = Checkpoint.open(path)
        opened.check()
    except EntrenarError as error:
        found.problem = str(error)
        return found
    found.model = {key: value for key, value in asdict(opened.config).items() if value is not None}
    found.model["parameters"] = opened.config.num_parameters()
    found.remarks = list(opened.remarks)
    return found


def _configs(path: Path) -> dict[str, Any]:
    return {name: read_json_object(path / name, "JSON") for name in CONFIGS if (path / name).exists()}


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    return {str(file): file.stat().st_size for file in files}


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON holds it: long lists as their length and first entries, what is not finite as text."""
    if isinstance(value, Mapping):
        if depth >= DEEPEST:
            return shown(value)
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if hasattr(value, "__len__") and not isinstance(value, str | bytes):
        first = [plain(item, depth + 1) for _, item in zip(range(LISTED), value, strict=False)]
        if depth >= DEEPEST:
            return shown(value)
        return first if len(value) <= LISTED else {"entries": len(value), "first": first}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_text(value: Any) -> str:
    """A metadata value on a line of a table."""
    if isinstance(value, str):
        return shown(value)
    found = plain(value)
    if isinstance(found, dict) and found.keys() == {"entries", "first"}:
        return f"{found['entries']:,} entries: {', '.join(map(shown, found['first'][:4]))}, ..."
    return shown(found) if not isinstance(found, float) else json.dumps(found)

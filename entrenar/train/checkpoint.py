"""Checkpoints of a run: trained weights, optimizer, schedule, random state and data position, written as a whole.

`checkpoint/step-N/` holds `state.json` (plain values), `state.safetensors` (the arrays, all float32; nothing is
pickled; compressed where that is asked for) and `SHA256SUMS` over both, which is held against them before anything of
them is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import EntrenarError, FormatError
from entrenar.io import atomic
from entrenar.io.atomic import atomic_files, unwritable
from entrenar.io.compressed import check_zstd, open_maybe_compressed, save_compressed
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import save_safetensors
from entrenar.train import state
from entrenar.train.fingerprint import check

VALUES, ARRAYS, SUMS = "state.json", "state.safetensors", "SHA256SUMS"
FORMAT = 5
READ = 1 << 20
COMPRESSION = "checkpointing.compression = zstd"


# ---------------------------------------------------------------------- the folder of all
def steps_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-[1-9]\d{0,18}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def anything_in(folder: Path) -> Path | None:
    """A checkpoint in `folder`, also of the format of earlier versions; None where there is none."""
    return next(iter(steps_in(folder)), folder / VALUES if (folder / VALUES).exists() else None)


def clear(folder: Path) -> None:
    """Remove the checkpoints in `folder`, also of the format of earlier versions, and nothing else."""
    for path in (*steps_in(folder), folder):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint's own files, then its folder where nothing else is in it."""
    for name in (SUMS, VALUES, ARRAYS):  # without its sums it is none: a kill between leaves no half that is used
        (path / name).unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ):
            found.update(chunk)
    return found.hexdigest()


def _sums(directory: Path) -> bytes:
    return "".join(f"{digest(directory / name)}  {name}\n" for name in (VALUES, ARRAYS)).encode()


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None where they are as they were written."""
    try:
        if (directory / SUMS).read_bytes() != _sums(directory):
            return "its files do not have the checksums that they were written with"
    except OSError as error:
        name = Path(str(error.filename)).name
        return f"{name} cannot be read: {error.strerror}"
    return None


def newest(folder: Path) -> Path:
    """The newest checkpoint in `folder`, held against its checksums.

    FormatError where there is none, or where it is damaged; then with the newest that is sound.
    """
    found = steps_in(folder)
    if not found and (folder / VALUES).exists():
        raise FormatError(
            f"{folder}: was written by an earlier version of entrenar, and cannot be continued; start anew with "
            "--overwrite, or in another directory."
        )
    if not found:
        raise FormatError(f"{folder}: there is no checkpoint to resume; start without resume first.")
    wrong = damage(found[0])
    if wrong is None:
        return found[0]
    sound = next((path for path in found[1:] if damage(path) is None), None)
    advice = f"remove it to continue from {sound}, which is sound" if sound else "there is no other; start anew"
    raise FormatError(f"{found[0]}: is damaged ({wrong}); {advice}.")


def date_of(folder: Path) -> datetime:
    """The date at which the run of the newest checkpoint in `folder` began, which its templates write."""
    directory = newest(folder)
    with fitting(directory):
        return datetime.fromisoformat(dict(json.loads((directory / VALUES).read_bytes())["dict"])["date"]["value"])


def fingerprint_of(directory: Path) -> dict[str, Any]:
    """The settings, and the hashes of model and examples, that a checkpoint was written with."""
    try:
        found = _join(dict(json.loads((directory / VALUES).read_bytes())["dict"])["fingerprint"], {})
        if not isinstance(found, dict):
            raise ValueError("no table")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{directory / VALUES}: is damaged ({type(error).__name__}: {error}); expected the state of a run."
        ) from error
    return found


# ---------------------------------------------------------------------- values and arrays
def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` with every array replaced by a reference into `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, dict):
        return {"dict": [[key, _split(item, f"{path}/{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]}
    return {"value": value}


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _join(item, arrays) for key, item in content}
    if kind == "list":
        return [_join(item, arrays) for item in content]
    return content


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says when `path` cannot be written, as one sentence that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EntrenarError):
            raise
        raise unwritable(path, error) from error


# ---------------------------------------------------------------------- saving and loading
def save(
    state: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    directory: Path,
    keep: int,
    spared: int | None = None,
    compression: str = "none",
) -> None:
    """Write a state into `directory`, step-N of its folder, then remove all but the newest `keep` of that folder.

    That of the step `spared` stays beside them; `compression` none or zstd gives the same bits back.
    """
    arrays: dict[str, np.ndarray] = {}
    values = _split({"format": FORMAT, "fingerprint": fingerprint, **state}, "state", arrays)
    with writing(directory), atomic_files(directory, key=SUMS) as part:
        (part / VALUES).write_text(json.dumps(values))
        if compression == "none":
            save_safetensors(part / ARRAYS, arrays)
        else:
            save_compressed(part / ARRAYS, arrays, COMPRESSION)
        (part / SUMS).write_bytes(_sums(part))
    prune(directory.parent, keep, spared)


def prune(folder: Path, keep: int, spared: int | None) -> None:
    """Remove all but the newest `keep` checkpoints in `folder`; that of the step `spared` stays beside them."""
    with writing(folder):
        for path in steps_in(folder)[keep:]:
            if path.name != f"step-{spared}":
                _remove(path)


def tidy(folder: Path) -> None:
    """Remove what a process killed while it saved left in `folder`."""
    with writing(folder):
        atomic.tidy(folder, r"step-\d+")
        for path in steps_in(folder):
            atomic.tidy(path, atomic.SHARED)


@contextmanager
def fitting(directory: Path) -> Iterator[None]:
    """What does not fit in a checkpoint, as one sentence that names it."""
    try:
        with state.sound():
            yield
    except EntrenarError as error:
        if str(directory) in str(error):
            raise
        raise type(error)(f"{directory}: does not fit this run: {str(error).rstrip('.')}; start anew.") from error


def load(folder: Path, fingerprint: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint in `folder` and its state.

    FormatError where it is missing or damaged, ConfigError where it is of a run with another fingerprint.
    """
    tidy(folder)
    directory = newest(folder)
    with fitting(directory):
        return directory, _read(directory, fingerprint)


def read(directory: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the checkpoint `directory`, held against its checksums; raises as `load`."""
    wrong = damage(directory)
    if wrong is not None:
        raise FormatError(f"{directory}: is damaged ({wrong}); remove it, and resume without it.")
    with fitting(directory):
        return _read(directory, fingerprint)


def before(folder: Path, step: int) -> Path | None:
    """The newest sound checkpoint in `folder` of a step before `step`; None where there is none."""
    older = [path for path in steps_in(folder) if int(path.name.removeprefix("step-")) < step]
    return next((path for path in older if damage(path) is None), None)


def go_back(directory: Path, fingerprint: Mapping[str, Any], writes: bool) -> dict[str, Any]:
    """The state of the checkpoint `directory`; where `writes`, the newer ones beside it are removed.

    Raises as `load`.
    """
    with fitting(directory):
        values = _read(directory, fingerprint)
    for path in steps_in(directory.parent) if writes else ():
        if path == directory:
            break
        _remove(path)
    return values


def check_compression(compression: str) -> None:
    """ConfigError where checkpoints could not be compressed so."""
    if compression != "none":
        check_zstd(COMPRESSION)


def open_arrays(directory: Path) -> dict[str, LazyTensor]:
    """The arrays of the checkpoint `directory`, compressed or not."""
    return open_maybe_compressed(directory / ARRAYS)


def _read(directory: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    values = json.loads((directory / VALUES).read_bytes())
    arrays = {}
    for name, lazy in open_arrays(directory).items():
        arrays[name] = lazy.load()
        if lazy.type != "F32" or not np.isfinite(arrays[name]).all():
            raise FormatError(f"{directory}: its array {name} is not of finite float32 numbers.")
    found = dict(_join(values, arrays))
    if found["format"] != FORMAT:
        raise FormatError(
            f"{directory}: has format {found['format']!r}, expected {FORMAT}: another version of entrenar wrote it; "
            "resume with that one, or start anew with --overwrite or in another directory."
        )
    check(directory, found["fingerprint"], fingerprint)
    if found["step"] != int(directory.name.removeprefix("step-")):
        raise FormatError(f"{directory}: stands at step {found['step']!r}.")
    return found

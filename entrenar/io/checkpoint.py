"""Outputs that are whole or absent: written under a temporary name beside their place, flushed to disk, renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from entrenar.errors import FormatError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path, make: Callable[[str, Path], str]) -> Path:
    """A new name beside `path`, whose folder is made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(make(f".{path.name}.", path.parent))
    except OSError as error:
        raise FormatError(f"{path}: cannot be written ({error.strerror}); choose another place.") from error


def _new_file(prefix: str, folder: Path) -> str:
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=folder)
    os.close(descriptor)
    return name


def _new_directory(prefix: str, folder: Path) -> str:
    return tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=folder)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, so that `second` exists at every moment; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0)


def _exchange_in_steps(first: Path, second: Path) -> None:
    """The same with a moment between; what `second` was comes back where a later step fails."""
    aside = first.with_suffix(".old")
    second.replace(aside)
    try:
        first.replace(second)
    except BaseException:
        aside.replace(second)
        raise
    aside.replace(first)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """The temporary path to write; it becomes `path` when the block ends without an error, and vanishes otherwise."""
    path = Path(path)
    if path.is_dir():
        raise FormatError(f"{path}: is a folder; expected a file to write or nothing there.")
    temporary = _temporary(path, _new_file)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """The temporary folder to fill; it takes the place of `path` when the block ends without an error.

    An existing folder at `path` is replaced as a whole; a file there is an error.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FormatError(f"{path}: is a file; expected a folder to write or nothing there.")
    temporary = _temporary(path, _new_directory)
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if not path.exists():
            temporary.replace(path)
        elif not _exchange(temporary, path):
            _exchange_in_steps(temporary, path)
        _sync(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)

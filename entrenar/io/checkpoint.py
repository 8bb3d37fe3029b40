"""Outputs that are whole or absent: written under a temporary name beside their place, flushed to disk, renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entrenar.errors import FormatError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{path}: its folder cannot be made ({error.strerror}); choose another place.") from error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """The temporary path to write; it becomes `path` when the block ends without an error, and vanishes otherwise."""
    path = Path(path)
    _prepare_parent(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
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
    _prepare_parent(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            _sync(file)
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        try:
            if path.exists():
                path.replace(old / path.name)
            temporary.replace(path)
        finally:
            if not path.exists() and (old / path.name).exists():
                (old / path.name).replace(path)  # the second rename failed: put back what was there
            shutil.rmtree(old)
        _sync(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)

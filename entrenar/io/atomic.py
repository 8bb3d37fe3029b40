"""Outputs that are whole or absent: written under a temporary name in their place's file system, flushed, renamed.

A temporary name (`.NAME.XXXXXXXX.part`) is locked while it is in use, so that what a killed process left is told from
what another one writes, and removed by the next write of that name, or by `tidy`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from entrenar.errors import FormatError

PART = ".part"
SHARED = "entrenar"  # the stem of a temporary folder in a folder that was there before


def sync(path: Path) -> None:
    """Flush a file, or the names of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: str | Path, error: OSError) -> FormatError:
    """The sentence for a place where the system refuses to write."""
    return FormatError(f"{path}: cannot be written ({error.strerror or error}); make room or choose another place.")


# ---------------------------------------------------------------------- places
def real_file(path: Path) -> Path:
    """Where the file at `path` is or will be, links followed; FormatError where no output may take its place."""
    try:
        real = path.resolve()
        status = real.stat()
    except FileNotFoundError:
        return real
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError up to Python 3.12
        raise FormatError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another place."
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise FormatError(f"{path}: is a folder; expected a file to write or nothing there.")
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: is no regular file; expected a file to write or nothing there.")
    if not status.st_mode & 0o222:
        raise FormatError(f"{path}: is read-only; make it writable or choose another place.")
    return real


def real_folder(path: Path) -> Path:
    """Where the folder at `path` is or will be, links followed; FormatError where something else is there."""
    try:
        real = path.resolve()
        status = real.stat()
    except FileNotFoundError:
        return real
    except (OSError, RuntimeError) as error:
        raise FormatError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another place."
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise FormatError(f"{path}: is a file; expected a folder to write or nothing there.")
    if not status.st_mode & 0o222:
        raise FormatError(f"{path}: is a read-only folder; make it writable or choose another place.")
    return real


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents; the new ones that are empty at the end of the block go again where it fails."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in missing:
            with suppress(OSError):  # not empty: it has become someone's
                place.rmdir()
        raise


# ---------------------------------------------------------------------- temporary names
def _is_part(folder: Path) -> bool:
    """Whether a folder is a temporary one, which is its maker's alone."""
    return re.fullmatch(rf"\..*\.[0-9a-f]{{8}}{re.escape(PART)}", folder.name) is not None


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[bool]:
    """flock of a file or folder inside the block; whether the file system gave it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, operation)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _tidy(folder: Path, stem: str) -> None:
    """Remove the temporary names in `folder`, whose stems match, that no living process holds."""
    pattern = re.compile(rf"\.(?:{stem})\.[0-9a-f]{{8}}{re.escape(PART)}")
    for part in [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]:
        with _locked(part, fcntl.LOCK_EX | fcntl.LOCK_NB) as ours:
            if ours:
                _remove(part)


def tidy(folder: Path, stem: str) -> None:
    """Remove what killed processes left in `folder` of outputs whose names match the regular expression `stem`."""
    if folder.is_dir():
        with _locked(folder, fcntl.LOCK_EX) as alone:  # nobody is between making a name and holding it
            if alone:
                _tidy(folder, stem)


@contextmanager
def _part(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary name for `path` in its folder, made by `make` and held; what is left of it goes at the end."""
    with ExitStack() as held:
        with ExitStack() as gate:  # nobody tidies between making and holding
            if not _is_part(path.parent) and gate.enter_context(_locked(path.parent, fcntl.LOCK_EX)):
                _tidy(path.parent, re.escape(path.name))
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
            held.callback(_remove, part)  # before it is there: a signal may come at any line
            try:
                make(part)
            except FileExistsError:  # another's
                held.pop_all()
                raise
            held.enter_context(_locked(part, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield part


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` for the block to write and rename; what is left of it goes. Raises OSError."""
    with _part(path, _new_file) as part:
        yield part


def _new_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the umask takes


# ---------------------------------------------------------------------- one file
@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """The temporary path to write; it becomes `path` when the block ends without an error, and vanishes otherwise.

    A link is followed and its target written. A new file has the permissions that the umask leaves, a replaced one
    keeps its own. Raises FormatError for a folder, a device, a read-only file, or a place that cannot be written.
    """
    real = real_file(Path(path))
    with ExitStack() as made:
        with _refusals(path):
            made.enter_context(made_folders(real.parent))
            temporary = made.enter_context(_part(real, _new_file))
        with _named(temporary, path):
            yield temporary
        with _refusals(path):
            _keep_mode(real, temporary)
            sync(temporary)
            temporary.replace(real)
            sync(real.parent)


@contextmanager
def _refusals(path: str | Path) -> Iterator[None]:
    """What the system says inside the block, as a sentence that names `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def _named(temporary: Path, path: str | Path) -> Iterator[None]:
    """The same, where the caller's block has no room to write; its other errors are its own.

    A FormatError of the block that names the temporary path names `path` instead.
    """
    try:
        yield
    except FormatError as error:
        if str(temporary) not in str(error):
            raise
        raise FormatError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise unwritable(path, error) from error


def _keep_mode(old: Path, new: Path) -> None:
    """The permissions of the file that is replaced, where there is one."""
    with suppress(FileNotFoundError):
        new.chmod(stat.S_IMODE(old.stat().st_mode))


# ---------------------------------------------------------------------- files of a folder
Stale = Callable[[list[str]], Iterable[str]]


@contextmanager
def atomic_files(directory: str | Path, *, key: str | None = None, stale: Stale = lambda new: ()) -> Iterator[Path]:
    """The temporary folder to fill; its files take their places in `directory` when the block ends without an error.

    Nothing else in `directory` is touched; links, of the folder or of a file in it, are followed. A folder that is not
    there yet appears whole. In one that is, the file `key`, without which readers refuse the folder, goes first and
    comes last: a process killed between leaves a folder that is refused, and never a mixture of old and new.
    `stale`, given the new names, names what must not stay of an earlier output. Where a step fails the files that were
    there come back. Raises FormatError before the block where a place cannot be written.
    """
    real = real_folder(Path(directory))
    with ExitStack() as made:
        with _refusals(directory):
            made.enter_context(made_folders(real.parent))
            if real.exists():  # and was not when a process was killed
                with suppress(OSError):  # a folder above that cannot be written
                    tidy(real.parent, re.escape(real.name))
            temporary = made.enter_context(_part(real / SHARED if real.exists() else real, Path.mkdir))
        with _named(temporary, directory):
            yield temporary
        with _refusals(directory):
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            if not _appears(temporary, real):
                with ExitStack() as alone:  # two writers of one folder: one after the other
                    if not _is_part(real):
                        alone.enter_context(_locked(real, fcntl.LOCK_EX))
                    _install(temporary, real, key, stale)


def _appears(temporary: Path, real: Path) -> bool:
    """Rename a whole folder to where none is; False where one is, or has come meanwhile."""
    if temporary.parent != real.parent or real.exists():
        return False
    try:
        temporary.rename(real)
    except OSError:
        if real.is_dir():
            return False
        raise
    sync(real.parent)
    return True


def _install(temporary: Path, real: Path, key: str | None, stale: Stale) -> None:
    """Move every file of `temporary` to its place in `real`, `key` last; on failure everything is as it was."""
    files = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if not path.is_dir()]
    names = sorted(files, key=lambda name: (name == key, name))
    places = {name: real_file(real / name) for name in names}
    outdated = {name for name in stale(names) if os.path.lexists(real / name)} - {Path(name).parts[0] for name in names}
    with ExitStack() as parts:
        rooms = {real: temporary}  # a temporary folder for each folder that a link leads to
        for name, place in places.items():
            if place.parent not in rooms:
                parts.enter_context(made_folders(place.parent))
                rooms[place.parent] = parts.enter_context(_part(place.parent / SHARED, Path.mkdir))
            room = rooms[place.parent]
            if room != temporary:  # perhaps in another file system
                shutil.copyfile(temporary / name, room / place.name)
                sync(room / place.name)
            _keep_mode(place, room / place.name)
        with ExitStack() as undo:
            if key in places and places[key].exists():
                _set_aside(places[key], rooms[places[key].parent], undo, keep=False)
                sync(places[key].parent)
            for name in outdated:
                _set_aside(real / name, temporary, undo, keep=False)
            for name, place in places.items():
                if name == key:  # all the others are on disk under their names
                    for folder in rooms:
                        sync(folder)
                _set_aside(place, rooms[place.parent], undo, keep=True)
                (rooms[place.parent] / place.name).replace(place)
            for folder in rooms:
                sync(folder)
            undo.pop_all()


def _set_aside(place: Path, room: Path, undo: ExitStack, *, keep: bool) -> None:
    """Keep what is at `place` in `room`, from where `undo` brings it back; with `keep` the name stays meanwhile."""
    if not os.path.lexists(place):
        undo.callback(place.unlink, missing_ok=True)
        return
    aside = room / f"{place.name}.old"
    if keep:
        with suppress(OSError):  # a file system without hard links: the name is missing for a moment
            os.link(place, aside)
    if not os.path.lexists(aside):
        place.rename(aside)
    undo.callback(aside.replace, place)

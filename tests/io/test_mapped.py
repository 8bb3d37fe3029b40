"""Files that are cut off, or are none, under a process that reads them: one sentence and an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from entrenar.errors import FormatError
from entrenar.io.lazy import FileBytes

TOUCH = """
import os, sys
from pathlib import Path
from entrenar.io.lazy import FileBytes
{before}
paths = [Path(name) for name in sys.argv[1:]]
arrays = [FileBytes(path).map(0, 1 << 20) for path in paths]
os.truncate(paths[-1], 4096)
print(arrays[0].sum(), flush=True)
{after}
arrays[-1].sum()
print("alive", flush=True)
"""
FOREIGN = """
import mmap, signal
foreign = mmap.mmap(os.open(paths[0], os.O_RDWR), 0)
os.truncate(paths[0], 4096)
foreign[1 << 19]
"""


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def written(path: Path) -> Path:
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.chaos
@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable()"], ids=["alone", "faulthandler"])
def test_a_mapped_file_that_is_cut_off_ends_the_process_with_its_name(before: str, tmp_path: Path) -> None:
    whole, cut = written(tmp_path / "whole"), written(tmp_path / "a\nname")
    done = run(TOUCH.format(before=before, after=""), whole, cut)
    assert (done.returncode, done.stdout) == (1, "0\n")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/a\\nname: was cut off while it was in use")


@pytest.mark.chaos
def test_signals_of_other_addresses_go_where_they_went_before(tmp_path: Path) -> None:
    paths = written(tmp_path / "one"), written(tmp_path / "two")
    done = run(TOUCH.format(before="", after=FOREIGN), *paths)
    assert done.returncode < 0
    assert "was cut off" not in done.stderr
    paths = written(tmp_path / "one"), written(tmp_path / "two")
    noted = run(TOUCH.format(before="import faulthandler; faulthandler.enable()", after=FOREIGN), *paths)
    assert noted.returncode < 0
    assert "Fatal Python error: Bus error" in noted.stderr
    assert "was cut off" not in noted.stderr


@pytest.mark.chaos
def test_a_signal_that_a_process_sends_does_what_it_did_before(tmp_path: Path) -> None:
    send = "import signal; os.kill(os.getpid(), signal.SIGBUS)"
    paths = written(tmp_path / "one"), written(tmp_path / "two")
    done = run(TOUCH.format(before="", after=send), *paths)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGBUS, "0\n", "")
    paths = written(tmp_path / "one"), written(tmp_path / "two")
    ignored = run(
        TOUCH.format(before="import signal; signal.signal(signal.SIGBUS, signal.SIG_IGN)", after=send), *paths
    )
    assert (ignored.returncode, ignored.stdout) == (1, "0\n")
    assert "two: was cut off while it was in use" in ignored.stderr


@pytest.mark.unit
def test_a_watch_ends_with_its_mapping(tmp_path: Path) -> None:
    path = written(tmp_path / "x")
    for _ in range(1500):  # more than there are places
        assert FileBytes(path).map(0, 10).sum() == 0


@pytest.mark.chaos
def test_a_pipe_or_a_folder_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe: is a pipe or a device, expected a file that can be read at any place"):
        FileBytes(tmp_path / "pipe")
    with pytest.raises(FormatError, match="is a folder, expected a file"):
        FileBytes(tmp_path)
    with pytest.raises(FormatError, match="cannot be opened"):
        FileBytes(tmp_path / "\0")


@pytest.mark.unit
def test_mapped_and_read_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    (tmp_path / "x").write_bytes(data.tobytes())
    file = FileBytes(tmp_path / "x")
    np.testing.assert_array_equal(file.map(17, 4000), data[17:4017])
    np.testing.assert_array_equal(file.read(17, 4000), data[17:4017])
    assert file.size == 5000

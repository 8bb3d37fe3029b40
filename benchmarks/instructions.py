"""999 instructions in alpaca format, of the sdist llamafactory 0.9.5: fetched once, with pip."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SOURCE, MEMBER = "llamafactory==0.9.5", "llamafactory-0.9.5/data/alpaca_en_demo.json"


def instructions() -> Path:
    """The file, in the cache folder of the default model."""
    from entrenar.io.atomic import atomic_file
    from entrenar.io.hub import cache_directory

    data = cache_directory() / "benchmarks" / Path(MEMBER).name
    if data.exists():
        return data
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llamafactory"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "-d", folder, SOURCE], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            member = tar.extractfile(MEMBER)
            assert member is not None
            with atomic_file(data) as temporary:
                temporary.write_bytes(member.read())
    return data

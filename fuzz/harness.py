"""What the targets share: the libFuzzer loop with this target's corpus, and inputs as choices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"


def chooser(data: bytes) -> Callable[[int], int]:
    """choose(n) in [0, n), read from the bytes; 0 when they have run out."""
    provider = atheris.FuzzedDataProvider(data)
    return lambda n: provider.ConsumeIntInRange(0, n - 1)


def fuzz(name: str, target: Callable[[bytes], None]) -> None:
    """Run libFuzzer on `target` with the corpus folder of `name`; a crash is an exception that the target lets out."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        str(folder),
        "-print_final_stats=1",
        "-max_len=256",
        "-len_control=0",
        "-timeout=60",
        *sys.argv[1:],
    ]
    atheris.Setup(arguments, target)
    atheris.Fuzz()

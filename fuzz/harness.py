"""What the targets share: the libFuzzer loop with this target's corpus, first inputs, and inputs as choices."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 256
FIRST_INPUTS = 128


def chooser(data: bytes) -> Callable[[int], int]:
    """choose(n) in [0, n), read from the end of the bytes; 0 when they have run out."""
    provider = atheris.FuzzedDataProvider(data)
    return lambda n: provider.ConsumeIntInRange(0, n - 1)


def one_in(n: int, data: bytes) -> bool:
    """True for one in n inputs, for expensive checks: a choice would make them the rule, as most inputs are short."""
    return zlib.crc32(data) % n == 0


def plant(folder: Path) -> None:
    """Random inputs of every length: from the empty input alone, a fuzzer takes long to learn to write long ones."""
    rng = random.Random(0)
    for i in range(FIRST_INPUTS):
        Path(folder, f"first-{i:03}").write_bytes(rng.randbytes(2 + i * (MOST_BYTES - 2) // (FIRST_INPUTS - 1)))


def fuzz(name: str, target: Callable[[bytes], None]) -> None:
    """Run libFuzzer on `target`; a crash is an exception that the target lets out.

    The inputs are those of the files on the command line, once each (to see a crash again), or else grow from the
    corpus folder of `name`.
    """
    options = ["-print_final_stats=1", f"-max_len={MOST_BYTES}", "-len_control=0", "-timeout=60"]
    if all(argument.startswith("-") for argument in sys.argv[1:]):
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            plant(folder)
        options.append(str(folder))
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], target)
    atheris.Fuzz()

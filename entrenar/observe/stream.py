"""A text file that a run writes as it goes on; one that cannot be written is one sentence, and the run unaffected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from entrenar.errors import ConfigError


def check(path: Path, option: str) -> None:
    """ConfigError where the file cannot be opened for writing; what it holds stays until a Stream opens it."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(
            f"{option} is {path}, which cannot be written ({error.strerror}); name a file in a folder that is there."
        ) from error


class Stream:
    """`path`, emptied and open for text. What fails is told to `say` once; then what is written goes nowhere."""

    def __init__(self, path: Path, option: str, say: Callable[[str], None]) -> None:
        self.path, self._option, self._say = path, option, say
        self._file: IO[str] | None = None
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            self._failed(error)

    @property
    def ready(self) -> bool:
        """Whether what is written still reaches the file."""
        return self._file is not None

    def write(self, text: str, *, flush: bool = False) -> bool:
        """Append `text`; False where that failed, now or before. With `flush`, the system has it afterwards."""
        if self._file is None:
            return False
        try:
            self._file.write(text)
            if flush:
                self._file.flush()
        except OSError as error:
            self._failed(error)
        return self._file is not None

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._failed(error)

    def _failed(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it flushes once more
                file.close()
        self._say(f"{self._option}: {self.path} cannot be written ({error.strerror}); the run goes on without it.")

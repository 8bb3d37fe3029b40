"""A text file that a run writes as it goes on; one that cannot be written is one sentence, and the run unaffected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO

from entrenar.errors import ConfigError
from entrenar.observe.continued import Tail


def check(path: Path, option: str) -> None:
    """ConfigError where the file cannot be opened for writing; what it holds stays until a Stream opens it."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(
            f"{option} is {path}, which cannot be written ({error.strerror}); name a file in a folder that is there."
        ) from error


def _free(path: Path) -> Path:
    """A name like `path` that nothing has."""
    names = (path.with_name(f"{path.stem}.before-{i}{path.suffix}") for i in count(1))
    return next(name for name in names if not name.exists() and not name.is_symlink())


class Stream:
    """`path`, emptied and open for text. What fails is told to `say` once; then what is written goes nowhere.

    With `tail`, which says where a file can be written on, what it holds is kept: `between` is then what has to come
    between that and the next entry, and None where the file is begun. One that cannot be written on gets another name.
    """

    def __init__(
        self,
        path: Path,
        option: str,
        say: Callable[[str], None],
        tail: Callable[[IO[bytes]], Tail | None] | None = None,
    ) -> None:
        self.path, self._option, self._say = path, option, say
        self._file: IO[str] | None = None
        self.between: str | None = None
        try:
            if tail is not None and path.is_file() and path.stat().st_size:
                self.between = self._kept(tail)
            self._file = path.open("w" if self.between is None else "a", encoding="utf-8")
        except OSError as error:
            self._failed(error)

    def _kept(self, tail: Callable[[IO[bytes]], Tail | None]) -> str | None:
        """Leave half an entry out; what comes before the next, None where the file is another's and was renamed."""
        with self.path.open("r+b") as file:
            found = tail(file)
            if found is not None:
                file.truncate(found.keep)
        if found is None:
            other = _free(self.path)
            self.path.rename(other)
            self._say(f"{self._option}: {self.path} cannot be written on, and is kept as {other}.")
            return None
        if found.cut:
            self._say(
                f"{self._option}: {self.path} ended in the middle of an entry, whose {found.cut} bytes are left out; "
                "what follows is written behind the others."
            )
        return found.between

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

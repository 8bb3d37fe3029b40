"""Many samples as bytes: in memory while they are few, else in a file, of which what is asked for is read."""

from __future__ import annotations

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np

from entrenar.data.masking import Sample
from entrenar.errors import FormatError
from entrenar.io.atomic import unwritable

HELD_BYTES = 64 << 20  # of samples in memory; with more, all go into a file
WRITTEN_BYTES = 1 << 20  # at once, from then on
READ_BYTES = 1 << 16  # at once, where all are gone through
TRUNCATED, WEIGHTED = 1, 2  # bits of a sample's mark


class Samples(Sequence[Sample]):
    """Samples in the order in which they were appended: 5 bytes a token, 9 where it has a weight, and 9 a sample.

    More than HELD_BYTES stand in a temporary file in `folder` (where it is one, else where the system has those), which
    goes with the object, however the process ends. Raises FormatError where that cannot be written.
    """

    def __init__(self, samples: Iterable[Sample] = (), folder: str | Path | None = None) -> None:
        self._folder = folder if folder is not None and Path(folder).is_dir() else tempfile.gettempdir()
        self._buffer = bytearray()
        self._written = 0  # bytes before the buffer, in the file
        self._file: IO[bytes] | None = None
        self._places, self._marks = array("q", [0]), bytearray()
        for sample in samples:
            self.append(sample)

    def append(self, sample: Sample) -> None:
        """Copy one more sample to the end."""
        self._buffer += np.ascontiguousarray(sample.tokens, np.int32).tobytes()
        self._buffer += np.ascontiguousarray(sample.trained, bool).tobytes()
        if sample.weights is not None:
            self._buffer += np.ascontiguousarray(sample.weights, np.float32).tobytes()
        self._places.append(self._written + len(self._buffer))
        self._marks.append(TRUNCATED * sample.truncated + WEIGHTED * (sample.weights is not None))
        if len(self._buffer) >= (HELD_BYTES if self._file is None else WRITTEN_BYTES):
            self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (kept open)
            view = memoryview(self._buffer)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise unwritable(f"The tokens of the examples, in {self._folder}", error) from error
        self._written += len(self._buffer)
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._marks)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._sample(self._marks[index], self._read(self._places[index], self._places[index + 1]))

    @staticmethod
    def _sample(mark: int, content: bytes) -> Sample:
        size = len(content) // (9 if mark & WEIGHTED else 5)
        tokens, trained = np.frombuffer(content, np.int32, size), np.frombuffer(content, bool, size, 4 * size)
        weights = np.frombuffer(content[5 * size :], np.float32) if mark & WEIGHTED else None
        return Sample(tokens, trained, bool(mark & TRUNCATED), weights)

    def _read(self, start: int, stop: int) -> bytes:
        if self._file is None or start >= self._written:
            return bytes(memoryview(self._buffer)[start - self._written : stop - self._written])
        content = os.pread(self._file.fileno(), stop - start, start)
        if len(content) != stop - start:
            raise FormatError(f"The tokens of the examples, in {self._folder}: were cut off while the run read them.")
        return content

    def __iter__(self) -> Iterator[Sample]:
        start = 0
        while start < len(self):
            first = self._places[start]
            last = first + READ_BYTES
            if first < self._written:  # nothing stands in the file and in the buffer
                last = min(last, self._written)
            stop = max(start + 1, bisect_right(self._places, last) - 1)
            content = self._read(first, self._places[stop])
            for index in range(start, stop):
                begin, end = self._places[index] - first, self._places[index + 1] - first
                yield self._sample(self._marks[index], content[begin:end])
            start = stop

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each sample, (n,) int64."""
        sizes = np.diff(np.frombuffer(self._places, np.int64))
        sizes //= np.where(np.frombuffer(self._marks, np.uint8) & WEIGHTED, np.uint8(9), np.uint8(5))
        return sizes

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self._buffer) + 8 * len(self._places) + len(self._marks)

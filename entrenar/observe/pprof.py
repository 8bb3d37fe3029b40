"""A profile in the forms that other tools open: pprof's profile.proto, and collapsed stacks.

The messages are those of google/pprof's proto/profile.proto; protocol buffers' wire format is that of
https://protobuf.dev/programming-guides/encoding (varints, and length-delimited fields). Stacks are
run > step > phase > kernel and shape; what is outside of kernels ends in a frame of its own.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from entrenar.observe.profile import Profile

RUN, STEP = "run", "step"
INTERPRETER, WAITING = "outside kernels: interpreter", "outside kernels: waiting"
SAMPLES = (("calls", "count"), ("time", "nanoseconds"), ("flops", "count"), ("bytes", "bytes"))  # what is counted
TIME = 1  # in SAMPLES: what viewers show first
NANOSECONDS, MICROSECONDS = 1e9, 1e6


def stacks(profile: Profile) -> Iterator[tuple[tuple[str, ...], tuple[int, float, int, int]]]:
    """Every stack, outermost first, with its calls, seconds, FLOPs and bytes."""
    for row in profile.rows:
        yield (*frames(row.phase), f"{row.kernel} {row.shape}"), (row.calls, row.seconds, row.flops, row.bytes)
    for phase, (seconds, cpu) in profile.outside.items():
        yield (*frames(phase), INTERPRETER), (0, cpu, 0, 0)
        yield (*frames(phase), WAITING), (0, seconds - cpu, 0, 0)


def frames(phase: str) -> tuple[str, ...]:
    """The frames above what a phase does; those of no phase are the run's own."""
    return (RUN, STEP, phase) if phase else (RUN,)


def collapsed(profile: Profile) -> str:
    """Lines `run;step;phase;kernel shape MICROSECONDS`, as flamegraph.pl, speedscope and others read them."""
    lines = []
    for stack, (_, seconds, _, _) in stacks(profile):
        count = round(seconds * MICROSECONDS)
        if count > 0:
            lines.append(f"{';'.join(frame.replace(';', ',') for frame in stack)} {count}\n")
    return "".join(lines)


def pprof(profile: Profile) -> bytes:
    """A gzipped profile.proto message, the same bytes for the same profile."""
    text = _Strings()
    message = bytearray()
    for name, unit in SAMPLES:
        message += _bytes_field(1, _integer(1, text[name]) + _integer(2, text[unit]))
    functions: dict[str, int] = {}  # name: id of its function and its location
    for stack, (calls, seconds, flops, moved) in stacks(profile):
        locations = [functions.setdefault(frame, len(functions) + 1) for frame in reversed(stack)]  # the leaf first
        values = [calls, round(seconds * NANOSECONDS), flops, moved]
        message += _bytes_field(2, _packed(1, locations) + _packed(2, values))
    for name, number in functions.items():
        line = _bytes_field(4, _integer(1, number))  # its function
        message += _bytes_field(4, _integer(1, number) + line)
        message += _bytes_field(5, _integer(1, number) + _integer(2, text[name]) + _integer(3, text[name]))
    message += _integer(9, round((profile.unix_end - profile.wall_seconds) * NANOSECONDS))
    message += _integer(10, round(profile.wall_seconds * NANOSECONDS))
    message += _bytes_field(11, _integer(1, text["time"]) + _integer(2, text["nanoseconds"])) + _integer(12, 1)
    message += _integer(14, text[SAMPLES[TIME][0]])
    for each in text:
        message += _bytes_field(6, each.encode())
    return gzip.compress(bytes(message), mtime=0)


class _Strings(dict[str, int]):
    """The string table: the index of a string, which takes the next place where it is new; the first is ""."""

    def __init__(self) -> None:
        super().__init__({"": 0})

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _integer(number: int, value: int) -> bytes:
    """A field of type int64 or uint64 that is not negative."""
    return _varint(number << 3) + _varint(max(0, value))


def _bytes_field(number: int, content: bytes) -> bytes:
    """A field of a message, a string or packed values."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _packed(number: int, values: list[int]) -> bytes:
    return _bytes_field(number, b"".join(_varint(max(0, value)) for value in values))

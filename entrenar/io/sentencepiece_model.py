"""tokenizer.model: SentencePiece's protocol buffer, read without its library.

Source: google/sentencepiece, src/sentencepiece_model.proto; protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from entrenar.errors import FormatError
from entrenar.io.tokenizer_check import MOST_ID, MOST_TEXT

MOST_BYTES = 1 << 26  # of the file: real ones have under 5 MB
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5  # types of fields
KINDS = {UNIGRAM: "UNIGRAM", BPE: "BPE", 3: "WORD", 4: "CHAR"}


@dataclass(frozen=True)
class Piece:
    """A token, its score and its type."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


@dataclass
class SentencePieceModel:
    """What the file says; the defaults are the format's."""

    pieces: list[Piece] = field(default_factory=list)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    space_last: bool = False  # treat_whitespace_as_suffix
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The model in the file; FormatError where it is truncated, is none, or has an impossible size in it."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a tokenizer.model.") from error
    if data is None:
        raise FormatError(f"{path}: has more than the {MOST_BYTES} bytes that a tokenizer.model may have.")
    try:
        model = _model(data)
    except (ValueError, struct.error) as error:  # a text that is no UTF-8 among them
        raise FormatError(
            f"{path}: is no SentencePiece model, or a truncated one ({str(error).partition(chr(10))[0]}); take the "
            "file that the model was published with."
        ) from error
    _check(path, model)
    return model


def _check(path: Path, model: SentencePieceModel) -> None:
    seen: dict[str, int] = {}
    for index, piece in enumerate(model.pieces):
        if seen.setdefault(piece.text, index) != index:
            raise FormatError(
                f"{path}: pieces {seen[piece.text]} and {index} are both {piece.text[:40]!r}; the file is damaged."
            )
        if not math.isfinite(piece.score):
            raise FormatError(f"{path}: piece {index} has the score {piece.score}, expected a finite number.")
        if len(piece.text) > MOST_TEXT:
            raise FormatError(f"{path}: piece {index} has more than {MOST_TEXT} characters; the file is damaged.")
    if not model.pieces or len(model.pieces) > MOST_ID:
        raise FormatError(f"{path}: has {len(model.pieces)} pieces, expected 1 to {MOST_ID}; the file is damaged.")
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        index, count = getattr(model, name), len(model.pieces)
        if index >= count:
            raise FormatError(f"{path}: {name} is {index}, outside the {count} pieces; the file is damaged.")


# ---------------------------------------------------------------------- the protocol buffer
Value = int | bytes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"no end of a number at byte {at}")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """(number, type, value) of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind not in (FIXED64, DELIMITED, FIXED32):
            raise ValueError(f"a field of type {kind} at byte {at}")
        size = 8 if kind == FIXED64 else 4
        if kind == DELIMITED:
            size, at = _varint(data, at)
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield number, kind, data[at : at + size]
        at += size


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, _, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", _bytes(value))[0]
        elif number == 3:
            kind = _number(value)
    return Piece(text, score, kind)


# The fields of trainer_spec and normalizer_spec by number, and what they are here
TRAINER = {
    **{3: "kind", 24: "space_last", 35: "byte_fallback", 40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"},
    **{45: "unk_piece", 46: "bos_piece", 47: "eos_piece"},
}
NORMALIZER = {
    **{2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"},
}


def _model(data: bytes) -> SentencePieceModel:
    model, specs = SentencePieceModel(), set()
    for number, _, value in _fields(data):
        if number == 1:
            model.pieces.append(_piece(_bytes(value)))
        elif number in (2, 3):
            names = TRAINER if number == 2 else NORMALIZER
            specs.add(number)
            for inner, _, setting in _fields(_bytes(value)):
                if inner in names:
                    _set(model, names[inner], setting)
    if specs != {2, 3}:
        raise ValueError(f"no {'trainer' if 2 not in specs else 'normalizer'}_spec")
    return model


def _set(model: SentencePieceModel, name: str, value: Value) -> None:
    default = getattr(model, name)
    if isinstance(default, bool):
        setattr(model, name, bool(_number(value)))
    elif isinstance(default, int):
        setattr(model, name, _number(value))
    else:
        setattr(model, name, _bytes(value).decode("utf-8") if isinstance(default, str) else _bytes(value))

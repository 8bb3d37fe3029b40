"""Which pre-tokenizer a byte-level vocabulary was made with, where a GGUF file does not say: found by its tokens.

Merges never cross the pieces that a text is split into, so that no expression of the right pre-tokenizer splits a
token of the vocabulary; and a large vocabulary has tokens that every finer one splits.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from entrenar.io.tokenizer_names import probes
from entrenar.io.tokenizer_splits import ORIGINALS, SPLITS, Split

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

Merge = tuple[str, str]
Bounds = frozenset[tuple[int, int]]

LEAST_MERGES = 10_000  # fewer say too little of what is not among them
EXAMPLES = 3  # tokens of one shape that are tried
FINER = 3  # times as many cuts that another split has not, as the other has that are not among them
LONGEST_RUN = 4  # equal kinds of character in a shape, the rest is left out
# Vocabularies whose tokens were made in another way than text is split: SHA-256 of the merges, by name
KNOWN = {"bbeef245f0b03a9613753068e5799c2496290005594c68f09eed68feedbe6d1f": "qwen2"}  # Qwen 1.5 to 3
ACROSS = ("superbpe",)  # merges that cross every border: no token speaks against it


def guess(tokens: dict[str, int], merges: Sequence[Merge]) -> tuple[str | None, str]:
    """The name of the pre-tokenizer, or None and why there is none."""
    if len(merges) < LEAST_MERGES:
        return None, f"{len(merges)} merges are too few to tell how text is split"
    known = KNOWN.get(fingerprint(merges))
    if known is not None:
        return known, ""
    examples = _examples(merges)
    possible = {
        name: split
        for name, split in _rows().items()
        if name not in ACROSS and _keeps_whole(_splitter(ORIGINALS.get(name, split)), examples)
    }
    if not possible:
        return None, "every known split cuts some of its tokens"
    bounds = {name: _bounds(split) for name, split in possible.items()}
    finest = max(possible, key=lambda name: len(bounds[name]))
    own = {name: FINER * len(bounds[name] - bounds[finest]) for name in possible}
    other = [name for name in possible if own[name] > len(bounds[finest] - bounds[name])]
    if other:
        return None, f"its tokens fit {finest!r} and {other[0]!r}"
    return _with_flags(possible[finest], tokens, merges), ""


def fingerprint(merges: Iterable[Merge]) -> str:
    """SHA-256 of the merges, which added tokens and fillers leave as they are."""
    return hashlib.sha256("\n".join(f"{left} {right}" for left, right in merges).encode()).hexdigest()


@functools.cache
def _rows() -> dict[str, Split]:
    """The first name of each list of expressions, with its row."""
    rows: dict[tuple[str, ...], str] = {}
    for name, split in SPLITS.items():
        rows.setdefault(split.expressions, name)
    return {name: SPLITS[name] for name in rows.values()}


@functools.cache
def _splitter(split: Split) -> PreTokenizer:
    import tokenizers
    from tokenizers import pre_tokenizers

    steps = [pre_tokenizers.Split(tokenizers.Regex(each), behavior="isolated") for each in split.expressions]
    return pre_tokenizers.Sequence(steps)


@functools.cache
def _bounds(split: Split) -> Bounds:
    """(text, end) of each piece of the probes."""
    splitter = _splitter(split)
    return frozenset(
        (number, end) for number, text in enumerate(probes()) for _, (_, end) in splitter.pre_tokenize_str(text)
    )


def _keeps_whole(splitter: PreTokenizer, examples: Iterable[str]) -> bool:
    return all(len(splitter.pre_tokenize_str(text)) == 1 for text in examples)


def _examples(merges: Iterable[Merge]) -> list[str]:
    """Some of the merged tokens of each shape, as text."""
    values = byte_values()
    count: Counter[str] = Counter()
    found = []
    for left, right in merges:
        try:
            text = bytes(values[letter] for letter in left + right).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            continue
        shape = _shape(text)
        count[shape] += 1
        if len(text) > 1 and count[shape] <= EXAMPLES:
            found.append(text)
    return found


@functools.cache
def byte_values() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for. Source: openai/gpt-2, encoder.py."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def _shape(text: str) -> str:
    """The kinds of character in order, a run of one kind cut off."""
    kinds: list[str] = []
    for character in text:
        kind = _kind(character)
        if kinds[-LONGEST_RUN:] != [kind] * LONGEST_RUN:
            kinds.append(kind)
    return "".join(kinds)


@functools.lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    if character in "\r\n /'":
        return character
    category = unicodedata.category(character)
    return category if character.isascii() else category.lower()


def _with_flags(split: Split, tokens: dict[str, int], merges: Sequence[Merge]) -> str:
    """The name of the row with these expressions that takes whole words as the vocabulary needs it."""
    rows = {name: row for name, row in SPLITS.items() if row.expressions == split.expressions}
    if len(set(rows.values())) == 1:
        return next(iter(rows))
    whole = unmade_token(tokens, merges, {left + right for left, right in merges}) is not None
    begins = "<|begin_of_text|>" in tokens
    for name, row in rows.items():
        if row.ignore_merges == whole and (row.adds_bos == begins or not whole):
            return name
    return next(iter(rows))


def unmade_token(tokens: dict[str, int], merges: Sequence[Merge], among: Container[str]) -> str | None:
    """A token of those `among` that the merges do not make of its bytes: with `ignore_merges` alone it is used."""
    import tokenizers
    from tokenizers import models

    backend = tokenizers.Tokenizer(models.BPE(vocab=tokens, merges=list(merges)))
    for token, index in reversed(tokens.items()):  # the last are the rarest
        if token in among and [each.id for each in backend.model.tokenize(token)] != [index]:
            return token
    return None

"""Seeded random Unicode text for tokenizers: every plane, marks, joined emoji, controls, runs of white space."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

PLANES = (
    *((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x3FFFF)),
    *((0x40000, 0xDFFFF), (0xE0000, 0xE0FFF), (0xF0000, 0x10FFFF)),
)
FRAGMENTS = (
    *("the ", "hello", " World", "don't", "IT'S", "1234567", " 12", "'s", "'LL", "_x", "camelCase", "HTTPServer"),
    *("\n\n", "\n", "  ", "     ", " " * 17, "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff"),
    *("...", "!?", "//", " .", "(a)", "{", "}", "\x00", "\x07", "\x1b[0m", "\x7f"),
    *("▁", "▁▁", "½", "²", "ǅ", "ﬁ"),
    *("e\u0301", "a\u0308\u0304", "👩\u200d👩\u200d👧", "🏽", "🇩🇪"),
    *("中文字", "日本語", "한국어", "Привет", "ÅÉ"),
    *("العربية", "हिन्दी", "ไทย"),
)


def random_texts(count: int = 1000, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`count` texts of 1 to 24 parts; about one part in ten is one of `special`, the texts of special tokens."""
    chance = random.Random(seed)
    return ["".join(_part(chance, special) for _ in range(chance.randint(1, 24))) for _ in range(count)]


def _part(chance: random.Random, special: Sequence[str]) -> str:
    which = chance.random()
    if which < 0.1 and special:
        return chance.choice(special)
    if which < 0.6:
        return chance.choice(FRAGMENTS)
    first, last = PLANES[0] if which < 0.75 else chance.choice(PLANES)
    letters = (chr(chance.randint(first, last)) for _ in range(chance.randint(1, 5)))
    return "".join(letter for letter in letters if is_settled(letter))


def is_settled(letter: str) -> bool:
    """Whether every version of Unicode since Python's gives the character the same category."""
    return unicodedata.category(letter) != "Cn" or ord(letter) >= 0x40000

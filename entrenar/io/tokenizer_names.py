"""The name of GGUF's pre-tokenizer that splits text as a given one of the `tokenizers` library does.

Found by what both do to probe texts: the expressions of a tokenizer.json are written in other ways than llama.cpp's.
"""

from __future__ import annotations

import functools
import random
import unicodedata
from typing import TYPE_CHECKING

from entrenar.io.tokenizer_splits import ORIGINALS, SPLITS, Split, pre_tokenizer

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

Pieces = tuple[tuple[str, ...], ...]

PROBE_COUNT, PROBE_LENGTH = 40, 120  # random probes, and the pieces of text that one is made of
# What the expressions tell apart: letters by case and script, marks, numbers, signs, spaces, line ends, contractions
PARTS = (
    *(
        "a",
        "b",
        "Z",
        "word",
        "Word",
        "WORD",
        "iPhone",
        "wORD",
        "é",
        "É",
        "e\u0301",
        "ß",
        "ǅ",
        "я",
        "Я",
        "\u0627",
        "ा",
        "क",
    ),
    *("中", "中文", "ひ", "カ", "가", "ไทย"),
    *("\u0e33", "\U0001d49c", "ﬁ", "ª", "ʰ", "א", "ק", "\ufb2a"),
    *("1", "12", "123", "1234", "1234567", "٣", "Ⅷ", "½", "²", "\u3007", "\U0001d7d8"),
    *(
        ".",
        "..",
        "!?",
        ",",
        "/",
        "//",
        "'",
        "''",
        '"',
        "-",
        "—",
        "…",
        "\u3002",
        "\uff0c",
        "\u3001",
        "\u0964",
        "\u06d4",
        "\u060c",
        "|",
        "(",
        ")",
    ),
    *("$", "+", "=", "^", "~", "`", "_", "#", "@", "\\", "{", "}"),
    *("€", "©", "°", "¬", "🎉", "👩\u200d🔬", "🏽"),
    *(
        " ",
        " ",
        " ",
        "  ",
        "   ",
        "    ",
        "         ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\n\n\n",
        " \n",
        "\n ",
        "\x0b",
    ),
    *("\u00a0", "\u2003", "\u2028", "\u3000", "\x00", "\x7f", "\u200b", "\ufeff", "\ue000", "\ufffd"),
    *(
        "'s",
        "'S",
        "'t",
        "'T",
        "'re",
        "'RE",
        "'Re",
        "'ve",
        "'VE",
        "'m",
        "'M",
        "'ll",
        "'LL",
        "'lL",
        "'d",
        "'D",
        "\u2019s",
    ),
    *("it's", "IT'S", "'sx", " 's", ".s", ".Word", ".word", " .", "/\n", "!\n", "!/\n\n", "a/b", "1.5", "a1", "1a"),
)


@functools.cache
def probes() -> tuple[str, ...]:
    """Texts in which each pair of kinds of character stands side by side; the same ones each time."""
    chance = random.Random(0)
    texts = ["".join(chance.choice(PARTS) for _ in range(PROBE_LENGTH)) for _ in range(PROBE_COUNT)]
    pairs = "".join(first + second + " " for first in PARTS for second in chance.sample(PARTS, 24))
    runs = "\n".join(f"x{' ' * count}y{'9' * count}{'!' * count}" for count in (1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 33, 66))
    assigned = [chr(code) for code in range(0x21, 0x30000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    sampled = [chance.choice(assigned) + chance.choice(("", "", " ", "a", "1", "\n")) for _ in range(2000)]
    return (*texts, pairs, runs, "".join(sampled))


def pieces(splitter: PreTokenizer) -> Pieces:
    """What a pre-tokenizer over bytes makes of the probes."""
    return tuple(tuple(piece for piece, _ in splitter.pre_tokenize_str(text)) for text in probes())


@functools.cache
def _pieces_of(split: Split) -> Pieces:
    return pieces(pre_tokenizer(split))


def split_names(splitter: PreTokenizer) -> list[tuple[str, Split]]:
    """The first name of each row of `SPLITS` that splits the probes as `splitter` does, with its row."""
    found = pieces(splitter)
    rows: dict[Split, str] = {}
    for name, split in SPLITS.items():
        rows.setdefault(split, name)
    return [(name, split) for split, name in rows.items() if _pieces_of(split) == found]


def near_names(splitter: PreTokenizer) -> list[tuple[str, Split]]:
    """The same of `ORIGINALS`: llama.cpp's split of that name comes close."""
    found = pieces(splitter)
    return [(name, SPLITS[name]) for name, split in ORIGINALS.items() if _pieces_of(split) == found]

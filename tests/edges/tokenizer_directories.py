"""Small tokenizer directories, and what both sides make of them: entrenar and transformers' AutoTokenizer.

Each variation changes one component of tokenizer.json or one key of the files beside it; both sides then encode the
same random texts, with and without what is put around them, decode them, and name the special ids.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from entrenar.io.tokenizer import Tokenizer

from .harness import Variation, Verdict, judge

AREA = "tokenizer.json"
REFERENCE = "transformers AutoTokenizer"
COMPARED = "ids of 500 texts, special ids, what is put around, decoding"
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>")
PIECES = [
    *"abcdefghijklmnoprstuwyzABTX 0123456789.,:;!?'\"-_()[]{}<>/\\|@#&*+=~^%$\n\t\r",
    *"éüßñÇøα中文あ한яصहॐ",
    "e\u0301", "o\u0308", "\u200b", "\u00a0", "\u3000", "\ufeff", "\u2028", "ﬁ", "Ⅻ", "½", "İ",
    "🎉", "👩‍👩‍👧", "🇫🇷",
    "\x00", "\x07", "\x1b", "\x7f", "\x85", "\U0010ffff", "  ", "    ", "\n\n", "\r\n", " the",
    "ing", "'s", "'LL", " ,", " .", " n't", "the quick", "<mask>", "<tool>", "▁", "Ġ", "##", *SPECIAL, *SPECIAL,
]  # fmt: skip
Files = dict[str, Any]


@functools.cache
def texts() -> list[str]:
    """500 random texts, special tokens' own among them."""
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(PIECES, rng.integers(0, 24))) for _ in range(499)] + [""]


# ---------------------------------------------------------------------- sound directories
@functools.cache
def corpus() -> tuple[str, ...]:
    return tuple(text for text in texts()[:200]) + ("the quick brown fox jumps over the lazy dog " * 4,) * 3


def _trained(backend: tokenizers.Tokenizer, trainer: Any) -> Files:
    backend.train_from_iterator(corpus(), trainer)
    return {"tokenizer.json": json.loads(backend.to_str()), "tokenizer_config.json": base_config(), "config.json": {}}


def base_config() -> Files:
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@functools.cache
def byte_level() -> Files:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        backend,
        trainers.BpeTrainer(vocab_size=299, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False),
    )


@functools.cache
def metaspace() -> Files:
    """LLaMA 2's kind: byte fallback, a normalizer that puts the first space."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL[:3], *(f"<0x{i:02X}>" for i in range(256)), *SPECIAL[3:]]
    files = _trained(
        backend,
        trainers.BpeTrainer(
            vocab_size=299, special_tokens=special, limit_alphabet=24, max_token_length=6, show_progress=False
        ),
    )
    files["tokenizer.json"]["added_tokens"] = [
        t for t in files["tokenizer.json"]["added_tokens"] if "<0x" not in t["content"]
    ]
    return files


@functools.cache
def unigram() -> Files:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _trained(
        backend,
        trainers.UnigramTrainer(vocab_size=150, special_tokens=[*SPECIAL], unk_token="<unk>", show_progress=False),
    )


@functools.cache
def words() -> Files:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(backend, trainers.WordLevelTrainer(vocab_size=200, special_tokens=[*SPECIAL], show_progress=False))


@functools.cache
def word_pieces() -> Files:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _trained(backend, trainers.WordPieceTrainer(vocab_size=250, special_tokens=[*SPECIAL], show_progress=False))


# ---------------------------------------------------------------------- both sides
def _write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")


def _ours(folder: Path) -> list[Any]:
    made = Tokenizer.from_directory(folder)
    plain = [made.encode(text) for text in texts()]
    before = [made.bos_id] if made.adds_bos else []
    after = [made.eos_id] if made.adds_eos else []
    some = plain[:60]
    return [
        (made.bos_id, made.eos_id, made.pad_id, made.unk_id),
        made.vocab_size,
        plain,
        [[*before, *ids, *after] for ids in plain],
        [made.encode(text, parse_special=False) for text in texts()],
        [made.decode(ids, skip_special=False) for ids in some],
        [made.decode(ids) for ids in some],
    ]


def _theirs(folder: Path) -> list[Any]:
    made = transformers.AutoTokenizer.from_pretrained(folder)
    plain = [list(ids) for ids in made(texts(), add_special_tokens=False).input_ids]
    some = plain[:60]
    return [
        (made.bos_token_id, made.eos_token_id, made.pad_token_id, made.unk_token_id),
        len(made),
        plain,
        [list(ids) for ids in made(texts()).input_ids],
        [list(ids) for ids in made(texts(), add_special_tokens=False, split_special_tokens=True).input_ids],
        [made.decode(ids) for ids in some],
        [made.decode(ids, skip_special_tokens=True) for ids in some],
    ]


PARTS = ("special ids", "size", "ids", "ids with what is around", "ids without special tokens", "texts", "plain texts")


def _differs(found: list[Any], expected: list[Any]) -> str | None:
    for part, a, b in zip(PARTS, found, expected, strict=True):
        if a != b:
            if isinstance(a, list):
                number = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
                return f"{part} of text {number} {texts()[number]!r}: {a[number]}, expected {b[number]}"
            return f"{part}: {a}, expected {b}"
    return None


def without_dropout(table: Files) -> Files:
    return table | {"model": {key: value for key, value in table["model"].items() if key != "dropout"}}


def variation(name: str, base: Callable[[], Files], change: Callable[[Files], Any], *names: str) -> Variation:
    """`change` alters the files in place; `names` are the words that a refusal must contain."""

    def check(folder: Path) -> Verdict:
        files = copy.deepcopy(base())
        change(files)
        _write(files, folder)

        def reference() -> list[Any]:
            if isinstance(files["tokenizer.json"], dict):  # the ids of no dropout: with it each run has others
                _write({"tokenizer.json": without_dropout(files["tokenizer.json"])}, folder)
            return _theirs(folder)

        return judge(
            lambda: _ours(folder),
            reference,
            names=names or ("tokenizer",),
            folder=folder,
            difference=_differs,
            compared=COMPARED,
        )

    return Variation(AREA, name, REFERENCE, check)


def set_key(file: str, path: str, value: Any) -> Callable[[Files], None]:
    """Set a dotted key of one file; its folder of objects is made."""

    def change(files: Files) -> None:
        table = files.setdefault(file, {})
        *parents, last = path.split(".")
        for key in parents:
            table = table.setdefault(key, {})
        table[last] = copy.deepcopy(value)

    return change


tok = functools.partial(set_key, "tokenizer.json")
config = functools.partial(set_key, "tokenizer_config.json")
decoder = functools.partial(set_key, "tokenizer_config.json", "added_tokens_decoder")
special_map = functools.partial(set_key, "special_tokens_map.json")
listed = functools.partial(set_key, "added_tokens.json")
generation = functools.partial(set_key, "generation_config.json")


def component(section: str, value: Any) -> Callable[[Files], None]:
    plain = value is None or isinstance(value, dict)
    return tok(section, value if plain else json.loads(value.__getstate__()))


def named(name: str | None, **more: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files["tokenizer_config.json"].update({"tokenizer_class": name, **more})

    return change


def two(first: Callable[[Files], Any], second: Callable[[Files], Any]) -> Callable[[Files], None]:
    """Both changes, one after the other."""

    def change(files: Files) -> None:
        first(files)
        second(files)

    return change

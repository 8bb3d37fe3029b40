"""A tokenizer as the `tokenizer.*` metadata of a GGUF file, from which llama.cpp makes the same ids.

The reverse of `entrenar.io.tokenizer_gguf`. A byte-level BPE ("gpt2") is written with its merges and the name of its
pre-tokenizer, a BPE over characters with a fallback to bytes ("llama") with a score for each token in place of merges.
Source: llama.cpp, src/llama-vocab.cpp (`load`, `tokenize`), gguf-py/gguf/vocab.py (`SpecialVocab.add_to_gguf`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.tokenizer_gguf import (
    BYTE,
    CONTROL,
    ENDS,
    FILL_ENDS,
    FILLS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from entrenar.io.tokenizer_guess import unmade_token
from entrenar.io.tokenizer_names import near_names, split_names
from entrenar.io.tokenizer_splits import Split

if TYPE_CHECKING:
    from entrenar.io.tokenizer import Tokenizer

SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
FILLER_SCORE = -10000.0
MOST_BETWEEN = 256  # merges between two that make the same token
KEEP = "export to a Hugging Face directory instead, which keeps tokenizer.json as it is"


def tokenizer_metadata(
    tokenizer: Tokenizer, vocab_size: int | None = None, remarks: list[str] | None = None
) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file: lists of str, float and int, flags, ids and templates.

    `vocab_size` is the number of rows of the model's embedding: unused tokens fill the vocabulary up to it. `remarks`
    gets a sentence for each thing that llama.cpp does otherwise than the tokenizer. FormatError where the tokenizer
    is of a kind that a GGUF file cannot hold, or has more tokens than `vocab_size` and needs them.
    """
    return _Writer(tokenizer, vocab_size, [] if remarks is None else remarks).metadata()


@dataclass
class _Spaces:
    """What a tokenizer over characters does to spaces: whether it puts one before a text, and when it does not."""

    prefix: bool
    first_only: bool = False  # before the text alone, and not before each part between added tokens
    once: bool = False  # not before a text that begins with one


@dataclass
class _Parts:
    """The components of a tokenizer.json that act one after the other, in a list each."""

    normalizers: list[Mapping[str, Any]] = field(default_factory=list)
    splitters: list[Mapping[str, Any]] = field(default_factory=list)


class _Writer:
    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None, remarks: list[str]) -> None:
        self.tokenizer, self.remarks = tokenizer, remarks
        table = json.loads(tokenizer.backend.to_str())
        self.model: Mapping[str, Any] = table["model"]
        self.parts = _Parts(_flat(table["normalizer"], "normalizers"), _flat(table["pre_tokenizer"], "pretokenizers"))
        kind = self.model.get("type")
        if kind != "BPE":
            raise self.inexpressible(f"its model is {kind}", "a BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(key):
                raise self.inexpressible(f"its model has the {key} {self.model[key]!r}", "none")
        self.added: dict[int, Mapping[str, Any]] = {entry["id"]: entry for entry in table["added_tokens"]}
        self.ids: dict[str, int] = self.model["vocab"]
        self.user_defined = self.isolated()
        self.tokens = self.all_tokens(vocab_size)

    def inexpressible(self, found: str, expected: str) -> FormatError:
        return FormatError(f"A GGUF file cannot hold this tokenizer: {found}, expected {expected}; {KEEP}.")

    # ------------------------------------------------------------------ the tokens
    def all_tokens(self, vocab_size: int | None) -> list[str | None]:
        """The token of each id, None where an id has none: those fill the vocabulary up to the model's rows."""
        texts = {index: token for token, index in self.ids.items()}
        texts |= {index: entry["content"] for index, entry in self.added.items()}
        count = max(texts) + 1
        size = count if vocab_size is None else vocab_size
        beyond = sorted(index for index in texts if index >= size)
        tokenizer = self.tokenizer
        needed = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.eos_ids}
        if any(index in needed or index not in self.added for index in beyond):
            raise FormatError(
                f"The tokenizer has {count} tokens, and the model's embedding {size} rows; expected a row for each "
                "token; load the tokenizer that the model was published with, or give the embedding more rows."
            )
        if beyond:
            self.remarks.append(
                f"{len(beyond)} added tokens have no row in the model's embedding and are not written "
                f"({texts[beyond[0]]!r} is one)."
            )
        for index in beyond:
            self.added.pop(index)
        return [texts.get(index) for index in range(size)]

    def filled(self) -> list[str]:
        """Every token; those that there are none of get a text of their own."""
        taken, made = set(self.tokens), []
        for index, token in enumerate(self.tokens):
            text = f"[PAD{index}]"
            while token is None and text in taken:
                text += "_"
            made.append(text if token is None else token.replace(SPACE, " ") if token in self.user_defined else token)
        return made

    def types(self, over_bytes: bool) -> list[int]:
        types = []
        for index, token in enumerate(self.tokens):
            entry = self.added.get(index)
            if token is None:
                types.append(UNUSED)
            elif not over_bytes and index == self.tokenizer.unk_id:
                types.append(UNKNOWN)
            elif entry is not None and not self.as_merged(entry, over_bytes):
                types.append(CONTROL if entry["special"] else USER_DEFINED)
            elif token in self.user_defined:
                types.append(USER_DEFINED)
            else:
                types.append(BYTE if not over_bytes and BYTE_TOKEN.fullmatch(token) else NORMAL)
        return types

    def as_merged(self, entry: Mapping[str, Any], over_bytes: bool) -> bool:
        """Whether an added token is a run of spaces that the merges make: from spaces too, and so it stays."""
        text = entry["content"]
        return not over_bytes and not entry["special"] and text in self.ids and not text.strip(SPACE)

    def note_added(self) -> None:
        """A remark for flags of added tokens that GGUF has no place for."""
        for flag, means in (
            ("lstrip", "leave out the white space before them"),
            ("rstrip", "leave out the white space after them"),
            ("single_word", "are found between words only"),
        ):
            those = [entry["content"] for entry in self.added.values() if entry[flag]]
            if those:
                self.remarks.append(
                    f"{len(those)} added tokens ({those[0]!r} is one) {means}, and llama.cpp "
                    f"{'does so by the model name phi-3 alone' if flag == 'rstrip' else 'does not'}."
                )

    def merges(self) -> list[tuple[str, str]]:
        return [(left, right) for left, right in self.model["merges"]]

    # ------------------------------------------------------------------ over bytes
    def byte_level(self) -> dict[str, Any]:
        for each in self.parts.normalizers:
            if each.get("type") != "NFC":
                raise self.inexpressible(f"its normalizer is {shown(each)}", "none, or NFC")
            self.remarks.append(
                "The tokenizer composes characters (NFC) before it splits a text, and llama.cpp does not: text that "
                "is not composed gets other ids."
            )
        if any(each.get("add_prefix_space") for each in self.parts.splitters):
            raise self.inexpressible("it puts a space before each text (add_prefix_space)", "no such space")
        splitter = self.tokenizer.backend.pre_tokenizer
        assert splitter is not None
        found = split_names(splitter)
        if not found:
            found = near_names(splitter)
            if found:
                self.remarks.append(
                    f"The tokenizer splits text as {found[0][0]!r} did in training, and llama.cpp comes close: letters "
                    "with marks of their own, and capitals beyond ASCII inside of a word, get other ids."
                )
        if not found:
            patterns = [each.get("pattern") or each.get("type") for each in self.parts.splitters]
            raise self.inexpressible(
                f"its pre_tokenizer {shown(patterns)} splits text as none of the pre-tokenizers that llama.cpp names",
                "one of them",
            )
        merges = self.merges()
        for left, right in merges:
            if " " in left[1:] or " " in right:
                raise self.inexpressible(f"its merge of {left!r} and {right!r} has a space in it", "none over bytes")
        return {
            "model": "gpt2",
            "pre": self.name(found),
            "tokens": self.filled(),
            "token_type": self.types(True),
            "merges": [f"{left} {right}" for left, right in merges],
        }

    def name(self, found: Sequence[tuple[str, Split]]) -> str:
        """The name of the pre-tokenizer that takes whole words as this one does, where that makes a difference."""
        wanted = bool(self.model.get("ignore_merges"))
        exact = [name for name, split in found if split.ignore_merges == wanted]
        if exact:
            return exact[0]
        added = {entry["content"] for entry in self.added.values()}
        unmade = unmade_token(self.ids, self.merges(), self.ids.keys() - added)
        if unmade is not None:
            raise self.inexpressible(
                f"its pre_tokenizer is llama.cpp's {found[0][0]!r} and ignore_merges is {wanted}, on which the token "
                f"{unmade!r} depends",
                f"ignore_merges {not wanted}",
            )
        return found[0][0]

    # ------------------------------------------------------------------ over characters
    def spaces(self) -> _Spaces | None:
        """How spaces become SPACE; None where the normalizer and pre-tokenizer do anything else."""
        replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        doubled = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}"}, "content": SPACE * 2}
        prepended = {"type": "Prepend", "prepend": SPACE}
        words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        normalizers, splitters = self.parts.normalizers, self.parts.splitters
        if self.user_defined:
            splitters = splitters[:-1]
        if normalizers in ([replaced], [prepended, replaced], [replaced, prepended]) and splitters in ([], [words]):
            return _Spaces(prepended in normalizers)
        if normalizers in ([], [replaced], [replaced, doubled]) and len(splitters) == 1:
            step = splitters[0]
            whole = not step.get("split", True) or not self.joins_words()
            if step.get("type") == "Metaspace" and step.get("replacement") == SPACE and whole:
                prefix = step.get("prepend_scheme") != "never"
                return _Spaces(prefix, step.get("prepend_scheme") == "first", prefix and doubled not in normalizers)
        return None

    def isolated(self) -> frozenset[str]:
        """The user-defined pieces of a SentencePiece model, which its last pre-tokenizer cuts out."""
        last = self.parts.splitters[-1] if self.parts.splitters else {}
        pattern = last.get("pattern", {}).get("Regex")
        if not self.model.get("ignore_merges") or pattern is None or last.get("behavior") != "Isolated":
            return frozenset()
        alternatives = set(re.split(r"(?<!\\)\|", pattern))
        found = frozenset(token for token in self.ids if re.escape(token) in alternatives)
        return found if len(found) == len(alternatives) else frozenset()

    def joins_words(self) -> bool:
        """Whether a token goes on after a space in it."""
        return any(SPACE in token[1:] for token in self.ids)

    def character_level(self, spaces: _Spaces) -> dict[str, Any]:
        if not self.model.get("byte_fallback"):
            raise self.inexpressible("characters without a token do not become bytes (byte_fallback)", "that they do")
        missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in self.ids]
        if missing:
            raise self.inexpressible(f"it has no token '<0x{missing[0]:02X}>'", "a token for each byte")
        if self.model.get("ignore_merges") and not self.user_defined:
            raise self.inexpressible("ignore_merges is true beside byte_fallback", "false")
        if spaces.first_only:
            self.remarks.append(
                "The tokenizer puts a space before the beginning of a text alone, and llama.cpp after each special "
                "token, too: ids of text right behind one differ."
            )
        if any(self.as_merged(entry, False) for entry in self.added.values()):
            self.remarks.append(
                "Added tokens that are runs of ▁ are made from spaces alone in llama.cpp: a text that has that "
                "character beside a space gets other ids."
            )
        if spaces.once:
            self.remarks.append(
                "The tokenizer puts no space before a text that begins with one, and llama.cpp does: ids of such texts "
                "differ."
            )
        if self.user_defined and spaces.prefix:
            self.remarks.append(
                f"{len(self.user_defined)} user-defined tokens ({min(self.user_defined)!r} is one) are cut out of a "
                "text, and llama.cpp puts a space behind each."
            )
        return {
            "model": "llama",
            "pre": "default",
            "tokens": self.filled(),
            "scores": self.scores(),
            "token_type": self.types(False),
            "add_space_prefix": spaces.prefix,
        }

    def scores(self) -> list[float]:
        """The negative rank of each token's first merge: llama.cpp joins the pair whose token scores highest.

        It joins any two parts that make a token, so that every such pair must be a merge, with none in between that
        could come first.
        """
        merges = self.merges()
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        pairs: Counter[str] = Counter()
        runs: set[str] = set()
        for rank, (left, right) in enumerate(merges):
            whole = left + right
            between = {a + b for a, b in merges[last[whole] + 1 : rank][: MOST_BETWEEN + 1]} if whole in last else set()
            if len(between) > MOST_BETWEEN or any(_meet(whole, other) for other in between):
                raise self.inexpressible(
                    f"merges that make {whole!r} (numbers {last[whole]} and {rank}) stand apart, and others between "
                    "them rank otherwise",
                    "all merges of a token side by side, as SentencePiece ranks them",
                )
            if between and _is_run(whole):
                runs.add(whole[0])
            first.setdefault(whole, rank)
            last[whole] = rank
            pairs[whole] += 1
        self.check_runs(runs, first)
        self.check_pairs(pairs)
        least = -float(len(merges))
        return [
            FILLER_SCORE + least if token is None else -float(first[token]) if token in first else least
            for token in self.tokens
        ]

    def check_runs(self, characters: Iterable[str], first: Mapping[str, int]) -> None:
        """Merges of runs of a character that stand apart are joined from the left: the longer a run, the sooner."""
        for character in characters:
            ranks = [first[token] for token in sorted(first, key=len, reverse=True) if set(token) == {character}]
            if ranks != sorted(ranks):
                raise self.inexpressible(
                    f"its merges of the runs of {character!r} rank a shorter one before a longer one",
                    "the longest first, as in Gemma's, or all merges of a token side by side",
                )

    def check_pairs(self, pairs: Mapping[str, int]) -> None:
        added = {entry["content"] for entry in self.added.values()} | self.user_defined
        for token in self.ids:
            ways = sum(token[:cut] in self.ids and token[cut:] in self.ids for cut in range(1, len(token)))
            if ways != pairs.get(token, 0) and token not in added and not BYTE_TOKEN.fullmatch(token):
                raise self.inexpressible(
                    f"its merges make the token {token!r} in {pairs.get(token, 0)} ways of {ways}",
                    "every pair of tokens that makes another, as SentencePiece joins them",
                )

    # ------------------------------------------------------------------ all
    def metadata(self) -> dict[str, Any]:
        kinds = [each.get("type") for each in self.parts.splitters]
        spaces = None if "ByteLevel" in kinds else self.spaces()
        if "ByteLevel" in kinds:
            made = self.byte_level()
        elif spaces is not None:
            made = self.character_level(spaces)
        else:
            found = {"normalizer": self.parts.normalizers, "pre_tokenizer": self.parts.splitters}
            what = f"its text goes through {shown(found)}"
            raise self.inexpressible(what, "bytes, or characters with ▁ for spaces")
        self.note_added()
        return {f"tokenizer.ggml.{key}": value for key, value in (made | self.special()).items()} | self.templates()

    def special(self) -> dict[str, Any]:
        """The ids of special tokens, and whether they are put around a text."""
        tokenizer = self.tokenizer
        further = [index for index in tokenizer.eos_ids if index != tokenizer.eos_id]
        order = {text: rank for rank, text in enumerate(ENDS)}
        further.sort(key=lambda index: order.get(tokenizer.token(index), len(order)))
        told = {*order, *(text for name in FILL_ENDS for text in FILLS[name].split())}
        unknown = [index for index in further[1:] if tokenizer.token(index) not in told]
        if len(unknown) > 1:
            self.remarks.append(
                f"A GGUF file names three end tokens, and this tokenizer has more: {unknown[1:]} end no generation."
            )
        ids = {
            "bos": tokenizer.bos_id,
            "eos": tokenizer.eos_id,
            "eot": further[0] if further else None,
            "eom": unknown[0] if unknown else None,
            "unknown": tokenizer.unk_id,
            "padding": tokenizer.pad_id,
        }
        size = len(self.tokens)
        found = {f"{name}_token_id": index for name, index in ids.items() if index is not None and index < size}
        puts = {"add_bos_token": tokenizer.adds_bos, "add_eos_token": tokenizer.adds_eos}
        return {**found, **puts}

    def templates(self) -> dict[str, Any]:
        """The chat templates, as gguf-py writes them."""
        tokenizer = self.tokenizer
        named = {f"tokenizer.chat_template.{name}": text for name, text in tokenizer.templates.items()}
        names = {"tokenizer.chat_templates": sorted(tokenizer.templates)} if named else {}
        default = {} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template}
        return {**default, **names, **named}


def _flat(component: Any, inner: str) -> list[Mapping[str, Any]]:
    """A component, or the components of a sequence, sequences in it opened."""
    if component is None:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [each for part in component[inner] for each in _flat(part, inner)]


def _is_run(token: str) -> bool:
    """Whether it is one character over and over."""
    return len(set(token)) == 1


def _meet(whole: str, other: str) -> bool:
    """Whether the order of two tokens' merges can matter: not of tokens without a common character.

    Of two runs of a character it does not where the longer one comes first, which is held to elsewhere.
    """
    return whole != other and bool(set(whole) & set(other)) and not (_is_run(whole) and _is_run(other))

"""Tokenizers from the `tokenizer.*` metadata of a GGUF file, as llama.cpp reads them.

Where llama.cpp guesses (a missing end token of a byte-level vocabulary is number 11) nothing is guessed here. Where a
SentencePiece vocabulary has no order of its own (all scores are the same) its merges decide, as in transformers.
Source: llama.cpp, src/llama-vocab.cpp (`load`, `tokenize`); transformers/integrations/gguf.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io import tokenizer_library as library
from entrenar.io.gguf_header import Texts
from entrenar.io.template_files import named_templates
from entrenar.io.tokenizer_guess import guess
from entrenar.io.tokenizer_splits import DEFAULT, SPLITS, Split, pre_tokenizer
from entrenar.io.vocabulary import Vocabulary, template_text

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
# Texts that llama.cpp takes for control tokens whatever their type, and ends a generation at
_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend▁of▁sentence\uff5c> [e~["
)
ENDS = tuple(_ENDS.split())
# The same for completion in the middle of a text, where the metadata name no such token; those of an end, too
FILLS = {
    "fim_pre": (
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim▁begin\uff5c> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>"
    ),
    "fim_suf": (
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim▁hole\uff5c> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>"
    ),
    "fim_mid": (
        "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim▁end\uff5c> <MID> ▁<MID> <|code_middle|> <|middle|>"
    ),
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
OLD_NAMES = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
FILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")
ALWAYS_SHOWN = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))  # user-defined whatever the type
RIGHT_STRIPPED = ("phi-3", "phi3")  # in general.name: white space after a special token is left out
NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")

KINDS = ("gpt2", "llama", "gemma4")  # BPE over bytes; over characters, by scores; over characters, by merges
KNOWN = "'llama-bpe', 'gpt-2', 'qwen2', 'smollm' or 'tekken'"


def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """A tokenizer of one of `KINDS`; FormatError where the metadata hold none."""
    return _Reader(metadata).vocabulary()


def end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids at which llama.cpp ends a generation; none where the metadata hold no tokenizer that is read here."""
    try:
        reader = _Reader(metadata)
        return tuple(reader.ends(reader.types()))
    except FormatError:  # which whoever uses the tokenizer is told
        return ()


class _Reader:
    """The metadata of one file, and what is made of them."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.remarks: list[str] = []
        self.kind = self.get("model")
        if self.kind not in KINDS:
            raise FormatError(
                f"tokenizer.ggml.model is {shown(self.kind)}, expected 'gpt2', 'llama' or 'gemma4'; "
                "no other kind of tokenizer is read."
            )
        self.tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(self.entries("tokens", str))]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            doubled, _ = Counter(self.tokens).most_common(1)[0]
            first = self.tokens.index(doubled)
            raise FormatError(
                f"tokenizer.ggml.tokens: entries {first} and {self.tokens.index(doubled, first + 1)} are both "
                f"{doubled!r}, and llama.cpp does not load such a file; convert the model again."
            )

    # ------------------------------------------------------------------ reading
    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def entries(self, name: str, kind: type | tuple[type, ...]) -> list[Any]:
        """FormatError where it is missing or holds something else."""
        values = self.get(name)
        if not isinstance(values, list | Texts) or not values:
            raise FormatError(f"The GGUF metadata has no tokenizer.ggml.{name}; the file holds no complete tokenizer.")
        for index, value in enumerate(values):
            if not isinstance(value, kind):
                raise FormatError(
                    f"tokenizer.ggml.{name}: entry {index} is {value!r}, of a type that has no place there."
                )
        return list(values)

    def id(self, name: str, default: int | None = None) -> int | None:
        """The id of a special token; FormatError where it is none of the vocabulary."""
        index = self.get(f"{name}_token_id")
        if index is None:
            return default if default is not None and default < len(self.tokens) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise FormatError(
                f"tokenizer.ggml.{name}_token_id is {index!r}, outside the {len(self.tokens)} tokens; "
                "convert the model again, or set the key right with `gguf-set-metadata` of the gguf package."
            )
        return index

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise FormatError(f"tokenizer.ggml.{name} is {value!r}, expected true or false.")
        return default if value is None else value

    @functools.cached_property
    def split(self) -> Split:
        """How text is split; a vocabulary over characters splits it nowhere."""
        pre = self.get("pre")
        if self.kind != "gpt2":
            return DEFAULT
        if pre is None or pre == "":
            return self.guessed_split()
        if not isinstance(pre, str) or pre not in SPLITS:
            raise FormatError(
                f"tokenizer.ggml.pre is {pre!r}, a split that is not known; "
                f"expected one of {len(SPLITS)}, such as {KNOWN}; "
                "use the model's Hugging Face directory, whose tokenizer.json has the split itself."
            )
        return SPLITS[pre]

    def guessed_split(self) -> Split:
        """The split that the tokens show; llama.cpp takes its default for any file without a name."""
        name, reason = guess(self.ids, self.merges())
        if name is None:
            raise FormatError(
                f"tokenizer.ggml.pre is missing, and how text is split cannot be told from the vocabulary: {reason}; "
                "name it with `gguf-new-metadata --pre-tokenizer NAME` of the gguf package (a newer conversion does), "
                f"NAME one of {len(SPLITS)}, such as {KNOWN}."
            )
        self.remarks.append(
            f"tokenizer.ggml.pre is missing: by its tokens the vocabulary is split as {name!r}, and llama.cpp takes "
            "its default; a newer conversion names the split."
        )
        return SPLITS[name]

    # ------------------------------------------------------------------ what the tokens are
    def types(self) -> list[int]:
        """The types that llama.cpp gives the tokens: the file's, control for those that it knows by their text."""
        types = [NORMAL] * len(self.tokens)
        if self.get("token_type") is not None:
            types = [*self.entries("token_type", int)]
        if len(types) < len(self.tokens):
            raise FormatError(
                f"tokenizer.ggml.token_type has {len(types)} entries, expected {len(self.tokens)}, one for each token."
            )
        types = types[: len(self.tokens)]
        forced = [self.ids[text] for text in ENDS if text in self.ids]
        forced += [index for name in FILLS for index in self.fills(name)]
        for name in ("bos", "eos", "eot", "eom"):  # by transformers: a template writes them as text
            index = self.id(name)
            forced += [] if index is None or types[index] == UNKNOWN else [index]
        changed = sorted({self.tokens[index] for index in forced if types[index] != CONTROL})
        for index in forced:
            types[index] = CONTROL
        if changed:
            self.remarks.append(
                f"tokenizer.ggml.token_type says of {len(changed)} special tokens ({changed[0]!r} is one) that they "
                "are none: they are read as control tokens, as in llama.cpp."
            )
        for text in ALWAYS_SHOWN & set(self.ids):
            types[self.ids[text]] = USER_DEFINED
        return types

    def default(self, name: str) -> int | None:
        """The id that llama.cpp takes where the metadata have none."""
        return {"bos": 1, "eos": 2, "unknown": 0}.get(name) if self.kind == "llama" else None

    def fills(self, name: str) -> list[int]:
        """The tokens that are known by their text, where the metadata name none."""
        old = OLD_NAMES.get(name, name)
        if self.get(f"{name}_token_id") is not None or self.get(f"{old}_token_id") is not None:
            return []
        return [self.ids[text] for text in FILLS[name].split() if text in self.ids]

    def ends(self, types: list[int]) -> list[int]:
        """The ids at which llama.cpp ends a generation, `eos` first; `types` of those that are none are put right."""
        found = [self.id("eos", self.default("eos")), self.id("eot"), self.id("eom")]
        found += [self.id(name) for name in FILL_ENDS]
        found += sorted(index for name in FILL_ENDS for index in self.fills(name))
        found += sorted(self.ids[text] for text in ENDS if text in self.ids)
        ends = list(dict.fromkeys(index for index in found if index is not None))
        texts = {self.tokens[index] for index in ends}
        harmony = {"<|return|>", "<|call|>"} <= texts or ({"<|call|>", "<|calls|>"} & texts and "<|flush|>" in texts)
        if harmony and "<|end|>" in texts:
            types[self.ids["<|end|>"]] = USER_DEFINED
            ends.remove(self.ids["<|end|>"])
        if "</s>" in texts and self.ids["</s>"] != found[0] and {"<|tool_response>", "<|plamo:eos|>"} & texts:
            types[self.ids["</s>"]] = NORMAL
            ends.remove(self.ids["</s>"])
        return ends

    # ------------------------------------------------------------------ the library's tokenizer
    def vocabulary(self) -> Vocabulary:
        types = self.types()
        ends = self.ends(types)
        bos, eos = self.id("bos", self.default("bos")), self.id("eos", self.default("eos"))
        with library.making("The GGUF vocabulary and merges do not fit together"):
            backend = self.byte_level() if self.kind == "gpt2" else self.sentencepiece()
            self.add_special(backend, types)
            library.try_out(backend)
        adds_bos = self.flag("add_bos_token", self.kind == "llama" or self.split.adds_bos) or self.kind == "gemma4"
        adds_eos = self.flag("add_eos_token", False)
        for name, put, index in (("bos", adds_bos, bos), ("eos", adds_eos, eos)):
            if put and index is None:
                raise FormatError(
                    f"tokenizer.ggml.add_{name}_token is true (or the default of {self.get('pre') or self.kind}), and "
                    f"there is no tokenizer.ggml.{name}_token_id to put; set one of the two."
                )
        if eos is None:
            self.remarks.append("tokenizer.ggml.eos_token_id is missing: no end-of-text token closes an answer.")
        return Vocabulary(
            backend,
            bos_id=bos,
            eos_id=eos,
            eos_ids=tuple(ends),
            pad_id=self.id("padding"),
            unk_id=self.id("unknown", self.default("unknown")),
            chat_template=template_text(self.metadata.get("tokenizer.chat_template"), "tokenizer.chat_template"),
            templates=named_templates(self.metadata),
            adds_bos=adds_bos,
            adds_eos=adds_eos,
            remarks=self.remarks,
        )

    def merges(self) -> list[tuple[str, str]]:
        """The merges of the file, each once: the first of equal ones ranks it."""
        pairs = []
        for number, merge in enumerate(self.entries("merges", str)):
            cut = merge.find(" ", 1)
            if cut < 0:
                raise FormatError(
                    f"tokenizer.ggml.merges: entry {number} is {merge!r}, expected two parts and a space."
                )
            left, right = merge[:cut], merge[cut + 1 :]
            for part in (left, right, left + right):
                if part not in self.ids:
                    raise FormatError(
                        f"The GGUF vocabulary and merges do not fit together: tokenizer.ggml.merges, entry {number}, "
                        f"is {merge!r}, and tokenizer.ggml.tokens has no {part!r}."
                    )
            pairs.append((left, right))
        return list(dict.fromkeys(pairs))

    def byte_level(self) -> tokenizers.Tokenizer:
        import tokenizers
        from tokenizers import decoders, models

        model = models.BPE(vocab=self.ids, merges=self.merges(), ignore_merges=self.split.ignore_merges)
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizer(self.split)
        backend.decoder = decoders.ByteLevel()
        return backend

    def sentencepiece(self) -> tokenizers.Tokenizer:
        import tokenizers
        from tokenizers import decoders, models, normalizers

        unknown = self.id("unknown", 0)
        assert unknown is not None
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab=self.ids,
                merges=self.merges() if self.kind == "gemma4" else self.ordered_merges(),
                unk_token=self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = self.kind == "llama" and self.flag("add_space_prefix", True)
        steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
        return backend

    def ordered_merges(self) -> list[tuple[str, str]]:
        """SentencePiece merges the adjacent pair whose union scores highest: every way to split a piece is a merge,
        ranked by the score of the whole, then by its id. Where all scores are the same, the file's merges decide."""
        if self.get("scores") is None and self.get("merges") is not None:
            return self.merges()
        scores = self.entries("scores", (int, float))
        if len(scores) < len(self.tokens):
            raise FormatError(
                f"tokenizer.ggml.scores has {len(scores)} entries, expected {len(self.tokens)}, one for each token."
            )
        merges = []
        for token, index in self.ids.items():
            if not math.isfinite(scores[index]):
                raise FormatError(f"tokenizer.ggml.scores: entry {index} is {scores[index]}, expected a finite number.")
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in self.ids and right in self.ids:
                    merges.append((-scores[index], index, self.ids[left], self.ids[right], left, right))
        wholes = {left + right for *_, left, right in merges}
        if len(wholes) > 1 and len({scores[self.ids[whole]] for whole in wholes}) == 1:
            if self.get("merges") is not None:
                return self.merges()
            raise FormatError(
                f"tokenizer.ggml.scores gives all {len(wholes)} joined tokens the score {-merges[0][0]}, and there are "
                "no tokenizer.ggml.merges: the order in which the tokens join is not known; convert the model again."
            )
        merges.sort()
        return [(left, right) for *_, left, right in merges]

    def add_special(self, backend: tokenizers.Tokenizer, types: list[int]) -> None:
        """Tell the backend which entries are control tokens: those are never made from plain text."""
        import tokenizers

        name = self.metadata.get("general.name")
        strips = isinstance(name, str) and any(text in name.lower() for text in RIGHT_STRIPPED)
        special, added = [], []
        for token, kind in zip(self.tokens, types, strict=True):
            strip = strips and token not in NOT_STRIPPED
            if kind in (CONTROL, UNKNOWN):
                special.append(tokenizers.AddedToken(token, special=True, normalized=False, rstrip=strip))
            elif kind == USER_DEFINED:
                added.append(tokenizers.AddedToken(token, special=False, normalized=False, rstrip=strip))
        backend.add_special_tokens(special)
        backend.add_tokens(added)

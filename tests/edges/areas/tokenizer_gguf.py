"""Vocabularies in the metadata of GGUF files, held against llama.cpp (transformers where llama.cpp has no order).

llama.cpp reads them with two faults of files put right: the tokens that the metadata name as beginning and ends are
control tokens (a template writes them as text), and no end is guessed (llama.cpp takes token 11).
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from entrenar.io.gguf import GGUFFile
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_splits import SPLITS

from ..harness import Variation, Verdict, judge
from ..llama_vocabulary import SOME, vocabulary
from ..tokenizer_directories import SPECIAL, corpus, metaspace, texts

AREA = "tokenizer.ggml"
REFERENCE = "llama.cpp"
COMPARED = "ids of {} texts with and without special tokens, what is put around, ends, control tokens"
Metadata = dict[str, Any]
# The names that llama.cpp knows for byte-level vocabularies and that are not split here
REFUSED_SPLITS = (
    "afmoe", "chameleon", "cohere2moe", "gemma4", "granite-embed-multi-311m", "granite-embed-multi-97m",
    "kimi-k2", "sarvam-moe", "spark2_5", "tiny_aya", "whitespace", "youtu",
)  # fmt: skip
FIRST_OF_SPLIT = {split.expressions: name for name, split in reversed(SPLITS.items())}.values()
KINDS = ("bert", "t5", "rwkv", "plamo2", "hybriddna", "whitespace", "none", "no_vocab", "test", "unheard")


@functools.cache
def byte_level() -> Metadata:
    """Merges that cross every border of words, so that a split shows."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    more = "12345 67 it's We'LL Abc DEF  \n\n x\r\n y a. b, (c) 中文 1234567"
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=5,
        show_progress=False,
    )
    backend.train_from_iterator([*corpus(), *[more] * 20], trainer)
    model = json.loads(backend.to_str())["model"]
    plain = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if token not in SPECIAL]
    merges = [" ".join(pair) for pair in model["merges"] if "".join(pair) not in SPECIAL]
    merges = [merge for merge in merges if all(part in plain for part in merge.split(" "))]
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": [*SPECIAL, *plain],
        "token_type": [3] * len(SPECIAL) + [1] * len(plain),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "padding_token_id": 5,
    }


@functools.cache
def sentencepiece() -> Metadata:
    """LLaMA 2's kind; the order of the merges is that of the scores."""
    table = metaspace()["tokenizer.json"]
    tokens = [token for token, _ in sorted(table["model"]["vocab"].items(), key=lambda item: item[1])]
    ranks = {"".join(pair): -float(rank + 1) for rank, pair in reversed([*enumerate(table["model"]["merges"])])}
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [ranks.get(token, -1000.0 - index) for index, token in enumerate(tokens)],
        "token_type": [3 if t in SPECIAL else 6 if t.startswith("<0x") else 1 for t in tokens],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def write(path: Path, metadata: Metadata) -> None:
    """A GGUF file of metadata alone; keys without a dot are the tokenizer's."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        name = key if "." in key else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _ours(path: Path, count: int) -> dict[str, Any]:
    made = Tokenizer.from_gguf(GGUFFile(path).metadata)
    ids = [made.encode(text) for text in texts()[:count]]
    before = [made.bos_id] if made.adds_bos else []
    after = [made.eos_id] if made.adds_eos else []
    return {
        "ids": ids,
        "plain": [made.encode(text, parse_special=False) for text in texts()[:count][:SOME]],
        "whole": [[*before, *each, *after] for each in ids[:SOME]],
        "add_bos": made.adds_bos,
        "add_eos": made.adds_eos,
        "ends": sorted(made.eos_ids),
        "eos": -1 if made.eos_id is None else made.eos_id,
    }


def _differs(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    for part, value in found.items():
        if value == expected[part]:
            continue
        if part in ("ids", "plain", "whole"):
            number = next(i for i, (a, b) in enumerate(zip(value, expected[part], strict=True)) if a != b)
            return f"{part} of {texts()[number]!r}: {value[number]}, expected {expected[part][number]}"
        return f"{part}: {value}, expected {expected[part]}"
    return None


def _variation(name: str, base: Callable[[], Metadata], *names: str, **changes: Any) -> Variation:
    """`changes` replace keys, None leaves one out; `names` are the words that a refusal must contain."""

    def check(folder: Path) -> Verdict:
        metadata = copy.deepcopy(base()) | changes
        write(folder / "x.gguf", {key: value for key, value in metadata.items() if value is not None})
        first = changes.get("pre") in FIRST_OF_SPLIT
        count = 500 if first or not changes else 40 if "pre" in changes else 200

        def reference() -> dict[str, Any]:
            write(folder / "y.gguf", _put_right(metadata))
            found = vocabulary(folder / "y.gguf", texts()[:count])
            if metadata["model"] == "gpt2" and metadata["eos_token_id"] is None:
                found["eos"], found["ends"] = -1, [index for index in found["ends"] if index != 11]
            return found

        return judge(
            lambda: _ours(folder / "x.gguf", count),
            reference,
            names=names or ("tokenizer.ggml",),
            folder=folder,
            difference=_differs,
            compared=COMPARED.format(count),
        )

    return Variation(AREA, name, REFERENCE, check)


def _put_right(metadata: Metadata) -> Metadata:
    """The metadata with control tokens of that type."""
    types = list(metadata["token_type"] or [1] * len(metadata["tokens"]))
    for key in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"):
        if metadata.get(key) is not None and types[metadata[key]] != 2:
            types[metadata[key]] = 3
    return {key: value for key, value in (metadata | {"token_type": types}).items() if value is not None}


# ---------------------------------------------------------------------- variations
def _retyped(base: Callable[[], Metadata], token: str, kind: int) -> list[int]:
    metadata = base()
    return [kind if t == token else n for t, n in zip(metadata["tokens"], metadata["token_type"], strict=True)]


def _renamed(base: Callable[[], Metadata], **names: str) -> list[str]:
    table = {"im_start": "<|im_start|>", "im_end": "<|im_end|>", "pad": "<pad>", "s": "</s>", "bos": "<s>"}
    swap = {table[key]: value for key, value in names.items()}
    return [swap.get(token, token) for token in base()["tokens"]]


def _splits() -> list[Variation]:
    variations = [_variation(f"pre {name}", byte_level, pre=name) for name in SPLITS]
    variations += [
        _variation(f"pre {name}", byte_level, "pre", name, pre=name) for name in (*REFUSED_SPLITS, "unheard")
    ]
    return [*variations, _variation("pre absent", byte_level, pre=None), _variation("pre empty", byte_level, pre="")]


def _keys() -> list[Variation]:
    """Every key of the tokenizer that the gguf package names."""
    values: dict[str, list[Any]] = {
        "model": [*KINDS],
        "pre": [],
        "tokens": [],
        "token_type": [],
        "token_type_count": [2],
        "scores": [],
        "merges": [],
        "bos_token_id": [4, 9999],
        "eos_token_id": [2, 300, 9999],
        "eot_token_id": [3, 9999],
        "eom_token_id": [3],
        "unknown_token_id": [0, 9999],
        "seperator_token_id": [3],
        "padding_token_id": [3, 9999],
        "mask_token_id": [3],
        "add_bos_token": [True, False],
        "add_eos_token": [True, False],
        "add_sep_token": [True],
        "add_space_prefix": [True, False],
        "remove_extra_whitespaces": [True],
        "precompiled_charsmap": [[1, 2, 3, 4, 5]],
        "suppress_tokens": [[3]],
        "normalizer.lowercase": [True],
        "normalizer.strip_accents": [True],
        **{f"fim_{name}_token_id": [3] for name in ("pre", "suf", "mid", "pad", "rep", "sep")},
        **{f"{name}_token_id": [3] for name in ("prefix", "suffix", "middle")},
        "chat_template": [],
    }
    named = {value for key, value in vars(gguf.Keys.Tokenizer).items() if isinstance(value, str) and key[0] != "_"}
    short = {name.removeprefix("tokenizer.").removeprefix("ggml.") for name in named if "{" not in name}
    unused = {"huggingface.json", "rwkv.world", "chat_templates"}  # which llama.cpp does not read
    missing = short - set(values) - unused
    assert not missing, f"the gguf package names further keys: {sorted(missing)}"
    variations = []
    for base in (byte_level, sentencepiece):
        kind = "byte level" if base is byte_level else "SentencePiece"
        for key, options in values.items():
            for value in options:
                name = f"tokenizer.ggml.{key}" if "." in key else key
                variations.append(_variation(f"{key} {value!r}, {kind}", base, key, **{name: value}))
    return variations


def _contradictions() -> list[Variation]:
    variations = []
    for base, end in ((byte_level, "<|im_end|>"), (sentencepiece, "</s>")):
        kind = "byte level" if base is byte_level else "SentencePiece"
        for number in range(7):
            variations.append(
                _variation(f"the end token of type {number}, {kind}", base, token_type=_retyped(base, end, number))
            )
        tokens = base()["tokens"]
        for key in ("tokens", "token_type", "merges", "scores", "bos_token_id", "eos_token_id"):
            if key in base():
                variations.append(_variation(f"{key} absent, {kind}", base, key, **{key: None}))
        variations += [
            _variation(f"a token twice, {kind}", base, "tokens", tokens=[*tokens[:-1], tokens[7]]),
            _variation(f"an empty token, {kind}", base, tokens=[*tokens, ""], token_type=[*base()["token_type"], 1],
                       scores=[*base()["scores"], -5000.0] if "scores" in base() else None),
            _variation(f"token_type too short, {kind}", base, "token_type", token_type=base()["token_type"][:-1]),
            _variation(f"token_type too long, {kind}", base, token_type=[*base()["token_type"], 3]),
        ]  # fmt: skip
        ends = {"im_end": "<|eot_id|>", "im_start": "<|eom_id|>", "pad": "<|fim_pad|>"}
        for title, names in {
            "end tokens by text": ends,
            "tokens of a harmony vocabulary": {"im_end": "<|return|>", "im_start": "<|call|>", "pad": "<|end|>"},
            "a channel token": {"im_start": "<|channel|>"},
            "middle tokens by text": {
                "im_start": "<|fim_prefix|>",
                "im_end": "<|fim_suffix|>",
                "pad": "<|fim_middle|>",
            },
            **({"a tool token beside </s>": {"im_start": "<|tool_response>"}} if base is byte_level else {}),
            "an end of DeepSeek's text": {"im_end": "<\uff5cend▁of▁sentence\uff5c>"},
        }.items():
            variations.append(_variation(f"{title}, {kind}", base, tokens=_renamed(base, **names)))
            normal = [1 if n == 3 else n for n in base()["token_type"]]
            variations.append(_variation(f"{title} of type NORMAL, {kind}", base, tokens=_renamed(base, **names),
                                         token_type=normal, bos_token_id=None if base is byte_level else 1,
                                         eos_token_id=None if base is byte_level else 2))  # fmt: skip
    scores = sentencepiece()["scores"]
    merges = byte_level()["merges"]
    return [
        *variations,
        _variation("scores too short", sentencepiece, "scores", scores=scores[:-1]),
        _variation("scores too long", sentencepiece, scores=[*scores, 1.0]),
        _variation("scores all the same, without merges", sentencepiece, "scores", scores=[-1000.0] * len(scores)),
        _variation("scores of whole numbers", sentencepiece, scores=[int(score) for score in scores]),
        _variation("merges beside the scores", sentencepiece, merges=["▁ t", "h e"]),
        _variation("a merge twice", byte_level, merges=[*merges, *merges[:5]]),
        _variation("a merge of an absent token", byte_level, "merges", merges=[*merges, "☃ a"]),
        _variation("a merge of one part", byte_level, "merges", merges=[*merges, "abc"]),
        _merges_decide(),
    ]


def _merges_decide() -> Variation:
    """llama.cpp joins the leftmost pair where the scores are all the same; transformers takes the file's merges."""

    def check(folder: Path) -> Verdict:
        import transformers

        table = metaspace()["tokenizer.json"]["model"]
        merges = [" ".join(pair) for pair in table["merges"]]
        metadata = sentencepiece() | {"scores": [-1000.0] * len(sentencepiece()["tokens"]), "merges": merges}
        write(folder / "x.gguf", metadata)
        plain = [text for text in texts() if text.isprintable() and not text.startswith((" ", "▁"))]
        plain = [text for text in plain if not any(token in text for token in (*SPECIAL, "<0x"))]
        assert len(plain) > 50
        theirs = transformers.LlamaTokenizer(vocab=table["vocab"], merges=[tuple(pair) for pair in table["merges"]])
        return judge(
            lambda: [Tokenizer.from_gguf(GGUFFile(folder / "x.gguf").metadata).encode(text) for text in plain],
            lambda: [list(ids) for ids in theirs(plain, add_special_tokens=False).input_ids],
            names=("merges",),
            folder=folder,
            compared=f"ids of {len(plain)} texts",
        )

    return Variation(AREA, "scores all the same, with merges", "transformers LlamaTokenizer", check)


VARIATIONS = [*_splits(), *_keys(), *_contradictions()]

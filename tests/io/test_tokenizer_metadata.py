"""Tokenizers as GGUF metadata: llama.cpp makes the same ids of them, and what it cannot hold is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_metadata import tokenizer_metadata

from .. import smollm2
from .random_text import random_texts
from .test_llama_cpp_vocabularies import has_bytes, vocabularies
from .test_tokenizer import sentencepiece_metadata

Table = dict[str, Any]


def write(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file of metadata alone."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    adders: tuple[tuple[type, Callable[..., None]], ...] = (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (str, writer.add_string),
        (list, writer.add_array),
    )
    for key, value in metadata.items():
        if key.startswith("tokenizer.") or key == "general.name":
            next(add for kind, add in adders if isinstance(value, kind))(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def special_texts(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()][:40]


def compare_with_llama_cpp(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], folder: Path, count: int, without: str = "\r\0"
) -> None:
    pytest.importorskip("xllamacpp")
    from ..edges.llama_vocabulary import vocabulary

    texts = random_texts(count, special_texts(tokenizer))
    texts = [text for text in texts if without not in text and has_bytes(tokenizer, text)]
    assert len(texts) > 0.3 * count
    found = vocabulary(write(folder / "tokenizer.gguf", metadata), texts)
    for text, expected in zip(texts, found["ids"], strict=True):
        assert tokenizer.encode(text) == expected, repr(text)
    assert found["add_bos"] == tokenizer.adds_bos
    assert found["add_eos"] == tokenizer.adds_eos
    assert set(tokenizer.eos_ids) <= set(found["ends"])


def small(**changes: Any) -> Tokenizer:
    """A trained tokenizer over bytes with sections of its tokenizer.json changed."""
    table = json.loads(Tokenizer.train(["hello world, it's 1234"] * 3, 280).backend.to_str())
    model = table["model"] | changes.pop("model", {})
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(table | changes | {"model": model})))


def sentencepiece(change: Callable[[Table], None]) -> Tokenizer:
    """The SentencePiece tokenizer with its tokenizer.json changed."""
    table = json.loads(Tokenizer.from_gguf(sentencepiece_metadata()).backend.to_str())
    change(table)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(table)), unk_id=0, bos_id=1, eos_id=2)


@pytest.mark.peers
def test_a_trained_tokenizer_is_written_for_llama_cpp(tmp_path: Path) -> None:
    trained = Tokenizer.train(["hello world, it's 1234  \n"] * 3, 320)
    metadata = tokenizer_metadata(trained, vocab_size=330)
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata["tokenizer.chat_template"] == trained.chat_template
    padded = metadata["tokenizer.ggml.tokens"][trained.vocab_size :]
    assert padded == [f"[PAD{index}]" for index in range(trained.vocab_size, 330)]
    assert metadata["tokenizer.ggml.token_type"][trained.vocab_size :] == [5] * len(padded)
    compare_with_llama_cpp(trained, metadata, tmp_path, 100)


@pytest.mark.peers
def test_sentencepiece_is_written_for_llama_cpp(tmp_path: Path) -> None:
    read = Tokenizer.from_gguf(sentencepiece_metadata())
    metadata = tokenizer_metadata(read)
    assert metadata["tokenizer.ggml.token_type"] == sentencepiece_metadata()["tokenizer.ggml.token_type"]
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    compare_with_llama_cpp(read, metadata, tmp_path, 100)
    bare = Tokenizer.from_gguf(sentencepiece_metadata() | {"tokenizer.ggml.add_space_prefix": False})
    compare_with_llama_cpp(bare, tokenizer_metadata(bare, vocab_size=1600), tmp_path, 100)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gemma-4", "llama-bpe", "qwen2", "refact", "falcon"])
def test_a_vocabulary_read_and_written_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    source = GGUFFile(vocabularies() / f"ggml-vocab-{name}.gguf").metadata
    read = Tokenizer.from_gguf(source)
    metadata = tokenizer_metadata(read)
    assert metadata["tokenizer.ggml.tokens"] == source["tokenizer.ggml.tokens"]
    if metadata["tokenizer.ggml.model"] == "gpt2":
        assert metadata["tokenizer.ggml.merges"] == source["tokenizer.ggml.merges"]
    again = Tokenizer.from_gguf(metadata | {"general.name": source.get("general.name", "")})
    for text in random_texts(100, special_texts(read), seed=1):
        assert again.encode(text) == read.encode(text), repr(text)
        assert again.encode(text, parse_special=False) == read.encode(text, parse_special=False), repr(text)
    special = ("bos_id", "eos_id", "unk_id", "adds_bos", "adds_eos", "chat_template")
    assert [getattr(again, name) for name in special] == [getattr(read, name) for name in special]
    if name != "phi-3":  # llama.cpp leaves out ASCII's white space alone after its special tokens
        compare_with_llama_cpp(read, metadata, tmp_path, 100)


@pytest.mark.model
def test_smollm2_is_written_as_it_was_read() -> None:
    read = smollm2.tokenizer()
    metadata = tokenizer_metadata(read)
    again = Tokenizer.from_gguf(metadata)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.bos_token_id"] == read.bos_id
    assert set(again.eos_ids) == set(read.eos_ids)
    assert again.chat_template == read.chat_template
    for text in random_texts(100, special_texts(read)):
        assert again.encode(text) == read.encode(text)


@pytest.mark.unit
def test_templates_and_end_tokens_are_written() -> None:
    trained = Tokenizer.train(["hello"], 262)
    trained.templates = {"tool_use": "{{ tools }}"}
    trained.eos_ids = (2, 0, 97)
    metadata = tokenizer_metadata(trained)
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.eot_token_id"]) == (2, 0)
    assert metadata["tokenizer.ggml.eom_token_id"] == 97
    assert set(Tokenizer.from_gguf(metadata).eos_ids) == {2, 0, 97}


@pytest.mark.unit
def test_what_llama_cpp_does_otherwise_is_said() -> None:
    remarks: list[str] = []
    tokenizer_metadata(small(normalizer={"type": "NFC"}), remarks=remarks)
    assert "NFC" in remarks[0]
    trained = small()
    trained.backend.add_special_tokens([tokenizers.AddedToken("<x>", rstrip=True)])
    tokenizer_metadata(trained, remarks=remarks)
    assert "'<x>'" in remarks[1]
    first = sentencepiece(lambda table: table.update(metaspace("first")))
    assert tokenizer_metadata(first, remarks=remarks)["tokenizer.ggml.add_space_prefix"] is True
    assert "beginning of a text" in remarks[2]


CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
CAPITAL = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
SHORT, SHORTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST, SLASH = (
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LLAMA3 = rf"{SHORTS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"


def level(use_regex: bool) -> Table:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def regex(pattern: str, behavior: str = "Isolated", invert: bool = False) -> Table:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [step, level(False)]}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("splitter", "whole", "name"),
    [
        (regex(LLAMA3), True, "llama-bpe"),  # Llama 3, SmolLM3
        (regex(LLAMA3, "Removed", True), False, "dbrx"),  # OLMo 2
        (regex(LLAMA3.replace("{1,3}", "")), False, "qwen2"),  # Qwen 2 to 3
        (regex(rf"{CASED}{SHORT}|{CAPITAL}{SHORT}|\p{{N}}{{1,3}}|{SLASH}"), False, "gpt-4o"),  # Phi-4 mini
        (regex(rf"{CASED}|{CAPITAL}|\p{{N}}|{SLASH}"), True, "tekken"),  # Mistral Nemo, Ministral
        (level(True), False, "gpt-2"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level(True)]},
            False,
            "smollm",  # Granite, SmolLM
        ),
    ],
)
def test_the_splits_of_the_families_have_names(splitter: Table, whole: bool, name: str) -> None:
    remarks: list[str] = []
    metadata = tokenizer_metadata(small(pre_tokenizer=splitter, model={"ignore_merges": whole}), remarks=remarks)
    assert metadata["tokenizer.ggml.pre"] == name
    assert bool(remarks) == (name in ("gpt-4o", "tekken"))


def metaspace(scheme: str, split: bool = False) -> Table:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return {"normalizer": None, "pre_tokenizer": step}


def swap_merges(table: Table) -> None:
    table["model"]["merges"] = table["model"]["merges"][::-1]


def interleave(table: Table) -> None:
    merges = copy.deepcopy(table["model"]["merges"])
    wholes = ["".join(pair) for pair in merges]
    doubled = next(number for number in range(1, len(wholes)) if wholes[number - 1] == wholes[number])
    table["model"]["merges"] = [*merges[:doubled], *merges[doubled + 1 :], merges[doubled]]


def runs(*sizes: tuple[int, int]) -> Callable[[Table], None]:
    """Merges of two runs of a character each, in this order; the runs become tokens."""

    def change(table: Table) -> None:
        model = table["model"]
        for size in sorted({1, *(left + right for left, right in sizes)}):
            model["vocab"]["\N{SNOWMAN}" * size] = len(model["vocab"])
        model["merges"] += [["\N{SNOWMAN}" * left, "\N{SNOWMAN}" * right] for left, right in sizes]

    return change


@pytest.mark.unit
def test_merges_of_runs_may_stand_apart_where_the_longest_comes_first() -> None:
    made = sentencepiece(runs((2, 2), (2, 1), (1, 3), (3, 1), (1, 1), (1, 2)))
    again = Tokenizer.from_gguf(tokenizer_metadata(made))
    for size in range(1, 30):
        assert again.encode("\N{SNOWMAN}" * size) == made.encode("\N{SNOWMAN}" * size)


@pytest.mark.unit
def test_the_merges_decide_the_scores(tmp_path: Path) -> None:
    other = sentencepiece(swap_merges)
    again = Tokenizer.from_gguf(tokenizer_metadata(other))
    for text in random_texts(100):
        assert again.encode(text) == other.encode(text)


SPLIT = {"type": "Split", "pattern": {"Regex": "..?"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: small(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}), "pre_tokenizer"),
        (lambda: small(pre_tokenizer=BYTES | {"use_regex": True, "add_prefix_space": True}), "add_prefix_space"),
        (lambda: small(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda: small(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda: small(model={"continuing_subword_prefix": "##", "merges": []}), "continuing_subword_prefix"),
        (lambda: small(model={"type": "WordLevel", "unk_token": "h", "merges": None}), "WordLevel"),
        (lambda: sentencepiece(lambda table: table["model"].update(byte_fallback=False)), "byte_fallback"),
        (lambda: sentencepiece(lambda table: table["model"].update(ignore_merges=True)), "ignore_merges"),
        (lambda: sentencepiece(lambda table: table.update(metaspace("first", split=True))), "Metaspace"),
        (lambda: sentencepiece(interleave), "stand apart"),
        (lambda: sentencepiece(runs((1, 1), (2, 1), (2, 2), (1, 2), (1, 3), (3, 1))), "a shorter one before a longer"),
        (lambda: sentencepiece(lambda table: table["model"]["merges"].pop()), "in 0 ways of 1"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(made: Callable[[], Tokenizer], said: str) -> None:
    with pytest.raises(
        FormatError, match=r"^A GGUF file cannot hold this tokenizer: .*; export to a Hugging Face"
    ) as e:
        tokenizer_metadata(made())
    assert said in str(e.value)


@pytest.mark.unit
def test_a_model_with_fewer_rows_than_tokens() -> None:
    trained = Tokenizer.train(["hello"], 262)
    trained.backend.add_special_tokens(["<more>"])
    remarks: list[str] = []
    metadata = tokenizer_metadata(trained, vocab_size=262, remarks=remarks)
    assert len(metadata["tokenizer.ggml.tokens"]) == 262
    assert "'<more>'" in remarks[0]
    with pytest.raises(FormatError, match="263 tokens, and the model's embedding 200 rows"):
        tokenizer_metadata(trained, vocab_size=200)

"""tokenizer.model: the ids of SentencePiece's own library, and files that are damaged refused in one sentence."""

from __future__ import annotations

import functools
import io
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from entrenar.errors import FormatError
from entrenar.io.sentencepiece_model import read_sentencepiece
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_metadata import tokenizer_metadata

from .random_text import random_texts
from .test_tokenizer import TEXTS
from .test_tokenizer_metadata import compare_with_llama_cpp

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"split_digits": True},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": ["<table>", "▁▁", "▁▁▁", "\t\t", "[a|b]"]},
    "single spaces": {"remove_extra_whitespaces": True},
}
REFUSED = {
    "normalized": {"normalization_rule_name": "nmt_nfkc"},
    "unigram": {"model_type": "unigram", "hard_vocab_limit": False},
}


@functools.cache
def trained(kind: str) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[:100_000]
    settings = {
        "vocab_size": 1000,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentences = iter([*text.split("\n"), *TEXTS])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, **(settings | (SETTINGS | REFUSED)[kind])
    )
    return model.getvalue()


def read(data: bytes, folder: Path) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(data)
    return Tokenizer.from_directory(folder)


@pytest.mark.peers
@pytest.mark.parametrize("kind", SETTINGS)
def test_ids_and_texts_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_proto=trained(kind))
    ours = read(trained(kind), tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (1, 2, 0, None)
    assert (ours.vocab_size, ours.adds_bos) == (model.vocab_size(), False)
    for text in [*TEXTS, *random_texts(200)]:
        if kind == "single spaces" and "▁" in text:  # which counts as a space at the ends
            continue
        expected = model.encode(text)
        assert ours.encode(text, parse_special=False) == expected, repr(text)
        assert ours.decode(expected, skip_special=False) == model.decode(expected), repr(text)


@pytest.mark.peers
def test_user_defined_pieces_are_written_for_llama_cpp(tmp_path: Path) -> None:
    ours = read(trained("gemma"), tmp_path)
    metadata = tokenizer_metadata(ours)
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert [types[token] for token in ("<table>", "  ", "   ", "[a|b]", "<s>", "<0x00>")] == [4, 4, 4, 4, 3, 6]
    compare_with_llama_cpp(ours, metadata, tmp_path, 200, without="▁")  # which SentencePiece takes for spaces


@pytest.mark.peers
def test_what_is_otherwise_in_the_library_of_tokenizers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="its model_type is UNIGRAM, expected BPE"):
        read(trained("unigram"), tmp_path)
    with pytest.raises(FormatError, match=r"its precompiled_charsmap is \d+ bytes, expected 0 bytes"):
        read(trained("normalized"), tmp_path)
    with pytest.raises(FormatError, match="its text goes through"):
        tokenizer_metadata(read(trained("single spaces"), tmp_path))


@pytest.mark.peers
def test_settings_beside_it_count(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "pad_token": "<pad>"}')
    ours = read(trained("llama"), tmp_path)
    assert (ours.adds_bos, ours.pad_id, ours.vocab_size) == (True, 1000, 1001)
    ours.save(tmp_path / "saved")
    again = Tokenizer.from_directory(tmp_path / "saved")
    for text in random_texts(100, ["<s>", "</s>"]):
        assert again.encode(text) == ours.encode(text)
    assert again.adds_bos


# ---------------------------------------------------------------------- bad input
def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def piece(text: bytes, score: float = 0.0) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score))


SPECS = field(2, b"\x18\x02") + field(3, b"")
SOUND = piece(b"<unk>") + piece(b"<s>") + piece(b"</s>") + piece(b"a") + SPECS


@pytest.mark.chaos
def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    assert read(SOUND, tmp_path).encode("a", parse_special=False) != []


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no SentencePiece model, or a truncated one"),
        (b"x", "is no SentencePiece model, or a truncated one"),
        (SOUND[: len(SOUND) // 2], "truncated"),
        (SOUND[: -len(field(3, b""))], "no normalizer_spec"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", r"a field of \d+ bytes at byte 10 of 10"),
        (b"\xff" * 30, "no end of a number at byte"),
        (SPECS, "has 0 pieces, expected 1 to"),
        (piece(b"a") + SOUND, "pieces 0 and 4 are both 'a'"),
        (piece(b"\xff") + SOUND, "is no SentencePiece model"),
        (piece(b"b", float("nan")) + SOUND, "piece 0 has the score nan, expected a finite number"),
        (SOUND + field(2, b"\xc8\x02\x63"), "bos_id is 99, outside the 4 pieces"),
        (SOUND + field(2, b"\x18\x04"), "its model_type is CHAR, expected BPE"),
        (SOUND + field(2, b"\xc0\x01\x01"), "its treat_whitespace_as_suffix is true, expected false"),
        (SOUND + field(3, field(2, b"\xff\xff\xff\x7f")), "its precompiled_charsmap is 4 bytes, expected 0 bytes"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(data, tmp_path)
    assert "tokenizer.model" in str(caught.value)


@pytest.mark.chaos
def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for cut in range(len(SOUND)):
        path.write_bytes(SOUND[:cut])
        with pytest.raises(FormatError):
            read_sentencepiece(path)


@pytest.mark.mutation
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(SOUND)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        try:
            read(bytes(data), tmp_path).encode("a b")
        except FormatError:
            refused += 1
    assert 200 < refused < 400

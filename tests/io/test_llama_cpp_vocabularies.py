"""The vocabularies that llama.cpp tests itself with: its GGUF files, its inputs, its ids.

They come in the source distribution of llama-cpp-python (MIT), are fetched once and kept in the cache.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from entrenar.io.atomic import atomic_files
from entrenar.io.gguf import GGUFFile
from entrenar.io.hub import cache_directory
from entrenar.io.tokenizer import Tokenizer

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
    "qwen35": False,
}


@functools.cache
def vocabularies() -> Path:
    """The folder with a .gguf, .gguf.inp and .gguf.out for each vocabulary."""
    folder = cache_directory() / "llama-cpp-vocabularies"
    wanted = [f"ggml-vocab-{name}.gguf{suffix}" for name in VOCABULARIES for suffix in ("", ".inp", ".out")]
    if all((folder / name).is_file() for name in wanted):
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        done = subprocess.run([*command, "-d", temporary, REQUIREMENT], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as source, atomic_files(folder) as new:
            for name in wanted:
                member = source.extractfile(f"{FOLDER}/{name}")
                assert member is not None
                (new / name).write_bytes(member.read())
    return folder


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_llama_cpp(name: str) -> None:
    file = vocabularies() / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(GGUFFile(file).metadata)
    texts = file.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = file.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == len(lines)
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=True):
        expected = [int(index) for index in line.split()]
        assert tokenizer.encode(text) == expected, repr(text)
        assert tokenizer.decode(expected) == text
    assert tokenizer.adds_bos == VOCABULARIES[name]

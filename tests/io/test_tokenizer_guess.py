"""A GGUF file that does not name its pre-tokenizer: told by its tokens, or refused."""

from __future__ import annotations

import pytest

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_guess import _with_flags, byte_values, guess
from entrenar.io.tokenizer_splits import SPLITS

from .. import smollm2
from .random_text import random_texts
from .test_llama_cpp_vocabularies import vocabularies
from .test_tokenizer import BPE

UNNAMED = ("tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token")  # the name gives a default for the second


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "refact", "falcon", "deepseek-coder"])
def test_a_missing_name_is_told_by_the_tokens(name: str) -> None:
    metadata = GGUFFile(vocabularies() / f"ggml-vocab-{name}.gguf").metadata
    named = Tokenizer.from_gguf(metadata)
    unnamed = Tokenizer.from_gguf({key: value for key, value in metadata.items() if key != "tokenizer.ggml.pre"})
    assert any("tokenizer.ggml.pre is missing: by its tokens" in remark for remark in unnamed.remarks)
    for text in random_texts(50, seed=2):
        assert unnamed.encode(text) == named.encode(text), repr(text)
    assert unnamed.adds_bos == named.adds_bos


@pytest.mark.model
def test_smollm2_is_told_by_its_tokens() -> None:
    metadata = smollm2.checkpoint().metadata
    assert isinstance(metadata, dict)
    unnamed = Tokenizer.from_gguf({key: value for key, value in metadata.items() if key not in UNNAMED})
    assert "split as 'smollm'" in " ".join(unnamed.remarks)
    for text in random_texts(100):
        assert unnamed.encode(text) == smollm2.tokenizer().encode(text)


@pytest.mark.chaos
@pytest.mark.parametrize("pre", [None, ""])
def test_a_small_vocabulary_without_a_name_is_refused(pre: str | None) -> None:
    with pytest.raises(FormatError, match=r"^tokenizer\.ggml\.pre is missing, .*: 1 merges are too few") as caught:
        Tokenizer.from_gguf(BPE | {"tokenizer.ggml.pre": pre})
    assert "--pre-tokenizer" in str(caught.value)


@pytest.mark.unit
def test_tokens_that_every_split_cuts_are_told() -> None:
    letters = list(byte_values())
    merges = [(left, right) for left in letters for right in letters]
    tokens = {token: index for index, token in enumerate([*letters, *(left + right for left, right in merges)])}
    name, reason = guess(tokens, merges)
    assert name is None
    assert reason == "every known split cuts some of its tokens"


@pytest.mark.unit
def test_the_letters_of_bytes_are_those_of_the_library() -> None:
    from tokenizers import pre_tokenizers

    values = byte_values()
    assert set(values) == set(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("a é\n", "中\x00\x7f"):
        ((shown, _),) = byte_level.pre_tokenize_str(text)
        assert bytes(values[letter] for letter in shown) == text.encode()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "dbrx"),
        (["abc"], "glm4"),  # a token that no merge makes: used whole
        (["abc", "<|begin_of_text|>"], "llama-bpe"),
    ],
)
def test_names_of_one_split_are_told_by_whole_words_and_the_beginning(more: list[str], name: str) -> None:
    merges = [("a", "b"), ("b", "c"), *([("a", "bc")] if more else [])]  # ab comes first: abc is never made
    tokens = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", *more])}
    assert _with_flags(SPLITS["llama-bpe"], tokens, merges) == name

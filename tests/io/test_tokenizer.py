"""Tokenizers: the ids of the models' own tokenizers, text that comes back whole, and metadata that lie refused."""

from __future__ import annotations

import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.io.tokenizer_splits import GPT2_SPLIT

from .. import smollm2
from .test_chat_template import CHATS

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n  \n",
    "\t\tdef f(x):\n\t    return x ** 2  # quadrática\n\n\nprint(f(12345))\r\n",
    "The capital of France is Paris, which lies on the river Seine.",
    "I'm, you're, he'll, they've, we'd, it's, don't; I'M YOU'RE HE'LL",
    "1 22 333 4444 55555 3.14159e-10 0xDEADBEEF 1,000,000 ١٢٣ Ⅻ ½",
    "a1b22c333   42  7\n  8",
    "Größe naïve façade São Tomé Ελλάδα Москва",
    "עברית العربية हिन्दी ไทย 日本語 한국어 中文字",
    "🎉 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ ☃ 🐍🐍🐍",
    "e\u0301 vs \u00e9, zero\u200bwidth, nbsp\u00a0here, \u3000ideographic, \ufeffBOM, \u2028line",
    "…\u2014\u2018quotes\u2019 “double” «guillemets» ±\u00d7÷≠∞√∫",
    "hello_world camelCaseName SCREAMING_SNAKE kebab-case file.name.py ./path/to/file",
    "for(i=0;i<n;++i){a[i]+=b[i]*c[i];} // C\n#include <stdio.h>",
    "https://example.org/a?b=c&d=%20#frag user@example.com",
    '<html><body class="x">&amp;</body></html> {"json": [1, 2.5, null]}',
    "\x00\x01\x7f\x80 control",
    "\U0010ffff \ue000 private \ufffd",
    "word " * 50,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " leading and trailing ",
    "x" + " " * 17 + "y" + "\n" * 9 + "z",
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nHello<|im_end|>\n",
    "a<|im_end|>b <|im_end|> c<|endoftext|>",
    "<|im_start|><|im_start|> <|not_special|> <|im_end",
    "text <repo_name>x<file_sep>",
]


@functools.cache
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


# ---------------------------------------------------------------------- SmolLM2
@functools.cache
def published(folder: Path) -> Any:
    """SmolLM2's tokenizer in transformers, from a tokenizer.json laid out as the model's authors published it."""
    transformers = pytest.importorskip("transformers")
    metadata = smollm2.checkpoint().metadata
    assert metadata is not None
    tokens = metadata["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == 3]
    table = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], "special": True, **flags} for i in special],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": list(metadata["tokenizer.ggml.merges"]),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=metadata["tokenizer.chat_template"],
    )


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return published(tmp_path_factory.mktemp("published"))


@pytest.mark.peers
@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS + SPECIAL_TEXTS, ids=range(len(TEXTS + SPECIAL_TEXTS)))
def test_smollm2_ids_are_those_of_transformers(text: str, theirs: Any) -> None:
    ours = smollm2.tokenizer()
    expected = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == expected
    assert ours.decode(expected, skip_special=False) == theirs.decode(expected, clean_up_tokenization_spaces=False)
    assert ours.decode(expected) == theirs.decode(
        expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.mark.peers
@pytest.mark.model
def test_smollm2_ids_of_random_text_are_those_of_transformers(theirs: Any) -> None:
    rng = np.random.default_rng(0)
    alphabet = [*"abcXYZ  \n\t\r019'.,-_()<>|äßñ中あ한я☃", "🎉", "\u0301", "\u00a0"]
    alphabet += ["'s", "'ll", "<|im_end|>"]
    ours = smollm2.tokenizer()
    for _ in range(300):
        text = "".join(rng.choice(alphabet, rng.integers(1, 60)))
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, repr(text)


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_smollm2_text_comes_back_whole(text: str) -> None:
    ours = smollm2.tokenizer()
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.model
def test_special_tokens_are_read_from_text_only_when_asked() -> None:
    ours = smollm2.tokenizer()
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 2, 2, 0)
    assert (ours.token(1), ours.token(None), ours.id("<|im_end|>"), ours.id("no such token")) == (
        "<|im_start|>",
        "",
        2,
        None,
    )
    assert ours.vocab_size == 49152
    assert not ours.adds_bos
    assert ours.encode("<|im_end|>") == [2]
    plain = ours.encode("<|im_end|>", parse_special=False)
    assert 2 not in plain
    assert len(plain) > 3
    assert ours.decode(plain) == "<|im_end|>"
    assert ours.encode("x", add_bos=True) == [1, *ours.encode("x")]


@pytest.mark.peers
@pytest.mark.model
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [False, True])
def test_chats_are_written_as_transformers_writes_them(chat: list[dict[str, str]], prompt: bool, theirs: Any) -> None:
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    assert smollm2.tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) == expected


# ---------------------------------------------------------------------- offsets
@pytest.mark.unit
def test_offsets_are_those_of_the_characters() -> None:
    made = trained()
    text = "a é🎉<|im_end|> z"
    ids, offsets = made.encode_with_offsets(text)
    assert ids == made.encode(text)
    assert len(ids) == len(offsets)
    covered = [index for start, stop in offsets for index in range(start, stop)]
    assert sorted(set(covered)) == list(range(len(text)))
    assert offsets[ids.index(made.eos_id)] == (text.index("<"), text.index(">") + 1)
    bytes_of_emoji = [offset for offset in offsets if offset == (3, 4)]
    assert len(bytes_of_emoji) > 1  # tokens that split a character share its offsets
    plain, where = made.encode_with_offsets(text, parse_special=False)
    assert plain == made.encode(text, parse_special=False)
    assert made.eos_id not in plain
    assert where[-1][1] == len(text)


# ---------------------------------------------------------------------- SentencePiece in GGUF
@functools.cache
def sentencepiece_model() -> Any:
    """A model of LLaMA 2's kind: BPE with byte fallback, single digits, white space kept."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text.split("\n"), *TEXTS]),
        model_writer=model,
        vocab_size=1500,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        character_coverage=0.995,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@functools.cache
def sentencepiece_metadata() -> dict[str, Any]:
    """As llama.cpp's converter writes that model."""
    model = sentencepiece_model()
    types = []
    for i in range(model.vocab_size()):
        types.append(6 if model.is_byte(i) else 3 if model.is_control(i) else 2 if model.is_unknown(i) else 1)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(model.vocab_size())],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(model.vocab_size())],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }


@pytest.mark.peers
def test_sentencepiece_ids_are_those_of_its_library() -> None:
    model, ours = sentencepiece_model(), Tokenizer.from_gguf(sentencepiece_metadata())
    for text in TEXTS:
        if "\x00" in text:  # at which the library ends a text
            continue
        expected = model.encode(text)
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected) == text


@pytest.mark.peers
def test_sentencepiece_ids_of_random_text_are_those_of_its_library() -> None:
    model, ours = sentencepiece_model(), Tokenizer.from_gguf(sentencepiece_metadata())
    rng = np.random.default_rng(0)
    alphabet = [*"abcdeinorst   \n\t0123'.,-_()äß中☃", "🎉", "the", "ing", "of"]
    fallbacks = 0
    for _ in range(300):
        text = "".join(rng.choice(alphabet, rng.integers(1, 60)))
        expected = model.encode(text)
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected) == text
        fallbacks += any(model.is_byte(i) for i in expected)
    assert fallbacks > 20


@pytest.mark.peers
def test_sentencepiece_special_tokens_and_defaults() -> None:
    ours = Tokenizer.from_gguf(sentencepiece_metadata())
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (1, 2, 0, None)
    assert ours.adds_bos  # as llama.cpp does where the file says nothing
    assert ours.encode("</s>")[-1] == 2
    assert 2 not in ours.encode("</s>", parse_special=False)
    off = sentencepiece_metadata() | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False}
    without = Tokenizer.from_gguf(off)
    assert not without.adds_bos
    assert without.encode("the") == [without.id("the")]
    assert ours.encode("the") == [ours.id("▁the")]
    assert without.decode(without.encode(" the")) == " the"


# ---------------------------------------------------------------------- tokenizer.json
@pytest.mark.peers
@pytest.mark.parametrize("kind", ["byte level", "metaspace", "bos by template"])
def test_a_tokenizer_that_transformers_saved_gives_its_ids(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "metaspace"))
    special = ["<unk>", "<s>", "</s>"]
    if kind == "metaspace":
        special += [f"<0x{i:02X}>" for i in range(256)]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    backend.train_from_iterator(TEXTS, trainer)
    if kind == "bos by template":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_directory(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (1, 2, 0, None)
    assert ours.adds_bos == (kind == "bos by template")
    assert ours.vocab_size == len(theirs)
    for text in [*TEXTS, "a</s>b <s>"]:
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected) == theirs.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert ours.apply_chat_template(CHATS[2]) == theirs.apply_chat_template(CHATS[2])["input_ids"]


@pytest.mark.unit
def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = trained().backend
    copy = type(backend).from_str(backend.to_str())
    copy.enable_padding(length=64)
    copy.enable_truncation(max_length=4)
    copy.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_directory(tmp_path).encode("hello hello hello") == trained().encode("hello hello hello")


@pytest.mark.unit
def test_a_trained_tokenizer_is_saved_and_read_back(tmp_path: Path) -> None:
    made = trained()
    made.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    for name in ("bos_id", "eos_id", "pad_id", "unk_id", "chat_template", "adds_bos", "vocab_size"):
        assert getattr(again, name) == getattr(made, name), name
    for text in TEXTS:
        assert again.encode(text) == made.encode(text)
    assert again.apply_chat_template(CHATS[1]) == made.apply_chat_template(CHATS[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.peers
def test_the_named_special_tokens_of_a_template_are_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = trained()
    made.named = {"sep_token": "<|endoftext|>", "image_token": "<|pad|>"}
    made.chat_template = "{{ sep_token }}{{ image_token }}{{ messages[0].content }}{{ eos_token }}"
    made.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.named == made.named
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for side in (made, again, theirs):
        text = side.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert text == "<|endoftext|><|pad|>hi<|im_end|>"


@pytest.mark.peers
def test_transformers_reads_a_tokenizer_that_we_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = trained()
    made.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (made.bos_id, made.eos_id, made.pad_id)
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == made.encode(text)
    assert theirs.apply_chat_template(CHATS[2])["input_ids"] == made.apply_chat_template(CHATS[2])


@pytest.mark.unit
def test_training_is_deterministic_and_holds_every_byte() -> None:
    again = Tokenizer.train(TEXTS, 400)
    assert again.backend.to_str() == trained().backend.to_str()
    assert again.vocab_size == 400
    with pytest.raises(ConfigError, match=r"vocab_size is 259, expected at least 260: 256 bytes and the special"):
        Tokenizer.train(TEXTS, 259)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_from_a_byte_level_tokenizer(text: str) -> None:
    made = trained()
    assert made.decode(made.encode(text), skip_special=False) == text


# ---------------------------------------------------------------------- bad input
BPE: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
}
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab"],
    "tokenizer.ggml.scores": [0.0, -2.0, -3.0, -1.0],
}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (
            BPE,
            {"model": "bert"},
            "tokenizer.ggml.model is 'bert', expected 'gpt2', 'llama' or 'gemma4'; no other kind of tokenizer is read.",
        ),
        (
            BPE,
            {"model": None},
            "tokenizer.ggml.model is null, expected 'gpt2', 'llama' or 'gemma4'; no other kind of tokenizer is read.",
        ),
        (BPE, {"model": ["gpt2"]}, "tokenizer.ggml.model is ['gpt2'], expected"),
        (BPE, {"tokens": None}, "no tokenizer.ggml.tokens; the file holds no complete tokenizer."),
        (BPE, {"tokens": []}, "no tokenizer.ggml.tokens;"),
        (BPE, {"tokens": "abc"}, "no tokenizer.ggml.tokens;"),
        (BPE, {"tokens": ["a", 5]}, "tokenizer.ggml.tokens: entry 1 is 5, of a type that has no place there."),
        (BPE, {"merges": None}, "no tokenizer.ggml.merges;"),
        (BPE, {"merges": [7]}, "tokenizer.ggml.merges: entry 0 is 7, of a type"),
        (BPE, {"merges": [["a", "b"]]}, "tokenizer.ggml.merges: entry 0 is ['a', 'b'], of a type"),
        (
            BPE,
            {"merges": ["a c"]},
            "do not fit together: tokenizer.ggml.merges, entry 0, is 'a c', and tokenizer.ggml.tokens has no 'c'.",
        ),
        (BPE, {"merges": ["ab"]}, "tokenizer.ggml.merges: entry 0 is 'ab', expected two parts and a space."),
        (BPE, {"bos_token_id": 77}, "tokenizer.ggml.bos_token_id is 77, outside the 4 tokens; convert the model again"),
        (BPE, {"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id is 'x', outside the 4 tokens;"),
        (BPE, {"tokens": ["a", "b", "ab", "a"]}, "tokenizer.ggml.tokens: entries 0 and 3 are both 'a', and llama.cpp"),
        (BPE, {"token_type": [1, 1]}, "tokenizer.ggml.token_type has 2 entries, expected 4, one for each token."),
        (BPE, {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1, expected true or false."),
        (
            BPE,
            {"add_bos_token": True},
            "add_bos_token is true (or the default of smollm), and there is no tokenizer.ggml.bos",
        ),
        (
            SPM,
            {"scores": [0.0, float("nan"), 0.0, 0.0]},
            "tokenizer.ggml.scores: entry 1 is nan, expected a finite number.",
        ),
        (
            SPM,
            {"tokens": ["<unk>", "a", "b", "ab", "ba"], "scores": [0.0] * 5},
            "tokenizer.ggml.scores gives all 2 joined tokens the score 0.0, and there are no tokenizer.ggml.merges",
        ),
        (BPE, {"pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of', a split that is not known; expected one of"),
        (BPE, {"pre": 5}, "tokenizer.ggml.pre is 5, a split that is not known"),
        (BPE, {"token_type": [1, "x", 1, 1]}, "tokenizer.ggml.token_type: entry 1 is 'x', of a type"),
        (SPM, {"scores": None}, "no tokenizer.ggml.scores;"),
        (SPM, {"scores": [0.0]}, "tokenizer.ggml.scores has 1 entries, expected 4, one for each token."),
        (SPM, {"scores": [0.0, "x", 0.0, 0.0]}, "tokenizer.ggml.scores: entry 1 is 'x', of a type"),
        (SPM, {"unknown_token_id": 9}, "tokenizer.ggml.unknown_token_id is 9, outside the 4 tokens;"),
        (SPM, {"unknown_token_id": "0"}, "tokenizer.ggml.unknown_token_id is '0', outside the 4 tokens;"),
    ],
)
def test_metadata_that_lie_are_refused(base: dict[str, Any], change: dict[str, Any], message: str) -> None:
    metadata = base | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(FormatError, match=re.escape(message)):
        Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None})


@pytest.mark.chaos
def test_odd_but_readable_metadata_are_read() -> None:
    made = Tokenizer.from_gguf(BPE)
    assert (made.bos_id, made.eos_id) == (None, None)
    assert made.remarks == ["tokenizer.ggml.eos_token_id is missing: no end-of-text token closes an answer."]
    assert made.encode("ab") == [2]
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template is 5, expected text"):
        Tokenizer.from_gguf(BPE | {"tokenizer.chat_template": 5})
    assert Tokenizer.from_gguf(SPM | {"tokenizer.ggml.add_space_prefix": False}).encode("ab") == [3]


@pytest.mark.chaos
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json: no such file; expected a tokenizer\.json or"):
        Tokenizer.from_directory(tmp_path)
    for content, message in (
        ("", "is empty, expected JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds a list, expected an object"),
        ("{}", "model is null, expected an object"),
        ('{"model": {"type": "Unheard"}}', r"model\.vocab is null, expected an object"),
        ('{"model": {"type": "Unheard", "vocab": {"a": 0}}}', r"its model \(Unheard\) does not work"),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(FormatError, match=rf"tokenizer\.json: {message}"):
            Tokenizer.from_directory(tmp_path)
    trained().save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "holds a list, expected an object"),
        ('{"chat_template": 5}', "chat_template is 5, expected text"),
        ('{"chat_template": [{"name": "default", "template": []}]}', r"chat_template is \[\], expected text"),
        ('{"bos_token": 7}', "bos_token is 7, expected a text"),
        (
            '{"eos_token": {"content": "<|im_end|>"}}',
            r"eos_token is \{'content': '<|im_end|>'\}, expected a text, or an",
        ),
        ('{"eos_token": "\\ud800"}', "holds half a character"),
    ):
        config.write_text(content)
        with pytest.raises(FormatError, match=rf"tokenizer_config\.json: {message}"):
            Tokenizer.from_directory(tmp_path)
    config.write_text('{"chat_template": [3, {"name": "x"}]}')
    with pytest.raises(FormatError, match=r"chat_template holds 3, expected objects with a name and a template"):
        Tokenizer.from_directory(tmp_path)
    config.write_text('{"chat_template": null}')
    odd = Tokenizer.from_directory(tmp_path)
    assert (odd.chat_template, odd.bos_id, odd.eos_id) == (None, None, None)


@pytest.mark.unit
def test_named_templates_and_the_jinja_file(tmp_path: Path) -> None:
    trained().save(tmp_path)
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    both = Tokenizer.from_directory(tmp_path)
    assert (both.chat_template, both.templates) == ("D", {"tools": "T"})
    both.save(tmp_path / "again")
    again = Tokenizer.from_directory(tmp_path / "again")
    assert (again.chat_template, again.templates) == ("D", {"tools": "T"})
    (tmp_path / "chat_template.jinja").write_text("J")
    one = Tokenizer.from_directory(tmp_path)
    assert (one.chat_template, one.templates) == ("J", {})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match=r"chat_template\.jinja: is no UTF-8 text \(invalid start byte at byte 0\)"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.unit
def test_the_split_expression_is_gpt_2s() -> None:
    assert GPT2_SPLIT.startswith("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("charsmap", "message"),
    [
        ("/////wAAAAAAAAAA", "expected a table of 4294967295 bytes, and it has 8; the file is damaged."),
        ("AAA=", "expected the size of a table in its first 4 bytes; the file is damaged."),
        ("not base64", "expected text in base64; the file is damaged."),
        (None, "expected text in base64; the file is damaged."),
    ],
)
def test_a_charsmap_that_promises_more_than_it_has_is_refused(
    charsmap: str | None, message: str, tmp_path: Path
) -> None:
    """The library would reserve the memory first."""
    Tokenizer.train(["What is 1 plus 2?"], 280).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        Tokenizer.from_directory(tmp_path)
    assert "normalizer.precompiled_charsmap is " in str(caught.value)

"""Tokenizer files that lie: one sentence that names the component, in bounded time and memory, and no panic is shown.

Mutations of these files by the thousand are in tests/mutations.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entrenar.errors import FormatError
from entrenar.io.tokenizer import Tokenizer

Files = dict[str, Any]
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>")
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


@functools.cache
def sound() -> Files:
    """A byte-level directory."""
    from tokenizers import pre_tokenizers

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": t, "special": True, **FLAGS} for i, t in enumerate(SPECIAL)],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": [["t", "h"], ["th", "e"]],
            },
        },
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    }


def write(folder: Path, change: Callable[[Files], Any]) -> Path:
    files = copy.deepcopy(sound())
    change(files)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def model(**changes: Any) -> Callable[[Files], None]:
    return lambda files: files["tokenizer.json"]["model"].update(changes)


def part(section: str, **value: Any) -> Callable[[Files], None]:
    return lambda files: files["tokenizer.json"].update({section: value})


def config(**changes: Any) -> Callable[[Files], None]:
    return lambda files: files["tokenizer_config.json"].update(changes)


def text(file: str, content: str) -> Callable[[Files], None]:
    return lambda files: files.update({file: content})


def added(**token: Any) -> Callable[[Files], None]:
    return lambda files: files["tokenizer.json"]["added_tokens"].append({"special": True, **FLAGS, **token})


def vocabulary(**tokens: Any) -> Callable[[Files], None]:
    return lambda files: files["tokenizer.json"]["model"]["vocab"].update(tokens)


ABSENT = {"SpecialToken": {"id": "[X]", "type_id": 0}}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
HOSTILE: dict[str, tuple[Callable[[Files], Any], str]] = {
    "a prefix longer than a token": (
        model(continuing_subword_prefix="abcdef"),
        r"model\.merges\[0\] is \['t', 'h'\], expected a right part that begins with the prefix 'abcdef'",
    ),
    "a prefix that cuts a character": (
        lambda files: (model(continuing_subword_prefix="x", merges=[["t", "é"]])(files), vocabulary(é=262)(files)),
        r"model\.merges\[0\] is \['t', 'é'\], expected a right part that begins with the prefix 'x'",
    ),
    "a bad charsmap": (
        part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"),
        "normalizer.precompiled_charsmap is 'AAAA', expected the size of a table in its first 4 bytes; the file is dam",
    ),
    "a charsmap that is no base64": (
        part("normalizer", type="Precompiled", precompiled_charsmap="%"),
        "normalizer.precompiled_charsmap is '%', expected text in base64",
    ),
    "a template naming an absent token": (
        part(
            "post_processor", type="TemplateProcessing", single=[ABSENT, SEQUENCE], pair=[SEQUENCE], special_tokens={}
        ),
        r"its post_processor \(TemplateProcessing\) does not work",
    ),
    "an empty pattern": (
        part("normalizer", type="Replace", pattern={"String": ""}, content="x"),
        r"its normalizer \(Replace\) does not work",
    ),
    "an expression that is none": (
        part("pre_tokenizer", type="Split", pattern={"Regex": "("}, behavior="Isolated", invert=False),
        r"its pre_tokenizer \(Split\) does not work",
    ),
    "pieces of no length": (part("pre_tokenizer", type="FixedLength", length=0), "pre_tokenizer.length is 0, expected"),
    "an added id of 2^31": (added(id=2**31, content="x"), r"added_tokens\[4\]\.id is 2147483648, expected a number"),
    "an added id below 0": (added(id=-1, content="x"), r"added_tokens\[4\]\.id is -1, expected a number"),
    "a vocabulary id of 2^32 - 1": (vocabulary(x=2**32 - 1), r"model\.vocab\['x'\] is 4294967295, expected a number"),
    "a vocabulary id that is a text": (vocabulary(x="1"), r"model\.vocab\['x'\] is '1', expected a number"),
    "no vocabulary": (model(vocab=None), r"model\.vocab is null, expected an object"),
    "merges of an absent token": (model(merges=[["t", "☃"]]), r"its model \(BPE\) does not work"),
    "an unknown token that is absent": (
        lambda files: (model(unk_token="no")(files), part("pre_tokenizer", type="Whitespace")(files)),
        r"does not work",
    ),
    "WordLevel without its unknown token": (model(type="WordLevel", unk_token="no"), r"its model \(WordLevel\) does"),
    "WordPiece without its unknown token": (
        model(type="WordPiece", unk_token="no", continuing_subword_prefix="##", max_input_chars_per_word=9),
        r"its model \(WordPiece\) does not work",
    ),
    "Unigram without its unknown token": (
        model(type="Unigram", vocab=[["a", -1.0]], unk_id=None),
        r"its model \(Unigram\) does not work",
    ),
    "Unigram with an unknown token beyond": (
        model(type="Unigram", vocab=[["a", -1.0]], unk_id=7),
        r"its model \(Unigram\) does not work",
    ),
    "a component within components": (
        text("tokenizer.json", '{"normalizer": ' + '{"type": "Sequence", "normalizers": [' * 20_000),
        "is not JSON",
    ),
    "a count of 5,000 digits": (text("tokenizer.json", '{"model": ' + "9" * 5000 + "}"), "is not JSON"),
    "a count beyond": (
        model(max_input_chars_per_word=10**12),
        "model.max_input_chars_per_word is 1000000000000, expected",
    ),
    "a lone surrogate in a token": (
        text("tokenizer.json", r'{"model": {"type": "BPE", "vocab": {"\ud800": 0}}}'),
        "does",
    ),
    "a lone surrogate in the configuration": (
        text("tokenizer_config.json", r'{"eos_token": "\udc00"}'),
        "half a character",
    ),
    "a configuration of 3,000 brackets": (text("tokenizer_config.json", "[" * 3000), "is not JSON"),
    "an index of 5,000 digits": (
        config(added_tokens_decoder={"9" * 5000: {"content": "x"}}),
        "an id of added_tokens_decoder is '9999",
    ),
    "an added token that is no object": (config(added_tokens_decoder={"4": 5}), r"added_tokens_decoder\[4\] is 5"),
    "ends that are no ids": (text("generation_config.json", '{"eos_token_id": ["x"]}'), r"eos_token_id is \['x'\]"),
}


def peak_kib() -> int:
    """The most memory that this process has had since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Let the peak be what is held now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.chaos
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = HOSTILE[name]
    write(tmp_path, change)
    forget_peak()
    start, before = time.monotonic(), peak_kib()
    with pytest.raises(FormatError, match=message) as caught:
        Tokenizer.from_directory(tmp_path)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")
    assert capfd.readouterr() == ("", "")  # a panic writes its place and a backtrace
    assert time.monotonic() - start < 5
    assert peak_kib() - before < 200_000


@pytest.mark.chaos
def test_the_sound_directory_is_read(tmp_path: Path) -> None:
    made = Tokenizer.from_directory(write(tmp_path, lambda files: None))
    assert made.encode("the</s>") == [261, 2]
    assert made.remarks == []


# ---------------------------------------------------------------------- what is right
@pytest.mark.chaos
def test_dropout_is_switched_off_and_said(tmp_path: Path) -> None:
    made = Tokenizer.from_directory(write(tmp_path, model(dropout=0.9)))
    assert {tuple(made.encode("the the the")) for _ in range(20)} == {tuple(made.encode("the the the"))}
    assert made.remarks == [
        f"{tmp_path}/tokenizer.json: model.dropout 0.9 is switched off, so that runs see the same tokens."
    ]


@pytest.mark.chaos
def test_special_tokens_known_to_one_file_alone(tmp_path: Path) -> None:
    def no_added(files: Files) -> None:
        files["tokenizer.json"]["added_tokens"] = []
        files["tokenizer_config.json"] = {}

    entries = {str(i): {"content": t, "special": True, **FLAGS} for i, t in enumerate(SPECIAL)}
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    for file, content in (
        ("tokenizer_config.json", {"added_tokens_decoder": entries, **names}),
        ("special_tokens_map.json", {**names, "additional_special_tokens": ["<|im_end|>"]}),
    ):
        folder = tmp_path / file
        folder.mkdir()
        made = Tokenizer.from_directory(
            write(folder, lambda files, f=file, c=content: (no_added(files), files.update({f: c})))
        )
        assert made.encode("<|im_end|>") == [3], file
        assert (made.bos_id, made.eos_id) == (1, 2), file


@pytest.mark.chaos
def test_every_end_token_is_kept_by_saving(tmp_path: Path) -> None:
    write(tmp_path, text("generation_config.json", '{"eos_token_id": [3, 2, 99999]}'))
    made = Tokenizer.from_directory(tmp_path)
    assert made.eos_ids == (2, 3)
    assert any("eos_token_id 99999 is ignored" in remark for remark in made.remarks)
    made.save(tmp_path / "again")
    again = Tokenizer.from_directory(tmp_path / "again")
    assert (again.eos_id, again.eos_ids) == (2, (2, 3))


@pytest.mark.chaos
@pytest.mark.parametrize("types", ["NORMAL", "absent"])
def test_the_end_token_of_a_gguf_file_is_one_token_whatever_its_type(types: str, tmp_path: Path) -> None:
    tokens = list(sound()["tokenizer.json"]["model"]["vocab"])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": 3,
        **({"tokenizer.ggml.token_type": [1] * len(tokens)} if types == "NORMAL" else {}),
    }
    made = Tokenizer.from_gguf(metadata)
    assert made.encode("the<|im_end|>") == [261, 3]
    assert made.eos_ids == (3, 2)  # llama.cpp ends at </s> too
    assert any("are read as control tokens, as in llama.cpp" in remark for remark in made.remarks)
    made.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert (again.encode("the<|im_end|>"), again.eos_ids) == ([261, 3], (3, 2))


@pytest.mark.peers
def test_merges_decide_where_the_scores_are_all_the_same() -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 8,
        "tokenizer.ggml.merges": ["b c", "▁ a", "a b"],
    }
    assert Tokenizer.from_gguf(metadata).encode("abc") == [9, 8]  # ▁a bc: not the leftmost pairs first


@pytest.mark.peers
def test_a_saved_tokenizer_is_read_back_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = list(sound()["tokenizer.json"]["model"]["vocab"])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(tokens) - 4),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.add_eos_token": True,
    }
    (tmp_path / "file").mkdir()
    for name, made in (
        ("gguf", Tokenizer.from_gguf(metadata)),
        ("hf", Tokenizer.from_directory(write(tmp_path / "file", config(pad_token="<pad>")))),
    ):
        made.save(tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert len(theirs) == made.vocab_size
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
            made.bos_id,
            made.eos_id,
            made.pad_id,
        )
        for sentence in ("the 1234567 é🎉 <|im_end|>x<pad> y", ""):
            ids = made.encode(sentence)
            before, after = [made.bos_id] * made.adds_bos, [made.eos_id] * made.adds_eos
            assert list(theirs(sentence).input_ids) == [*before, *ids, *after]
            assert theirs.decode(ids) == made.decode(ids, skip_special=False)

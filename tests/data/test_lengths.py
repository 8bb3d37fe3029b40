"""Samples longer than a row: cut, left out, split or refused; segments with their own marks; the last answer alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from entrenar.data import DataReport, Example, SideReport, encode_examples, read_examples
from entrenar.data.lengths import fitted
from entrenar.data.masking import Sample
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train.config import Data, TrainConfig

LONG = "one two three four five six seven eight nine ten " * 8
TURNS = [("user", "Hello?"), ("assistant", "First."), ("user", "And?"), ("assistant", "Second.")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([LONG, "Hello? First. And? Second."], 280)


def of_tokens(count: int) -> Sample:
    trained = np.ones(count, bool)
    trained[:1] = False
    return Sample(np.arange(count, dtype=np.int32), trained)


@pytest.mark.unit
@pytest.mark.parametrize("count", [2, 8, 9, 15, 16, 40])
def test_pieces_train_each_token_once_behind_the_one_before_it(count: int) -> None:
    pieces = fitted(of_tokens(count), 8, "split", Example([]))[1]
    pairs = [
        (int(before), int(token))
        for piece in pieces
        for before, token, trained in zip(piece.tokens, piece.tokens[1:], piece.trained[1:], strict=False)
        if trained
    ]
    assert pairs == [(index, index + 1) for index in range(count - 1)]
    assert all(len(piece) <= 8 and not piece.trained[0] for piece in pieces)
    assert [piece.truncated for piece in pieces] == [True] * (len(pieces) - 1) + [False]


@pytest.mark.unit
def test_what_becomes_of_long_examples_is_counted_and_said(tokenizer: Tokenizer) -> None:
    examples = [Example([], document="one two"), Example([], document=LONG, where="d.jsonl, line 2")]
    whole = encode_examples(examples, tokenizer, 10_000)[1]
    for too_long, expected in (("truncate", "1 of 2 examples is cut to 16 tokens"), ("auto", "1 of 2 examples is cut")):
        samples, report = encode_examples(examples, tokenizer, 16, too_long=too_long)
        assert (len(samples), report.cut, report.split) == (2, 1, 0)
        assert expected in next(DataReport("d.jsonl", 16, report, SideReport()).remarks())
    samples, report = encode_examples(examples, tokenizer, 16, too_long="drop")
    assert len(samples) == 1 and report.left_out == {"longer than a row of 16 tokens (data.too_long is drop)": 1}
    samples, report = encode_examples(examples, tokenizer, 16, too_long="split")
    assert (report.split, report.cut) == (1, 0) and report.trained_tokens == whole.trained_tokens
    remark = next(DataReport("d.jsonl", 16, report, SideReport()).remarks())
    assert remark == "1 of 2 examples is split into rows of 16 tokens; no row sees another."
    with pytest.raises(FormatError, match=r"^d\.jsonl, line 2: has \d+ tokens, expected at most 16 \(data\.too_long"):
        encode_examples(examples, tokenizer, 16, too_long="error")


@pytest.mark.unit
def test_the_last_answer_alone_and_its_end_of_turn_are_trained(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    example = Example([{"role": role, "content": text} for role, text in TURNS])
    end = tokenizer.token(tokenizer.eos_id)
    for last, expected in ((False, f"First.{end}Second.{end}"), (True, f"Second.{end}")):
        samples, _ = encode_examples([example], tokenizer, 10_000, last_answer=last)
        sample = samples[0]
        assert tokenizer.decode(sample.tokens[sample.trained].tolist(), skip_special=False) == expected
        assert sample.trained[-1] and sample.tokens[-1] == tokenizer.eos_id
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"^data\.answers is last, which has no effect where data\.train_on_prompt"):
        TrainConfig(data=Data(answers="last", train_on_prompt=True))


@pytest.mark.unit
def test_segments_have_their_own_marks_and_no_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = tokenizer.token(tokenizer.eos_id)
    texts = [(False, "Hello?\n"), (True, f"First.{end}"), (False, "And?\n"), (True, "Second.")]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"segments": [{"label": label, "text": text} for label, text in texts]}) + "\n")
    example = read_examples(path)[0]
    assert example.question == "Hello?\n" and example.text == "".join(text for _, text in texts)
    sample = encode_examples([example], tokenizer, 10_000)[0][0]
    ids = [tokenizer.encode(text) for _, text in texts]
    assert sample.tokens.tolist() == [token for part in ids for token in part]
    labels = [label for (label, _), part in zip(texts, ids, strict=True) for _ in part]
    assert sample.trained.tolist() == labels


@pytest.mark.unit
@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], r"line 1: segments is \[\], expected a list of objects with label and text"),
        ([{"text": "a"}], r"line 1: segments holds .*, expected objects with label \(true or false\) and text"),
        ([{"label": 1, "text": "a"}], r"line 1: segments holds"),
        ([{"label": True, "text": ""}], r"line 1: text of a segment is '', expected non-empty text"),
        ([{"label": True, "text": "\ud800"}], r"line 1: text of a segment holds half a character"),
    ],
)
def test_wrong_segments_are_one_sentence(segments: list, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"segments": segments}) + "\n")
    with pytest.raises(FormatError, match=message):
        read_examples(path)

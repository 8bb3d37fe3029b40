"""What becomes of examples: samples in flat arrays, and a count of all that is left out, cut or not used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.data import (
    DataReport,
    Example,
    Sample,
    Samples,
    SideReport,
    encode_document,
    encode_example,
    encode_examples,
    read_examples,
)
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer

TEXT = "What is the sum? It is two."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 280)


def example(prompt: str, answer: str, where: str = "") -> Example:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Example(turns, where=where)


@pytest.mark.unit
def test_flat_samples_are_those_that_were_put_in() -> None:
    rng = np.random.default_rng(0)
    rows = [
        Sample(rng.integers(0, 1 << 20, n).astype(np.int32), rng.random(n) < 0.5, n > 4) for n in (3, 0, 1, 9, 5, 0)
    ]
    samples = Samples(rows)
    assert len(samples) == len(rows) and len(samples[1:3]) == 2
    for found, expected in zip(samples, rows, strict=True):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.trained, expected.trained)
        assert found.tokens.dtype == np.int32 and found.trained.dtype == bool and found.truncated == expected.truncated
    assert samples[-2].tokens.tolist() == rows[4].tokens.tolist()
    assert samples.nbytes == 5 * 18 + 8 * 7 + 6 and samples.lengths.tolist() == [len(row) for row in rows]
    with pytest.raises(IndexError):
        samples[6]


@pytest.mark.unit
def test_samples_are_those_of_single_examples(tokenizer: Tokenizer) -> None:
    examples = [example("What?", "It is."), example("Why?", "It is two. " * 30)]
    samples, report = encode_examples(examples, tokenizer, 40)
    for found, one in zip(samples, examples, strict=True):
        expected = encode_example(one, tokenizer, 40)
        assert found.tokens.tolist() == expected.tokens.tolist() and found.trained.tolist() == expected.trained.tolist()
    assert (report.examples, report.samples, report.cut, report.left_out) == (2, 2, 1, {})
    assert report.tokens == sum(len(sample) for sample in samples)
    assert report.trained_tokens == sum(int(sample.trained.sum()) for sample in samples)


@pytest.mark.unit
def test_what_is_left_out_is_counted_by_reason_with_the_first_place(tokenizer: Tokenizer) -> None:
    long = "What is the sum? " * 20
    unmarked = Example(example("a", "b").messages, frozenset([1]), where="line 3", marked=True)
    examples = [example("a", "b"), example(long, "b", "line 2"), unmarked, example(long, "c", "line 4")]
    samples, report = encode_examples(examples, tokenizer, 40)
    assert len(samples) == 1
    assert sorted(report.left_out.values()) == [1, 2] and list(report.first_left_out.values()) == ["line 2", "line 3"]
    remarks = list(DataReport("data.jsonl", 40, report, SideReport()).remarks())
    assert remarks[0] == (
        "2 of 4 examples are left out: the prompt alone fills a row of 40 tokens, so that no answer would be trained "
        "(the first is line 2)."
    )
    assert remarks[1].startswith("1 of 4 examples is left out: every answer is marked as not trained (weight 0, or ")
    assert len(remarks) == 2


@pytest.mark.unit
def test_what_is_cut_unmarked_or_not_used_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    turns = example("a", "b").messages
    first = {**turns[1], "weight": 0}
    records: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b" * 100, "id": 1},
        {"messages": [turns[0], first, *turns], "id": 2, "note": None},
        {"text": TEXT, "label": 0},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    _, report = encode_examples(read_examples(path), tokenizer, 60)
    both = DataReport(str(path), 60, report, report)
    cut = "cut to 60 tokens; what comes after is not learned (a longer training.sequence_length keeps it)."
    assert list(both.remarks()) == [
        f"1 of 3 examples is {cut}",
        f"1 of 3 held-out examples is {cut}",
        "In 2 examples some answers are left out of the loss, as their records say (weight, train, trainable or loss; "
        "or as a part of the prompt).",
        f"{path}: the key 'id' of 4 records is not used.",
        f"{path}: the key 'label' of 2 records is not used.",
    ]
    table = json.loads(json.dumps(both.table()))
    assert table["unused_keys"] == {"id": 4, "label": 2} and table["training"]["cut"] == 1
    assert table["held_out"]["trained_tokens"] == report.trained_tokens


@pytest.mark.unit
@pytest.mark.parametrize(("written", "quoted"), [("| tojson", 2), ("", 0)])
def test_arguments_that_a_template_quotes_are_said(written: str, quoted: int, tokenizer: Tokenizer) -> None:
    """As OpenAI's records have them: the model would learn to write a text where an object is meant."""
    template = (
        "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}"
        f"{{{{ call.function.arguments {written} }}}}{{% endfor %}}{{% endfor %}}"
    )
    heeding = Tokenizer(tokenizer.backend, eos_id=tokenizer.eos_id, chat_template=template)
    arguments: list[Any] = ['{"city": "Köln"}', {"city": "Rome"}, "Rome", '{"city": "Rome"}']
    calls = [{"type": "function", "function": {"name": "weather", "arguments": each}} for each in arguments]
    turns = [[*example("?", "!").messages[:1], {**example("?", "!").messages[1], "tool_calls": [c]}] for c in calls]
    _, report = encode_examples([Example(messages) for messages in turns], heeding, 60)
    assert report.quoted_calls == quoted
    remarks = " ".join(DataReport("d.jsonl", 60, report, SideReport()).remarks())
    assert ("In 2 examples the arguments of tool calls are JSON text, which the chat template writes" in remarks) == (
        quoted > 0
    )


@pytest.mark.unit
def test_a_prompt_that_does_not_stand_before_the_answers_is_said(tokenizer: Tokenizer) -> None:
    """As of models that think: the template begins the thought for them, and drops it from an answer. TRL warns too."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nTHINK{% endif %}"
    )
    for begun, count in (("<think>\n", 2), ("", 0)):
        thinking = Tokenizer(tokenizer.backend, eos_id=tokenizer.eos_id, chat_template=template.replace("THINK", begun))
        records = [example("a", "b"), example("c", "<think>\nhm</think>d"), Example([], document=TEXT)]
        _, report = encode_examples(records, thinking, 60)
        remarks = " ".join(DataReport("d.jsonl", 60, report, SideReport()).remarks())
        said = "In 2 of the first 3 examples the answer stands without the '<think>\\n' that the chat template puts at"
        assert report.other_prompts == count and (said in remarks) == (count > 0)


@pytest.mark.chaos
def test_many_keys_that_nothing_reads_are_said_in_a_few_lines() -> None:
    read = SideReport()
    for number in range(5000):
        read.count(Example([], document="a", unused=(f"{number:04d}" + "x" * 300, "id")))
    report = DataReport("data.jsonl", 60, read, SideReport())
    remarks = list(report.remarks())
    assert remarks[0] == "data.jsonl: the key 'id' of 5,000 records is not used." and len(remarks) == 9
    assert remarks[-1] == "data.jsonl: 4,993 more keys of records are not used."
    assert max(map(len, remarks)) < 200 and len(report.table()["unused_keys"]) == 1000


@pytest.mark.unit
def test_an_answer_marked_as_not_trained_is_not(tokenizer: Tokenizer) -> None:
    turns = [*example("a", "b").messages, *example("c", "d").messages]
    (whole,), _ = encode_examples([Example(turns)], tokenizer, 99)
    (second,), report = encode_examples([Example(turns, frozenset([1]), marked=True)], tokenizer, 99)
    assert second.tokens.tolist() == whole.tokens.tolist() and report.unmarked == 1
    half = int(second.trained.argmax())
    assert whole.trained[:half].any() and second.trained[half:].tolist() == whole.trained[half:].tolist()


@pytest.mark.unit
def test_train_on_prompt_heeds_marks_and_not_a_layouts_prompt(tokenizer: Tokenizer) -> None:
    turns = [*example("a", "b").messages, *example("c", "d").messages]
    for left_out, marked, trained in ((frozenset([1]), False, True), (frozenset([1]), True, False)):
        one = Example(turns, left_out, where="line 1", marked=marked)
        (sample,), _ = encode_examples([one], tokenizer, 99, train_on_prompt=True)
        assert sample.trained[1:].all() == trained
    one = Example(turns, frozenset([0]), where="line 1", marked=True)
    with pytest.raises(ConfigError, match=r"line 1: marks a prompt as not trained, and data\.train_on_prompt trains"):
        encode_examples([one], tokenizer, 99, train_on_prompt=True)


@pytest.mark.unit
def test_a_plain_text_is_trained_whole_and_closed_once(tokenizer: Tokenizer) -> None:
    end = tokenizer.token(tokenizer.eos_id)
    for text in (TEXT, TEXT + end):
        sample = encode_document(text, tokenizer)
        assert tokenizer.decode(sample.tokens.tolist(), skip_special=False) == TEXT + end
        assert sample.trained.tolist() == [False] + [True] * (len(sample) - 1)
    cut = encode_document(TEXT, tokenizer, 4)
    assert len(cut) == 4 and cut.truncated and cut.tokens.tolist() == sample.tokens[:4].tolist()


@pytest.mark.unit
def test_template_variables_need_a_template(tokenizer: Tokenizer) -> None:
    bare = Tokenizer(tokenizer.backend, eos_id=tokenizer.eos_id)
    one = Example(example("a", "b").messages, variables={"mode": 1}, where="line 7")
    with pytest.raises(ConfigError, match=r"line 7: has chat_template_kwargs, and this model has no chat template"):
        encode_examples([one], bare, 99)

"""Instruction files: every common layout gives the same conversations, every bad record is named with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrenar.data import Example, read_examples
from entrenar.errors import FormatError


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SUM = [message("user", "What is 1 + 1?"), message("assistant", "2")]
TALK = [
    message("system", "Be brief."),
    message("user", "Grüße ☃"),
    message("assistant", "Hallo"),
    message("user", "a\nb"),
    message("assistant", "c"),
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]}
    for turn in TALK
]
LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "alpaca": ({"instruction": "What is 1 + 1?", "output": "2"}, SUM),
    "alpaca with an empty input": ({"instruction": "What is 1 + 1?", "input": "", "output": "2"}, SUM),
    "alpaca with a null input": ({"instruction": "What is 1 + 1?", "input": None, "output": "2"}, SUM),
    "alpaca with an input": (
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        [message("user", "Add.\n\n1, 1"), message("assistant", "2")],
    ),
    "alpaca with a system": (
        {"instruction": "What is 1 + 1?", "output": "2", "system": "Be brief.", "history": []},
        [message("system", "Be brief."), *SUM],
    ),
    "prompt and completion": ({"prompt": "What is 1 + 1?", "completion": "2"}, SUM),
    "messages": ({"messages": TALK}, TALK),
    "messages and more": ({"messages": SUM, "id": 7, "source": "x"}, SUM),
    "ShareGPT": ({"conversations": SHAREGPT}, TALK),
    "ShareGPT with a system": ({"conversations": SHAREGPT[1:], "system": "Be brief."}, TALK),
    "white space is kept": (
        {"prompt": " a\n", "completion": "\n b "},
        [message("user", " a\n"), message("assistant", "\n b ")],
    ),
}


def write(path: Path, records: list[Any]) -> Path:
    """Records as JSON Lines, or as one JSON list."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.unit
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_a_conversation(layout: str, suffix: str, tmp_path: Path) -> None:
    record, expected = LAYOUTS[layout]
    assert read_examples(write(tmp_path / f"data{suffix}", [record])) == [Example(expected)]


@pytest.mark.unit
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_layouts_mix_and_keep_their_order(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{suffix}", [record for record, _ in LAYOUTS.values()])
    assert [example.messages for example in read_examples(path)] == [expected for _, expected in LAYOUTS.values()]


@pytest.mark.unit
def test_empty_lines_byte_order_marks_and_line_ends_are_no_matter(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", "completion": "b\u2028c\u0085d"}, ensure_ascii=False)
    (tmp_path / "data.jsonl").write_bytes(f"\ufeff\r\n{line}\r\n\n   \n{line}".encode())
    examples = read_examples(tmp_path / "data.jsonl")
    assert len(examples) == 2
    assert examples[0].messages[1]["content"] == "b\u2028c\u0085d"  # no line ends of JSON Lines


@pytest.mark.unit
def test_the_text_of_an_example_tells_it_apart() -> None:
    texts = {Example(expected).text for _, expected in LAYOUTS.values()}
    assert len(texts) == 5
    assert Example(SUM).text == "What is 1 + 1?\n2"


BAD: dict[str, tuple[Any, str]] = {
    "a text": ("hello", "is a JSON str, expected an object with instruction/output"),
    "a number": (5, "is a JSON int, expected an object"),
    "a list": ([1], "is a JSON list, expected an object"),
    "null": (None, "is a JSON NoneType, expected an object"),
    "no known keys": ({"text": "a", "label": 1}, "has the keys ['label', 'text'], expected an object with instruction"),
    "no keys": ({}, "has the keys [], expected"),
    "no output": ({"instruction": "a"}, "output is None, expected non-empty text."),
    "an empty output": ({"instruction": "a", "output": ""}, "output is '', expected non-empty text."),
    "a blank output": ({"instruction": "a", "output": " \n"}, "output is ' \\n', expected non-empty text."),
    "an output that is a list": ({"instruction": "a", "output": ["b"]}, "output is ['b'], expected non-empty text."),
    "an empty instruction": ({"instruction": "", "output": "b"}, "instruction is '', expected non-empty text."),
    "an input that is a number": ({"instruction": "a", "input": 3, "output": "b"}, "input is 3, expected text."),
    "a history": ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "has a history, which is not read"),
    "a system that is a number": ({"messages": SUM, "system": 3}, "system is 3, expected non-empty text."),
    "no completion": ({"prompt": "a"}, "completion is None, expected non-empty text."),
    "a prompt of messages": ({"prompt": SUM, "completion": "b"}, "prompt is [{'role': 'user',"),
    "no messages": ({"messages": []}, "messages is [], expected a list of messages."),
    "messages that are none": ({"messages": "hi"}, "messages is 'hi', expected a list of messages."),
    "a message that is a text": ({"messages": ["hi"]}, "messages holds 'hi', expected objects with role and content."),
    "an unknown role": (
        {"messages": [message("tool", "a")]},
        "a message has the role 'tool', expected system, user or assistant.",
    ),
    "no role": ({"messages": [{"content": "a"}]}, "a message has the role None, expected"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "a"}]}, "a message has the role ['user']"),
    "no content": ({"messages": [{"role": "user"}]}, "value is None, expected non-empty text."),
    "a content of parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        "content is [{'type': 'text', 'text': 'a'}], expected non-empty text.",
    ),
    "no answer": ({"messages": SUM[:1]}, "the last message is the user's, expected the assistant's answer."),
    "a question at the end": (
        {"conversations": SHAREGPT[:-1]},
        "the last message is the user's, expected the assistant's answer.",
    ),
    "half a character": ({"prompt": "a\ud83d", "completion": "b"}, "prompt holds half a character (\\ud83d)."),
    "half a character in an input": (
        {"instruction": "a", "input": "\udc00", "output": "b"},
        "input holds half a character (\\udc00).",
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_with_file_and_place(case: str, tmp_path: Path) -> None:
    record, problem = BAD[case]
    good = {"prompt": "a", "completion": "b"}
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(["", json.dumps(good), "", json.dumps(record), json.dumps(good)]))
    table = write(tmp_path / "data.json", [good, good, record])
    for path, place in ((lines, "line 4"), (table, "record 3")):
        with pytest.raises(FormatError, match=re.escape(f"{path}, {place}: {problem}")) as caught:
            read_examples(path)
        assert "\n" not in str(caught.value)


@pytest.mark.chaos
def test_a_long_wrong_value_is_shown_short(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"prompt": ["x" * 10_000], "completion": "b"}])
    with pytest.raises(FormatError) as caught:
        read_examples(path)
    assert len(str(caught.value)) < 300


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("name", "content", "message_"),
    [
        ("data.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt"', r"data\.jsonl, line 2: is not JSON \("),
        ("data.jsonl", b"\n\n[" + b"[" * 100_000, r"data\.jsonl, line 3: is not JSON \("),
        ("data.json", b"[" * 100_000, r"data\.json: is not JSON \("),
        ("data.json", b'[{"prompt": "a"', r"data\.json: is not JSON \(.+\); expected a list of records\."),
        (
            "data.json",
            b'{"prompt": "a", "completion": "b"}',
            r"data\.json: holds a JSON dict, expected a list",
        ),
        ("data.jsonl", b"", r"data\.jsonl: holds no examples; expected one JSON object a line\."),
        ("data.jsonl", b"\n \n", r"data\.jsonl: holds no examples"),
        ("data.json", b"[]", r"data\.json: holds no examples"),
        ("data.jsonl", b'{"prompt": "\xff"}', r"data\.jsonl: is not UTF-8 text \(invalid start byte at byte 12\)\."),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, content: bytes, message_: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message_):
        read_examples(tmp_path / name)


@pytest.mark.chaos
def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.jsonl: cannot be read \(No such file or directory\); expected"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match=r"cannot be read \(Is a directory\)"):
        read_examples(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "user", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["instruction", "input", "output", "prompt", "completion", "messages", "conversations", "system", "history"]


@pytest.mark.property
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_any_record_is_read_or_refused_with_its_place(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    try:
        (example,) = read_examples(path)
    except FormatError as error:
        assert str(error).startswith(f"{path}, line 1: ")
    else:
        assert example.messages[-1]["role"] == "assistant"
        assert all(turn["content"].strip() for turn in example.messages)

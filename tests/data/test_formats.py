"""Instruction files: every common layout gives the same conversations, every bad record is named with its place."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
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


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
MARKED = {
    "weight 0": {"weight": 0},
    "train false": {"train": False},
    "trainable false": {"trainable": False},
    "loss 0.0": {"loss": 0.0},
}


@pytest.mark.unit
@pytest.mark.parametrize("mark", MARKED)
def test_messages_marked_as_not_trained_are_left_out_of_the_loss(mark: str, tmp_path: Path) -> None:
    record = {"messages": [SUM[0], SUM[1] | MARKED[mark], *SUM], "system": "Be brief."}
    (example,) = read_examples(write(tmp_path / "data.jsonl", [record]))
    assert example == Example([message("system", "Be brief."), *SUM, *SUM], frozenset([2])) and example.marked


@pytest.mark.unit
def test_messages_keep_what_a_template_may_read(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": "I add.", "tool_calls": [CALL], "reasoning_content": "One."},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "2", "weight": 1},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    record = {"messages": turns, "tools": json.dumps(tools), "chat_template_kwargs": {"mode": 1}, "id": 7}
    (example,) = read_examples(write(tmp_path / "data.jsonl", [record]))
    assert example == Example([*turns[:3], message("assistant", "2")], tools=tools, variables={"mode": 1})
    assert (example.unused, example.where, example.marked) == (("id",), f"{tmp_path}/data.jsonl, line 1", False)
    assert example.text == "ab\nI add.\n\n2" and example.question == "ab"


@pytest.mark.unit
def test_the_question_is_that_of_the_first_answer_that_is_trained() -> None:
    assert Example(TALK).question == "Grüße ☃"
    assert Example(TALK, frozenset([2])).question == "a\nb"
    assert Example(TALK, frozenset([2, 4])).question == Example(TALK[2:]).question == ""


@pytest.mark.unit
def test_a_prompt_of_messages_trains_the_completion_alone(tmp_path: Path) -> None:
    record = {"prompt": [*SUM, SUM[0]], "completion": [SUM[1]]}
    (example,) = read_examples(write(tmp_path / "data.jsonl", [record]))
    assert example == Example([*SUM, *SUM], frozenset([1])) and not example.marked


@pytest.mark.unit
def test_a_plain_text_has_no_messages(tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path / "data.jsonl", [{"text": "Once upon a time.", "label": 3}]))
    assert example == Example([], document="Once upon a time.")
    assert (example.text, example.question, example.unused) == ("Once upon a time.", "", ("label",))


@pytest.mark.unit
def test_the_command_of_a_refusal_converts_the_file(tmp_path: Path) -> None:
    records = [{"instruction": "a", "context": "c", "response": f"b {n}", "category": "x"} for n in range(3)]
    for suffix in (".jsonl", ".json"):
        path = write(tmp_path / f"it's{suffix}", records)
        with pytest.raises(FormatError) as caught:
            read_examples(path)
        command = str(caught.value).split("convert the file: ")[1].removesuffix(" .")
        subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
        converted = Path(shlex.split(command)[-1])
        assert [example.messages[1]["content"] for example in read_examples(converted)] == ["b 0", "b 1", "b 2"]
        converted.unlink()


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


class Raw(str):
    """A record as its file spells it."""


BAD: dict[str, tuple[Any, str]] = {
    "a text": ("hello", "is a text, expected an object with instruction/output"),
    "a number": (5, "is a number, expected an object"),
    "a list": ([1], "is a list, expected an object"),
    "null": (None, "is null, expected an object"),
    "no known keys": ({"content": "a", "label": 1}, "has the keys content, label, expected an object with"),
    "no keys": ({}, "is an object without keys, expected"),
    "no output": ({"instruction": "a"}, "has no output, expected an object with"),
    "an empty output": ({"instruction": "a", "output": ""}, "output is '', expected non-empty text."),
    "a blank output": ({"instruction": "a", "output": " \n"}, "output is ' \\n', expected non-empty text."),
    "an output that is a list": ({"instruction": "a", "output": ["b"]}, "output is ['b'], expected non-empty text."),
    "an empty instruction": ({"instruction": "", "output": "b"}, "instruction is '', expected non-empty text."),
    "an input that is a number": ({"instruction": "a", "input": 3, "output": "b"}, "input is 3, expected text."),
    "a history": ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "has a history, which is not read"),
    "a system that is a number": ({"messages": SUM, "system": 3}, "system is 3, expected non-empty text."),
    "no completion": ({"prompt": "a"}, "has no completion, expected an object with"),
    "a prompt of messages": ({"prompt": SUM, "completion": "b"}, "completion is 'b', expected a list of messages."),
    "a completion of messages": ({"prompt": "a", "completion": SUM}, "completion is [{'role': 'user',"),
    "a question in the completion": (
        {"prompt": SUM[:1], "completion": [SUM[1], *SUM]},
        "completion holds messages of assistant, user, assistant, expected one of the assistant; write the",
    ),
    "no messages": ({"messages": []}, "messages is [], expected a list of messages."),
    "messages that are none": ({"messages": "hi"}, "messages is 'hi', expected a list of messages."),
    "a message that is a text": ({"messages": ["hi"]}, "messages holds 'hi', expected objects with role and content."),
    "an unknown role": (
        {"messages": [message("narrator", "a")]},
        "a message has the role 'narrator', expected system, user, assistant or tool (or developer,",
    ),
    "no role": ({"messages": [{"content": "a"}]}, "a message has no role, expected"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "a"}]}, "a message has the role ['user']"),
    "no content": ({"messages": [{"role": "user"}]}, "a message of the user has no content, expected non-empty text."),
    "a part that is an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "a"}]}]},
        "content holds the part {'type': 'image', 'url': 'a'}, expected parts of type text; the model reads no",
    ),
    "parts without text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
        "content is [{'type': 'text', 'text': ''}], expected non-empty text.",
    ),
    "two layouts": ({"messages": SUM, "prompt": "a", "completion": "b"}, "has messages and prompt/completion; keep"),
    "two conversations": ({"messages": SUM, "conversations": SUM}, "has messages and conversations; keep the one"),
    "two texts": (
        {"messages": [{"role": "user", "content": "a", "value": "b"}]},
        "a message has content 'a' and value",
    ),
    "a weight above 1": (
        {"messages": [SUM[0], SUM[1] | {"weight": 1.5}]},
        "weight of a message is 1.5, expected a number from 0 (not trained) to 1.",
    ),
    "a weight that is lost": (
        {"messages": [SUM[0], SUM[1] | {"weight": 1e-50}]},
        "weight of a message is 1e-50, of which nothing is left in float32 sums; expected 0, or 1e-06 to 1.",
    ),
    "a flag of text": ({"messages": [SUM[0], SUM[1] | {"train": "false"}]}, "train of a message is 'false', expected"),
    "flags that contradict": (
        {"messages": [SUM[0], SUM[1] | {"train": False, "weight": 1}]},
        "a message has weight true and train false, which contradict each other; keep one.",
    ),
    "a question that is trained": (
        {"messages": [SUM[0] | {"train": True}, SUM[1]]},
        "train says that a message of the user is trained, and only the assistant's are;",
    ),
    "tools that are no JSON": ({"messages": SUM, "tools": "search"}, "tools is 'search', which is not JSON; expected"),
    "tools of texts": ({"messages": SUM, "tools": ["search"]}, "tools is ['search'], expected a list of objects."),
    "calls that are none": (
        {"messages": [SUM[0], SUM[1] | {"tool_calls": "f()"}]},
        "tool_calls is 'f()', expected a list of objects.",
    ),
    "a function call of text": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f()"}]},
        "function_call is 'f()', expected JSON of an object with name and arguments, or of a list",
    ),
    "variables that the program sets": (
        {"messages": SUM, "chat_template_kwargs": {"tokenize": False}},
        "chat_template_kwargs sets tokenize, which the program sets itself.",
    ),
    "variables that are none": (
        {"messages": SUM, "chat_template_kwargs": "x"},
        "chat_template_kwargs is 'x', expected an object.",
    ),
    "another system": (
        {"messages": TALK, "system": "Be verbose."},
        "has a system beside messages that begin with another one; keep one.",
    ),
    "images": ({"messages": SUM, "images": ["a.png"]}, "has images, which is not read; the model reads text alone;"),
    "documents": ({"messages": SUM, "documents": [{"text": "a"}]}, "has documents, which is not read; write them"),
    "functions": ({"messages": SUM, "functions": [{"name": "f"}]}, "has functions, which is not read; write them as"),
    "a record's weight": ({"messages": SUM, "weight": 2}, "has a weight, which is not read; repeat or leave out"),
    "a context": (
        {"prompt": "a", "completion": "b", "context": "c"},
        "has a context beside prompt, which is not read;",
    ),
    "a key twice": (Raw('{"prompt": "a", "prompt": "b", "completion": "c"}'), "the key 'prompt' is there twice"),
    "no number": (Raw('{"prompt": "a", "completion": "b", "score": NaN}'), "NaN is no number of JSON"),
    "a long number": (Raw('{"prompt": "a", "n": ' + "9" * 5000 + "}"), "a number has too many digits"),
    "deep brackets": (Raw('{"prompt": ' + "[" * 3000 + "]" * 3000 + "}"), "brackets are nested too deep"),
    "half a character in a tool": (
        {"messages": SUM, "tools": [{"name": "\ud83d"}]},
        "tools holds half a character (\\ud83d); write the whole one, or take it out.",
    ),
    "no answer": ({"messages": SUM[:1]}, "the last message is the user's, expected the assistant's answer."),
    "a question at the end": (
        {"conversations": SHAREGPT[:-1]},
        "the last message is the user's, expected the assistant's answer.",
    ),
    "half a character": (
        {"prompt": "a\ud83d", "completion": "b"},
        "prompt holds half a character (\\ud83d); write the whole one, or take it out.",
    ),
    "half a character in an input": (
        {"instruction": "a", "input": "\udc00", "output": "b"},
        "input holds half a character (\\udc00); write the whole one, or take it out.",
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_with_file_and_place(case: str, tmp_path: Path) -> None:
    record, problem = BAD[case]
    good = {"prompt": "a", "completion": "b"}
    lines = tmp_path / "data.jsonl"
    spelled = record if isinstance(record, Raw) else json.dumps(record)
    lines.write_text("\n".join(["", json.dumps(good), "", spelled, json.dumps(good)]))
    table = tmp_path / "data.json"
    table.write_text(f"[{json.dumps(good)}, {json.dumps(good)}, {spelled}]")
    for path, place in ((lines, "line 4"), (table, "record 3")):
        with pytest.raises(FormatError) as caught:
            read_examples(path)
        message = str(caught.value)
        assert message.startswith(f"{path}") and place in message and problem in message, message
        assert message.isprintable() and message.endswith(".")


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
        ("data.jsonl", b"\n\n[" + b"[" * 100_000, r"data\.jsonl: is not JSON \(record 1: brackets are nested too deep"),
        ("data.jsonl", b'{"prompt": "a", "completion": "b"}\n' + b"[" * 100_000, r"line 2: is not JSON \(brackets are"),
        ("data.json", b"[" * 100_000, r"data\.json: is not JSON \("),
        ("data.json", b'[{"prompt": "a"', r"data\.json: is not JSON \(record 1: .+\); expected a list of records, or"),
        ("data.json", b'[{"prompt": "a", "completion": "b"},]', r"\(record 2: a record is missing after a comma\)"),
        ("data.json", b'[{"prompt": "a", "completion": "b"}', r"\(record 1: a comma or the end of the list is missing"),
        ("data.json", b'[{"prompt": "a", "completion": "b"}] {}', r"data\.json: has more after the end of its list"),
        ("data.jsonl", b'{"prompt": "a", "completion": "b"},\n{}', r"line 1: is not JSON \(it ends in a comma, as a"),
        ("data.jsonl", b'{"prompt":\n"a", "completion": "b"}\n{"prompt":\n"a"}', r"over several lines, .*: jq -c \. "),
        (
            "data.json",
            b'{"train": [{"prompt": "a", "completion": "b"}]}',
            r"line 1: is .*under the key 'train', .*json",
        ),
        ("data.jsonl", b"", r"data\.jsonl: holds no examples; expected one JSON object a line\."),
        ("data.jsonl", b"\n \n", r"data\.jsonl: holds no examples"),
        ("data.json", b"[]", r"data\.json: holds no examples"),
        (
            "data.jsonl",
            b'{"prompt": "\xff"}',
            r"data\.jsonl, line 1: is not UTF-8 text \(invalid start byte at byte 12 of",
        ),
        (
            "data.json",
            b'[{"prompt": "\xe4"}]',
            r"data\.json: is not UTF-8 text \(.+ at byte 13 .+ iconv -f LATIN1 -t UTF-8",
        ),
        (
            "data.jsonl",
            b'{"prompt": "a", "completion": "b"}\n' + bytes(99),
            r"data\.jsonl: holds NUL bytes \(.* at byte 35",
        ),
        ("data.jsonl", bytes(9), r"data\.jsonl: holds NUL bytes"),
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
    with pytest.raises(FormatError, match=r"is a directory without text files \(.*\); give a folder that has some"):
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


@pytest.mark.unit
@pytest.mark.parametrize(
    ("record", "method"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--preference dpo, orpo or kto trains on"),
        ({"prompt": "a", "completion": "b", "label": True}, "--preference kto trains on"),
    ],
)
def test_preferences_are_refused_with_what_trains_on_them(record: dict[str, Any], method: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(FormatError, match=rf"line 1: is .*{method}.*; convert the file"):
        read_examples(path)

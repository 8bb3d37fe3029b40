"""Where answers stand in the rendering of a template: by marks, beginnings, or another answer in its place."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from entrenar.data import Example, encode_example
from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io.tokenizer import CHATML_TEMPLATE, Tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Uno."}]
SECOND = [{"role": "user", "content": "And two?"}, {"role": "assistant", "content": "Dos. Really."}]
CONVERSATIONS = {
    "one turn": FIRST,
    "a system message": [SYSTEM, *FIRST],
    "two turns": [*FIRST, *SECOND],
    "two turns and a system message": [SYSTEM, *FIRST, *SECOND],
    "the same answer twice": [*FIRST, *FIRST],
    "an answer that the question has": [{"role": "user", "content": "Uno."}, FIRST[1], *SECOND],
    "white space around": [{"role": "user", "content": " One? "}, {"role": "assistant", "content": " Uno.\n"}],
    "special tokens inside": [FIRST[0], {"role": "assistant", "content": "a <|im_end|> b"}, *SECOND],
    "thinking": [
        FIRST[0],
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nUno."},
        SECOND[0],
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nDos."},
    ],
    "two answers in a row": [*FIRST, SECOND[1]],
    "begins with an answer": [FIRST[1], *SECOND],
    "unicode": [FIRST[0], {"role": "assistant", "content": "Grüße ☃ 🎉"}, *SECOND],
}
TEMPLATES = {
    "chatml": CHATML_TEMPLATE,
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
        "{% elif m.role == 'system' %}{{ '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
    "a system message of its own": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + CHATML_TEMPLATE
    ),
    "the end of text at the end": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "thinking dropped from earlier turns": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip() }}{% endif %}"
        "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "thinking dropped and begun": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<A>"
        "{{ m.content.split('</think>')[-1] + eos_token }}{% else %}<U>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<A><think>\n{% endif %}"
    ),
}


@functools.cache
def vocabulary() -> Tokenizer:
    return Tokenizer.train([m["content"] for chat in CONVERSATIONS.values() for m in chat] * 2, 320)


def with_template(template: str, **more: Any) -> Tokenizer:
    base = vocabulary()
    ids = {"bos_id": base.unk_id, "eos_id": base.eos_id, "pad_id": base.pad_id}
    return Tokenizer(base.backend, **ids, chat_template=template, **more)


def trained_texts(example: Example, tokenizer: Tokenizer) -> list[str]:
    """The text of each run of trained tokens."""
    sample = encode_example(example, tokenizer)
    runs = itertools.groupby(
        zip(sample.tokens.tolist(), sample.trained.tolist(), strict=True), key=lambda pair: pair[1]
    )
    return [tokenizer.decode([index for index, _ in run], skip_special=False) for marked, run in runs if marked]


# ---------------------------------------------------------------------- what worked before
def former(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]] | None:
    """Tokens and mask by beginnings alone, as they were; None where a template does not write them."""
    segments: list[tuple[str, bool]] = []
    done, end = "", tokenizer.token(tokenizer.eos_id)
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt = tokenizer.render_chat(example.messages[:index], add_generation_prompt=True).text
            whole = tokenizer.render_chat(example.messages[: index + 1]).text
        except EntrenarError:
            return None
        if not prompt:
            return None  # before, all of a first answer was trained, what stands before it too
        if not prompt.startswith(done) or not whole.startswith(prompt):
            return None
        answer = whole[len(prompt) :]
        cut = answer.rindex(end) + len(end) if end in answer else len(answer)
        cut = len(answer) if answer[cut:].strip() else cut
        segments += [(prompt[len(done) :], False), (answer[:cut], True), (answer[cut:], False)]
        done = whole
    text = "".join(part for part, _ in segments)
    borders = list(itertools.accumulate(len(part) for part, _ in segments))
    ids, offsets = tokenizer.encode_with_offsets(text)
    marks = []
    for start, stop in offsets:
        place = next(i for i, border in enumerate(borders) if start < border)
        if stop > borders[place]:
            return None  # a token across a border: cut there, before
        marks.append(segments[place][1])
    return ids, [False, *marks[1:]]


@pytest.mark.unit
def test_what_was_written_by_beginnings_has_the_same_tokens_and_marks() -> None:
    same = 0
    for template, messages in itertools.product(TEMPLATES.values(), CONVERSATIONS.values()):
        tokenizer = with_template(template)
        before = former(Example(messages), tokenizer)
        if before is not None:
            sample = encode_example(Example(messages), tokenizer)
            assert (sample.tokens.tolist(), sample.trained.tolist()) == before
            same += 1
    assert same > 60


# ---------------------------------------------------------------------- templates that write earlier turns anew
@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("thinking dropped from earlier turns", ["Uno.<|im_end|>", "<think>\nwell\n</think>\n\nDos.<|im_end|>"]),
        ("thinking dropped and begun", ["\n\nUno.<|im_end|>", "\n\nDos.<|im_end|>"]),
        (
            "the end of text at the end",
            ["<think>\nhm\n</think>\n\nUno.<|end|>\n", "<think>\nwell\n</think>\n\nDos.<|end|>\n<|im_end|>"],
        ),
    ],
)
def test_what_is_written_of_an_answer_is_trained(name: str, expected: list[str]) -> None:
    backend = vocabulary().backend
    backend = type(backend).from_str(backend.to_str())
    backend.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>", "<A>", "<U>"])
    base = vocabulary()
    tokenizer = Tokenizer(backend, bos_id=base.unk_id, eos_id=base.eos_id, chat_template=TEMPLATES[name])
    example = Example(CONVERSATIONS["thinking"])
    assert trained_texts(example, tokenizer) == expected
    assert encode_example(example, tokenizer).tokens.tolist() == tokenizer.apply_chat_template(example.messages)


@pytest.mark.unit
def test_an_answer_that_stands_elsewhere_too_is_found_where_it_was_given() -> None:
    tokenizer = with_template(TEMPLATES["thinking dropped from earlier turns"])
    for name in ("the same answer twice", "an answer that the question has"):
        sample = encode_example(Example(CONVERSATIONS[name]), tokenizer)
        text = tokenizer.decode(sample.tokens[: int(sample.trained.argmax())].tolist(), skip_special=False)
        assert text == f"<|im_start|>user\n{CONVERSATIONS[name][0]['content']}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.unit
def test_a_conversation_that_begins_with_an_answer() -> None:
    messages = CONVERSATIONS["begins with an answer"]
    own = with_template(TEMPLATES["a system message of its own"])  # reads messages[0]
    assert trained_texts(Example(messages), own) == ["Uno.<|im_end|>", "Dos. Really.<|im_end|>"]
    assert encode_example(Example(messages), own).tokens.tolist() == own.apply_chat_template(messages)
    strict = with_template(
        "{% if messages[0].role != 'user' %}{{ raise_exception('Begin with a user, please.') }}{% endif %}"
        + CHATML_TEMPLATE
    )
    with pytest.raises(
        ConfigError,
        match=r"^chats\.jsonl, line 3: The chat template refuses the messages: Begin with a user, please\.$",
    ):
        encode_example(Example(messages, where="chats.jsonl, line 3"), strict)


@pytest.mark.unit
@pytest.mark.parametrize("before", [[], [SYSTEM], FIRST], ids=["nothing", "a system message", "an answer"])
def test_a_header_is_never_trained_where_no_prompt_is_written(before: list[dict[str, str]]) -> None:
    """Templates that write a prompt for generation after a user's message alone."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
        "{% if loop.last and add_generation_prompt and m.role == 'user' %}<|assistant|>\n{% endif %}{% endfor %}"
    )
    example = Example([*before, SECOND[1]])
    assert trained_texts(example, with_template(template))[-1] == "Dos. Really.<|im_end|>"


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "does not show where message 2 of 4 stands",
        ),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "does not show where message 2 of 4 stands"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}"
            "{% for m in messages | reverse if m.role == 'assistant' %}A: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}A: {% endif %}",
            "in another order than the conversation has",
        ),
        (
            "{% for m in messages %}{{ m.content }} {% endfor %}{{ messages[-1].content }}!"
            "{% if add_generation_prompt %}?{% endif %}",
            "does not show where message",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{{ eos_token }}{% endif %}"
            "{% endfor %}",
            "leaves out what message 2 of 4 says (role assistant, 'Uno.')",
        ),
        (
            "{% for m in messages %}{{ m.role ~ ':' ~ m.content }}{% if loop.last %}STOP{% else %};{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "does not show where message 2 of 4 stands",
        ),
    ],
)
def test_a_place_that_is_not_certain_is_refused_with_file_and_line(template: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_example(Example(CONVERSATIONS["two turns"], where="chats.jsonl, line 7"), with_template(template))
    assert str(caught.value).startswith("chats.jsonl, line 7: The chat template ")
    assert message in str(caught.value)


@pytest.mark.unit
def test_training_on_prompts_needs_no_places() -> None:
    template = "{{ messages | length }}{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    tokenizer = with_template(template)
    sample = encode_example(Example(CONVERSATIONS["two turns"]), tokenizer, train_on_prompt=True)
    assert sample.tokens.tolist() == tokenizer.apply_chat_template(CONVERSATIONS["two turns"])
    assert sample.trained.tolist() == [False] + [True] * (len(sample) - 1)


# ---------------------------------------------------------------------- generation blocks
BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.peers
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_generation_blocks_are_marked_as_transformers_marks_them(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = with_template(BLOCKS)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, chat_template=BLOCKS)
    expected = theirs.apply_chat_template(CONVERSATIONS[name], return_assistant_tokens_mask=True, return_dict=True)
    sample = encode_example(Example(CONVERSATIONS[name]), tokenizer)
    assert sample.tokens.tolist() == expected["input_ids"]
    assert sample.trained.tolist() == [bool(mark) for mark in expected["assistant_masks"]]


@pytest.mark.unit
def test_a_generation_block_whose_place_is_not_known_is_refused() -> None:
    hidden = (
        "{% macro answer(m) %}A: {% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ answer(m) }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="has a generation block inside a macro or a variable"):
        encode_example(Example(FIRST), with_template(hidden))
    none = "{% for m in messages %}{{ m.content }}{% if m.role == 'x' %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(ConfigError, match="generation blocks hold nothing of this conversation"):
        encode_example(Example(FIRST), with_template(none + "{% endfor %}"))


# ---------------------------------------------------------------------- answers that are left out
@pytest.mark.unit
@pytest.mark.parametrize(
    "template", [CHATML_TEMPLATE, BLOCKS, BLOCKS.replace("{{ m.content }}<|im_end|>{% endg", "{{ m.content }}"
    "{% endgeneration %}{% generation %}<|im_end|>{% endg"), TEMPLATES["thinking dropped from earlier turns"]]
)  # fmt: skip
def test_answers_that_are_left_out_are_not_trained(template: str) -> None:
    tokenizer = with_template(template)
    chat = [*FIRST, *SECOND]
    both = encode_example(Example(chat), tokenizer)
    if template.count("endgeneration") == 2:  # nothing in the second block tells whose it is
        assert "Uno" not in "".join(trained_texts(Example(chat, left_out=frozenset({1})), tokenizer))
        return
    assert trained_texts(Example(chat, left_out=frozenset({1})), tokenizer) == ["Dos. Really.<|im_end|>"]
    assert trained_texts(Example(chat, left_out=frozenset({3})), tokenizer) == ["Uno.<|im_end|>"]
    assert trained_texts(Example(chat, left_out=frozenset({1, 3})), tokenizer) == []
    left = encode_example(Example(chat, left_out=frozenset({1})), tokenizer, train_on_prompt=True)
    np.testing.assert_array_equal(left.tokens, both.tokens)
    first = encode_example(Example(chat, left_out=frozenset({3})), tokenizer)
    assert (left.trained[1:] == ~first.trained[1:]).all()


# ---------------------------------------------------------------------- tools
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "name": "weather"},
    {"role": "assistant", "content": "It is sunny."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


WITHOUT = [CALLS[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}, *CALLS[2:]]  # as OpenAI has it
ASKING = WITH_TOOLS.replace("{{ m.content }}", "{{ m.content + '' }}")


@pytest.mark.unit
def test_calls_are_trained_as_the_template_writes_them() -> None:
    written = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>'
    example = Example(CALLS, tools=TOOLS)
    assert trained_texts(example, with_template(WITH_TOOLS)) == [f"I look.{written}", "It is sunny.<|im_end|>"]
    alone = [CALLS[0], {"role": "assistant", "tool_calls": [CALL]}, *CALLS[2:]]
    assert trained_texts(Example(alone, tools=TOOLS), with_template(WITH_TOOLS))[0] == written
    shorter = WITH_TOOLS.replace(
        "{{ m.content }}", "{{ (m.content or '') if loop.last else (m.content or '') | replace('.', '') }}"
    )
    assert trained_texts(Example(CALLS, tools=TOOLS), with_template(shorter))[0] == f"I look{written}"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("messages", "tools", "template", "message"),
    [
        (CALLS, None, CHATML_TEMPLATE, "leaves out the tool_calls of message 2 of 4"),
        (FIRST, TOOLS, CHATML_TEMPLATE, "writes no tools, and the record has some"),
        (
            CALLS,
            TOOLS,
            WITH_TOOLS.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' else '' }}"),
            "leaves out what message 3 of 4 says (role tool, 'sunny')",
        ),
        (
            [FIRST[0], {**FIRST[1], "reasoning_content": "because"}],
            None,
            CHATML_TEMPLATE,
            "writes no reasoning_content, and message 2 of 2 has some",
        ),
        (
            [SYSTEM, *FIRST],
            None,
            CHATML_TEMPLATE.replace("in messages", "in messages[-2:]"),
            "(role system, 'Be brief.')",
        ),
        (CALLS[:3], None, "{{ messages[0].content + 5 }}", "failed on these messages"),
        (WITHOUT, None, CHATML_TEMPLATE, "leaves out the tool_calls of message 2 of 4"),
        (
            WITHOUT,
            None,
            ASKING,
            "asks for the content of message 2 of 4, which has none (null counts as none); give it",
        ),
        (WITHOUT, None, ASKING + "{{ messages + 1 }}", "failed on these messages"),
        (CALLS, None, None, "has no chat template, and message 2 comes with tool_calls"),
        (FIRST, TOOLS, None, "has no chat template, and message 1 comes with tools"),
        ([*FIRST, CALLS[2], CALLS[3]], None, None, "message 3 comes with the role tool"),
    ],
)
def test_what_a_template_does_not_write_is_refused_by_name(
    messages: Sequence[Any], tools: Any, template: Any, message: str
) -> None:
    with pytest.raises((ConfigError, FormatError)) as caught:
        encode_example(Example(list(messages), tools=tools, where="d.jsonl, line 2"), with_template(template))
    assert str(caught.value).startswith("d.jsonl, line 2: ")
    assert message in str(caught.value)

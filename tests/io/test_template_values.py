"""What a chat template is given: messages, special tokens, variables, the run's date; and what is no option."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from entrenar.data import Example, encode_example
from entrenar.errors import ConfigError, FormatError
from entrenar.io.chat_template import compile_template
from entrenar.io.rendering import rendering_date, today
from entrenar.io.template_files import named_templates
from entrenar.io.tokenizer import CHATML_TEMPLATE, Tokenizer

from .test_chat_template import base_tokenizer, with_template

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def text(template: str, messages: Any = CHAT, **options: Any) -> str:
    return with_template(template).apply_chat_template(messages, tokenize=False, **options)


# ---------------------------------------------------------------------- ids or text
@pytest.mark.unit
def test_ids_are_given_unless_the_text_is_asked_for() -> None:
    tokenizer = with_template(CHATML_TEMPLATE)
    written = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    assert ids == tokenizer.encode(written)
    assert ids[0] == tokenizer.id("<|im_start|>")
    assert ids.count(tokenizer.id("<|im_end|>")) == 2
    assert tokenizer.decode(ids, skip_special=False) == written


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continue_final_message": True}, "continue_final_message is no option here; cut the rendered text"),
        ({"return_tensors": "pt"}, "return_tensors is no option here; make an array of the ids"),
        ({"chat_template": "x"}, "chat_template is no option here; set the tokenizer's chat_template"),
        ({"return_assistant_tokens_mask": True}, "call entrenar.data.encode_example"),
    ],
)
def test_options_of_transformers_that_are_not_here_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        text("x", **options)
    assert str(caught.value).startswith("apply_chat_template: ")
    assert message in str(caught.value)
    assert text("x", **dict.fromkeys(options)) == "x"  # None and False ask for nothing
    with pytest.raises(ConfigError, match="is no option here"):
        encode_example(Example(CHAT, variables=options), with_template(CHATML_TEMPLATE))


@pytest.mark.unit
def test_a_conversation_has_a_message() -> None:
    with pytest.raises(ConfigError, match=r"^The conversation has no messages; expected at least one\.$"):
        text("x", [])


# ---------------------------------------------------------------------- messages
@pytest.mark.unit
def test_keys_that_are_none_are_not_there() -> None:
    message = {"role": "user", "content": "Hi", "tool_calls": None, "name": None}
    assert text("{{ messages[0] | list }}{{ 'name' in messages[0] }}", [message]) == "['role', 'content']False"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_given_under_each_of_its_names(name: str) -> None:
    message = {"role": "assistant", "content": "Hi", name: "because"}
    assert text("{{ messages[0].reasoning_content }},{{ messages[0].thinking }}", [message]) == "because,because"


class Shouting(str):
    """A text with a method that a template must not call."""

    def shout(self) -> str:
        return self.upper()


@pytest.mark.unit
def test_values_are_copied_as_plain_data() -> None:
    message = {"role": "user", "content": Shouting("hi"), "more": (1, 2.5, [True, None, {"a": Shouting("b")}])}
    assert text("{{ messages[0].content }}{{ messages[0].more }}", [message]) == "hi(1, 2.5, [True, None, {'a': 'b'}])"
    assert text("{{ messages[0].content.shout is defined }}", [message]) == "False"
    with pytest.raises(ConfigError, match=r"^A message holds a set, expected text, numbers, lists and mappings\.$"):
        text("x", [{"role": "user", "content": {1}}])
    with pytest.raises(ConfigError, match=r"^A message is 'Hi', expected a mapping with role and content\.$"):
        text("x", ["Hi"])


@pytest.mark.unit
def test_special_tokens_that_a_vocabulary_lacks_are_undefined() -> None:
    base = base_tokenizer()
    bare = Tokenizer(base.backend, eos_id=base.eos_id, chat_template="{{ bos_token is defined }}{{ eos_token }}")
    assert bare.apply_chat_template(CHAT, tokenize=False) == "False<|im_end|>"


@pytest.mark.unit
def test_variables_reach_the_template_of_an_example() -> None:
    template = CHATML_TEMPLATE + "{% if thinking_off %}!{% endif %}{{ documents[0].text }}"
    tokenizer = with_template(template)
    example = Example(CHAT, variables={"thinking_off": True, "documents": [{"text": "D"}]})
    written = tokenizer.decode(encode_example(example, tokenizer).tokens.tolist(), skip_special=False)
    assert written.endswith("<|im_end|>\n!D")


# ---------------------------------------------------------------------- the date
@pytest.mark.unit
def test_a_run_keeps_its_date() -> None:
    template = "{{ strftime_now('%d %b %Y, %H:%M:%S') }}"
    with rendering_date(datetime(2031, 2, 3, 4, 5, 6)):
        assert text(template) == "03 Feb 2031, 04:05:06"
        with rendering_date(datetime(2032, 1, 1)):
            assert today() == datetime(2032, 1, 1)
        assert text(template) == "03 Feb 2031, 04:05:06"
        first = encode_example(Example(CHAT), with_template("{{ strftime_now('%f') }}" + CHATML_TEMPLATE))
    assert abs((datetime.now() - today()).total_seconds()) < 60
    with rendering_date(datetime(2031, 2, 3, 4, 5, 6)):
        again = encode_example(Example(CHAT), with_template("{{ strftime_now('%f') }}" + CHATML_TEMPLATE))
    assert first.tokens.tolist() == again.tokens.tolist()


@pytest.mark.unit
def test_the_renderings_of_one_conversation_have_one_date() -> None:
    """A template that writes microseconds would else write each beginning in another way."""
    sample = encode_example(Example(CHAT), with_template("{{ strftime_now('%f') }}" + CHATML_TEMPLATE))
    assert sample.trained.any() and not sample.trained.all()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("template", "uses"),
    [
        ("{{ strftime_now('%Y') }}", True),
        ("{% if strftime_now is defined %}x{% endif %}", True),
        ("{% macro f() %}{{ strftime_now('%Y') }}{% endmacro %}", True),
        ("{{ messages[0].strftime_now }}{{ 'strftime_now' }}", False),
        (CHATML_TEMPLATE, False),
    ],
)
def test_whether_a_template_writes_a_date(template: str, uses: bool) -> None:
    assert compile_template(template).uses_date == uses


# ---------------------------------------------------------------------- named templates
@pytest.mark.unit
def test_with_tools_the_template_named_tool_use_is_taken() -> None:
    base = base_tokenizer()
    tokenizer = Tokenizer(base.backend, chat_template="D", templates={"tool_use": "T{{ tools | length }}", "x": "X"})
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "D"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, tools=[]) == "T0"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, tools=[{"type": "function"}]) == "T1"
    nameless = Tokenizer(base.backend, templates={"b": "B", "a": "A"})
    with pytest.raises(ConfigError, match=r"has chat templates named \['a', 'b'\] and none named default"):
        nameless.apply_chat_template(CHAT)


@pytest.mark.unit
def test_named_templates_of_a_gguf_file() -> None:
    metadata = {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T", "tokenizer.ggml.pre": "x"}
    assert named_templates(metadata) == {"tool_use": "T"}
    with pytest.raises(FormatError, match=r"^tokenizer\.chat_template\.a is 5, expected text\.$"):
        named_templates({"tokenizer.chat_template.a": 5})

"""Chat templates: written as transformers writes them, in a sandbox that shows nothing else."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer

CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße ☃\n\n  two"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": " and {{ 7*7 }} <|im_end|>?"},
        {"role": "assistant", "content": "49 \n"},
    ],
]


@functools.cache
def base_tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text"], 300)


def with_template(template: Any) -> Tokenizer:
    base = base_tokenizer()
    return Tokenizer(base.backend, bos_id=base.bos_id, eos_id=base.eos_id, pad_id=base.pad_id, chat_template=template)


TEMPLATES = {
    "trims blocks": "{% for m in messages %}\n {% if m.role == 'user' %}\n{{ m.content }}\n {% endif %}\n{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}|{% endfor %}",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ 'ü' | tojson(ensure_ascii=True) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "special tokens": "{{ bos_token }}{{ messages[-1].content.strip() }}{{ eos_token }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0].role) }}{{ tools }}{{ documents is none }}",
    "prompt": "{{ messages | length }}{% if add_generation_prompt %}A:{% endif %}{{ undefined_thing }}",
    "today": "{{ strftime_now('%Y-%m') }}",
}


@pytest.mark.peers
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_mean_what_they_mean_in_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = with_template(TEMPLATES[name])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.backend, bos_token=ours.token(ours.bos_id), eos_token=ours.token(ours.eos_id)
    )
    for chat in CHATS:
        expected = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
        )
        assert ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{% if %}", FormatError, "The chat template is no valid Jinja template: Expected an expression"),
        ("{{ x ", FormatError, "is no valid Jinja template"),
        ("{% frobnicate %}", FormatError, "is no valid Jinja template: Encountered unknown tag 'frobnicate'"),
        ("(" * 5000, None, ""),
        ("{{ " + "(" * 5000, FormatError, "is no valid Jinja template"),
        ("{% if 1 %}" * 100 + "{% endif %}" * 100, FormatError, "is no valid Jinja template"),
        ("{% for x in [1] %}" * 30 + "{% endfor %}" * 30, FormatError, "is no valid Jinja template"),
        ("{{ x" + ".a" * 5000 + " }}", FormatError, "is no valid Jinja template: maximum recursion depth exceeded"),
        ("{{ " + "not " * 5000 + "x }}", FormatError, "is no valid Jinja template: maximum recursion depth exceeded"),
        ("{{ x" + "|e" * 5000 + " }}", FormatError, "is no valid Jinja template: maximum recursion depth exceeded"),
        ("{{ 1" + " + 1" * 5000 + " }}", FormatError, "is no valid Jinja template: maximum recursion depth exceeded"),
        ("half \ud800 here", FormatError, "The chat template holds half a character (\\ud800) at 5; mend it."),
        ("{{ '\\udfff' }}", FormatError, "The chat template writes half a character (\\udfff); mend the template."),
        ("{{ 1 / 0 }}", FormatError, "failed on these messages: division by zero"),
        ("{{ messages[0] + 1 }}", FormatError, "failed on these messages: unsupported operand"),
        ("{{ messages[0].nothing.more }}", FormatError, "failed on these messages: 'dict object' has no attribute"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", FormatError, "failed on these messages: maximum recursion"),
        ("{{ 'x'.join(5) }}", FormatError, "failed on these messages"),
        ("{{ raise_exception('roles must alternate') }}", ConfigError, "refuses the messages: roles must alternate"),
        (None, ConfigError, "The tokenizer has no chat template; format the prompt as plain text."),
    ],
)
def test_a_template_that_fails_is_one_clear_sentence(
    template: str | None, error: type[Exception] | None, message: str
) -> None:
    tokenizer = with_template(template)
    if error is None:
        assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == template
        return
    with pytest.raises(error, match=re.escape(message)) as caught:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert "\n" not in str(caught.value)

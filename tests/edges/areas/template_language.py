"""What a chat template may use: Jinja's filters, tests, globals and statements, methods of texts, variables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jinja2.defaults
import jinja2.filters
import jinja2.sandbox
import jinja2.tests

from entrenar.io.tokenizer import Tokenizer

from .. import chats
from ..harness import Variation, Verdict, judge

AREA = "the language of chat templates"
REFERENCE = "transformers"
CHAT = [
    chats.SYSTEM,
    *chats.TURN,
    chats.user("Grüße\n <b>&amp;</b> 3.7 you@example.org http://example.org"),
    chats.answer("no"),
]
TEXT = "messages[3].content"
NUMBERS = "[3, 1, 2, 1]"

# An expression for each filter that Jinja has; a filter of a new version has none yet and fails.
FILTERS = {
    "abs": "{{ -3 | abs }}",
    "attr": "{{ messages | attr('x') }}{{ namespace(a=1) | attr('a') }}",
    "batch": "{{ range(7) | batch(3, '-') | list }}",
    "capitalize": f"{{{{ {TEXT} | capitalize }}}}",
    "center": f"{{{{ {TEXT} | center(90) }}}}|{{{{ 'a' | center }}}}",
    "count": "{{ messages | count }}",
    "d": "{{ nothing | d('x') }}",
    "default": "{{ nothing | default('x') }}{{ '' | default('y', true) }}",
    "dictsort": "{{ messages[0] | dictsort }}{{ messages[0] | dictsort(by='value', reverse=true) }}",
    "e": f"{{{{ {TEXT} | e }}}}",
    "escape": f"{{{{ {TEXT} | escape }}}}",
    "filesizeformat": "{{ 123456 | filesizeformat }}{{ 123456 | filesizeformat(true) }}",
    "first": "{{ messages | first }}",
    "float": "{{ '3.5' | float + 1 }}{{ 'x' | float(2.0) }}",
    "forceescape": f"{{{{ {TEXT} | forceescape }}}}",
    "format": "{{ '%s is %05.2f' | format('x', 1.5) }}{{ '%(a)s' | format(a=3) }}",
    "groupby": "{% for role, part in messages | groupby('role') %}{{ role }}:{{ part | length }};{% endfor %}",
    "indent": f"{{{{ {TEXT} | indent }}}}{{{{ {TEXT} | indent(2, true, true) }}}}{{{{ 'a\nb' | indent('> ') }}}}",
    "int": "{{ '7' | int + 1 }}{{ 'x' | int }}{{ 'ff' | int(0, 16) }}",
    "items": "{% for key, value in messages[0] | items %}{{ key }}={{ value }};{% endfor %}",
    "join": f"{{{{ {NUMBERS} | join(', ') }}}}{{{{ messages | join('|', attribute='role') }}}}"
    f"{{{{ 'abc' | join('-') }}}}",
    "last": "{{ messages | last }}",
    "length": "{{ messages | length }}",
    "list": "{{ 'abc' | list }}",
    "lower": f"{{{{ {TEXT} | lower }}}}",
    "map": "{{ messages | map(attribute='role') | map('upper') | list }}"
    "{{ messages | map(attribute='x', default='-') | list }}",
    "max": f"{{{{ {NUMBERS} | max }}}}",
    "min": f"{{{{ {NUMBERS} | min }}}}",
    "pprint": "{{ messages | pprint }}",
    "random": "{{ messages | random }}",
    "reject": f"{{{{ {NUMBERS} | reject('odd') | list }}}}",
    "rejectattr": "{{ messages | rejectattr('role', 'equalto', 'user') | list }}",
    "replace": f"{{{{ {TEXT} | replace('e', 'EE') }}}}{{{{ 'aaa' | replace('a', 'b', 2) }}}}"
    f"{{{{ 'ab' | replace('', '-') }}}}",
    "reverse": f"{{{{ 'abc' | reverse }}}}{{{{ {NUMBERS} | reverse | list }}}}",
    "round": "{{ 2.567 | round(2) }}{{ 2.5 | round(0, 'floor') }}{{ 42.4 | round }}",
    "safe": f"{{{{ {TEXT} | safe }}}}",
    "select": f"{{{{ {NUMBERS} | select('odd') | list }}}}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "slice": "{{ range(7) | slice(3) | list }}",
    "sort": f"{{{{ {NUMBERS} | sort }}}}"
    f"{{{{ messages | sort(attribute='role', reverse=true) | map(attribute='role') | list }}}}",
    "string": "{{ 5 | string + 'x' }}{{ messages | string }}",
    "striptags": f"{{{{ {TEXT} | striptags }}}}",
    "sum": f"{{{{ {NUMBERS} | sum }}}}",
    "title": f"{{{{ {TEXT} | title }}}}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ 'ü' | tojson(ensure_ascii=true) }}"
    "{{ {'b': 1, 'a': 2.5} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "trim": "{{ '  x ' | trim }}{{ '--x-' | trim('-') }}",
    "truncate": f"{{{{ {TEXT} | truncate(12) }}}}{{{{ {TEXT} | truncate(9, true, '~', 0) }}}}",
    "unique": f"{{{{ {NUMBERS} | unique | list }}}}"
    f"{{{{ messages | unique(attribute='role') | map(attribute='role') | list }}}}",
    "upper": f"{{{{ {TEXT} | upper }}}}",
    "urlencode": f"{{{{ {TEXT} | urlencode }}}}{{{{ {{'a': 'b c'}} | urlencode }}}}",
    "urlize": f"{{{{ {TEXT} | urlize }}}}",
    "wordcount": f"{{{{ {TEXT} | wordcount }}}}",
    "wordwrap": f"{{{{ {TEXT} | wordwrap(10) }}}}",
    "xmlattr": "{{ {'class': 'a b', 'id': none} | xmlattr }}",
}
RANDOM = {"random", "lipsum"}  # each rendering writes something else: no two sides agree

VALUES = "[5, 4, 0, 1.5, 'a', 'A', 'upper', none, true, false, [1], {'a': 1}, nothing, messages]"
ARGUMENTS = {
    "divisibleby": "(2)", "sameas": "(none)", "in": "([5, 'a'])", "filter": "", "test": "",
    **dict.fromkeys(("eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge"), "(4)"),
}  # fmt: skip
GLOBALS = {
    "range": "{{ range(3) | list }}{{ range(1, 9, 3) | list }}",
    "dict": "{{ dict(a=1, b='x') }}{{ dict.fromkeys('ab', 1) }}",
    "lipsum": "{{ lipsum(n=1) }}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}",
    "joiner": "{% set j = joiner('|') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
    "namespace": "{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.self }}",
}
# For each public method of a text: arguments, or None where the sandbox forbids it or its result is not shown.
METHODS = {
    "capitalize": "", "casefold": "", "center": "20, '*'", "count": "'e'", "encode": "", "endswith": "'org'",
    "expandtabs": "4", "find": "'you'", "format": "1, a=2", "format_map": "{'a': 1}", "index": "'you'", "isalnum": "",
    "isalpha": "", "isascii": "", "isdecimal": "", "isdigit": "", "isidentifier": "", "islower": "", "isnumeric": "",
    "isprintable": "", "isspace": "", "istitle": "", "isupper": "", "join": "['a', 'b']",
    "ljust": "90, '.'", "lower": "",
    "lstrip": "'G'", "maketrans": "'ab', 'cd'", "partition": "' '", "removeprefix": "'Gr'", "removesuffix": "'org'",
    "replace": "'e', 'xyz'", "rfind": "'e'", "rindex": "'e'", "rjust": "90", "rpartition": "' '", "rsplit": "' ', 2",
    "rstrip": "'gro'", "split": "' '", "splitlines": "", "startswith": "'Gr'", "strip": "'Gg'", "swapcase": "",
    "title": "", "translate": "{252: 'ue'}", "upper": "", "zfill": "90",
}  # fmt: skip
STATEMENTS = {
    "blocks trimmed": "{% for m in messages %}\n {% if m.role == 'user' %}\n{{ m.content }}"
    "\n {% endif %}\n{% endfor %}",
    "white space control": "a {%- if true -%} b {%- endif +%} c\n{{- 'd' -}}\n  e",
    "comments": "a{# b #}c{#- d -#} e",
    "raw": "{% raw %}{{ x }}{% endraw %}",
    "break and continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% if loop.index > 3 %}"
    "{% break %}"
    "{% endif %}{{ m.role }}{% endfor %}",
    "all of loop": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
    "{{ loop.first }}"
    "{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}"
    "{{ (loop.previtem or {}).role }}{{ (loop.nextitem or {}).role }}{% else %}none{% endfor %}",
    "for with a condition": "{% for m in messages if m.role == 'user' %}{{ loop.index }}{% else %}none{% endfor %}",
    "for over a mapping": "{% for key in messages[0] %}{{ key }}{% endfor %}{% for k, v in messages[0].items() %}"
    "{{ k }}{{ v }}{% endfor %}",
    "for else": "{% for x in [] %}{% else %}none{% endfor %}",
    "recursive for": "{% for x in [[1, [2, 3]], 4] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}"
    "{% endif %}{% endfor %}",
    "macro": "{% macro f(a, b='x') %}[{{ a }}{{ b }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f(1) }}"
    "{{ f(1, 2, 3, c=4) }}",
    "call": "{% macro f(a) %}<{{ caller(a) }}>{% endmacro %}{% call(x) f('y') %}{{ x }}!{% endcall %}",
    "set block": "{% set x %}a{{ messages | length }}{% endset %}{{ x }}{% set y | upper %}b{% endset %}{{ y }}",
    "set of several": "{% set a, b = 1, 'x' %}{{ a }}{{ b }}",
    "filter block": "{% filter upper | trim %} a {{ messages[0].role }} {% endfilter %}",
    "with": "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "block": "{% block x %}a{% endblock %}{{ self.x() }}",
    "scopes": "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}"
    "{% set x = 3 %}{% endif %}{{ x }}",
    "a name set in a generation block": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}"
    "{% endgeneration %}{{ x }}",
    "autoescape": "{% autoescape true %}{{ '<b>' }}{{ '<i>' ~ 1 }}{{ ['<', '>'] | join('&') }}{% endautoescape %}"
    "{{ '<b>' }}",
    "arithmetic": "{{ 7 // 2 }}{{ 7 / 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ -7 // 2 }}{{ 1 + 2.5 }}{{ +3 }}{{ 3 * 'ab' }}"
    "{{ [1] * 3 }}{{ [1] + [2] }}",
    "texts together": "{{ 'a' ~ 1 ~ none ~ nothing ~ [1, 'x'] }}{{ 'a' + 'b' }}{{ 'a' 'b' }}{{ '%s-%d' % ('x', 3) }}",
    "comparisons": "{{ 1 < 2 <= 2 != 3 }}{{ 'a' in 'abc' }}{{ 1 not in [1] }}{{ not true or false and true }}"
    "{{ 'x' if false }}",
    "slices": "{{ messages[1:3] | length }}{{ 'abcdef'[::-2] }}{{ messages[-1].role }}{{ 'abc'[-1] }}"
    "{{ messages[:-1][0]['role'] }}",
    "literals": "{{ {'a': [1, (2, 3)], 'b': {'c': none}} }}{{ 1_000 }}{{ 0x10 }}{{ 1e3 }}{{ 'é\\n\\u00fc' }}"
    "{{ True }}{{ None }}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ messages[0].nothing }}"
    "{{ messages[0]['nothing'] | default('x') }}",
    "undefined of undefined": "{{ nothing.at.all }}",
    "undefined in a sum": "{{ nothing + 'x' }}",
    "numbers shown": "{{ 0.1 + 0.2 }}{{ 1e20 }}{{ 10 / 5 }}{{ 3 | float }}{{ true + 1 }}",
    "dict methods": "{{ messages[0].keys() | list }}{{ messages[0].values() | list }}{{ messages[0].get('x', 'y') }}"
    "{{ messages[0].copy() }}",
    "list methods": "{{ [1, 2, 1].count(1) }}{{ [1, 2].index(2) }}{{ [1].copy() }}",
    "append": "{% set x = [] %}{{ x.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "do": "{% do messages %}",
    "trans": "{% trans %}x{% endtrans %}",
    "include": "{% include 'x' %}",
    "an unknown tag": "{% frobnicate %}",
    "an unknown filter": "{{ 1 | frobnicate }}",
    "an unknown test": "{{ 1 is frobnicate }}",
    "an unknown function": "{{ frobnicate() }}",
    "an error inside": "{{ 1 / 0 }}",
    "raise_exception": "{{ raise_exception('Roles take turns.') }}",
    "raise_exception without a reason": "{{ raise_exception() }}",
    "strftime_now": "{{ strftime_now('%Y-%m-%d, %A %d %B') }}",
    "strftime_now is defined": "{% if strftime_now is defined %}yes{% endif %}{{ raise_exception is defined }}",
    "a namespace with a private name": "{{ namespace(_a=1) }}",
    "names of Python": "{{ open is defined }}{{ self is defined }}{{ config is defined }}{{ __builtins__ is defined }}",
    "line statements are text": "# for x in y\n## comment\n{{ 1 }}",
    "a last line end": "{{ 1 }}\n",
    "line ends of Windows": "{% if true %}\r\na\r\n{% endif %}\r\nb",
    "unicode": "{{ 'é' }}日本語 {{ messages[3].content }}<\uff5cUser\uff5c>",
    "variables that are given": "{{ messages | length }}{{ tools }}{{ documents }}{{ add_generation_prompt }}"
    "{{ bos_token }}{{ eos_token }}",
    "special tokens that are not there": "{{ pad_token is defined }}{{ unk_token is defined }}"
    "{{ sep_token is defined }}{{ pad_token }}",
}  # fmt: skip


def _written(template: str, options: dict[str, Any], tokenizer: Tokenizer | None = None) -> str:
    made = tokenizer or chats.ours(template, "<s>", "</s>")
    return made.apply_chat_template(CHAT, tokenize=False, **options)


def _ids(template: str, options: dict[str, Any]) -> Any:
    made = chats.ours(template, "<s>", "</s>")
    return made.apply_chat_template(CHAT, tokenize=False, **options), made.apply_chat_template(CHAT, **options)


def _reference(template: str, options: dict[str, Any]) -> Any:
    peer = chats.theirs("<s>", "</s>")
    options = {**options, "chat_template": template}
    text = peer.apply_chat_template(CHAT, tokenize=False, **options)
    return text, peer.apply_chat_template(CHAT, **options)["input_ids"]


def _compare(template: str, names: list[str], options: dict[str, Any], folder: Path) -> Verdict:
    return judge(
        lambda: _ids(template, options), lambda: _reference(template, options), names=names, compared="text and ids"
    )


def _variation(name: str, template: str, names: list[str] | None = None, **options: Any) -> Variation:
    return Variation(AREA, name, REFERENCE, partial(_compare, template, names or ["The chat template"], options))


def _tests() -> list[Variation]:
    made = []
    for name in jinja2.tests.TESTS:
        if name.isidentifier():
            shown = f"x is {name}{ARGUMENTS.get(name, '')}"
            values = "['upper', 'nothing']" if name in ("filter", "test") else "[5, 4, 0]" if name in (
                "divisibleby", "even", "odd", "lt", "lessthan", "le", "gt", "greaterthan", "ge"
            ) else "['a', 'A', 'aB']" if name in ("lower", "upper") else VALUES  # fmt: skip
            made.append(_variation(f"test {name}", f"{{% for x in {values} %}}{{{{ {shown} }}}},{{% endfor %}}"))
    return made


def _methods() -> list[Variation]:
    public = [name for name in dir(str) if not name.startswith("_")]
    return [_variation(f"text.{name}()", f"{{{{ {TEXT}.{name}({METHODS[name]}) }}}}") for name in public]


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "add_generation_prompt": (chats.plain("smollm2"), {"add_generation_prompt": True}),
    "enable_thinking=False": (chats.plain("qwen3"), {"enable_thinking": False, "add_generation_prompt": True}),
    "enable_thinking=True": (chats.plain("qwen3"), {"enable_thinking": True, "add_generation_prompt": True}),
    "a variable of the template's own": (chats.plain("llama3.2"), {"date_string": "1 Jan 2020"}),
    "documents": (chats.plain("granite"), {"documents": [{"title": "a", "text": "b"}]}),
    "controls": (chats.plain("granite"), {"controls": {"length": "short"}, "add_generation_prompt": True}),
    "tools": (chats.plain("llama3.2"), {"tools": [chats.TOOL]}),
    "no tools": (chats.plain("llama3.2"), {"tools": None}),
    "an empty list of tools": (chats.plain("llama3.2"), {"tools": []}),
    "a variable that replaces a special token": ("{{ bos_token }}|{{ eos_token }}", {"bos_token": "<x>"}),
    "variables of every kind": ("{{ a }}{{ b }}{{ c.d[0] }}{{ e }}", {"a": 1, "b": 2.5, "c": {"d": (1, 2)}, "e": None}),
    "continue_final_message": (chats.plain("smollm2"), {"continue_final_message": True}),
}

VARIATIONS = [
    *(
        _variation(
            f"filter {name}",
            FILTERS[name],
            ["The chat template writes something else each time"] if name in RANDOM else None,
        )
        for name in jinja2.filters.FILTERS
    ),
    *_tests(),
    *(_variation(f"global {name}", GLOBALS[name]) for name in jinja2.defaults.DEFAULT_NAMESPACE),
    *_methods(),
    *(_variation(name, template) for name, template in STATEMENTS.items()),
    *(
        _variation(f"given {name}", template, ["continue_final_message"] if "continue" in name else None, **options)
        for name, (template, options) in OPTIONS.items()
    ),
]

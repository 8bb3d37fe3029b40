"""Chat templates from outside: none leaves its sandbox, none takes the machine's time or memory."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.io.chat_template import SAFE_JINJA, compile_template
from entrenar.io.template_bounds import SECONDS

ROOT = Path(__file__).parents[2]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
SECRET = "a-secret-of-this-process"


def render(text: str) -> str:
    values = {"messages": CHAT, "tools": None, "documents": None, "add_generation_prompt": False, "bos_token": "<s>"}
    return compile_template(text).render(values).text


# ---------------------------------------------------------------------- what reaches out
GLOBALS = "__globals__"
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ [].__class__.__bases__[0].__subclasses__() }}",
    "{{ {}.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ messages[0].__getattribute__('__class__') }}",
    "{{ (messages | attr('__class__')) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{{ messages | groupby('__class__') }}",
    "{{ messages | sort(attribute='__class__') }}",
    "{{ messages | sum(attribute='__class__') }}",
    "{{ messages | join(',', attribute='__class__') }}",
    "{{ messages | unique(attribute='__class__.__mro__') | list }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{0.__class__}'|attr('format')(messages) }}",
    "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': messages}) }}",
    "{{ '{x.__class__}'|attr('format_map')({'x': messages}) }}",
    "{{ ['{0.__class__.__init__.__globals__}'] | map('format', messages) | list }}",
    "{{ ['format'] | map('attr', '{0.__class__}') | list }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{% set f = '{0.__class__}'['format'] %}{{ f(messages) }}",
    "{{ [messages] | map('{0.__class__}'.format) | list }}",
    "{% macro m(f) %}{{ f(messages) }}{% endmacro %}{{ m('{0.__class__}'.format) }}",
    "{{ '%(x)s' % {'x': cycler.__init__} }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception['__globals__'] }}",
    "{{ raise_exception.__code__ }}",
    "{{ raise_exception.func_globals }}",
    "{{ strftime_now.__globals__['os'].environ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os.environ }}",
    "{{ namespace.__init__.__globals__.os.environ }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ lipsum.__globals__.os.environ }}",
    "{{ range.__class__ }}",
    "{{ dict.__base__ }}",
    "{{ dict.mro() }}",
    "{{ dict.__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self._TemplateReference__context.environment }}",
    "{% for x in [1] %}{{ loop.__class__ }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator }}{{ loop._iterable }}{% endfor %}",
    "{% macro m() %}{{ caller.__class__ }}{{ caller._func }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m._environment }}{{ m._func.__globals__ }}",
    "{% set g = messages | map('upper') %}{{ g.gi_frame }}{{ g.gi_code }}",
    "{% set g = messages | map('upper') %}{{ g.gi_frame.f_globals }}{{ g.gi_frame.f_back }}",
    "{% set g = messages | select %}{{ g | attr('gi_frame') }}",
    "{{ undefined_thing.__class__ }}",
    "{{ undefined_thing._undefined_exception }}",
    "{{ cycler('a').__class__ }}{{ cycler('a')._pos }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
    "{{ namespace(a=1)._Namespace__attrs }}",
    "{{ 'a'.encode().__class__ }}",
    "{{ (1).__class__.__mro__ }}",
    "{{ (1).real.__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{% set x = messages.clear() %}",
    "{% set x = messages.sort() %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% from 'os' import environ %}{{ environ }}",
    "{% extends '/etc/passwd' %}",
    "{{ config }}{{ request }}{{ g }}{{ os }}{{ open }}{{ eval }}{{ __import__ }}{{ __builtins__ }}",
    "{{ context }}{{ environment }}{{ resolve }}{{ undefined.__class__ }}",
    "{% set x = 'a'.join %}{{ x.__self__ }}{{ x.__class__ }}",
    "{{ ('a'|safe).__html__.__globals__ }}",
    "{{ ('a'|safe).format.__globals__ }}",
    "{{ ('{0.__class__}'|safe).format(messages) }}",
    "{{ ('{0.__class__}'|e).format(messages) }}",
    "{{ messages|first|items|first|attr('__class__') }}",
]  # fmt: skip
LEAKS = ("<class", "<function", "<module", "environ", "builtin_function", "gi_", "<frame", "<code", SECRET, "root:")


@pytest.mark.chaos
@pytest.mark.parametrize("attack", ESCAPES)
def test_the_sandbox_shows_nothing_of_the_process(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTRENAR_TEST_SECRET", SECRET)
    before = [dict(message) for message in CHAT]
    try:
        written = render(attack)
    except (FormatError, ConfigError) as error:
        written = str(error)
        assert written.isprintable() and written.endswith(".")
        written = written.replace("is unsafe", "")
    else:
        assert not any(leak in written for leak in LEAKS), written
    assert SECRET not in written
    assert before == CHAT


@pytest.mark.chaos
@pytest.mark.parametrize("version", ["2.11.3", "3.1.5", "3.0"])
def test_a_jinja_that_lets_templates_out_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja2, "__version__", version)
    compile_template.cache_clear()
    with pytest.raises(ConfigError, match=rf"^jinja2 {version} is installed, .* expected 3\.1\.6 or newer"):
        compile_template("x")


@pytest.mark.unit
def test_the_package_asks_for_the_oldest_that_is_let_in() -> None:
    asked = re.findall(r'"jinja2[^"]*"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert asked == [f'"jinja2>={".".join(map(str, SAFE_JINJA))}"']


@pytest.mark.unit
@pytest.mark.parametrize("version", ["3.1.6", "3.2", "3.2.0rc1", "4.0.0"])
def test_newer_ones_are_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja2, "__version__", version)
    compile_template.cache_clear()
    assert compile_template("x").render({}).text == "x"


# ---------------------------------------------------------------------- what takes time and memory
DOUBLED = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = DOUBLE %}{% endfor %}{{ ns.s }}"
BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "{% for a in range(99999) %}" + "0123456789" * 5000 + "{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{% set x = f(n - 1) ~ f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% block a %}{% if messages %}{{ self.a() }}{{ self.a() }}{% endif %}{% endblock %}",
    "{% for x in [[1, 1]] recursive %}{{ loop([[1, 1], [1, 1]]) }}{{ loop([[1, 1]]) }}{% endfor %}",
    DOUBLED.replace("DOUBLE", "ns.s + ns.s"),
    DOUBLED.replace("DOUBLE", "ns.s ~ ns.s"),
    DOUBLED.replace("DOUBLE", "ns.s * 2"),
    DOUBLED.replace("DOUBLE", "'%s%s' % (ns.s, ns.s)"),
    DOUBLED.replace("DOUBLE", "'%(a)s%(a)s' % {'a': ns.s}"),
    DOUBLED.replace("DOUBLE", "'{0}{0}'.format(ns.s)"),
    DOUBLED.replace("DOUBLE", "'{a}{a}'.format_map({'a': ns.s})"),
    DOUBLED.replace("DOUBLE", "'%s%s' | format(ns.s, ns.s)"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | join"),
    DOUBLED.replace("DOUBLE", "''.join([ns.s, ns.s])"),
    DOUBLED.replace("DOUBLE", "ns.s.join(['', '', ''])"),
    DOUBLED.replace("DOUBLE", "ns.s.replace('x', 'xx')"),
    DOUBLED.replace("DOUBLE", "ns.s | replace('x', 'xx')"),
    DOUBLED.replace("DOUBLE", "ns.s.translate({120: 'xx'})"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s]"),
    DOUBLED.replace("DOUBLE", "(ns.s, ns.s)"),
    DOUBLED.replace("DOUBLE", "{'a': ns.s, 'b': ns.s}"),
    DOUBLED.replace("DOUBLE", "dict(a=ns.s, b=ns.s)"),
    DOUBLED.replace("DOUBLE", "dict.fromkeys('ab', ns.s)"),
    DOUBLED.replace("DOUBLE", "namespace(a=ns.s, b=ns.s)"),
    DOUBLED.replace("DOUBLE", "[ns.s] * 2"),
    DOUBLED.replace("DOUBLE", "[ns.s] + [ns.s]"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | string"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | tojson"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | pprint"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | urlencode"),
    DOUBLED.replace("DOUBLE", "[ns.s, ns.s] | batch(1) | list"),
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set s %}{% filter upper %}{{ ns.s }}{{ ns.s }}"
    "{% endfilter %}{% endset %}{% set ns.s = s %}{% endfor %}",
    "{% set ns = namespace(a=[]) %}{% set ns.a = ns %}{{ ns }}",
    "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% set y = s.upper() %}{% endfor %}",
    "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% set y = s | length %}{% endfor %}",
    "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{{ 1 if 'y' in s }}{% endfor %}",
    "{% set s = 'x' * 1000000 %}" + "".join(f"{{% set s{i} = s[{i}:] %}}" for i in range(3000)),
    "{% set s = 'x' * 1000000 %}" + "{{ s }}" * 3000,
    "{% set s = 'x' * 1000000 %}{% set t %}" + "{{ s }}" * 3000 + "{% endset %}",
    "{% set s = 'x' * 1000000 %}{{ s" + " ~ s" * 3000 + " }}",
    "{% set s = 'x' * 1000000 %}{% set a = [s" + ", s" * 3000 + "] | join %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ ['x'] * 10 ** 10 }}",
    "{{ 9 ** 99999 }}",
    "{{ 2 ** 10000000000 }}",
    "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ range(10**12) | list }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ 'x'.center(10000000000) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ 'x'.rjust(10000000000) }}",
    "{{ 'x'.zfill(10000000000) }}",
    "{{ '\t'.expandtabs(10000000000) }}",
    "{{ 'a\nb' | indent(10000000000) }}",
    "{{ 'a\nb' | indent('x' * 1000000) | indent('x' * 1000000) | indent('x' * 1000000) }}",
    "{{ [1] | batch(10000000000, 'x') | list }}",
    "{{ [1] | slice(10000000000) | list }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '%.10000000000f' % 1.0 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:10000000000d}'.format(1) }}",
    "{{ '{:{w}d}'.format(1, w=1000000000) }}",
    "{{ ('{:10000000000}' | safe).format(1) }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    "{{ 1.5 | round(10000000000) }}",
    "{{ 1.5 | round(1000000, 'ceil') }}",
    "{{ [1] | tojson(indent=10000000000) }}",
    "{{ lipsum(n=1000000) }}",
    "{{ messages | random }}",
    "{{ range(100000) | list | map('list') | sum(start=[]) }}",
    "{{ ('a ' * 500000) | wordwrap(1) }}",
    "{{ ('a ' * 500000) | urlize }}",
    "{{ ('<' * 500000) | striptags }}",
    "{{ strftime_now('%c' * 100000) }}",
]
FEWEST = 75


@pytest.fixture
def little_memory() -> Iterator[None]:
    """One GiB more than there is now."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: PTH123, SIM115
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.chaos
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_without_measure_is_refused_soon(bomb: str, little_memory: None) -> None:
    began = time.process_time()
    with pytest.raises(FormatError) as caught:
        render(bomb)
    message = str(caught.value)
    assert message.startswith("The chat template ")
    assert message.isprintable() and len(message) < 300
    assert "MemoryError" not in message
    assert time.process_time() - began < SECONDS + 5


@pytest.mark.unit
def test_there_are_bombs() -> None:
    assert len(BOMBS) >= FEWEST
    assert len(ESCAPES) >= 80

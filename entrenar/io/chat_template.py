"""Chat templates: Jinja programs that come with a model, run in a sandbox with what transformers gives them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from entrenar.errors import ConfigError, FormatError


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, by which templates mark answers: what stands inside is written."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise ConfigError(f"The chat template refuses the messages: {message}")


def _strftime_now(style: str) -> str:
    return datetime.now().strftime(style)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(text: str) -> jinja2.Template:
    """The template, ready to render; FormatError where it is none."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
        raise FormatError(f"The chat template is no valid Jinja template: {first_line(error)}.") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line: Jinja adds the source below."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__

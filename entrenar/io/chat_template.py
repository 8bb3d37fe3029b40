"""Chat templates: Jinja programs that come with a model, run in a sandbox with what transformers gives them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from entrenar.errors import ConfigError, FormatError
from entrenar.io.rendering import REASONING, Rendering, today
from entrenar.io.template_bounds import LONGEST_TEMPLATE, BoundedEnvironment, TemplateLimit

SAFE_JINJA = (3, 1, 6)  # older ones let a template out of the sandbox (CVE-2025-27516)
LONGEST_DATE = 1000  # characters of a format of dates


class Refused(jinja2.TemplateError):
    """What a template says by raise_exception."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, by which templates mark what the model is to write."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        text = caller()
        environment: Any = self.environment
        environment.generated.append((environment.written, text))
        return text


class _Environment(BoundedEnvironment):
    """The bounded sandbox, with the names that transformers gives."""

    def __init__(self) -> None:
        super().__init__([jinja2.ext.loopcontrols, Generation])
        self.generated: list[tuple[int, str]] = []
        self.written = 0  # characters that the rendering has given so far
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)


def _raise_exception(message: Any = "") -> None:
    raise Refused(str(message))


def _strftime_now(style: str) -> str:
    if len(style) > LONGEST_DATE:
        raise TemplateLimit(f"formats a date by more than {LONGEST_DATE} characters")
    return today().strftime(style)


class ChatTemplate:
    """A compiled template. `names` are the variables and attributes it mentions."""

    def __init__(self, text: str) -> None:
        self._environment = _Environment()
        try:
            text.encode("utf-8")
            if len(text) > LONGEST_TEMPLATE:
                raise FormatError(f"The chat template has {len(text):,} characters, more than {LONGEST_TEMPLATE:,}.")
            self._template = self._environment.compile_bounded(text)
            tree = self._environment.parse(text)
        except FormatError:
            raise
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise FormatError(
                f"The chat template holds half a character (\\u{code:x}) at {error.start}; mend it."
            ) from error
        except Exception as error:  # of Jinja, and of Python's compiler over what Jinja made
            raise FormatError(f"The chat template is no valid Jinja template: {first_line(error)}.") from error
        variables = {node.name for node in tree.find_all(jinja2.nodes.Name)}
        attributes = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
        keys = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        self.names = frozenset(variables | attributes | keys)
        self.variables = frozenset(variables)
        self.has_generation = any(
            getattr(node.call.node, "name", "") == "_mark" for node in tree.find_all(jinja2.nodes.CallBlock)
        )

    @property
    def uses_date(self) -> bool:
        """Whether it asks for today's date."""
        return "strftime_now" in self.variables

    def render(self, values: Mapping[str, Any]) -> Rendering:
        """What it writes for these variables. ConfigError where it refuses them, FormatError where it fails."""
        environment = self._environment
        environment.generated, environment.written = [], 0
        environment.budget.start(environment.budget.size(values))
        try:
            pieces = []
            for piece in self._template.generate(**values):
                pieces.append(piece)
                environment.written += len(piece)
                environment.budget.reserve(environment.written)
            text = "".join(pieces)
            text.encode("utf-8")
        except Refused as error:
            raise ConfigError(f"The chat template refuses the messages: {first_line(error)}.") from error
        except TemplateLimit as error:
            raise FormatError(f"The chat template {error}; expected one that writes the messages.") from error
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise FormatError(f"The chat template writes half a character (\\u{code:x}); mend the template.") from error
        except Exception as error:  # a template is a program from outside: it fails in any way
            raise FormatError(f"The chat template failed on these messages: {first_line(error)}.") from error
        return Rendering(text, _places(text, environment.generated))


def _places(text: str, generated: Sequence[tuple[int, str]]) -> list[tuple[int, int]]:
    """Where each generation block stands, each held against the text: inside a macro it need not be where it seems."""
    for start, inside in generated:
        if not text.startswith(inside, start):
            raise ConfigError(
                "The chat template has a generation block inside a macro or a variable, so its place in the text is "
                "not known; write the block where its text goes."
            )
    return [(start, start + len(inside)) for start, inside in generated if inside]


@functools.lru_cache(maxsize=16)
def compile_template(text: str) -> ChatTemplate:
    """The template, ready to render; FormatError where it is none, ConfigError where jinja2 is too old to be safe."""
    version = jinja2.__version__
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < SAFE_JINJA:
        raise ConfigError(
            f"jinja2 {version} is installed, in which a chat template can leave its sandbox; expected 3.1.6 or newer "
            "(pip install --upgrade jinja2)."
        )
    return ChatTemplate(text)


def first_line(error: Exception) -> str:
    """What an error says, in one line: Jinja adds the source below."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


# ---------------------------------------------------------------------- what a template is given
# Options of transformers' apply_chat_template that would be taken for variables, and what to do instead.
OTHER_OPTIONS = {
    "chat_template": "set the tokenizer's chat_template",
    "continue_final_message": "cut the rendered text where the last message ends",
    "sanitize_control_tokens": "encode that text with parse_special=False",
    "padding": "pad the ids",
    "truncation": "cut the ids",
    "max_length": "cut the ids",
    "return_tensors": "make an array of the ids",
    "return_dict": "take the ids as they are",
    "return_assistant_tokens_mask": "call entrenar.data.encode_example",
    "tokenizer_kwargs": "call encode on the rendered text",
}
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


def check_variables(variables: Mapping[str, Any]) -> None:
    """ConfigError where a variable for the template is an option that transformers has, or a name that is given."""
    for name in variables:
        if name in OTHER_OPTIONS and variables[name] not in (None, False):
            raise ConfigError(f"apply_chat_template: {name} is no option here; {OTHER_OPTIONS[name]}.")
        if name in GIVEN and name != "documents":
            raise ConfigError(f"The variable {name} for the chat template is what a template gets anyway; rename it.")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers gives them: without keys that are None, reasoning under each of its names."""
    made = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ConfigError(f"A message is {message!r:.60}, expected a mapping with role and content.")
        plain = {key: plain_data(value) for key, value in message.items() if value is not None}
        reasoning = next((plain[name] for name in REASONING if plain.get(name) is not None), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        made.append(plain)
    return made


def plain_data(value: Any) -> Any:
    """A copy that holds JSON's types alone; ConfigError where there is another, whose methods a template could call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_data(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain_data(item) for item in value)
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    raise ConfigError(f"A message holds a {type(value).__name__}, expected text, numbers, lists and mappings.")

"""One definition of a configuration: dataclass fields that say help, unit and range give TOML keys, flags and help."""

from __future__ import annotations

import argparse
import codecs
import datetime
import difflib
import json
import math
import re
import reprlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, Field, field, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from entrenar.errors import ConfigError, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The sections of a configuration file; those of adapters are kinds, each defined by entrenar/adapters/<section>.py.
ADAPTER_SECTIONS = ("lora", "qlora", "dora", "ia3", "prefix")
SECTIONS = ("model", "training", "lr_schedule", "data", "checkpointing", "observe", "preference", *ADAPTER_SECTIONS)

# Keys of [model] that say which model is fine-tuned, beside those of its shape.
BASE_KEYS = ("path", "dtype", "quantize", "adapter")

WIDTH = 120  # columns of a line of TOML that is written
T = TypeVar("T")
HINTS: dict[Any, dict[str, Any]] = {}


class _Short(reprlib.Repr):
    """repr without the middle of what is long, with true, false, null and dates as JSON and TOML write them."""

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:  # in the file's order
        if level <= 0 or not value:
            return "{...}" if value else "{}"
        parts = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value[key], level - 1)}" for key in islice(value, self.maxdict)
        ]
        return "{" + ", ".join([*parts, *["..."] * (len(value) > self.maxdict)]) + "}"

    def repr_date(self, value: datetime.date, level: int) -> str:
        return value.isoformat()

    repr_datetime = repr_time = repr_date


SHORT = _Short()
SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 120, 120, 60


def shown(value: Any) -> str:
    """A value from outside as a message shows it, spelled as files spell it, the middle of what is long left out."""
    try:
        return SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__} that is too large to be shown"


def type_hints(cls: Any) -> dict[str, Any]:
    """The types of a class's fields, which are text: evaluated once, since one is made for each thing that is read."""
    if cls not in HINTS:
        HINTS[cls] = typing.get_type_hints(cls)
    return HINTS[cls]


def option(
    default: Any = MISSING,
    *,
    help: str,
    unit: str = "",
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    factory: Callable[[], Any] | Any = MISSING,
    words: bool = False,
    called: Callable[[str], str | None] | None = None,
) -> Any:
    """A dataclass field with its documentation and the range that its value must lie in.

    With `choices` and a `minimum` it takes one of the choices or a number. With `words` its flag takes several values
    as words of their own, as paths need, not between commas. `called` gives the sentence for a choice by the name that
    another program has for it, or None.
    """
    limits = {"minimum": minimum, "above": above, "below": below, "maximum": maximum, "choices": choices}
    metadata = {"help": help, "unit": unit, "words": words, "called": called, **limits}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(name: str, valid: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the closest valid name, or the list of them."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(names))}."


def shipped_configurations() -> dict[str, Path]:
    """The files that come with the package, by name ("llama2/tiny")."""
    package = Path(__file__).parent  # installed; in a checkout they stand beside the package
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package / "configs")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}


def load_toml(path: str | Path) -> dict[str, Any]:
    """The table of a TOML file, or of a shipped one where there is no such file: "llama2/tiny" or
    "configs/llama2/tiny.toml" from any folder. ConfigError where it is missing or is not TOML."""
    path = Path(path)
    shipped = shipped_configurations()
    name = path.as_posix().removeprefix("configs/").removesuffix(".toml")
    found = path if path.exists() and not path.is_dir() else shipped.get(name, path)
    try:
        return tomllib.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a TOML configuration file, or one of "
            f"{', '.join(shipped)}."
        ) from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {byte:#04x} at {error.start}), as TOML must be; save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        if found.read_bytes().startswith(codecs.BOM_UTF8):
            raise ConfigError(
                f"{path}: begins with a byte order mark, which TOML does not allow; save it as UTF-8 without the mark."
            ) from error
        raise ConfigError(f"{path}: is not valid TOML: {str(error).rstrip('.')}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is not TOML that can be read: its brackets are nested too deeply.") from error
    except ValueError as error:  # the interpreter's bound for the digits of an integer
        raise ConfigError(f"{path}: is not TOML that can be read: an integer has thousands of digits.") from error


def from_table(
    cls: type[T], table: Mapping[str, Any], where: str, hint: Callable[[str], str | None] | None = None
) -> T:
    """The dataclass from a table of its keys; ConfigError, naming `where` and the key, for whatever does not fit.

    `hint` has the sentence for a key that is not known, None where the nearest one is all that can be said.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {shown(table)}, expected a table of keys.")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}.{key} is no known key; {(hint and hint(key)) or nearest(key, known)}")
    hints = type_hints(cls)
    values = {}
    for name, spec in known.items():
        if name in table:
            values[name] = _value(table[name], hints[name], spec, f"{where}.{name}")
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{where}.{name} is missing; {spec.metadata.get('help', 'it has no default')}.")
    return cls(**values)


def _value(value: Any, hint: Any, spec: Field[Any], where: str) -> Any:
    if is_dataclass(hint):
        return from_table(hint, value, where)  # type: ignore[arg-type]
    return check_value(convert(value, hint, where), spec, where)


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` says; ConfigError where it is of another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, int) and not -(2**63) < value < 2**63:  # such counts and sizes overflow later arithmetic
        raise ConfigError(f"{where} is an integer of {value.bit_length()} bits, expected a number below 2**63.")
    if origin in (typing.Union, types.UnionType):
        for argument in sorted(arguments, key=lambda a: a is float):  # an int stays one where both are allowed
            if argument is type(None) and value is None:
                return None
            if argument is not type(None) and _fits(value, argument):
                return convert(value, argument, where)
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            return origin(convert(item, arguments[0] if arguments else object, where) for item in value)
    elif _fits(value, hint):
        return float(value) if hint is float else value
    raise ConfigError(f"{where} is {shown(value)}, expected {type_name(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (list, tuple):
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


def type_name(hint: Any) -> str:
    """How a message calls a type."""
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a table"}
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if typing.get_origin(hint) in (list, tuple):
        return "a list"
    return names.get(typing.get_origin(hint) or hint, str(hint))


def check_value(value: Any, spec: Field[Any], where: str) -> Any:
    """The value, if it lies in the range that its field says; ConfigError otherwise."""
    limits = spec.metadata
    choices = limits.get("choices")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    ranged = number and limits.get("minimum") is not None  # beside the choices a number may stand
    if choices is not None and value not in choices and value is not None and not ranged:
        hint = f"expected one of {tuple(choices)}."
        if isinstance(value, str):
            called = limits.get("called")
            hint = (called and called(value)) or nearest(value, map(str, choices))
        if limits.get("minimum") is not None:
            hint = f"expected {type_name(int)} or one of {', '.join(map(repr, choices))}."
        raise ConfigError(f"{where} is {shown(value)}; {hint}")
    if value == "" and choices is None:
        raise ConfigError(f"{where} is empty; leave it out, or give it a value.")
    if number:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} is {shown(value)}, expected a finite number.")
        tests: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("minimum", lambda limit: value >= limit, "at least"),
            ("above", lambda limit: value > limit, "more than"),
            ("below", lambda limit: value < limit, "less than"),
            ("maximum", lambda limit: value <= limit, "at most"),
        )
        for key, holds, words in tests:
            if limits.get(key) is not None and not holds(limits[key]):
                raise ConfigError(f"{where} is {shown(value)}, expected {words} {limits[key]}.")
    return value


def check_dataclass(config: Any, where: str) -> None:
    """Hold every field of an instance against its type and range, as a table's values are held."""
    hints = type_hints(type(config))
    for spec in fields(config):
        value = getattr(config, spec.name)
        if not is_dataclass(value):
            object.__setattr__(
                config,
                spec.name,
                check_value(convert(value, hints[spec.name], f"{where}.{spec.name}"), spec, f"{where}.{spec.name}"),
            )


def describe(spec: Field[Any]) -> str:
    """Help, unit and default of a field in one line."""
    unit = f" [{spec.metadata['unit']}]" if spec.metadata.get("unit") else ""
    if spec.default is MISSING and spec.default_factory is MISSING:
        default = "required"
    else:
        default = f"default {toml_value(default_of(spec))}"
    return f"{spec.metadata['help']}{unit}; {default}"


def without(table: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The table without these keys."""
    return {key: value for key, value in table.items() if key not in keys}


def names_of(cls: type[Any]) -> list[str]:
    """The keys of a section."""
    return [spec.name for spec in fields(cls)]


def default_of(spec: Field[Any]) -> Any:
    """The default of a field."""
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default


def one_or_several(path: str | list[str] | None, name: str) -> str | list[str] | None:
    """A list of one path as that path; ConfigError for an empty list, or an empty path in one, of option `name`."""
    if not isinstance(path, list):
        return path
    if not path or "" in path:
        what = "holds an empty path" if path else "is an empty list"
        raise ConfigError(f"{name} {what}, expected files or folders of examples; leave it out, or name them.")
    return path[0] if len(path) == 1 else path


def toml_value(value: Any) -> str:
    """A value as TOML writes it ("unset" for None, which TOML leaves out)."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON escapes what TOML wants escaped, except DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        known = {str(key): item for key, item in value.items() if item is not None}
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(item)}" for key, item in known.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value)


def dump_toml(config: Any, section: str) -> str:
    """A section of TOML in which every key is commented with its help, unit and default."""
    lines = [f"[{section}]"]
    for spec in fields(config):
        value = getattr(config, spec.name)
        setting = f"{spec.name} = {toml_value(value)}" if value is not None else f"# {spec.name} ="
        lines += commented(setting, describe(spec))
    return "\n".join(lines) + "\n"


def commented(setting: str, comment: str) -> list[str]:
    """A line of TOML with its comment behind it, or above it where both are too wide for one line."""
    line = f"{setting}  # {comment}"
    if len(line) <= WIDTH:
        return [line]
    return [f"# {part}" for part in textwrap.wrap(comment, WIDTH - 2)] + [setting]


STDOUT = "standard output"


@contextmanager
def named_stdout() -> Iterator[None]:
    """An OSError inside the block, of a full disk above all, names standard output as its file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, STDOUT) from error


def print_out(text: object, end: str = "\n") -> None:
    """Print to standard output; an OSError names it."""
    with named_stdout():
        print(text, end=end)


NEGATIVE = re.compile(r"^-((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)$", re.IGNORECASE)


# Who is given a parser in the place of its help being printed.
HELP: ContextVar[Callable[[argparse.ArgumentParser], None] | None] = ContextVar("HELP", default=None)


class ArgumentParser(argparse.ArgumentParser):
    """argparse that answers an unknown flag with the nearest valid one, in one sentence, and takes each flag once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = NEGATIVE  # argparse's own takes -1e-3 for a flag

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The flags; ends the program with one sentence where one is unknown or said twice."""
        given = sys.argv[1:] if args is None else list(args)
        self.refuse_repeated(given)
        parsed, unknown = self.parse_known_args(given, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            self.error(f"unknown argument {flag}; {self.hint(flag)}")
        return parsed

    def refuse_repeated(self, given: Sequence[str]) -> None:
        """End the program where a flag, or a flag and its --no- form, stand twice: the last would win silently."""
        first: dict[str, str] = {}
        for word in given[: given.index("--") if "--" in given else None]:
            flag = word.split("=")[0]
            action = self._option_string_actions.get(flag)
            if action is None or isinstance(action, argparse._HelpAction):
                continue
            if action.dest in first:
                both = f"{flag} is given twice" if flag == first[action.dest] else f"{first[action.dest]} and {flag}"
                self.error(f"{both}{'' if both.endswith('twice') else ' are both given'}; expected it once.")
            first[action.dest] = flag

    def flags(self) -> list[str]:
        """Every flag that the parser takes."""
        return [name for action in self._actions for name in action.option_strings]

    def hint(self, flag: str) -> str:
        """What to say of a flag that does not exist."""
        return nearest(flag, self.flags())

    def print_help(self, file: Any = None) -> None:
        """As argparse prints it, which would go on where it cannot; or given to who asked for the parser."""
        if (receiver := HELP.get()) is not None:
            receiver(self)
            return
        with named_stdout():
            print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def add_arguments(
    parser: argparse.ArgumentParser,
    cls: type[Any],
    defaults: Any = None,
    names: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    required: Sequence[str] = (),
) -> None:
    """A flag for each field of a dataclass: its name (with dashes, or as `names` says), help and default.

    `defaults` is an instance whose values become the flags' defaults; a flag without one is required, as are the fields
    in `required`. `only` leaves out the other fields.
    """
    hints = type_hints(cls)
    for spec in fields(cls):
        if only and spec.name not in only:
            continue
        default = getattr(defaults, spec.name) if defaults is not None else default_of(spec)
        name = (names or {}).get(spec.name, spec.name)
        flag = "--" + name.replace("_", "-")
        choices = f"{', '.join(map(str, spec.metadata['choices']))}; " if spec.metadata.get("choices") else ""
        must = default is MISSING or spec.name in required
        unset = "required" if must else f"default: {toml_value(default)}"
        help_text = describe(spec).rsplit("; required" if default is MISSING else "; default", 1)[0]
        help_text += f" ({choices}{unset})"
        help_text = help_text.replace("%", "%%")
        hint = hints[spec.name]
        if hint is bool:
            parser.add_argument(flag, dest=name, default=default, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            given: dict[str, Any] = {"required": True} if must else {"default": default}
            if spec.metadata.get("words"):
                given["nargs"] = "+"
            parser.add_argument(
                flag,
                dest=name,
                type=ArgumentType(hint, spec.metadata.get("choices") or ()),
                metavar="VALUE",
                help=help_text,
                **given,
            )


def from_arguments(cls: type[T], arguments: argparse.Namespace, names: Mapping[str, str] | None = None) -> T:
    """The dataclass from the flags that `add_arguments` made; ConfigError for a value out of range."""
    specs = fields(cls)  # type: ignore[arg-type]
    return cls(**{f.name: getattr(arguments, (names or {}).get(f.name, f.name)) for f in specs})


class ArgumentType:
    """The value of a flag for a field of type `hint`, from its text; `offered` are those that it may have, if few."""

    def __init__(self, hint: Any, offered: Sequence[Any] = ()) -> None:
        self.hint, self.offered, self.arguments = hint, offered, typing.get_args(hint)

    @property
    def is_text(self) -> bool:
        """Whether it takes a text, which may be a path."""
        return str in (self.arguments or (self.hint,)) and typing.get_origin(self.hint) is not dict

    def __call__(self, text: str) -> Any:
        if typing.get_origin(self.hint) in (list, tuple):
            return [_scalar(part.strip(), self.arguments or (str,)) for part in text.split(",")]
        if typing.get_origin(self.hint) is dict:
            return _pairs(text, self.arguments[1:])
        return _scalar(text, self.arguments or (self.hint,))


def _pairs(text: str, hints: tuple[Any, ...]) -> dict[str, Any]:
    """KEY=VALUE,KEY=VALUE as a table; an ArgumentTypeError where a part is none, or a key stands twice."""
    table: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.rpartition("="))
        if not (key and equals):
            raise argparse.ArgumentTypeError(f"{shown(part)} is not NAME=VALUE")
        if key in table:
            raise argparse.ArgumentTypeError(f"{shown(key)} is given twice; expected it once")
        table[key] = _scalar(value, hints)
    return table


def text_argument(text: str) -> str:
    """The text of a flag, which must have some."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty; leave the flag out, or give it a value")
    return text


def _scalar(text: str, hints: tuple[Any, ...]) -> Any:
    if bool in hints and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in hints:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in hints:
        return text_argument(text)
    expected = [type_name(hint) for hint in hints if hint is not type(None)]
    raise argparse.ArgumentTypeError(f"{shown(text)} is not {' or '.join(expected)}")

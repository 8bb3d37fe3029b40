"""A Jinja sandbox whose templates end soon and stay small: programs from outside must not take the machine.

Every loop, macro and block counts its steps, everything that makes a value of another size is charged before or when
it is made, and operations that would grow beyond any use are refused. The bounds grow with what the template is given,
so that no sound template comes near them.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

LONGEST_TEMPLATE = 1 << 20  # characters; those of models have 100 to 40,000
VALUE_BASE, VALUE_FACTOR = 1 << 20, 16  # of one value and of the text: characters, and for each one given
TOTAL_BASE, TOTAL_FACTOR = 1 << 26, 1024  # of all values that one rendering makes
STEPS_BASE, STEPS_FACTOR = 3_000_000, 1000  # nodes of the template that are passed
SECONDS = 10.0  # of the CPU, for one rendering
NODE = 16  # what an entry of a list weighs, as characters
MOST_BITS = 1 << 14  # of an integer
SLOW_FILTER = 100_000  # characters that a filter with regular expressions gets
WIDEST = 10_000  # of one field of a format

ENTRIES: Any = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))


class TemplateLimit(Exception):
    """A rendering goes beyond its bounds; the message completes "The template ..."."""


class TemplateNamespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore (as in transformers)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may set an attribute `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


class TemplateDict:
    """`dict` and `dict.fromkeys`, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As of dict, which makes a plain one."""
        return dict.fromkeys(*args)


class Budget:
    """What one rendering may still take; `start` sets it for a template that is given `read` characters."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, read: int) -> None:
        """Begin a rendering that is given values of `read` characters."""
        self.value = VALUE_BASE + VALUE_FACTOR * read
        self.total = TOTAL_BASE + TOTAL_FACTOR * read
        self.steps = STEPS_BASE + STEPS_FACTOR * read
        self.began, self.deadline = time.thread_time(), time.monotonic() + SECONDS

    def tick(self, steps: int) -> None:
        """Count steps of a loop; TemplateLimit where they, or the time, are used up."""
        self.steps -= steps
        if self.steps < 0:
            raise TemplateLimit("loops without an end in sight")
        if time.monotonic() > self.deadline:
            if time.thread_time() - self.began > SECONDS:  # of its own, not of a machine that others use
                raise TemplateLimit(f"takes more than {SECONDS:g} seconds of the CPU")
            self.deadline = time.monotonic() + SECONDS

    def reserve(self, size: int) -> None:
        """Make sure that a value of `size` characters may be made."""
        if size > self.value:
            raise TemplateLimit(f"makes a value of more than {self.value:,} characters")

    def charge(self, size: int) -> None:
        """Count characters that are made; TemplateLimit where there are too many."""
        self.reserve(size)
        self.total -= size
        if self.total < 0:
            raise TemplateLimit("makes more text than memory should hold")

    @staticmethod
    def size(value: Any) -> int:
        """Characters and entries of what a template is given."""
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, dict):
                total += len(item)
                stack.extend(item.values())
            elif isinstance(item, list | tuple):
                total += len(item)
                stack.extend(item)
        return total

    def weigh(self, value: Any) -> int:
        """The size of a value and all that it holds; refused where it is beyond the bound, circles included."""
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            total += NODE
            if isinstance(item, (str, bytes)):
                total += len(item)
            elif item is None or isinstance(item, (bool, float)):
                pass
            elif isinstance(item, ENTRIES):
                total += NODE * len(item)
                self.reserve(total)
                stack.extend(item)
            elif isinstance(item, dict):
                total += 2 * NODE * len(item)
                self.reserve(total)
                stack.extend(item)
                stack.extend(item.values())
            elif isinstance(item, jinja2.utils.Namespace):
                stack.append(item._Namespace__attrs)
            elif isinstance(item, int) and item.bit_length() > MOST_BITS:
                raise TemplateLimit(f"makes a number of more than {MOST_BITS} bits")
            if total > self.value:
                self.reserve(total)
        return total

    def account(self, value: Any) -> Any:
        """Charge a value that was made, and give it back."""
        kind = type(value)
        if kind is str:
            self.charge(len(value))
        elif kind is not bool and value is not None and kind is not float and not isinstance(value, jinja2.Undefined):
            self.charge(self.weigh(value))
        return value


# ---------------------------------------------------------------------- operations that make more than they are given
def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _check_format(budget: Budget, text: Any, values: Iterable[Any], mark: str) -> None:
    """Before a format is filled in: no field wider than a page, no value written so often that the text is too long."""
    text, values = str(text), list(values)
    nested = "*" in text if mark == "%" else re.search(r"\{[^{}]*\{", text) is not None
    widest = max([int(digits[:9]) for digits in re.findall(r"\d+", text)], default=0)
    if widest > WIDEST or (nested and any(_number(value) > WIDEST for value in values)):
        raise TemplateLimit(f"formats a field wider than {WIDEST:,} characters")
    biggest = max([budget.weigh(value) for value in values], default=0)
    budget.reserve(len(text) + text.count(mark) * (biggest + WIDEST if widest or nested else biggest))


def _values(argument: Any) -> list[Any]:
    if isinstance(argument, tuple):
        return list(argument)
    return list(argument.values()) if isinstance(argument, Mapping) else [argument]


def _check_replace(budget: Budget, text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    budget.reserve(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_join(budget: Budget, separator: Any, parts: Sequence[Any]) -> None:
    budget.reserve(budget.weigh(parts) + len(parts) * len(str(separator)))


def _check_width(budget: Budget, text: Any, width: Any = 0, *_: Any, **__: Any) -> None:
    budget.reserve(len(str(text)) + _number(width))


def _check_tabs(budget: Budget, text: Any, tabsize: Any = 8) -> None:
    budget.reserve(len(text) * max(1, _number(tabsize)))


def _check_translate(budget: Budget, text: Any, table: Any) -> None:
    longest = max((len(each) for each in _values(table) if isinstance(each, str)), default=1)
    budget.reserve(len(text) * max(1, longest))


METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "ljust": _check_width,
    "rjust": _check_width,
    "zfill": _check_width,
    "expandtabs": _check_tabs,
    "replace": _check_replace,
    "translate": _check_translate,
}


def _check_indent(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text = str(text)
    step = len(width) if isinstance(width, str) else _number(width)
    budget.reserve(len(text) + (len(text.splitlines()) + 1) * step)


def _check_center(budget: Budget, text: Any, width: Any = 80) -> None:
    _check_width(budget, text, width)


def _check_columns(budget: Budget, _: Any, count: Any = 0, *__: Any, **___: Any) -> None:
    budget.reserve(NODE * _number(count))


def _check_slow(budget: Budget, text: Any, *_: Any, **__: Any) -> None:
    if len(str(text)) > SLOW_FILTER:
        raise TemplateLimit(f"gives a filter that is slow more than {SLOW_FILTER:,} characters")


def _check_round(budget: Budget, _: Any, precision: Any = 0, *__: Any) -> None:
    if _number(precision) > 300:
        raise TemplateLimit("rounds to more than 300 digits")


def _check_sum(budget: Budget, _: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise TemplateLimit("adds up what are no numbers")


def _refuse_random(*_: Any, **__: Any) -> None:
    raise TemplateLimit("writes something else each time (random)")


def _refuse_lipsum(*_: Any, **__: Any) -> None:
    raise TemplateLimit("writes something else each time (lipsum)")


FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "center": _check_center,
    "indent": _check_indent,
    "replace": _check_replace,
    "format": lambda budget, text, *args, **kwargs: _check_format(budget, text, [*args, *kwargs.values()], "%"),
    "batch": _check_columns,
    "slice": _check_columns,
    "wordwrap": _check_slow,
    "urlize": _check_slow,
    "striptags": _check_slow,
    "round": _check_round,
    "sum": _check_sum,
    "random": _refuse_random,
    "pprint": lambda budget, value, *_: budget.charge(budget.weigh(value)),
    "string": lambda budget, value: budget.charge(budget.weigh(value)),
}


# ---------------------------------------------------------------------- the environment
class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the bounds of `budget`; `compile_bounded` makes its templates."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, extensions: Sequence[Any]) -> None:
        self.budget = Budget()
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._written)
        self.concat = self._joined  # type: ignore[method-assign]
        for name, function in list(self.filters.items()):
            self.filters[name] = self._bounded_filter(name, function)
        self.filters["join"] = self._bounded_join(self.filters["join"])
        self.filters["tojson"] = self._tojson
        self.filters["<tick>"] = self._tick
        self.filters["<made>"] = self.budget.account
        self.filters["<concat>"] = self._concatenated
        self.globals.update(dict=TemplateDict(), namespace=TemplateNamespace, lipsum=_refuse_lipsum)

    def compile_bounded(self, text: str) -> jinja2.Template:
        """The template with its steps counted; jinja2's errors where it is none."""
        self.budget.start(len(text))
        tree = self.parse(text)
        code = self.compile(_Counted().visit(tree))
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def _written(self, value: Any) -> Any:
        if type(value) is str:
            self.budget.charge(len(value))
            return value
        if isinstance(value, int | float | jinja2.Undefined) or value is None:
            return value
        self.budget.charge(self.budget.weigh(value))
        return value

    def _joined(self, parts: Iterable[str]) -> str:
        pieces, total = [], 0
        for part in parts:
            total += len(part)
            if total > self.budget.value:
                self.budget.reserve(total)
            pieces.append(part)
        self.budget.charge(total)
        return "".join(pieces)

    @jinja2.pass_eval_context
    def _concatenated(self, eval_ctx: nodes.EvalContext, parts: Sequence[Any]) -> str:
        total = 0
        for part in parts:
            total += len(part) if isinstance(part, str) else self.budget.weigh(part)
        self.budget.charge(total)
        return jinja2.runtime.markup_join(parts) if eval_ctx.autoescape else jinja2.runtime.str_join(parts)

    @jinja2.pass_context  # so that it is not taken for a constant when the template is compiled
    def _tick(self, context: Any, steps: int) -> None:
        self.budget.tick(steps)

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        check, budget = FILTER_CHECKS.get(name), self.budget
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value = args[first] if len(args) > first else None
            if type(value) is str:
                budget.charge(len(value))
            if check is not None:
                check(budget, *args[first:], **kwargs)
            return budget.account(function(*args, **kwargs))

        return bounded

    def _bounded_join(self, function: Callable[..., Any]) -> Callable[..., Any]:
        budget = self.budget

        @functools.wraps(function)
        def bounded(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
            value = list(value)
            _check_join(budget, d, value)
            return function(context, value, d, attribute)

        return bounded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers writes JSON: nothing is escaped for HTML."""
        self.budget.charge(self.budget.weigh(value))
        if (len(indent) if isinstance(indent, str) else _number(indent)) > WIDEST:
            raise TemplateLimit(f"indents by more than {WIDEST:,} characters")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self._joined(encoder.iterencode(value)) if indent or separators else encoder.encode(value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            given = [*args, *kwargs.values()]
            flat = [each for argument in given for each in _values(argument)]
            _check_format(self.budget, value.__self__, [*given, *flat], "{")
            return self.budget.account(wrapped(*args, **kwargs))

        return bounded

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget, owner = self.budget, getattr(function, "__self__", None)
        if isinstance(owner, str | bytes):
            budget.charge(len(owner))
            name = function.__name__
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _check_join(budget, owner, args[0])
            elif name in METHOD_CHECKS:
                METHOD_CHECKS[name](budget, owner, *args, **kwargs)
        elif isinstance(owner, int) and getattr(function, "__name__", "") == "to_bytes":
            budget.reserve(_number(args[0] if args else kwargs.get("length", 1)))
        return budget.account(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if type(left) is str and type(right) is str and operator == "+":
            budget.charge(len(left) + len(right))
            return left + right
        if operator == "%" and isinstance(left, str | bytes):
            _check_format(budget, left, _values(right), "%")
        elif operator in ("*", "**"):
            _check_product(budget, operator, left, right)
        return budget.account(super().call_binop(context, operator, left, right))


def _check_product(budget: Budget, operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MOST_BITS:
            raise TemplateLimit(f"makes a number of more than {MOST_BITS} bits")
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
                budget.reserve(budget.weigh(value) * max(0, times))


class _Counted(jinja2.visitor.NodeTransformer):
    """Puts a count before the body of everything that repeats, and a charge around what makes values."""

    def _counted(self, node: Any, *args: Any) -> Any:
        node = self.generic_visit(node)
        steps = 1 + sum(1 for _ in node.find_all(nodes.Node))
        tick = nodes.Filter(nodes.Const(steps), "<tick>", [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _counted

    def _made(self, node: Any, *args: Any) -> Any:
        node = self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or all(
            isinstance(each, nodes.Const) for each in node.iter_child_nodes()
        ):
            return node
        return nodes.Filter(node, "<made>", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _made

    def visit_Getitem(self, node: nodes.Getitem, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return nodes.Filter(node, "<made>", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "<concat>", [], [], None, None, lineno=node.lineno)

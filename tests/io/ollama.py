"""Ollama as its documentation and sources describe it: the grammar of a Modelfile, and Go's text/template.

Sources: Ollama's docs/modelfile.md, parser/parser.go (states, quotes), template/template.go (`Execute`, `collate`);
Go's text/template. Of Go's language its pipelines of one command (fields, variables, constants, functions
with arguments in brackets), if, else if, range, end, trim markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
NUMBERS = {"temperature": float, "top_p": float, "min_p": float, "repeat_penalty": float, "top_k": int, "num_ctx": int,
           "repeat_last_n": int, "num_predict": int, "seed": int}  # fmt: skip


class Wrong(Exception):
    """What Ollama refuses."""


# ---------------------------------------------------------------------- Modelfile
def unquoted(text: str) -> str | None:
    """None where a quotation is open."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            whole = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if whole else None
    return text


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, argument), FROM as model, a PARAMETER by its own name; read as parser.go does."""
    commands: list[tuple[str, str]] = []
    state, name, buffer = "nil", "", ""
    for character in text + "\n":
        space, newline = character in " \t", character in "\r\n"
        if state == "nil":
            if character == "#":
                state = "comment"
            elif not space and not newline:
                state, buffer = "name", character
        elif state == "comment":
            state = "nil" if newline else state
        elif state in ("name", "parameter"):
            if space:
                if state == "name" and buffer.lower() not in COMMANDS:
                    raise Wrong(f"unknown command {buffer}")
                name = buffer.lower() if state == "name" else buffer
                state, buffer = ("parameter" if state == "name" and name == "parameter" else "value"), ""
            elif not re.fullmatch(r"[A-Za-z]" if state == "name" else r"\w", character):
                raise Wrong(f"{buffer}{character} is no command")
            else:
                buffer += character
        elif newline and unquoted(buffer.strip()) is not None:
            commands.append(("model" if name == "from" else name, unquoted(buffer.strip()) or ""))
            state, buffer = "nil", ""
        elif newline or space or character.isprintable():
            buffer += character
    if state not in ("nil", "comment"):
        raise Wrong(f"unexpected end in {name} {buffer[:40]}")
    if not any(command == "model" for command, _ in commands):
        raise Wrong("no FROM line")
    for command, argument in commands:
        if command in NUMBERS:
            NUMBERS[command](argument)
        elif command not in ("model", "adapter", "template", "system", "stop"):
            raise Wrong(f"unknown parameter {command}")
    return commands


# ---------------------------------------------------------------------- Go's text/template
@dataclass
class Node:
    """A text, an action, or a block with its branches: (condition, nodes), the condition None for else."""

    kind: str
    value: str = ""
    branches: list[tuple[str | None, list[Node]]] = field(default_factory=list)


def parse_template(text: str) -> list[Node]:
    """The nodes of a template; Wrong where a block is open."""
    pieces = re.split(r"(\{\{.*?\}\})", text, flags=re.DOTALL)
    for index in range(1, len(pieces), 2):
        if pieces[index].startswith("{{- "):
            pieces[index - 1] = pieces[index - 1].rstrip(" \t\r\n")
        if pieces[index].endswith(" -}}"):
            pieces[index + 1] = pieces[index + 1].lstrip(" \t\r\n")
    root: list[Node] = []
    open_blocks: list[Node] = []
    current = root
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            if "{{" in piece:
                raise Wrong("unclosed action")
            current.append(Node("text", piece))
            continue
        inner = piece[2:-2].removeprefix("-").removesuffix("-").strip()
        word, _, rest = inner.partition(" ")
        if word in ("if", "range"):
            block = Node(word, rest, [(rest, [])])
            current.append(block)
            open_blocks.append(block)
        elif word == "else":
            condition = rest.removeprefix("if ") if rest else None
            open_blocks[-1].branches.append((condition, []))
        elif word == "end":
            if not open_blocks:
                raise Wrong("end without a block")
            open_blocks.pop()
        else:
            current.append(Node("action", inner))
        current = open_blocks[-1].branches[-1][1] if open_blocks else root
    if open_blocks:
        raise Wrong("unclosed block")
    return root


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: same_type(a, b) and a == b,
    "ne": lambda a, b: same_type(a, b) and a != b,
    "len": len,
    "slice": lambda items, start: items[start:],
    "not": lambda a: not a,
    "and": lambda *items: next((item for item in items if not item), items[-1]),
    "or": lambda *items: next((item for item in items if item), items[-1]),
}


def same_type(a: Any, b: Any) -> bool:
    """Go compares no text with a number."""
    if type(a) is not type(b):
        raise Wrong(f"incompatible types for comparison: {a!r}, {b!r}")
    return True


def tokens_of(pipeline: str) -> list[str]:
    found = re.findall(r'"(?:\\.|[^"\\])*"|[()]|[^\s()]+', pipeline)
    if "".join(found) != re.sub(r'("(?:\\.|[^"\\])*")|\s', lambda m: m[1] or "", pipeline):
        raise Wrong(f"bad pipeline {pipeline}")
    return found


def evaluate(pipeline: str, dot: Any, variables: Mapping[str, Any]) -> Any:
    """The value of one command."""
    tokens = tokens_of(pipeline)

    def operand() -> Any:
        token = tokens.pop(0)
        if token == "(":
            value = command()
            if tokens.pop(0) != ")":
                raise Wrong(f"bracket in {pipeline}")
            return value
        if token.startswith('"'):
            return go_string(token)
        if re.fullmatch(r"-?\d+", token):
            return int(token)
        if token.startswith("$"):
            name, _, path = token.partition(".")
            return along(variables[name], path)
        if token.startswith("."):
            return along(dot, token[1:])
        raise Wrong(f"function {token} is not defined as an operand")

    def command() -> Any:
        if tokens[0] in FUNCTIONS:
            function, arguments = FUNCTIONS[tokens.pop(0)], []
            while tokens and tokens[0] != ")":
                arguments.append(operand())
            return function(*arguments)
        return operand()

    value = command()
    if tokens:
        raise Wrong(f"unexpected {tokens} in {pipeline}")
    return value


def go_string(token: str) -> str:
    """An interpreted string constant of Go, of whose escapes these are JSON's too but the one of eight digits."""
    return str(json.loads(re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), token)))


def along(value: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        value = value[name]
    return value


def execute(nodes: Sequence[Node], dot: Any, variables: Mapping[str, Any]) -> str:
    out = ""
    for node in nodes:
        if node.kind == "text":
            out += node.value
        elif node.kind == "action":
            out += str(evaluate(node.value, dot, variables))
        elif node.kind == "if":
            for condition, body in node.branches:
                if condition is None or evaluate(condition, dot, variables):
                    out += execute(body, dot, variables)
                    break
        else:
            names, _, items = node.value.rpartition(":=")
            index_name, value_name = (name.strip() for name in names.split(","))
            for index, item in enumerate(evaluate(items.strip(), dot, variables)):
                inner = {**variables, index_name: index, value_name: item}
                out += execute(node.branches[0][1], item, inner)
    return out


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama gives the model for a chat; messages of one role that follow each other are joined."""
    collated: list[dict[str, str]] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message["role"]:
            collated[-1]["Content"] += "\n\n" + message["content"]
        else:
            collated.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    values = {"System": system, "Messages": collated, "Response": ""}
    return execute(parse_template(template), values, {"$": values})

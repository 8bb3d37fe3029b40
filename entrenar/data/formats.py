"""Instruction data from files: alpaca, prompt/completion and chat records, in JSON or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
EXPECTED = (
    "an object with instruction/output (and input), prompt/completion, or messages ending in an assistant's answer"
)


@dataclass(frozen=True)
class Example:
    """One conversation: messages of {"role": system | user | assistant, "content": text}, the last the assistant's."""

    messages: list[dict[str, str]]

    @property
    def text(self) -> str:
        """Prompt and answers as one text: what tells examples apart."""
        return "\n".join(message["content"] for message in self.messages)


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a .jsonl or .json file, in order.

    Raises FormatError, naming file and line (or record), where one is not as expected, or there is none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a .jsonl or .json file.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    records = _json_records(path, text) if path.suffix == ".json" else _line_records(path, text)
    examples = [_example(record, where) for where, record in records]
    if not examples:
        raise FormatError(f"{path}: holds no examples; expected one JSON object a line.")
    return examples


def _line_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise FormatError(f"{where}: is not JSON ({error}); expected {EXPECTED}.") from error


def _json_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{path}: is not JSON ({error}); expected a list of records.") from error
    if not isinstance(records, list):
        raise FormatError(f"{path}: holds a JSON {type(records).__name__}, expected a list of records.")
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"{where}: {key} is {value!r}, expected non-empty text.")
    return value


def _example(record: Any, where: str) -> Example:
    if not isinstance(record, dict):
        raise FormatError(f"{where}: is a JSON {type(record).__name__}, expected {EXPECTED}.")
    for key in ("messages", "conversations"):
        if key in record:
            return _conversation(record[key], key, where)
    if "instruction" in record:
        prompt = _text(record, "instruction", where)
        extra = record.get("input")
        if extra is not None and not isinstance(extra, str):
            raise FormatError(f"{where}: input is {extra!r}, expected text.")
        prompt = f"{prompt}\n\n{extra}" if extra and extra.strip() else prompt
        answer = _text(record, "output", where)
    elif "prompt" in record:
        prompt, answer = _text(record, "prompt", where), _text(record, "completion", where)
    else:
        raise FormatError(f"{where}: has the keys {sorted(record)}, expected {EXPECTED}.")
    return Example([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


def _conversation(turns: Any, key: str, where: str) -> Example:
    if not isinstance(turns, list) or not turns:
        raise FormatError(f"{where}: {key} is {turns!r}, expected a list of messages.")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise FormatError(f"{where}: {key} holds {turn!r}, expected objects with role and content.")
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise FormatError(f"{where}: a message has the role {role!r}, expected system, user or assistant.")
        content = _text(turn, "content" if "content" in turn else "value", where)
        messages.append({"role": ROLES[role], "content": content})
    if messages[-1]["role"] != "assistant":
        raise FormatError(
            f"{where}: the last message is the {messages[-1]['role']}'s, expected the assistant's answer."
        )
    return Example(messages)

"""Instruction data from files: alpaca, prompt/completion and chat records, in JSON or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
EXPECTED = (
    "an object with instruction/output (and input), prompt/completion, or messages ending in an assistant's answer"
)


@dataclass(frozen=True)
class Example:
    """One conversation, as a chat template gets it.

    Each message has a role and content, and what else its record says (tool calls, a name, reasoning). `left_out` are
    the indices of assistant messages that are not trained; `tools` and `variables` are further values for the template.
    `where` names the file and line, for messages.
    """

    messages: list[dict[str, Any]]
    left_out: frozenset[int] = frozenset()
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def text(self) -> str:
        """Prompt and answers as one text: what tells examples apart."""
        return "\n".join(str(message.get("content") or "") for message in self.messages)


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a .jsonl or .json file, in order.

    Raises FormatError, naming file and line (or record), where one is not as expected, or there is none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
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
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{where}: is not JSON ({error}); expected {EXPECTED}.") from error


def _json_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON ({error}); expected a list of records.") from error
    if not isinstance(records, list):
        raise FormatError(f"{path}: holds a JSON {type(records).__name__}, expected a list of records.")
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"{where}: {key} is {_shown(value)}, expected non-empty text.")
    _check_encodable(value, key, where)
    return value


def _check_encodable(value: str, key: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which is no character."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {key} holds half a character (\\u{ord(value[error.start]):x}).") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _example(record: Any, where: str) -> Example:
    if not isinstance(record, dict):
        raise FormatError(f"{where}: is a JSON {type(record).__name__}, expected {EXPECTED}.")
    system = _system(record, where)
    for key in ("messages", "conversations"):
        if key in record:
            return Example([*system, *_conversation(record[key], key, where)])
    if record.get("history"):
        raise FormatError(f"{where}: has a history, which is not read; write the conversation as messages.")
    if "instruction" in record:
        prompt = _text(record, "instruction", where)
        extra = record.get("input")
        if extra is not None and not isinstance(extra, str):
            raise FormatError(f"{where}: input is {_shown(extra)}, expected text.")
        if extra:
            _check_encodable(extra, "input", where)
        prompt = f"{prompt}\n\n{extra}" if extra and extra.strip() else prompt
        answer = _text(record, "output", where)
    elif "prompt" in record:
        prompt, answer = _text(record, "prompt", where), _text(record, "completion", where)
    else:
        raise FormatError(f"{where}: has the keys {sorted(record)}, expected {EXPECTED}.")
    return Example([*system, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


def _system(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    """The message that a record keeps beside its conversation."""
    if record.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": _text(record, "system", where)}]


def _conversation(turns: Any, key: str, where: str) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise FormatError(f"{where}: {key} is {_shown(turns)}, expected a list of messages.")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise FormatError(f"{where}: {key} holds {_shown(turn)}, expected objects with role and content.")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise FormatError(f"{where}: a message has the role {_shown(role)}, expected system, user or assistant.")
        content = _text(turn, "content" if "content" in turn else "value", where)
        messages.append({"role": ROLES[role], "content": content})
    if messages[-1]["role"] != "assistant":
        raise FormatError(
            f"{where}: the last message is the {messages[-1]['role']}'s, expected the assistant's answer."
        )
    return messages

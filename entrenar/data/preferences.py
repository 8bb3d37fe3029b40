"""Preference records as TRL reads them: prompt/chosen/rejected, chosen/rejected alone, prompt/completion/label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from entrenar.data.formats import Example, example_of
from entrenar.data.json_records import RecordFile
from entrenar.errors import FormatError

PAIRED = "prompt, chosen and rejected (or chosen and rejected that begin with the same prompt)"
LABELLED = "prompt, completion and label (true or false)"
COMMON = ("system", "tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Preference:
    """Answers to one prompt, each an example whose last answer alone is trained.

    `answers` are the chosen and the rejected one, or one with its `label`.
    """

    answers: tuple[Example, ...]
    label: bool = True

    @property
    def text(self) -> str:
        """What tells preferences apart."""
        return "\n".join(answer.text for answer in self.answers)


def read_preferences(path: str | Path, *, labelled: bool) -> list[Preference]:
    """The preferences of a .jsonl or .json file, pairs or `labelled` answers.

    A prompt is a text or a list of messages, answers are too. Raises FormatError, naming file and line, where a record
    is not as expected.
    """
    found = [(_labelled if labelled else _pair)(record, where) for where, record in RecordFile(path)]
    if not found:
        raise FormatError(f"{path}: holds no preferences; expected one JSON object a line.")
    return found


def _pair(record: Any, where: str) -> Preference:
    missing = [key for key in ("chosen", "rejected") if not isinstance(record, dict) or not record.get(key)]
    if missing:
        raise FormatError(f"{where}: has no {' and no '.join(missing)}, expected an object with {PAIRED}.")
    prompt, answers = record.get("prompt"), [record["chosen"], record["rejected"]]
    if prompt is None:
        prompt, answers = _shared(answers, where)
    chosen, rejected = (_answer(record, prompt, answer, where) for answer in answers)
    return Preference((chosen, rejected))


def _labelled(record: Any, where: str) -> Preference:
    if not isinstance(record, dict) or not record.get("prompt") or not record.get("completion"):
        raise FormatError(f"{where}: has no prompt or no completion, expected an object with {LABELLED}.")
    if not isinstance(record.get("label"), bool):
        raise FormatError(f"{where}: label is {record.get('label')!r:.80}, expected true or false.")
    return Preference((_answer(record, record["prompt"], record["completion"], where),), record["label"])


def _shared(answers: list[Any], where: str) -> tuple[Any, list[Any]]:
    """The prompt with which both answers begin, and what each has after it."""
    if type(answers[0]) is not type(answers[1]) or not isinstance(answers[0], str | list):
        raise FormatError(f"{where}: chosen and rejected are of different kinds, expected two texts or two lists.")
    count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*answers, strict=False)))
    if isinstance(answers[0], str):
        count = answers[0].rfind(" ", 0, count) + 1 if count and answers[0][count - 1] != "\n" else count
    else:
        count = min(count, *(len(answer) - 1 for answer in answers))
    if not count:
        raise FormatError(f"{where}: chosen and rejected begin with no prompt that they share, expected {PAIRED}.")
    return answers[0][:count], [answer[count:] for answer in answers]


def _answer(record: dict[str, Any], prompt: Any, answer: Any, where: str) -> Example:
    """The example of one answer to the prompt; nothing but the last answer is trained."""
    messages = list(_messages(prompt, "user", where)) + list(_messages(answer, "assistant", where))
    others = {key: record[key] for key in COMMON if record.get(key) is not None}
    example = example_of({"messages": messages, **others}, where)
    last = len(example.messages) - 1
    if last in example.left_out or last in example.weights:
        raise FormatError(f"{where}: an answer has a weight, which preferences do not use; leave it out.")
    earlier = [index for index, message in enumerate(example.messages[:-1]) if message["role"] == "assistant"]
    return replace(example, left_out=frozenset(earlier), marked=False, weights={})


def _messages(content: Any, role: str, where: str) -> Iterator[Any]:
    if isinstance(content, str):
        yield {"role": role, "content": content}
    elif isinstance(content, list) and content:
        yield from content
    else:
        raise FormatError(f"{where}: the {role}'s part is no text and no list of messages, expected one of both.")

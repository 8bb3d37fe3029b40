"""Preference records as TRL reads them: prompt/chosen/rejected, chosen/rejected alone, prompt/completion/label."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, overload

import numpy as np

from entrenar.config import shown
from entrenar.data.formats import Example, check_changes, example_of
from entrenar.data.messages import is_empty
from entrenar.data.places import ints
from entrenar.data.record_files import TableFile, open_records
from entrenar.data.split import digest
from entrenar.errors import FormatError

PAIRED = "prompt, chosen and rejected (or chosen and rejected that begin with the same prompt)"
LABELLED = "prompt, completion and label (true or false)"
LABELS = {"true": True, "1": True, "false": False, "0": False}  # of a cell of CSV
IN_PYTHON = re.compile(r"\s*\[\s*\{\s*'")  # how pandas writes a list of messages into CSV
COMMON = ("system", "tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Preference:
    """Answers to one prompt, each an example whose last answer alone is trained.

    `answers` are the chosen and the rejected one, or one with its `label`, perhaps of a `pair` with this text.
    """

    answers: tuple[Example, ...]
    label: bool = True
    pair: str = ""

    @property
    def text(self) -> str:
        """What tells preferences apart: answers of one pair are held out together."""
        return self.pair or "\n".join(answer.text for answer in self.answers)


class PreferenceRecords:
    """The records of a file (JSON, CSV or Parquet), each as its preferences, read and checked one at a time.

    A prompt is a text or a list of messages, answers are too (in CSV the JSON of one). A record is a pair; where
    answers are `labelled`, an answer, or a pair as its wanted and its unwanted one. Raises FormatError, naming file
    and line, where the file or the record that is read is not as expected.
    """

    def __init__(self, path: str | Path, *, labelled: bool) -> None:
        self._records, self._labelled = open_records(path), labelled
        if not self._records:
            raise FormatError(f"{path}: holds no preferences; expected one JSON object a line.")

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Iterable[int]) -> Iterator[list[Preference]]:
        """What the records of these indices are, in their order."""
        for where, record in self._records.read(indices):
            yield self._of_record(where, record)

    def _of_record(self, where: str, record: Any) -> list[Preference]:
        if isinstance(self._records, TableFile):
            record = _from_cells(record, where)
        if not self._labelled:
            return [_pair(record, where)]
        if isinstance(record, dict) and "completion" not in record and record.get("chosen"):
            pair = _pair(record, where)
            labels = zip((True, False), pair.answers, strict=True)
            return [Preference((answer,), label, pair.text) for label, answer in labels]
        return [_labelled(record, where)]


class PreferenceFile(Sequence[Preference]):
    """The preferences of a file's first `most` records (0 is all): pairs, or `labelled` answers; read when asked for.

    Where answers are labelled, a pair is one wanted and one unwanted answer, the wanted ones of all pairs first, as
    TRL has them. Raises as `PreferenceRecords`: all records are checked at once. `hashes` (n,) uint64 are the digests
    of their texts.
    """

    def __init__(self, path: str | Path, *, labelled: bool, most: int = 0) -> None:
        self._records = PreferenceRecords(path, labelled=labelled)
        count = min(len(self._records), most or len(self._records))
        places, hashes = (array("q"), array("q")), (array("Q"), array("Q"))  # wanted or all of a record, unwanted
        for index, found in enumerate(self._records.read(range(count))):
            for side, preference in enumerate(found):
                places[side].append(index)
                hashes[side].append(digest(preference.text))
        self._wanted = len(places[0])
        self._places = np.concatenate([np.asarray(side) for side in places])
        self.hashes = np.concatenate([np.asarray(side) for side in hashes])

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Preference: ...
    @overload
    def __getitem__(self, index: slice) -> list[Preference]: ...
    def __getitem__(self, index: int | slice) -> Preference | list[Preference]:
        chosen = range(len(self))[index]
        return list(self.read(chosen)) if isinstance(chosen, range) else next(self.read([chosen]))

    def __iter__(self) -> Iterator[Preference]:
        return self.read(range(len(self)))

    def read(self, indices: Sequence[int] | np.ndarray) -> Iterator[Preference]:
        """The preferences of these indices, in their order."""
        given = np.asarray(indices, np.int64)
        records = self._records.read(ints(self._places[given]))
        for index, found in zip(ints(given), records, strict=True):
            yield found[int(index >= self._wanted)]


def _from_cells(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of CSV, whose cells are texts, with its messages as lists and its label as true or false."""
    found = dict(record)
    for key in ("prompt", "chosen", "rejected", "completion"):
        text = found.get(key, "")
        try:
            messages = json.loads(text) if text.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
            messages = None
        if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
            found[key] = messages
        elif IN_PYTHON.match(text):
            raise FormatError(
                f"{where}: {key} is a list in the notation of Python, expected JSON; write json.dumps of it, or a "
                "Parquet file."
            )
    label = str(found.get("label", "")).strip().lower()
    return found | ({"label": LABELS[label]} if label in LABELS else {})


def _check_empty(record: Any, keys: Sequence[str], where: str) -> None:
    """FormatError for a key that is there and holds an empty text or list."""
    for key in keys:
        if isinstance(record, dict) and record.get(key) in ("", []):
            raise FormatError(f"{where}: {key} is {shown(record[key])}, expected non-empty text or messages.")


def _pair(record: Any, where: str) -> Preference:
    _check_empty(record, ("chosen", "rejected"), where)
    missing = [key for key in ("chosen", "rejected") if not isinstance(record, dict) or not record.get(key)]
    if missing:
        raise FormatError(f"{where}: has no {' and no '.join(missing)}, expected an object with {PAIRED}.")
    unused = _unused(record, ("prompt", "chosen", "rejected"), where)
    prompt, answers = record.get("prompt"), [record["chosen"], record["rejected"]]
    if prompt is None:
        prompt, answers = _shared(answers, where)
    chosen, rejected = (_answer(record, prompt, answer, where) for answer in answers)
    return Preference((replace(chosen, unused=unused), rejected))


def _labelled(record: Any, where: str) -> Preference:
    _check_empty(record, ("prompt", "completion"), where)
    if not isinstance(record, dict) or not record.get("prompt") or not record.get("completion"):
        raise FormatError(f"{where}: has no prompt or no completion, expected an object with {LABELLED}.")
    if not isinstance(record.get("label"), bool):
        raise FormatError(f"{where}: label is {record.get('label')!r:.80}, expected true or false.")
    unused = _unused(record, ("prompt", "completion", "label"), where)
    answer = _answer(record, record["prompt"], record["completion"], where)
    return Preference((replace(answer, unused=unused),), record["label"])


def _unused(record: dict[str, Any], read: Sequence[str], where: str) -> tuple[str, ...]:
    """The keys that say something and that nothing reads; FormatError for one that would change what is learned."""
    check_changes(record, "prompt", where)
    return tuple(key for key, value in record.items() if key not in (*read, *COMMON) and not is_empty(value))


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

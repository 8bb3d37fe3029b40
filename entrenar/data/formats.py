"""Examples from files: alpaca, prompt/completion, chat, segments and plain text records, and of text files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, overload

from entrenar.choices import FORMATS
from entrenar.config import shown
from entrenar.data.foreign_files import command
from entrenar.data.foreign_records import foreign_layout, wrapped
from entrenar.data.json_records import RecordFile
from entrenar.data.messages import check_encodable, check_text, is_empty, json_kind, read_messages
from entrenar.data.record_files import open_records
from entrenar.errors import FormatError

EXPECTED = (
    "an object with instruction/output (and input), prompt/completion, messages ending in an assistant's answer, "
    "segments or text"
)
# What a layout reads; the key that is listed first says that a record has it.
LAYOUTS = {
    "messages": ("messages", "system", "tools", "chat_template_kwargs"),
    "conversations": ("conversations", "system", "tools", "chat_template_kwargs"),
    "instruction": ("instruction", "input", "output", "system", "tools", "chat_template_kwargs"),
    "prompt": ("prompt", "completion", "system", "tools", "chat_template_kwargs"),
    "text": ("text",),
    "segments": ("segments",),
}
# Keys that would change what is learned, were they read: refused where they hold something.
CHANGES = {
    "history": "write the conversation as messages",
    "functions": "write them as tools",
    "function_call": "write it as tool_calls of a message",
    "documents": "write them into a message, or into chat_template_kwargs",
    "system_prompt": "rename it to system",
    "system_message": "rename it to system",
    "labels": "which tokens are trained follows from the roles",
    "weight": "repeat or leave out the record",
    "sample_weight": "repeat or leave out the record",
    "loss_weight": "repeat or leave out the record",
    **dict.fromkeys(
        ("images", "image", "audio", "audios", "video", "videos"), "the model reads text alone; leave the record out"
    ),
}


@dataclass(frozen=True)
class Example:
    """One conversation, as a chat template gets it, or one plain text.

    Each message has a role and content, and what else its record says (tool calls, a name, reasoning). `left_out`
    are the indices of messages that are not trained, `weights` what others count in the loss that count less than
    1; `tools` and `variables` are further values for the template. A plain text is `document`, with no messages:
    all of it is trained, and `whole_file` says that it is a file's. `segments` are texts, each with whether it is
    trained, which no template touches. `where` names the file and line, for messages, `unused` the keys of the
    record that say something and that nothing reads; `marked` says that `left_out` is the record's wish and does
    not follow from its layout alone; `file` is its file's number, of several.
    """

    messages: list[dict[str, Any]]
    left_out: frozenset[int] = frozenset()
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    document: str | None = None
    segments: tuple[tuple[bool, str], ...] = ()
    whole_file: bool = False
    where: str = field(default="", compare=False)
    unused: tuple[str, ...] = field(default=(), compare=False)
    marked: bool = field(default=False, compare=False)
    weights: dict[int, float] = field(default_factory=dict)
    file: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        """Prompt and answers as one text: what tells examples apart."""
        if self.document is not None:
            return self.document
        if self.segments:
            return "".join(text for _, text in self.segments)
        return "\n".join(content_text(message) for message in self.messages)

    @property
    def question(self) -> str:
        """The text before the first answer that is trained, for display; empty where there is none."""
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant" and index not in self.left_out:
                return content_text(self.messages[index - 1]) if index else ""
        return "".join(text for _, text in takewhile(lambda segment: not segment[0], self.segments))


def content_text(message: dict[str, Any]) -> str:
    """The text of a message; its parts are joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


class Examples(Sequence[Example]):
    """Examples that are read when they are asked for."""

    def read(self, indices: Iterable[int]) -> Iterator[Example]:
        """The examples of these indices, in their order."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return list(self.read(range(len(self))[index]))
        return next(self.read([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Example]:
        return self.read(range(len(self)))


class ExampleFile(Examples):
    """The examples of a file, or of a folder of texts, in order, read and checked one at a time: never all in memory.

    Raises FormatError, naming file and line (or record), where the file or the record that is read is not as expected.
    """

    def __init__(self, path: str | Path, format: str = "auto") -> None:
        self.records, self.format = open_records(path, text=format == "text"), format
        if not self.records:
            raise FormatError(f"{self.records.path}: holds no examples; expected one JSON object a line.")

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: Iterable[int]) -> Iterator[Example]:
        """The examples of these indices, in their order."""
        for where, record in self.records.read(indices):
            if self.format == "auto":
                self._check_layout(record, where)
            example = example_of(record, where, self.format)
            yield replace(example, whole_file=True) if self.records.texts else example

    def _check_layout(self, record: Any, where: str) -> None:
        """FormatError, with a command that converts the file, where the record has another program's layout."""
        key = wrapped(record) if len(self) == 1 else None
        if key is not None:
            raise FormatError(
                f"{where}: is the file's only object, with its records under the key {shown(key)}, expected a list of "
                f"them; convert it: {self._conversion('r', '', f'[{key!r}]')} ."
            )
        found = foreign_layout(record) if isinstance(record, dict) else None
        if found is not None:
            what, how = found
            advice = ""
            if how and isinstance(self.records, RecordFile):
                advice = f"; convert the file: {self._conversion(*how.split('|'))} "
            elif how:
                advice = "; rename the columns"
            raise FormatError(f"{where}: is {what}, expected {EXPECTED}{advice}.")

    def _conversion(self, expression: str, condition: str, part: str = "") -> str:
        lines = self.records.lines and not part
        source = "map(json.loads, open('{name}'))" if lines else f"json.load(open('{{name}}')){part}"
        escaped = expression.replace("{", "{{").replace("}", "}}")
        code = f"import json; [print(json.dumps({escaped})) for r in {source}{condition and ' '}{condition}]"
        return command(f'python -c "{code}" > {{output}}', self.records.path)


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a .jsonl or .json file, in order.

    Raises FormatError, naming file and line (or record), where one is not as expected, or there is none.
    """
    return list(ExampleFile(path))


def _layout(record: dict[str, Any], where: str) -> str:
    """The key that says how a record is laid out; FormatError where none does, or two contradict each other."""
    there = [key for key in LAYOUTS if record.get(key) is not None]
    pairs = [
        f"{a}/{b}"
        for a, b in (("instruction", "output"), ("prompt", "completion"))
        if record.get(a) is not None and record.get(b) is not None
    ]
    chats = [key for key in ("messages", "conversations") if key in there]
    if len(chats) > 1 or len(pairs) > 1 or (chats and "prompt/completion" in pairs):
        raise FormatError(f"{where}: has {' and '.join([*chats, *pairs])}; keep the one that is meant.")
    if pairs and not chats:
        return pairs[0].split("/")[0]
    named = there or [key for key in LAYOUTS if key in record]
    if not named:
        raise FormatError(f"{where}: {_unknown(record)}, expected {EXPECTED}.")
    return named[0]


def _unknown(record: dict[str, Any]) -> str:
    """What to say of a record whose keys no layout has."""
    for key, missing in (("completion", "prompt"), ("output", "instruction")):
        if key in record:
            return f"has {key} and no {missing}"
    keys = ", ".join(sorted(record))
    return f"has the keys {keys:.200}" if record else "is an object without keys"


def _asked(record: dict[str, Any], format: str, where: str) -> str:
    """The key of the layout that `format` says; FormatError where the record has none."""
    layout = FORMATS[format]
    if layout not in record:
        keys = ", ".join(sorted(record)) or "none"
        raise FormatError(
            f"{where}: has no {layout}, which data.format = {format} reads, and has the keys {keys:.200}; set "
            "data.format to the format that the file has, or to auto."
        )
    return layout


def example_of(record: Any, where: str, format: str = "auto") -> Example:
    """The example of one record, of the layout that it has or `format` says.

    Raises FormatError, naming its place, where it is not as expected.
    """
    if not isinstance(record, dict):
        raise FormatError(f"{where}: is {json_kind(record)}, expected {EXPECTED}.")
    layout = _layout(record, where) if format == "auto" else _asked(record, format, where)
    check_changes(record, layout, where)
    unused = tuple(key for key, value in record.items() if key not in LAYOUTS[layout] and not is_empty(value))
    if layout == "text":
        return Example([], document=check_text(record["text"], "text", where), where=where, unused=unused)
    if layout == "segments":
        return Example([], segments=_segments(record["segments"], where), where=where, unused=unused)
    if layout in ("messages", "conversations"):
        messages, weights = read_messages(record[layout], layout, where)
        marked = 0 in weights.values()
    elif layout == "instruction":
        messages, weights, marked = _instruction(record, where), {}, False
    else:
        messages, weights, marked = _completion(record, where)
    if messages[-1]["role"] != "assistant":
        raise FormatError(
            f"{where}: the last message is the {messages[-1]['role']}'s, expected the assistant's answer."
        )
    system = _system(record, messages, where)
    return Example(
        [*system, *messages],
        frozenset(index + len(system) for index, weight in weights.items() if not weight),
        _tools(record, where),
        _variables(record, where),
        where=where,
        unused=unused,
        marked=marked,
        weights={index + len(system): weight for index, weight in weights.items() if weight},
    )


def check_changes(record: dict[str, Any], layout: str, where: str) -> None:
    """FormatError for a key that says something, would change what is learned and is not read."""
    for key, advice in CHANGES.items():
        if not is_empty(record.get(key)) and not (key.endswith("weight") and record[key] == 1):
            raise FormatError(f"{where}: has {_article(key)}{key}, which is not read; {advice}.")
    if layout in ("instruction", "prompt") and not is_empty(record.get("context")):
        raise FormatError(f"{where}: has a context beside {layout}, which is not read; write it into the {layout}.")


def _article(key: str) -> str:
    return "a " if key in ("history", "weight", "sample_weight", "loss_weight") else ""


def _instruction(record: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Stanford Alpaca's layout: the input stands below the instruction."""
    prompt = _required(record, "instruction", where)
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise FormatError(f"{where}: input is {shown(extra)}, expected text.")
    check_encodable(extra, "input", where)
    prompt = f"{prompt}\n\n{extra}" if extra and extra.strip() else prompt
    return _turns(prompt, _required(record, "output", where))


def _segments(segments: Any, where: str) -> tuple[tuple[bool, str], ...]:
    """The input_output records of axolotl: {"label": whether it is trained, "text": ...} one behind the other."""
    if not isinstance(segments, list) or not segments:
        raise FormatError(f"{where}: segments is {shown(segments)}, expected a list of objects with label and text.")
    for segment in segments:
        if not isinstance(segment, dict) or not isinstance(segment.get("label"), bool):
            raise FormatError(
                f"{where}: segments holds {shown(segment)}, expected objects with label (true or false) and text."
            )
        if not isinstance(segment.get("text"), str) or not segment["text"]:
            raise FormatError(f"{where}: text of a segment is {shown(segment.get('text'))}, expected non-empty text.")
        check_encodable(segment["text"], "text of a segment", where)
    return tuple((segment["label"], segment["text"]) for segment in segments)


def _required(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise FormatError(f"{where}: has no {key}, expected {EXPECTED}.")
    return check_text(record[key], key, where)


def _turns(prompt: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _completion(record: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], dict[int, float], bool]:
    """A prompt and its answer, as texts or (TRL's conversational layout) as messages, of which one is the answer.

    Returns the messages, by index what counts less than 1, and whether a mark of the record leaves one out.
    """
    prompt, completion = record["prompt"], record.get("completion")
    if not isinstance(prompt, list):
        turns = _turns(_required(record, "prompt", where), _required(record, "completion", where))
        return turns, {}, False
    if completion is None:
        raise FormatError(f"{where}: has no completion, expected a list of messages.")
    before, marks = read_messages(prompt, "prompt", where)
    answer, weights = read_messages(completion, "completion", where)
    if [message["role"] for message in answer] != ["assistant"]:
        roles = ", ".join(message["role"] for message in answer)
        raise FormatError(
            f"{where}: completion holds messages of {roles}, expected one of the assistant; write the conversation as "
            "messages."
        )
    left_out = {index: 0.0 for index, message in enumerate(before) if message["role"] == "assistant"}
    weights = {len(before) + index: weight for index, weight in weights.items()}
    marked = 0 in (*marks.values(), *weights.values())
    return [*before, *answer], left_out | weights, marked


def _system(record: dict[str, Any], messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The message that a record keeps beside its conversation."""
    if is_empty(record.get("system")):
        return []
    text = check_text(record["system"], "system", where)
    if messages[0]["role"] == "system":
        if messages[0].get("content") == text:
            return []
        raise FormatError(f"{where}: has a system beside messages that begin with another one; keep one.")
    return [{"role": "system", "content": text}]


def _tools(record: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The tools that a record offers: a list of objects, or (as columns of one type need it) the JSON of one.

    An empty list stays one, as in TRL: templates of Llama 3 write other text for it than where there is none.
    """
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise FormatError(
                f"{where}: tools is {shown(tools)}, which is not JSON; expected a list of objects."
            ) from None
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise FormatError(f"{where}: tools is {shown(tools)}, expected a list of objects.")
    check_encodable(tools, "tools", where)
    return tools


def _variables(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The template's further variables, as TRL reads them from chat_template_kwargs."""
    variables = record.get("chat_template_kwargs")
    if is_empty(variables):
        return {}
    if not isinstance(variables, dict):
        raise FormatError(f"{where}: chat_template_kwargs is {shown(variables)}, expected an object.")
    taken = {"messages", "tools", "add_generation_prompt", "tokenize", "chat_template", "conversation"} & set(variables)
    if taken:
        raise FormatError(f"{where}: chat_template_kwargs sets {sorted(taken)[0]}, which the program sets itself.")
    check_encodable(variables, "chat_template_kwargs", where)
    return variables

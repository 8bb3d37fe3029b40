"""Where the answers stand in a conversation as a chat template writes it.

Three ways, the first that applies: the template's own `{% generation %}` blocks; the beginnings of the conversation,
where the template writes each as a beginning of the whole; and where it writes earlier turns anew, the same
conversation with another text in the answer's place, which shows what of the rendering belongs to that answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from entrenar.data.formats import Example
from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io.rendering import REASONING, Rendering
from entrenar.io.tokenizer import Tokenizer

Message = Mapping[str, Any]
Span = tuple[int, int]
BORROWED = {"role": "user", "content": "Hello"}  # a prompt for conversations that begin with an answer


@dataclass(frozen=True)
class Turn:
    """How a template frames an answer: what it writes before all of it, before its content, and after its content."""

    header: str
    opening: str
    closing: str


class Renderer:
    """Renders a conversation and variants of it with what its example gives the template."""

    def __init__(self, example: Example, tokenizer: Tokenizer) -> None:
        from entrenar.io.chat_template import check_variables  # jinja2 only where there is a template

        check_variables(example.variables)
        self.example, self.tokenizer = example, tokenizer

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.backend.get_added_tokens_decoder().values()
        longest_first = sorted((token.content for token in added if token.content), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")  # (?!) stands nowhere

    def render(self, messages: Sequence[Message], prompt: bool = False) -> Rendering:
        """What the template writes for these messages, with or without the prompt for an answer."""
        return self.tokenizer.render_chat(
            messages,
            add_generation_prompt=prompt,
            tools=self.example.tools,
            documents=self.example.variables.get("documents"),
            variables={name: value for name, value in self.example.variables.items() if name != "documents"},
        )

    def text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text alone."""
        return self.render(messages, prompt).text

    def pieces(self, text: str) -> list[str]:
        """The text cut into special tokens and what stands between them."""
        return [piece for piece in self._special.split(text) if piece]

    def shared(self, a: str, b: str) -> int:
        """How many characters both begin with, no special token counted in part."""
        count = 0
        for one, other in zip(self.pieces(a), self.pieces(b), strict=False):
            if one == other:
                count += len(one)
                continue
            if not self._special.fullmatch(one) and not self._special.fullmatch(other):
                count += _common(one, other)
            break
        return count


def answer_spans(example: Example, tokenizer: Tokenizer, wanted: Sequence[int]) -> tuple[str, list[Span]]:
    """The rendered conversation, and the (start, stop) of its characters that the `wanted` messages answer with.

    An answer's end-of-turn token is within its span; white space that the template writes after the token that ends a
    text is not (it is after another token that ends turns, as TRL's templates have it). Raises
    ConfigError where the template leaves out what a message says, or where an answer's place cannot be told for sure.
    """
    renderer = Renderer(example, tokenizer)
    try:
        whole = renderer.render(example.messages)
    except FormatError as error:
        _check_content(renderer)
        _check_parts(renderer)
        raise error
    _check_written(renderer, whole.text)
    if not wanted:
        return whole.text, []
    if tokenizer.template(example.tools).has_generation:
        return whole.text, _generated(renderer, whole, wanted)
    spans: list[Span] = []
    for index in wanted:
        start, stop = _span(renderer, whole.text, index)
        if spans and start < spans[-1][1]:
            raise ConfigError("The chat template writes the answers in another order than the conversation has.")
        spans.append((start, _without_space(whole.text[:stop], start, tokenizer)))
    return whole.text, spans


def _span(renderer: Renderer, text: str, index: int) -> Span:
    """The answer's place; by beginnings where the template writes a prompt for it, as after a user's message."""
    found = _by_prefix(renderer, text, index)
    before = renderer.example.messages[:index]
    if found is None:
        return _by_probe(renderer, text, index)
    if before and before[-1].get("role") == "user":
        return found
    if renderer.text(before) != text[: found[0]]:
        return found
    with suppress(ConfigError):
        return _by_probe(renderer, text, index)
    return found


def _common(a: str, b: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is quicker than a loop over characters
        middle = (low + high + 1) // 2
        if a.startswith(b[:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def _without_space(text: str, start: int, tokenizer: Tokenizer) -> int:
    """Where the answer text[start:] ends without the white space that a template writes after the end-of-turn token."""
    end = tokenizer.token(tokenizer.eos_id)
    if end and end in text[start:]:
        cut = text.rindex(end) + len(end)
        if not text[cut:].strip():
            return cut
    return len(text)


def _number(renderer: Renderer, index: int) -> str:
    return f"message {index + 1} of {len(renderer.example.messages)}"


# ---------------------------------------------------------------------- what is not written
def _check_content(renderer: Renderer) -> None:
    """ConfigError where a template fails for want of a message's content, as calls have none in OpenAI's records."""
    messages = renderer.example.messages
    without = next((index for index, message in enumerate(messages) if message.get("content") is None), None)
    if without is None:
        return
    filled = [message if message.get("content") is not None else {**message, "content": ""} for message in messages]
    other = Renderer(replace(renderer.example, messages=filled), renderer.tokenizer)
    try:
        text = other.text(filled)
    except EntrenarError:
        return  # it fails for another reason
    _check_written(other, text)
    raise ConfigError(
        f"The chat template asks for the content of {_number(renderer, without)}, which has none (null counts as "
        "none); give it an empty text."
    )


def _check_parts(renderer: Renderer) -> None:
    """ConfigError where a template fails because a message's content is in parts, and it wants one text."""
    messages = renderer.example.messages
    parts = [index for index, message in enumerate(messages) if isinstance(message.get("content"), list)]
    joined = [
        {**message, "content": " ".join(_said(message))} if index in parts else message
        for index, message in enumerate(messages)
    ]
    other = Renderer(replace(renderer.example, messages=joined), renderer.tokenizer)
    try:
        other.text(joined)
    except EntrenarError:
        return  # it fails for another reason
    if parts:
        raise ConfigError(
            f"The chat template cannot write the content of {_number(renderer, parts[0])}, which is a list of parts; "
            "write it as one text."
        )


def _check_written(renderer: Renderer, text: str) -> None:
    """ConfigError where the template drops what a conversation has: tools, calls, their results, reasoning."""
    example, names = renderer.example, renderer.tokenizer.template(renderer.example.tools).names
    if example.tools and "tools" not in names:
        raise ConfigError("The chat template writes no tools, and the record has some; use a template that does.")
    contents = "\0".join(each for message in example.messages for each in _said(message))
    for index, message in enumerate(example.messages):
        where = _number(renderer, index)
        if message.get("tool_calls") and not _matters(renderer, text, index, "tool_calls"):
            raise ConfigError(
                f"The chat template leaves out the tool_calls of {where}; use a template that writes them."
            )
        said = _said(message)
        less = any(text.count(each) < contents.count(each) for each in said)
        if less and not _matters(renderer, text, index, "content"):
            if not text:
                raise ConfigError("The chat template is empty, or writes nothing for this record; use another one.")
            advice = "leave it out of the record"
            if isinstance(message.get("content"), list):
                advice = "write its content, a list of parts, as one text"
            raise ConfigError(
                f"The chat template leaves out what {where} says (role {message.get('role')}, {said[0]!r:.60}); use a "
                f"template that writes it, or {advice}."
            )
        reasoning = next((name for name in REASONING if message.get(name)), None)
        if reasoning and not names.intersection(REASONING):
            raise ConfigError(
                f"The chat template writes no {reasoning}, and {where} has some; use a template that writes it, or put "
                "it into the content."
            )


def _said(message: Message) -> list[str]:
    """The texts of a message's content, without white space around them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _matters(renderer: Renderer, text: str, index: int, key: str) -> bool:
    messages = list(renderer.example.messages)
    kept = {name: value for name, value in messages[index].items() if name != key}
    messages[index] = {**kept, "content": kept.get("content") or ""}
    try:
        return renderer.text(messages) != text
    except EntrenarError:
        return True  # the template asks for it


# ---------------------------------------------------------------------- by generation blocks
def _generated(renderer: Renderer, whole: Rendering, wanted: Sequence[int]) -> list[Span]:
    spans = whole.generated
    if not spans:
        raise ConfigError(
            "The chat template's generation blocks hold nothing of this conversation, so none is trained."
        )
    answers = [i for i, message in enumerate(renderer.example.messages) if message.get("role") == "assistant"]
    if list(wanted) == answers:
        return spans
    if len(spans) == len(answers):
        return [span for span, index in zip(spans, answers, strict=True) if index in wanted]
    left_out: set[int] = set()
    for index in answers:
        if index not in wanted:
            left_out |= _generated_by(renderer, index, len(spans))
    return [span for place, span in enumerate(spans) if place not in left_out]


def _generated_by(renderer: Renderer, index: int, count: int) -> set[int]:
    """Which of the generation blocks change with a message: those that it wrote."""
    for one, other in _probes(renderer, index):
        a, b = renderer.render(one), renderer.render(other)
        if len(a.generated) == len(b.generated) == count:
            pairs = zip(a.generated, b.generated, strict=True)
            found = {place for place, (x, y) in enumerate(pairs) if a.text[slice(*x)] != b.text[slice(*y)]}
            if found:
                return found
    raise ConfigError(
        f"The chat template's generation blocks do not show which is {_number(renderer, index)}, which is not to be "
        "trained; leave the record out."
    )


# ---------------------------------------------------------------------- by beginnings
def _by_prefix(renderer: Renderer, text: str, index: int) -> Span | None:
    messages = renderer.example.messages
    try:
        prompt = renderer.text(messages[:index], prompt=True)
        if not prompt or not text.startswith(prompt):  # many templates write nothing for a conversation of no message
            return None
        whole = text if index == len(messages) - 1 else renderer.text(messages[: index + 1])
    except EntrenarError:
        return None  # a template need not write a conversation's beginning alone
    if not text.startswith(whole) or len(whole) < len(prompt):
        return None
    return len(prompt), len(whole)


# ---------------------------------------------------------------------- by another answer in its place
def _probe_messages(message: Message) -> Iterator[tuple[Message, Message, str, str]]:
    """The message with one of its texts replaced by two others that share no character at either end."""
    one, other = "Xprobe1", "Yprobe2"
    content = message.get("content")
    if isinstance(content, list):
        texts = [place for place, part in enumerate(content) if isinstance(part, Mapping) and "text" in part]
        if len(texts) == 1:
            parts = [
                [{**part, "text": text} if place == texts[0] else part for place, part in enumerate(content)]
                for text in (one, other)
            ]
            yield {**message, "content": parts[0]}, {**message, "content": parts[1]}, one, other
    elif content or not message.get("tool_calls"):
        yield {**message, "content": one}, {**message, "content": other}, one, other
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[-1], Mapping):
        for name in ("name", "arguments"):
            made = [[*calls[:-1], _with_call(calls[-1], name, text)] for text in (one, other)]
            yield {**message, "tool_calls": made[0]}, {**message, "tool_calls": made[1]}, one, other
    for name in REASONING:
        if isinstance(message.get(name), str):
            yield {**message, name: one}, {**message, name: other}, one, other


def _with_call(call: Mapping[str, Any], name: str, text: str) -> Mapping[str, Any]:
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _with_call(inner, name, text)}
    return {**call, name: {text: 1} if name == "arguments" and isinstance(call.get(name), Mapping) else text}


def _probes(renderer: Renderer, index: int) -> Iterator[tuple[list[Message], list[Message]]]:
    messages = list(renderer.example.messages)
    for one, other, _, _ in _probe_messages(messages[index]):
        yield [*messages[:index], one, *messages[index + 1 :]], [*messages[:index], other, *messages[index + 1 :]]


def _by_probe(renderer: Renderer, text: str, index: int) -> Span:
    """The part of the rendering that belongs to a message: all else stays as it is whatever the message says."""
    for one, other, mark, other_mark in _probe_messages(renderer.example.messages[index]):
        with suppress(_NotThere):
            return _place(renderer, text, index, (one, other), (mark, other_mark))
    raise ConfigError(
        f"The chat template writes earlier turns anew in a way that does not show where {_number(renderer, index)} "
        "stands; use a template with generation blocks, or train on the prompts too."
    )


class _NotThere(Exception):
    """A probe does not show the answer's place."""


def _around(a: str, b: str, marks: tuple[str, str]) -> tuple[str, str]:
    """What two renderings have before and after the one place where their marks stand."""
    start = _common(a, b)
    head, tail = a[:start], a[start + len(marks[0]) :]
    if a != head + marks[0] + tail or b != head + marks[1] + tail:
        raise _NotThere
    return head, tail


def _place(renderer: Renderer, text: str, index: int, probes: tuple[Message, Message], marks: tuple[str, str]) -> Span:
    messages = renderer.example.messages
    try:
        renderings = [renderer.text([*messages[:index], probe, *messages[index + 1 :]]) for probe in probes]
    except EntrenarError as error:
        raise _NotThere from error
    head, tail = _around(renderings[0], renderings[1], marks)
    last = index == len(messages) - 1
    for turn in _turns(renderer, index, probes, marks):
        start = _begin(head, turn, probes[0])
        stop = 0 if last else len(tail) - _closed(renderer, tail, turn)
        if start is None or stop < 0:
            continue
        closing = tail[: len(tail) - stop]
        end = len(text) - stop
        if (
            text.startswith(head[:start])
            and text.endswith(tail[len(closing) :])
            and text[start:end].endswith(closing)
            and end >= start
        ):
            return start, end
    raise _NotThere


def _turns(renderer: Renderer, index: int, probes: tuple[Message, Message], marks: tuple[str, str]) -> Iterator[Turn]:
    """How the template frames this answer after what comes before it, or else after a prompt that is not its own."""
    own = renderer.example.messages[:index]
    for place, before in enumerate([own, [BORROWED], own] if index else [[BORROWED]]):
        try:
            base, prompt = renderer.text(before), renderer.text(before, prompt=True)
            if before is own and (base == prompt) == (place == 0):
                continue  # where no prompt is written after what comes before, a user's message shows it better
            renderings = [renderer.text([*before, probe]) for probe in probes]
            head, closing = _around(renderings[0], renderings[1], marks)
        except (EntrenarError, _NotThere):
            continue
        told = renderer.shared(base, prompt)
        asked = _common(prompt, head)
        if told > asked:
            continue  # what comes before is written in another way with the answer than without
        header = prompt[told:asked]
        yield Turn(header, head[asked:], closing)
        for cut in reversed([match.end() for match in re.finditer(r"\n", header[:-1])]):
            yield Turn(header[:cut], header[cut:] + head[asked:], closing)  # where inner turns have less of it


def _begin(head: str, turn: Turn, message: Message) -> int | None:
    """Where an answer begins in what stands before its content; None where that is not certain."""
    if head.endswith(turn.header + turn.opening):
        return len(head) - len(turn.opening)
    if not turn.header or _says(message, turn.header):  # what it says before its content may look like a header
        return None
    found = head.rfind(turn.header)
    if found < 0:
        return None
    start = found + len(turn.header)
    opening = head[start:]  # inner turns may have less of it
    return start if turn.opening.endswith(opening) or not opening.strip() else None


def _says(value: Any, text: str) -> bool:
    """Whether a text stands anywhere in a message."""
    if isinstance(value, str):
        return text in value
    if isinstance(value, Mapping):
        return any(_says(item, text) for item in value.values())
    return isinstance(value, list | tuple) and any(_says(item, text) for item in value)


def _closed(renderer: Renderer, tail: str, turn: Turn) -> int:
    """How much of what follows an answer's content closes it; more than there is where that is not certain."""
    if tail.startswith(turn.closing):
        return len(turn.closing)
    count = 0
    for piece in renderer.pieces(turn.closing):
        if not tail.startswith(piece, count):
            break
        count += len(piece)
    return count if turn.closing[:count].strip() else len(tail) + 1


# ---------------------------------------------------------------------- without a template
def plain_spans(example: Example, tokenizer: Tokenizer, wanted: Sequence[int]) -> tuple[str, list[Span]]:
    """The layout of Stanford Alpaca, for a model without a template: the end-of-text token closes each answer."""
    headings = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
    text, spans, end = "", [], tokenizer.token(tokenizer.eos_id)
    for index, message in enumerate(example.messages):
        role, content = message.get("role"), message.get("content")
        beside = sorted(key for key in ("tool_calls", *REASONING) if message.get(key))
        if role not in headings or not isinstance(content, str) or beside or example.tools:
            found = ", ".join(beside) or ("tools" if example.tools else f"the role {role} or content that is no text")
            raise ConfigError(
                f"The tokenizer has no chat template, and message {index + 1} comes with {found}; use a model whose "
                "template writes that."
            )
        text += headings[role]
        if role == "assistant":
            answer = content + end
            if index in wanted:
                spans.append((len(text), len(text) + len(answer)))
            text += answer + ("\n\n" if index < len(example.messages) - 1 else "")
        else:
            text += content + "\n\n"
    return text, spans

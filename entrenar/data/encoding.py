"""Examples to samples, with a count of everything that is left out, cut, or not used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.data.answers import Renderer
from entrenar.data.formats import Example
from entrenar.data.lengths import fitted
from entrenar.data.masking import Sample, encode_example, encode_segments
from entrenar.data.samples import Samples
from entrenar.data.sources import Source
from entrenar.errors import ConfigError, EntrenarError
from entrenar.io.tokenizer import Tokenizer

PROMPTS_SEEN = 100  # examples whose answer's beginning is held against the template's prompt for one
KEYS_SAID, KEYS_KEPT = 8, 1000  # of the keys that nothing reads: before training, and in summary.json
Encoded = tuple[str, Sample | None]  # why there is no sample, or the sample
UNMARKED = "every answer is marked as not trained (weight 0, or train, trainable or loss false)"


@dataclass
class SideReport:
    """What became of one side's examples: `left_out` counts by reason, `first_left_out` has the place of the first.

    `cut` examples are longer than a row and keep their beginning, `split` ones are several samples, of which all but
    the last (`continued`) go on in the next; `unmarked` ones have answers that their record leaves out of the loss
    beside others that are trained. `tokens` and `trained_tokens` are those of the samples, as rows hold
    them; `unused` counts the keys of records that nothing reads, `alpaca` the conversations that are written in that
    layout because the model has no chat template, `quoted_calls` those where the template quotes the arguments of a
    call, `other_prompts` (of the first ones) those whose answer does not stand behind the template's prompt for one,
    which ends in `prompt_end`.
    """

    examples: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    split: int = 0
    continued: int = 0
    unmarked: int = 0
    alpaca: int = 0
    quoted_calls: int = 0
    other_prompts: int = 0
    prompt_end: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    first_left_out: dict[str, str] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def count(self, example: Example) -> None:
        """Count one more example, and the keys of its record that nothing reads."""
        self.examples += 1
        for key in example.unused:
            self.unused[key] = self.unused.get(key, 0) + 1

    def count_prompt(self, end: str) -> None:
        """Count a conversation whose prompt for an answer ends in `end`, where its answer stands without that."""
        self.other_prompts += bool(end)
        self.prompt_end = self.prompt_end or end

    def count_samples(self, samples: Iterable[Sample]) -> None:
        """Count what is used: the side's samples and their tokens."""
        self.samples = self.tokens = self.trained_tokens = truncated = 0
        for sample in samples:
            self.samples += 1
            self.tokens += len(sample)
            self.trained_tokens += int(sample.trained.sum())
            truncated += sample.truncated
        self.cut = max(0, truncated - self.continued)


def encode_examples(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    sequence_length: int,
    *,
    train_on_prompt: bool = False,
    last_answer: bool = False,
    too_long: str = "auto",
    folder: str | Path | None = None,
    check: Callable[[Example, Sample], None] = lambda example, sample: None,
    whole: Callable[[Example], Encoded] | None = None,
) -> tuple[Samples, SideReport]:
    """The samples of the examples that have something to train, each seen by `check`, and what became of the others.

    With `last_answer` the last answer of a conversation is trained alone. `too_long` says what becomes of examples
    longer than `sequence_length` (`lengths.fitted`), `folder` where many samples stand (`Samples`), and `whole` has the
    whole sample of an example where it is known (else `encoded` makes it). Raises
    ConfigError, naming the example's place, where the template has no place for what a record holds, FormatError
    where one is too long and that is an error.
    """
    samples, report = Samples(folder=folder), SideReport()
    for example in examples:
        report.count(example)
        reason, sample = whole(example) if whole else encoded(example, tokenizer, train_on_prompt, last_answer)
        pieces: list[Sample] = []
        if sample is not None:
            reason, pieces = fitted(sample, sequence_length, too_long, example)
        if not pieces:
            report.left_out[reason] = report.left_out.get(reason, 0) + 1
            report.first_left_out.setdefault(reason, example.where)
            continue
        for piece in pieces:
            check(example, piece)
            samples.append(piece)
        if len(pieces) > 1:
            report.split += 1
            report.continued += sum(piece.truncated for piece in pieces)
        if report.examples <= PROMPTS_SEEN:
            report.count_prompt(_other_prompt(example, tokenizer))
        report.quoted_calls += _quotes_calls(example, tokenizer)
        report.alpaca += bool(example.messages) and not tokenizer.has_template
        report.unmarked += bool(example.left_out & _answers(example)) and (example.marked or not train_on_prompt)
    report.count_samples(samples)
    return samples, report


def _other_prompt(example: Example, tokenizer: Tokenizer) -> str:
    """What the template writes at the end of a prompt for the last answer and not before that answer itself."""
    index = len(example.messages) - 1
    if index < 1 or index in example.left_out or not tokenizer.has_template:
        return ""
    renderer = Renderer(example, tokenizer)
    try:
        prompt = renderer.text(example.messages[:index], prompt=True)
    except EntrenarError:  # it need not write a beginning alone
        return ""
    whole = renderer.text(example.messages)
    return "" if whole.startswith(prompt) else prompt[renderer.shared(whole, prompt) :]


def _quotes_calls(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether a call has its arguments as JSON text and the template writes them as a text, with quotes around."""
    calls = [call for message in example.messages for call in message.get("tool_calls") or ()]
    found = [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]
    texts = [inner["arguments"] for inner in found if isinstance(inner.get("arguments"), str)]
    quoted = [json.dumps(text, ensure_ascii=False) for text in texts if text.lstrip().startswith("{")]
    if not quoted:
        return False
    written = Renderer(example, tokenizer).text(example.messages)
    return any(text in written for text in quoted)


def _answers(example: Example) -> frozenset[int]:
    return frozenset(i for i, message in enumerate(example.messages) if message["role"] == "assistant")


def encoded(example: Example, tokenizer: Tokenizer, train_on_prompt: bool, last_answer: bool) -> Encoded:
    """The whole sample, however long, or why there is none; raises as `encode_examples`."""
    if example.document is not None:
        sample = encode_document(example.document, tokenizer)
        return ("its text is a single token", None) if not sample.trained.any() else ("", sample)
    if example.segments:
        sample = encode_segments(example.segments, tokenizer)
        return (
            ("no segment with a token behind another one is trained", None)
            if not sample.trained.any()
            else ("", sample)
        )
    if example.variables and not (tokenizer.chat_template or tokenizer.templates):
        raise ConfigError(
            f"{example.where}: has chat_template_kwargs, and this model has no chat template to read them; leave them "
            "out or take a model with a template."
        )
    answers = _answers(example)
    if train_on_prompt and example.left_out - answers:
        raise ConfigError(
            f"{example.where}: marks a prompt as not trained, and data.train_on_prompt trains all of them; leave out "
            "one of both."
        )
    if train_on_prompt and not example.marked:  # its layout alone says what is a prompt
        example = replace(example, left_out=frozenset())
    if last_answer and answers:
        example = replace(example, left_out=example.left_out | answers - {max(answers)})
    if not answers - example.left_out and not train_on_prompt:
        return UNMARKED, None
    sample = encode_example(example, tokenizer, train_on_prompt=train_on_prompt)
    return ("", sample) if sample.trained.any() else ("the template writes nothing that is trained", None)


def encode_document(text: str, tokenizer: Tokenizer, max_length: int | None = None) -> Sample:
    """The tokens of a plain text, closed by the end-of-text token, as TRL trains on `text`: all are trained.

    Longer ones are cut to `max_length`, which keeps their beginning.
    """
    end = tokenizer.token(tokenizer.eos_id)
    closed = text if not end or text.endswith(end) else text + end
    ids = tokenizer.encode(closed, add_bos=tokenizer.adds_bos)
    if tokenizer.adds_eos and tokenizer.eos_id is not None:
        ids.append(tokenizer.eos_id)
    trained = np.ones(len(ids), bool)
    trained[:1] = False  # nothing comes before the first token
    truncated = max_length is not None and len(ids) > max_length
    return Sample(np.array(ids[:max_length], np.int32), trained[:max_length], truncated)


@dataclass
class FileReport:
    """One of several files: the samples that are trained on, its weight, and with weights its share of the draws."""

    path: str
    samples: int
    weight: float | None = None
    share: float | None = None


def file_reports(sources: Sequence[Source], samples: Sequence[int]) -> list[FileReport]:
    """Of several files with so many samples each; of one there is nothing to say."""
    if len(sources) == 1:
        return []
    whole = sum(source.weight or 0 for source in sources)
    return [
        FileReport(source.path, int(count), source.weight, source.weight and source.weight / whole)
        for source, count in zip(sources, samples, strict=True)
    ]


@dataclass
class DataReport:
    """What was read from `source`, and what became of it on both sides.

    `evaluated` is the file of the held-out side where it has its own, of whose samples `shared` are trained on too;
    `files` are those of the training side where they are several.
    """

    source: str
    sequence_length: int
    training: SideReport
    held_out: SideReport
    evaluated: str = ""
    shared: int = 0
    files: list[FileReport] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        """For summary.json."""
        sides = {}
        for name, side in (("training", self.training), ("held_out", self.held_out)):
            sides[name] = {key: value for key, value in asdict(side).items() if key != "unused"}
        own = {"evaluated": self.evaluated, "evaluated_and_trained": self.shared} if self.evaluated else {}
        several = {"files": [asdict(file) for file in self.files]} if self.files else {}
        return {"source": self.source, **several, **own, "unused_keys": dict(self._unused()[:KEYS_KEPT]), **sides}

    def _unused(self) -> list[tuple[str, int]]:
        """The keys and their counts, the most frequent first."""
        both = Counter(self.training.unused) + Counter(self.held_out.unused)
        return sorted(both.items(), key=lambda item: (-item[1], item[0]))

    def _shares(self) -> Iterator[str]:
        total = sum(file.samples for file in self.files)
        for file in self.files:
            if file.share is not None and file.samples:
                yield (
                    f"{file.path}: {100 * file.share:.1f} % of the samples that are drawn; each of its "
                    f"{file.samples:,} comes {file.share * total / file.samples:.2f} times an epoch of {total:,}."
                )

    def remarks(self) -> Iterator[str]:
        """A sentence for each thing that a user may not expect."""
        yield from self._shares()
        for side, kind in ((self.training, ""), (self.held_out, "held-out ")):
            for reason, count in side.left_out.items():
                first = side.first_left_out[reason]
                yield (
                    f"{count:,} of {side.examples:,} {kind}examples {_are(count)} left out: {reason}"
                    f"{first and f' (the first is {first})'}."
                )
            if side.split:
                yield (
                    f"{side.split:,} of {side.examples:,} {kind}examples {_are(side.split)} split into rows of "
                    f"{self.sequence_length} tokens; no row sees another."
                )
            if side.cut:
                yield (
                    f"{side.cut:,} of {side.examples:,} {kind}examples {_are(side.cut)} cut to {self.sequence_length} "
                    "tokens; what comes after is not learned (a longer training.sequence_length keeps it)."
                )
        if self.shared:
            yield (
                f"{self.evaluated}: {self.shared:,} of its {self.held_out.samples:,} samples {_are(self.shared)} of "
                f"texts that {self.source} holds too: their loss says nothing of what is new."
            )
        alpaca = self.training.alpaca + self.held_out.alpaca
        if alpaca:
            yield (
                f"The tokenizer has no chat template, so that {alpaca:,} conversations are written in the layout of "
                "Stanford Alpaca (### Instruction:, ### Response:); where the model was trained on another, take a "
                "Hugging Face directory with that template in chat_template.jinja."
            )
        if self.training.other_prompts:
            yield (
                f"In {self.training.other_prompts:,} of the first {min(self.training.examples, PROMPTS_SEEN):,} "
                f"examples the answer stands without the {shown(self.training.prompt_end)} that the chat template puts "
                "at the end of a prompt: the model is trained behind another beginning than it is asked with; use a "
                "template that writes both alike."
            )
        quoted = self.training.quoted_calls + self.held_out.quoted_calls
        if quoted:
            yield (
                f"In {quoted:,} examples the arguments of tool calls are JSON text, which the chat template writes as "
                "a quoted text, as in transformers; where the model is to write an object, write them as objects."
            )
        unmarked = self.training.unmarked + self.held_out.unmarked
        if unmarked:
            yield (
                f"In {unmarked:,} examples some answers are left out of the loss, as their records say (weight, train, "
                "trainable or loss; or as a part of the prompt)."
            )
        unused = self._unused()
        for key, count in unused[:KEYS_SAID]:
            yield f"{self.source}: the key {shown(key)} of {count:,} records is not used."
        if len(unused) > KEYS_SAID:
            yield f"{self.source}: {len(unused) - KEYS_SAID:,} more keys of records are not used."


def _are(count: int) -> str:
    return "is" if count == 1 else "are"

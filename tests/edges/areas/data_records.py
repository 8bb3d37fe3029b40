"""Records of a data file: each layout with a field changed, beside TRL's own preparation of the same record."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer, data_utils

from entrenar.data import encode_examples, evaluation_batches, read_examples
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer

from ..harness import Variation, Verdict, judge

AREA = "data records"
LENGTH = 512
# Writes all that a message can hold; an answer is a generation block, which is how transformers marks it. The second
# one heeds the marks of training, as the programs do that define them.
ANSWER = "{{ text }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>' }}"
TEMPLATE = (
    "{% if tools is not none %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
    "{% if mode %}{{ '<|im_start|>mode\n' + mode + '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set text %}{% if m.content is string %}{{ m.content }}{% elif m.content %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endset %}"
    "{% if m.name %}{{ m.name + ': ' }}{% endif %}"
    "{% if m.role == 'assistant' TRAINED %}{% generation %}ANSWER{% endgeneration %}{% else %}ANSWER{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
).replace("ANSWER", ANSWER)
PLAIN = TEMPLATE.replace(" TRAINED", "")
HEEDING = TEMPLATE.replace(
    "TRAINED", "and (m.weight, m.train, m.trainable, m.loss) | select('in', [0, false]) | list | length == 0"
)


@functools.cache
def tokenizers() -> tuple[Tokenizer, Any]:
    """Ours and transformers', of one directory."""
    folder = tempfile.TemporaryDirectory(prefix="edges-data-")
    tokenizer = Tokenizer.train(["What is the sum of one and one? It is two, and that is all there is."], 280)
    tokenizer.chat_template = PLAIN
    tokenizer.save(folder.name)
    return Tokenizer.from_directory(folder.name), AutoTokenizer.from_pretrained(folder.name)


def ours(folder: Path, record: Any) -> tuple[list[int], list[int]]:
    """Ids and labels that a run gets of the record."""
    path = folder / "data.jsonl"
    path.write_text(record if isinstance(record, str) else json.dumps(record, ensure_ascii=False), encoding="utf-8")
    samples, report = encode_examples(read_examples(path), tokenizers()[0], LENGTH)
    if not samples:
        raise ConfigError(f"{path}: {' '.join(report.left_out)}.")
    (sample,) = samples
    return sample.tokens.tolist(), np.where(sample.trained, sample.tokens, -100)[1:].tolist()


def trl(record: dict[str, Any], template: str = PLAIN) -> tuple[list[int], list[int]]:
    """Ids and labels of TRL: prompts of prompt/completion and all but the assistant's turns of messages are masked."""
    (row,) = trl_rows([record], LENGTH, template)
    return list(row["input_ids"]), list(row["labels"])[1:]


def trl_rows(records: list[dict[str, Any]], length: int, template: str = PLAIN) -> list[dict[str, Any]]:
    """TRL's rows of records of one layout, those left out that have nothing to train."""
    from datasets import IterableDataset

    tokenizer, record = tokenizers()[1], records[0]
    chat = "messages" in record or "conversations" in record
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=template, completion_only_loss="prompt" in record)
    options = SFTConfig(
        output_dir="unused", assistant_only_loss=chat, max_length=length, report_to=[], bf16=False, use_cpu=True
    )
    options.shuffle_dataset = False
    dataset = IterableDataset.from_generator(lambda: iter(json.loads(json.dumps(records))))
    return list(SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, options, False, None, "train"))


def equal(name: str, record: Any, same_as: dict[str, Any], reference: str = "TRL", template: str = PLAIN) -> Variation:
    """The record is what TRL makes of `same_as`."""

    def check(folder: Path) -> Verdict:
        return judge(
            lambda: ours(folder, record), lambda: trl(same_as, template), names=["\0"], compared="ids and labels"
        )

    return Variation(AREA, name, reference, check)


def refused(name: str, record: Any, *names: str) -> Variation:
    """The record is refused by a sentence with the line and these names."""

    def reference() -> Any:
        raise AssertionError("it was to be refused")

    def check(folder: Path) -> Verdict:
        return judge(lambda: ours(folder, record), reference, names=["data.jsonl, line 1", *names], folder=folder)

    return Variation(AREA, name, "refused", check)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ANSWERED = turn("user", "What is the sum?"), turn("assistant", "It is two.")
CHAT = [USER, ANSWERED]
LONG = [turn("system", "Be brief."), *CHAT, turn("user", "And one?"), turn("assistant", "All.")]
SHAREGPT = [{"from": "human", "value": "What is the sum?"}, {"from": "gpt", "value": "It is two."}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
MESSAGES = {"messages": CHAT}
# layout -> (a record, what it is as TRL's, its fields that may say nothing)
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "alpaca": ({"instruction": "What is the sum?", "input": "", "output": "It is two."}, MESSAGES, ("input",)),
    "prompt/completion": ({"prompt": "What is the sum?", "completion": "It is two."}, MESSAGES, ()),
    "prompt/completion of messages": (
        {"prompt": [USER], "completion": [ANSWERED]},
        {"prompt": [USER], "completion": [ANSWERED]},
        (),
    ),
    "messages": (MESSAGES, MESSAGES, ()),
    "conversations": ({"conversations": SHAREGPT}, MESSAGES, ()),
    "text": ({"text": "What is the sum? It is two."}, {"text": "What is the sum? It is two."}, ()),
}
SAYS_NOTHING = {"null": None, "empty text": "", "empty list": []}
OTHER_TYPES = {"a number": 3, "true": True, "an object": {"a": 1}, "a list of numbers": [1]}
IGNORED = {"id": 7, "source": "a", "category": "b", "score": 0.5, "meta": {"a": 1}, "idx": [1]}


def fields() -> Iterator[Variation]:
    """Each field of each layout absent, saying nothing, of another type."""
    for layout, (record, same, optional) in LAYOUTS.items():
        yield equal(layout, record, same, _reference(layout))
        for key, value in IGNORED.items():
            yield equal(f"{layout} and the key {key}", record | {key: value}, same, _reference(layout))
        for key in record:
            without = {name: value for name, value in record.items() if name != key}
            changed = {"absent": without} | {n: record | {key: v} for n, v in SAYS_NOTHING.items()}
            for kind, broken in changed.items():
                if key in optional and kind != "empty list":
                    yield equal(f"{layout}: {key} {kind}", broken, same, _reference(layout))
                else:
                    yield refused(f"{layout}: {key} {kind}", broken, *([key] if without else []))
            for kind, value in OTHER_TYPES.items():
                yield refused(f"{layout}: {key} is {kind}", record | {key: value}, key)


def _reference(layout: str) -> str:
    return {"alpaca": "TRL, as messages", "prompt/completion": "TRL, as messages (mlx-lm does so)"}.get(layout, "TRL")


def message_fields() -> Iterator[Variation]:
    """Each field of a message likewise."""
    for key, turns in (("messages", CHAT), ("conversations", SHAREGPT)):
        for name in turns[0]:
            without = {k: v for k, v in turns[0].items() if k != name}
            word = {"from": "role"}.get(name, name)
            yield refused(f"{key}: {name} absent", {key: [without, turns[1]]}, word)
            for kind, value in (SAYS_NOTHING | OTHER_TYPES).items():
                yield refused(f"{key}: {name} is {kind}", {key: [turns[0] | {name: value}, turns[1]]}, word)


def keys_of(function: Callable[..., Any]) -> list[str]:
    """The keys that a function of TRL looks for, from its own code."""
    found = [c for c in function.__code__.co_consts if isinstance(c, tuple) and "prompt" in c and "completion" in c]
    assert found, f"{function.__name__} of TRL no longer lists its keys in a tuple"
    return sorted({key for keys in found for key in keys})


def trl_keys() -> Iterator[Variation]:
    """Every key under which TRL looks for messages, alone."""
    known: dict[str, Callable[[], Variation]] = {
        "messages": lambda: equal("TRL's key messages", MESSAGES, MESSAGES),
        "conversations": lambda: equal("TRL's key conversations", {"conversations": SHAREGPT}, MESSAGES),
        "prompt": lambda: refused("TRL's key prompt", {"prompt": [USER]}, "completion"),
        "completion": lambda: refused("TRL's key completion", {"completion": [ANSWERED]}, "completion"),
        "chosen": lambda: refused("TRL's key chosen", {"chosen": CHAT, "rejected": CHAT}, "DPO", "r['chosen']"),
        "rejected": lambda: refused("TRL's key rejected", {"rejected": CHAT}, "DPO"),
    }
    keys = {*keys_of(data_utils.is_conversational), *keys_of(data_utils.maybe_convert_to_chatml)}
    for key in sorted(keys):
        yield known[key]()  # a KeyError: TRL reads a key that nobody has looked at


def roles() -> Iterator[Variation]:
    """Who speaks, in which order."""
    yield equal("system, two turns", {"messages": LONG}, {"messages": LONG})
    yield equal("the assistant begins", {"messages": LONG[2:]}, {"messages": LONG[2:]})
    yield equal("the assistant alone", {"messages": [ANSWERED]}, {"messages": [ANSWERED]})
    yield equal("two answers in a row", {"messages": [*CHAT, ANSWERED]}, {"messages": [*CHAT, ANSWERED]})
    yield equal("two questions in a row", {"messages": [USER, *CHAT]}, {"messages": [USER, *CHAT]})
    two = [turn("system", "Be brief."), turn("system", "Be kind."), *CHAT]
    yield equal("two systems", {"messages": two}, {"messages": two})
    late = [*CHAT, turn("system", "Be brief."), *CHAT]
    yield equal("a system in the middle", {"messages": late}, {"messages": late})
    for role in ("developer", "tool", "function", "ipython"):
        spoken = [turn(role, "One."), *CHAT]
        yield equal(f"the role {role}", {"messages": spoken}, {"messages": spoken})
    for role in ("narrator", "User", "bot", "model"):
        yield refused(f"the role {role}", {"messages": [turn(role, "One."), *CHAT]}, repr(role))
    yield refused("a question at the end", {"messages": LONG[:-1]}, "last message", "user")
    yield refused("a tool's result at the end", {"messages": [*CHAT, turn("tool", "2")]}, "last message", "tool")
    yield equal("system beside messages", MESSAGES | {"system": "Be brief."}, {"messages": LONG[:3]}, "LLaMA-Factory")
    yield equal("the same system twice", {"messages": LONG, "system": "Be brief."}, {"messages": LONG}, "LLaMA-Factory")
    yield refused("another system beside messages", {"messages": LONG, "system": "Be long."}, "system")
    yield equal("role and content under conversations", {"conversations": CHAT}, MESSAGES, "axolotl")
    yield equal("from and value under messages", {"messages": [dict(m) for m in SHAREGPT]}, MESSAGES, "axolotl")
    empty = [turn("system", ""), *CHAT]
    yield equal("an empty system message", {"messages": empty}, {"messages": empty})


def marks() -> Iterator[Variation]:
    """Marks of training, against transformers' mask of a template that heeds them."""
    for key in ("weight", "train", "trainable", "loss"):
        for value in (0, 1, False, True, 0.0, 1.0, None):
            marked = [*LONG[:2], LONG[2] | {key: value}, *LONG[3:]]
            yield equal(
                f"{key} {json.dumps(value)}", {"messages": marked}, {"messages": marked}, "transformers' mask", HEEDING
            )
        for value in (0.5, 2, -1, "0", "false", [], {}):
            record = {"messages": [*LONG[:2], LONG[2] | {key: value}, *LONG[3:]]}
            if (key, value) == ("weight", 0.5):  # what it weighs is held against torch in tests/train/test_weights.py
                yield equal("weight 0.5", record, record, "transformers' mask", HEEDING)
            else:
                yield refused(f"{key} {json.dumps(value)}", record, key)
        yield equal(
            f"{key} 0 of a question",
            {"messages": [USER | {key: 0}, ANSWERED]},
            MESSAGES,
            "transformers' mask",
        )
        yield refused(f"{key} 1 of a question", {"messages": [USER | {key: 1}, ANSWERED]}, key, "user")

        def unmarked(folder: Path, key: str = key) -> Verdict:
            record = {"messages": [USER, ANSWERED | {key: 0}]}
            return judge(lambda: ours(folder, record), lambda: trl(record), names=["not trained"], folder=folder)

        yield Variation(AREA, f"{key} 0 of the only answer", "left out, and said", unmarked)
    yield refused("marks that contradict", {"messages": [USER, ANSWERED | {"weight": 0, "train": True}]}, "contradict")


def contents() -> Iterator[Variation]:
    """Parts, tool calls, names, reasoning."""
    for name, answer in {
        "tool calls beside text": turn("assistant", "I add.", tool_calls=[CALL]),
        "tool calls with null": turn("assistant", None, tool_calls=[CALL]),
        "tool calls with an empty text": turn("assistant", "", tool_calls=[CALL]),
        "tool calls alone": {"role": "assistant", "tool_calls": [CALL]},
        "two tool calls": turn("assistant", "I add.", tool_calls=[CALL, CALL]),
    }.items():
        talk = {"messages": [USER, answer, turn("tool", "2", name="add"), ANSWERED]}
        yield equal(name, talk, talk)
    for value in (3, "add()", {"name": "add"}, ["add()"]):
        record = {"messages": [USER, turn("assistant", "I add.", tool_calls=value)]}
        yield refused(f"tool_calls {json.dumps(value)}", record, "tool_calls")
    called = [USER, turn("assistant", "", tool_calls=[{"type": "function", "function": CALL["function"]}])]
    result = [*called, turn("tool", "2"), ANSWERED]
    shown = [SHAREGPT[0], {"from": "function_call", "value": json.dumps(CALL["function"])}]
    shown += [{"from": "observation", "value": "2"}, SHAREGPT[1]]
    yield equal("function_call and observation", {"conversations": shown}, {"messages": result}, "LLaMA-Factory")
    yield refused(
        "a function_call that is text",
        {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "add()"}]},
        "function_call",
    )
    yield refused("OpenAI's old function_call", {"messages": [USER, ANSWERED | {"function_call": CALL}]}, "tool_calls")
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "the sum?"}]
    talk = {"messages": [turn("user", parts), ANSWERED]}
    yield equal("parts of text", talk, talk)
    for kind in ("image", "image_url", "audio", "video", "input_text"):
        record = {"messages": [turn("user", [*parts, {"type": kind, kind: "a"}]), ANSWERED]}
        yield refused(f"a part of the type {kind}", record, kind, "text")
    yield refused("a part that is a text", {"messages": [turn("user", ["a"]), ANSWERED]}, "content")
    named = {"messages": [USER | {"name": "ann"}, ANSWERED]}
    yield equal("a name", named, named)
    thought = {"messages": [USER, ANSWERED | {"reasoning_content": "One and one."}]}
    yield refused("reasoning that the template does not write", thought, "reasoning_content")
    for layout, (record, same, _) in LAYOUTS.items():
        if layout == "text":
            continue
        for kind, tools in (("a list", [TOOL]), ("JSON text", json.dumps([TOOL]))):
            yield equal(f"{layout} with tools as {kind}", record | {"tools": tools}, same | {"tools": tools})
        yield equal(
            f"{layout} with chat_template_kwargs",
            record | {"chat_template_kwargs": {"mode": "short"}},
            same | {"chat_template_kwargs": {"mode": "short"}},
        )
    for value in ("add", 3, {"a": 1}, ["add"]):
        yield refused(f"tools {json.dumps(value)}", MESSAGES | {"tools": value}, "tools")
    for value in ("", None):
        yield equal(f"tools {json.dumps(value)}", MESSAGES | {"tools": value}, MESSAGES, "TRL, without tools")
    for value in ("[]", []):  # which templates of Llama 3 tell from none
        yield equal(f"tools {json.dumps(value)}", MESSAGES | {"tools": value}, MESSAGES | {"tools": value})
    for value in ("a", 3, [1], {"tokenize": False}, {"messages": []}):
        record = MESSAGES | {"chat_template_kwargs": value}
        yield refused(f"chat_template_kwargs {json.dumps(value)}", record, "chat_template_kwargs")
    closed = {"text": "What is the sum? It is two.<|im_end|>"}
    yield equal("a text that is closed already", closed, closed)


def layouts() -> Iterator[Variation]:
    """Two layouts in one record, and other programs' layouts."""
    yield equal("text beside messages", MESSAGES | {"text": "a"}, MESSAGES)
    yield equal("a prompt beside messages", MESSAGES | {"prompt": "a"}, MESSAGES, "TRL, without the prompt")
    alpaca = LAYOUTS["alpaca"][0]
    yield equal("text beside alpaca", alpaca | {"text": "a"}, MESSAGES, "LLaMA-Factory")
    both = {"prompt": "a", "completion": "b"}
    yield refused("messages and prompt/completion", MESSAGES | both, "messages", "prompt/completion")
    yield refused("alpaca and prompt/completion", alpaca | both, "instruction/output", "prompt/completion")
    yield refused("messages and conversations", MESSAGES | {"conversations": SHAREGPT}, "conversations")
    longer = {"prompt": [LONG[0], *CHAT, USER], "completion": [ANSWERED]}
    yield equal("a prompt with an earlier answer", longer, longer)
    yield refused("a completion of two messages", {"prompt": [USER], "completion": [ANSWERED, USER]}, "completion")
    yield refused("a prompt of messages, a completion of text", {"prompt": [USER], "completion": "a"}, "completion")
    for key, value in {
        "history": [["a", "b"]],
        "functions": [{"name": "add"}],
        "documents": [{"text": "a"}],
        "images": ["a.png"],
        "image": "a.png",
        "audio": "a.wav",
        "videos": ["a.mp4"],
        "system_prompt": "Be brief.",
        "labels": [1],
        "weight": 0.5,
    }.items():
        yield refused(f"{key} beside messages", MESSAGES | {key: value}, key)
        empty: Any = 1 if key == "weight" else type(value)()
        yield equal(f"{key} that says nothing", MESSAGES | {key: empty}, MESSAGES)
    yield refused("a context beside alpaca", alpaca | {"context": "a"}, "context")
    foreign: dict[str, tuple[dict[str, Any], str, str]] = {
        "DPO": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "DPO", "'completion': r['chosen']"),
        "DPO of messages": ({"prompt": [USER], "chosen": [ANSWERED], "rejected": [ANSWERED]}, "DPO", "r['chosen']"),
        "DPO without a prompt": ({"chosen": "a", "rejected": "b"}, "DPO", "'text': r['chosen']"),
        "KTO": ({"prompt": "a", "completion": "b", "label": True}, "KTO", "if r['label']"),
        "dolly": ({"instruction": "a", "context": "", "response": "b"}, "dolly", "'output': r['response']"),
        "tokens": ({"input_ids": [1, 2], "attention_mask": [1, 1]}, "input_ids", "token"),
        "a conversation": ({"conversation": CHAT}, "conversation", "'messages': r['conversation']"),
    }
    for prompt, answer in (("question", "answer"), ("query", "response"), ("input", "output"), ("source", "target")):
        foreign[f"{prompt}/{answer}"] = ({prompt: "a", answer: "b"}, prompt, f"'completion': r['{answer}']")
    for name, (record, *words) in foreign.items():
        yield refused(f"the layout {name}", record, *words)
    yield refused("a preamble and a label", {"content": "a", "label": 1}, "content", "label")
    for name, value in {"a text": '"a"', "a number": "3", "null": "null"}.items():
        yield refused(f"a record that is {name}", value, "an object")


def _of_batches(length: int, packing: bool, folder: Path) -> Verdict:
    """Ids and labels of every sample in the batches of an epoch: those of TRL's rows, cut and left out alike."""
    rng = random.Random(length)
    text = ["what", "is", "the", "sum", "of", "one", "and", "two", "all", "there"]
    records = [
        {"messages": [turn(("user", "assistant")[n % 2], " ".join(rng.choices(text, k=rng.randint(1, 12)))) for n in
                      range(2 * rng.randint(1, 3))]}
        for _ in range(24)
    ]  # fmt: skip

    def found() -> list[tuple[list[int], list[int]]]:
        path = folder / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        samples, _ = encode_examples(read_examples(path), tokenizers()[0], length)
        made = []
        for batch in evaluation_batches(samples, 3, length, packing):
            bounds = zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
            tokens, targets = batch.tokens.reshape(-1), batch.targets.reshape(-1)
            made += [(tokens[a:b].tolist(), targets[a : b - 1].tolist()) for a, b in bounds if max(targets[a:b]) >= 0]
        return sorted(made)

    def reference() -> list[tuple[list[int], list[int]]]:
        return sorted((list(row["input_ids"]), list(row["labels"])[1:]) for row in trl_rows(records, length))

    return judge(found, reference, names=["\0"], compared="ids and labels of all samples of an epoch")


def batches() -> Iterator[Variation]:
    """What a step gets, in rows that cut some examples and are too short for others."""
    for length in (40, 72, 200):
        for packing, how in ((True, "packed"), (False, "one a row")):
            yield Variation(
                AREA, f"batches of {length} tokens, {how}", "TRL", functools.partial(_of_batches, length, packing)
            )


VARIATIONS = [*batches(), *fields(), *message_fields(), *trl_keys(), *roles(), *marks(), *contents(), *layouts()]

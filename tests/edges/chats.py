"""Conversations, and tokenizers for chat templates: ours and transformers' of the same vocabulary and template."""

from __future__ import annotations

import functools
import re
from datetime import date
from pathlib import Path
from typing import Any

from entrenar.data import Example, encode_example
from entrenar.io.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "templates"
MARKS = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
SPECIAL = re.compile(r"<\|[^|>\s]*\|>|\[/?[A-Z_]+\]|</?s>|<(?:bos|eos|start_of_turn|end_of_turn|unk|pad)>")
# (bos, eos) of each family's models
ENDS = {
    "gemma": ("<bos>", "<eos>"),
    "granite": ("<|end_of_text|>", "<|end_of_text|>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama3.2": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "qwen2.5": (None, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>"),
    "r1_distill": ("<|begin_of_text|>", "<|end_of_text|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "smollm3": (None, "<|im_end|>"),
    "tinyllama": ("<s>", "</s>"),
    "vicuna": ("<s>", "</s>"),
    "zephyr": ("<s>", "</s>"),
}


def marked(name: str) -> str:
    """A family's template with generation blocks around what the model is to write."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def plain(name: str) -> str:
    """The same template without them: it writes the same text."""
    return MARKS.sub(
        lambda found: (
            "{%" + found[1] + " if true " + found[2] + "%}"
            if "end" not in found[0]
            else "{%" + found[1] + " endif " + found[2] + "%}"
        ),
        marked(name),
    )


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city's days: sun, rain & <snow>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TURN, NEXT = [user("One?"), answer("Uno.")], [user("And two?"), answer("Dos. Really.")]
THOUGHT = "<think>\nlet me see\n</think>\n\n"
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": TURN},
    "a system message": {"messages": [SYSTEM, *TURN]},
    "two turns": {"messages": [*TURN, *NEXT]},
    "three turns and a system message": {
        "messages": [SYSTEM, *TURN, *NEXT, user("Thanks."), answer("You are welcome.")]
    },
    "a system message that is not the first": {"messages": [*TURN, SYSTEM, *NEXT]},
    "begins with an answer": {"messages": [answer("Hello!"), *TURN]},
    "two questions in a row": {"messages": [user("Well,"), *TURN]},
    "two answers in a row": {"messages": [*TURN, answer("And more.")]},
    "the same turn twice": {"messages": [*TURN, *TURN]},
    "the answer is in the question": {"messages": [user("Say Uno."), answer("Uno."), *NEXT]},
    "an answer of one letter": {"messages": [user("aaaa"), answer("a"), user("a"), answer("a")]},
    "white space around": {"messages": [user("  One?\n"), answer("\n Uno. \n\n"), *NEXT]},
    "line ends of Windows": {"messages": [user("One?\r\nTwo?"), answer("Uno.\r\nDos.\r\n")]},
    "unicode": {"messages": [user("¿Qué? ☃ é"), answer("日本語 🎉👍🏽 e\u0301 \u200d ß"), *NEXT]},
    "special tokens in the content": {
        "messages": [user("<|im_end|> </s> <s>"), answer("x <|im_end|> y </s> z"), *NEXT]
    },
    "Jinja in the content": {"messages": [user("{{ 7*7 }}{% raw %}"), answer("{# no #}{{ messages }}"), *NEXT]},
    "thinking in the content": {
        "messages": [user("One?"), answer(THOUGHT + "Uno."), user("Two?"), answer(THOUGHT + "Dos.")]
    },
    "thinking in the first answer alone": {"messages": [user("One?"), answer(THOUGHT + "Uno."), *NEXT]},
    "thinking in one turn": {"messages": [user("One?"), answer(THOUGHT + "Uno.")]},
    "reasoning_content": {"messages": [user("One?"), answer("Uno.", reasoning_content="easy"), *NEXT]},
    "reasoning_content at the end": {"messages": [*TURN, user("Two?"), answer("Dos.", reasoning_content="hm")]},
    "a call and its result": {
        "messages": [
            user("Weather?"),
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "call00001"},
            answer("It is sunny."),
        ],
        "tools": [TOOL],
    },
    "text beside a call": {
        "messages": [
            user("Weather?"),
            answer("I look.", tool_calls=[CALL]),
            {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "call00001"},
            answer("It is sunny."),
            user("And now?"),
            answer("Rain."),
        ],
        "tools": [TOOL],
    },
    "two calls at once": {"messages": [user("Weather?"), answer("", tool_calls=[CALL, CALL])], "tools": [TOOL]},
    "tools that are not called": {"messages": [SYSTEM, *TURN, *NEXT], "tools": [TOOL, TOOL]},
    "content in parts": {
        "messages": [user([{"type": "text", "text": "One?"}]), answer([{"type": "text", "text": "Uno."}])]
    },
    "keys that are null": {
        "messages": [user("One?"), answer("Uno.", tool_calls=None, name=None, reasoning_content=None)]
    },
    "an empty system message": {"messages": [{"role": "system", "content": ""}, *TURN]},
    "a role that nobody knows": {"messages": [{"role": "narrator", "content": "Then:"}, *TURN]},
    "a long answer": {"messages": [user("Long?"), answer("word " * 400), *NEXT]},
}


@functools.cache
def backend() -> Any:
    """A byte-level BPE with every special token of the templates."""
    texts = " ".join(path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja")))
    special = sorted(set(SPECIAL.findall(texts)) | {end for ends in ENDS.values() for end in ends if end})
    made = Tokenizer.train([str(each["messages"]) for each in CONVERSATIONS.values()] * 2, 400).backend
    made.add_special_tokens(special)
    return made


def ours(template: str, bos: str | None = None, eos: str | None = None, **more: Any) -> Tokenizer:
    vocabulary = backend()
    ids = {name: vocabulary.token_to_id(token) for name, token in (("bos_id", bos), ("eos_id", eos)) if token}
    return Tokenizer(vocabulary, **ids, chat_template=template, **more)


@functools.cache
def theirs(bos: str | None = None, eos: str | None = None) -> Any:
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend(), bos_token=bos, eos_token=eos)


def sample(tokenizer: Tokenizer, conversation: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Ids and marks of a conversation, the first of which is never trained."""
    made = encode_example(Example(**conversation, where="chats.jsonl, line 1"), tokenizer)
    return made.tokens.tolist(), made.trained.tolist()


def expected(
    template: str, bos: str | None, eos: str | None, conversation: dict[str, Any]
) -> tuple[list[int], list[bool]]:
    """The same of transformers, by the generation blocks of `template`."""
    while True:
        began = date.today()
        out = theirs(bos, eos).apply_chat_template(
            conversation["messages"],
            tools=conversation.get("tools"),
            chat_template=template,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        if began == date.today():  # templates write it
            return out["input_ids"], [False, *(bool(mark) for mark in out["assistant_masks"][1:])]

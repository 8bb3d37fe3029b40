"""Masks of conversations drawn at random, full of what looks like a template's text, beside transformers' blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from entrenar.errors import EntrenarError

pytest.importorskip("transformers")

from ..edges import chats

PIECES = [
    *("a", "Uno", " Uno ", "é", ".", "{", "}", "\n", "\n\n", " ", "model", "user", "assistant", "Hello", "Xprobe1"),
    *("Yprobe2", "<think>", "</think>", "<|im_start|>assistant\n", "<|im_end|>", "</s>", "[/INST]", "<|eot_id|>"),
    *("ASSISTANT:", "USER: ", "<|Assistant|>", "<start_of_turn>model\n", "<tool_response>", "<|assistant|>\n"),
]
CONVERSATIONS = 60  # of each family


def _text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))


def _conversation(rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": _text(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.9:
            messages.append(chats.user(_text(rng)))
        said = chats.answer((chats.THOUGHT if rng.random() < 0.2 else "") + _text(rng))
        if rng.random() < 0.1:
            said["reasoning_content"] = _text(rng)
        messages.append(said)
        if rng.random() < 0.15:
            said["tool_calls"] = [chats.CALL] * rng.randint(1, 2)
            messages += [{"role": "tool", "content": _text(rng), "name": "weather"}, chats.answer(_text(rng))]
    has_calls = any("tool_calls" in message for message in messages)
    return {"messages": messages, "tools": [chats.TOOL] if has_calls and rng.random() < 0.7 else None}


def _begins_as_the_prompt_ends(name: str, conversation: dict[str, Any]) -> bool:
    """R1's prompt ends with "<think>\n": in an answer that begins with it, that much is the prompt's."""
    said = (message["content"].split("</think>")[-1] for message in conversation["messages"])
    return name == "r1_distill" and any(text.startswith("<think>\n") for text in said)


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted(path.stem for path in chats.TEMPLATES.glob("*.jinja")))
def test_the_mask_is_that_of_generation_blocks_or_the_place_is_refused(name: str) -> None:
    rng = random.Random(name)
    bos, eos = chats.ENDS[name]
    tokenizer, marked = chats.ours(chats.plain(name), bos, eos), chats.marked(name)
    compared = 0
    for _ in range(CONVERSATIONS):
        conversation = _conversation(rng)
        if _begins_as_the_prompt_ends(name, conversation):
            continue
        try:
            found = chats.sample(tokenizer, conversation)
        except EntrenarError as error:
            assert str(error).isprintable() and str(error).startswith("chats.jsonl, line 1: ")
            continue
        assert found == chats.expected(marked, bos, eos, conversation), conversation
        compared += 1
    assert compared >= 10

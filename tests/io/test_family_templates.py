"""The chat templates that models are published with: written as by transformers, and answers trained to their end.

They come in the source distribution of llama-cpp-python (MIT), and are fetched once and kept in the cache.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from entrenar.data import Example, encode_example
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer

from .test_llama_cpp_vocabularies import shipped_templates

pytestmark = [pytest.mark.slow, pytest.mark.peers]
# The families' templates: (bos, eos, the token that ends a turn)
FAMILIES = {
    "google-gemma-2-2b-it": ("<bos>", "<eos>", "<end_of_turn>"),
    "HuggingFaceTB-SmolLM3-3B": (None, "<|im_end|>", "<|im_end|>"),
    "ibm-granite-granite-3.3-2B-Instruct": (None, "<|end_of_text|>", "<|end_of_text|>"),
    "meta-llama-Llama-3.1-8B-Instruct": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "microsoft-Phi-3.5-mini-instruct": ("<s>", "<|endoftext|>", "<|end|>"),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("<s>", "</s>", "</s>"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("<s>", "</s>", "</s>"),
    "Qwen-Qwen2.5-7B-Instruct": (None, "<|im_end|>", "<|im_end|>"),
    "Qwen-Qwen3-0.6B": (None, "<|im_end|>", "<|im_end|>"),
}
SPECIAL = sorted({token for tokens in FAMILIES.values() for token in tokens if token})


def chats() -> Any:
    return pytest.importorskip("tests.edges.chats")


def written(tokenizer: Tokenizer, conversation: dict[str, Any], prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            conversation["messages"], tokenize=False, tools=conversation.get("tools"), add_generation_prompt=prompt
        )
    except (ConfigError, FormatError):
        return "refused"


def expected(peer: Any, template: str, conversation: dict[str, Any], prompt: bool) -> str:
    try:
        text: str = peer.apply_chat_template(
            conversation["messages"],
            tokenize=False,
            tools=conversation.get("tools"),
            add_generation_prompt=prompt,
            chat_template=template,
        )
    except Exception:  # whatever a template raises
        return "refused"
    return text


def test_every_template_writes_what_it_writes_in_transformers() -> None:
    pytest.importorskip("transformers")
    of = chats()
    peer = of.theirs("<s>", "</s>")
    paths = sorted(shipped_templates().glob("*.jinja"))
    assert len(paths) > 60
    refused: list[str] = []
    for path in paths:
        template = path.read_text(encoding="utf-8")
        tokenizer = of.ours(template, "<s>", "</s>")
        texts = []
        for place, (kind, conversation) in enumerate(of.CONVERSATIONS.items()):
            prompt = place % 2 == 1
            texts.append(written(tokenizer, conversation, prompt))
            assert texts[-1] == expected(peer, template, conversation, prompt), f"{path.name}: {kind}"
        refused += [path.stem] if set(texts) == {"refused"} else []
    assert len(refused) == 2  # those that write calls alone, and fail without tools


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("turns", [1, 2])
def test_an_answer_is_trained_with_the_token_that_ends_its_turn(name: str, turns: int) -> None:
    bos, eos, end = FAMILIES[name]
    base = Tokenizer.train([str(each["messages"]) for each in chats().CONVERSATIONS.values()], 400)
    base.backend.add_special_tokens(SPECIAL)
    template = (shipped_templates() / f"{name}.jinja").read_text(encoding="utf-8")
    ends = [index for index in (base.id(eos), base.id(end)) if index is not None]  # of generation_config.json
    first = None if bos is None else base.id(bos)
    tokenizer = Tokenizer(base.backend, bos_id=first, eos_id=ends[0], eos_ids=ends, chat_template=template)
    messages = chats().CONVERSATIONS["one turn" if turns == 1 else "two turns"]["messages"]
    sample = encode_example(Example(messages), tokenizer)
    runs = "".join("1" if trained else " " for trained in sample.trained)
    found = [
        tokenizer.decode(sample.tokens[run.start() : run.end()].tolist(), skip_special=False)
        for run in re.finditer("1+", runs)
    ]
    assert len(found) == turns
    for text, answer in zip(found, messages[1::2], strict=True):
        body = re.sub(r"^(<think>\s*</think>)?\s*", "", text)  # which Qwen 3 and SmolLM3 write before an answer
        # As in TRL's templates a line end after a token that ends turns is trained; Phi-3 ends the text, too
        assert re.fullmatch(re.escape(answer["content"] + end) + rf"\n?({re.escape(str(eos))})?", body), body

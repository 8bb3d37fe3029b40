"""Chat templates: the families' with each conversation, what templates are given, and all that Jinja has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trl

from entrenar.errors import ConfigError, FormatError

from .. import chats
from ..harness import Variation, Verdict, Wrong, judge

AREA = "chat templates"
TRANSFORMERS = "transformers, by generation blocks"


def _family(name: str, kind: str, folder: Path) -> Verdict:
    """Ids and mask of the template without blocks are those of transformers for the one with them."""
    bos, eos = chats.ENDS[name]
    conversation = chats.CONVERSATIONS[kind]
    return judge(
        lambda: chats.sample(chats.ours(chats.plain(name), bos, eos), conversation),
        lambda: chats.expected(chats.marked(name), bos, eos, conversation),
        names=["chats.jsonl, line 1", "chat template"],
        compared="ids and mask",
    )


VARIATIONS = [
    Variation(AREA, f"{name}: {kind}", TRANSFORMERS, partial(_family, name, kind))
    for name in sorted(path.stem for path in chats.TEMPLATES.glob("*.jinja"))
    for kind in chats.CONVERSATIONS
]


# ---------------------------------------------------------------------- as models ship them, from TRL's package
SHIPPED = Path(trl.__file__).parent / "chat_templates"
IN_PARTS = ("idefics", "llava", "smolvlm")  # templates that read content in parts alone


def _shipped(name: str) -> str:
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


def _conversation(name: str, kind: str) -> dict[str, Any]:
    conversation = chats.CONVERSATIONS[kind]
    if not name.startswith(IN_PARTS):
        return conversation
    messages = [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
        for m in conversation["messages"]
    ]
    return {**conversation, "messages": messages}


def _rendered(name: str, folder: Path) -> Verdict:
    """Each conversation, every second with a prompt for generation: the same text, or refused by both."""
    template = _shipped(name)
    tokenizer, peer = chats.ours(template, "<s>", "</s>"), chats.theirs("<s>", "</s>")

    def written(one: dict[str, Any], prompt: bool) -> str:
        options = {"tools": one.get("tools"), "add_generation_prompt": prompt}
        try:
            return tokenizer.apply_chat_template(one["messages"], tokenize=False, **options)
        except (ConfigError, FormatError):
            return "refused"

    def reference(one: dict[str, Any], prompt: bool) -> str:
        options = {"tools": one.get("tools"), "add_generation_prompt": prompt, "chat_template": template}
        try:
            return peer.apply_chat_template(one["messages"], tokenize=False, **options)
        except Exception:  # whatever a template raises
            return "refused"

    cases = [(_conversation(name, kind), place % 2 == 1) for place, kind in enumerate(chats.CONVERSATIONS)]
    found = [written(*case) for case in cases]
    refused = found.count("refused")
    if refused > len(cases) * 3 // 4:
        raise Wrong(f"{refused} of {len(cases)} conversations are refused: {name} is not tried")
    return judge(
        lambda: found,
        lambda: [reference(*case) for case in cases],
        names=[],
        compared=f"texts of {len(cases) - refused} conversations; both refuse {refused}",
    )


def _trained(name: str, folder: Path) -> Verdict:
    """The mask of a shipped template is that of its training variant, wherever both write the same text.

    The variants also mark white space after the end of a turn, some the header before it: those tokens may differ.
    """
    plain, variant = _shipped(name), _shipped(f"{name}_training")
    special = chats.SPECIAL.findall(plain)
    end = next((token for token in ENDS_OF_TURN if token in special), "</s>")
    tokenizer, peer = chats.ours(plain, "<s>", end), chats.theirs("<s>", end)
    compared = 0
    for kind in TRAINED_KINDS:
        conversation = _conversation(name, kind)
        try:
            ids, marks = chats.sample(tokenizer, conversation)
        except (ConfigError, FormatError):
            continue
        expected_ids, expected = chats.expected(variant, "<s>", end, conversation)
        if ids != expected_ids:
            continue  # the variant changes more than marks
        compared += 1
        texts = [peer.convert_ids_to_tokens(index) for index in ids]
        _compare_marks(kind, texts, marks, expected)
    if not compared:
        raise Wrong(f"{name}: its training variant writes no conversation alike")
    return Verdict("equal", f"masks of {compared} conversations, but for headers and white space after a turn")


def _compare_marks(kind: str, tokens: Sequence[str], marks: Sequence[bool], expected: Sequence[bool]) -> None:
    """Wrong where a token is marked that the reference does not mark, or one is not marked that says something."""
    for place, (found, wanted) in enumerate(zip(marks, expected, strict=True)):
        if found and not wanted:
            raise Wrong(f"{kind}: token {place} ({tokens[place]!r}) is trained, and is not in the training variant")
        if wanted and not found:
            before = next((i for i in range(place, -1, -1) if marks[i]), -1)
            after = next((i for i in range(place, len(marks)) if marks[i]), len(marks))
            blank = all(set(tokens[i]) <= {"Ċ", "Ġ"} for i in range(before + 1, place + 1)) and before >= 0
            header = after < len(marks) and all(expected[place:after])
            if not blank and not header:
                raise Wrong(f"{kind}: token {place} ({tokens[place]!r}) is not trained, and is in the training variant")


ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
TRAINED_KINDS = ("one turn", "two turns", "the same turn twice", "thinking in one turn", "unicode", "a system message")
ORIGINALS = sorted(path.stem for path in SHIPPED.glob("*.jinja"))
# Their variants write other text than the models' own templates do (all thinking is kept, or the end of a turn added),
# or the own template has no mark of where an answer begins: what is trained is held in tests/data/test_answers.py.
OTHERWISE = {"glm4moe", "gptoss"}
VARIATIONS += [Variation(AREA, f"as shipped: {name}", "transformers", partial(_rendered, name)) for name in ORIGINALS]
VARIATIONS += [
    Variation(
        AREA, f"masks as in TRL's variant: {name}", "TRL's training template in transformers", partial(_trained, name)
    )
    for name in ORIGINALS
    if f"{name}_training" in ORIGINALS and name not in OTHERWISE
]


# ---------------------------------------------------------------------- of a GGUF file, in a saved directory
def _saved(name: str, folder: Path) -> Verdict:
    """The tokens that a run gets from a GGUF file's tokenizer are those of transformers for the directory it saves."""
    bos, eos = chats.ENDS[name]
    tokenizer = chats.ours(chats.plain(name), bos or "<s>", eos, adds_bos=True)
    tokenizer.save(folder)
    kinds = ("one turn", "two turns", "the same turn twice", "unicode")

    def theirs() -> list[list[int]]:
        import transformers

        peer = transformers.AutoTokenizer.from_pretrained(folder)
        return [peer.apply_chat_template(chats.CONVERSATIONS[kind]["messages"])["input_ids"] for kind in kinds]

    def ours() -> list[list[int]]:
        return [chats.sample(tokenizer, chats.CONVERSATIONS[kind])[0] for kind in kinds]

    return judge(ours, theirs, names=[], compared=f"ids of {len(kinds)} conversations")


VARIATIONS += [
    Variation(AREA, f"a GGUF file's, saved: {name}", "transformers", partial(_saved, name))
    for name in sorted(path.stem for path in chats.TEMPLATES.glob("*.jinja"))
]

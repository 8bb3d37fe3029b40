"""Records of other layouts: what they are, and the expression that makes one of ours of a record `r`."""

from __future__ import annotations

from typing import Any

# (key of the prompt, key of the answer), tried in order
PAIRS = (
    *(("question", answer) for answer in ("answer", "response", "output", "completion")),
    *(("query", answer) for answer in ("response", "answer", "output")),
    *(("instruction", answer) for answer in ("response", "answer", "completion", "target")),
    *(("prompt", answer) for answer in ("response", "answer", "output", "target")),
    *(("input", answer) for answer in ("output", "target", "response", "label", "answer")),
    *(("problem", answer) for answer in ("solution", "answer")),
    ("context", "response"),
    ("source", "target"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("article", "summary"),
    ("document", "summary"),
)
CONVERSATIONS = ("conversation", "dialogue", "dialog", "chat", "turns", "message")


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )


def foreign_layout(record: dict[str, Any]) -> tuple[str, str] | None:
    """(what it is, a Python expression and a condition after it) of a record that is no layout of ours, else None."""
    there = {key for key, value in record.items() if value is not None}
    if {"chosen", "rejected"} & there:
        return _preference(record, there)
    if {"prompt", "completion"} <= there and isinstance(record.get("label", record.get("kto_tag")), bool):
        key = "label" if "label" in record else "kto_tag"
        return (
            f"a judged answer (KTO: {key} says whether it is good), which --preference kto trains on as a label; "
            "fine-tuning uses the good ones",
            f"{{'prompt': r['prompt'], 'completion': r['completion']}}|if r['{key}']",
        )
    if "input_ids" in there:
        return "a record of token ids (input_ids), which belong to one tokenizer", ""
    if {"messages", "conversations", "text", "segments"} & there or {"instruction", "output"} <= there:
        return None
    if {"prompt", "completion"} <= there:
        return None
    if {"instruction", "response"} <= there:
        extra = ", 'input': r.get('context')" if "context" in record else ""
        return (
            "an instruction with a response" + (" and a context (the layout of dolly)" if extra else ""),
            f"{{'instruction': r['instruction'], 'output': r['response']{extra}}}|",
        )
    for key in CONVERSATIONS:
        if _is_messages(record.get(key)):
            return f"a conversation under the key {key}", f"{{'messages': r['{key}']}}|"
    for prompt, answer in PAIRS:
        if {prompt, answer} <= there and isinstance(record[prompt], str) and isinstance(record[answer], str):
            return (
                f"{'an' if prompt[0] in 'aeiou' else 'a'} {prompt} with its {answer}",
                f"{{'prompt': r['{prompt}'], 'completion': r['{answer}']}}|",
            )
    return None


def _preference(record: dict[str, Any], there: set[str]) -> tuple[str, str]:
    chosen = record.get("chosen")
    if "prompt" in there:
        expression = "{'prompt': r['prompt'], 'completion': r['chosen']}|"
        if isinstance(chosen, list) and _is_messages(chosen) and (isinstance(record["prompt"], str) or len(chosen) > 1):
            expression = "{'messages': r['chosen']}|"
    elif _is_messages(chosen):
        expression = "{'messages': r['chosen']}|"
    elif isinstance(chosen, str):
        expression = "{'text': r['chosen']}|"
    else:
        expression = ""
    what = "a preference (DPO: chosen and rejected), which --preference dpo, orpo or kto trains on"
    return f"{what}; fine-tuning uses the chosen answer", expression


def wrapped(record: Any) -> str | None:
    """The one key of a file's only object under which its records are, else None."""
    if not isinstance(record, dict) or foreign_layout(record):
        return None
    if {"messages", "conversations", "text", "segments", "instruction", "prompt"} & set(record):
        return None
    lists = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return lists[0] if len(lists) == 1 and not _is_messages(record[lists[0]]) else None

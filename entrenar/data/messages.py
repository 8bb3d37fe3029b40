"""Lists of messages as records hold them, to messages as a chat template gets them, and which answers are trained."""

from __future__ import annotations

import json
from typing import Any

from entrenar.config import shown
from entrenar.errors import FormatError

ROLES = {role: role for role in ("system", "user", "assistant", "tool", "developer", "function", "ipython")}
ROLES |= {"human": "user", "gpt": "assistant", "observation": "tool"}  # as ShareGPT and LLaMA-Factory name them
CALL = (
    "function_call"  # LLaMA-Factory's role: an assistant's message whose value is one call, or a list of them, in JSON
)
FLAGS = ("weight", "train", "trainable", "loss")  # OpenAI, axolotl, LLaMA-Factory and ms-swift: whether it is trained
LEAST_WEIGHT = 1e-6
NOT_READ = ("function_call", "images", "image", "audio", "audios", "video", "videos", "train_detail", "training_detail")
MAY_BE_EMPTY = ("system", "developer", "tool", "function", "ipython")
THINKING = ("reasoning_content", "reasoning", "thinking")


def json_kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((str, "a text"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")


def is_empty(value: Any) -> bool:
    """Whether a key says nothing: null, as libraries fill in what a record does not have, or an empty text or list."""
    return value is None or value in ("", [], {})


def check_text(value: Any, key: str, where: str) -> str:
    """`value` where it is text that is not blank; FormatError naming `key`."""
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"{where}: {key} is {shown(value)}, expected non-empty text.")
    check_encodable(value, key, where)
    return value


def check_encodable(value: Any, key: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, which is no character: FormatError where any text inside has one."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FormatError(
                f"{where}: {key} holds half a character (\\u{ord(value[error.start]):x}); "
                "write the whole one, or take it out."
            ) from error
    elif isinstance(value, dict | list):
        try:
            for item in (*value, *value.values()) if isinstance(value, dict) else value:
                check_encodable(item, key, where)
        except RecursionError as error:
            raise FormatError(f"{where}: {key} is nested too deep.") from error


def read_messages(turns: Any, key: str, where: str) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """The messages under `key`, and by index the weights below 1 that the record gives some: 0 is not trained.

    A message keeps every key that a template may read; the marks of training are taken out. Raises FormatError.
    """
    if not isinstance(turns, list) or not turns:
        raise FormatError(f"{where}: {key} is {shown(turns)}, expected a list of messages.")
    messages: list[dict[str, Any]] = []
    weights: dict[int, float] = {}
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise FormatError(f"{where}: {key} holds {shown(turn)}, expected objects with role and content.")
        message = _message(turn, key, where)
        weight = _weight(turn, message["role"], where)
        if weight < 1:
            weights[index] = weight
        messages.append(message)
    return messages, weights


def _either(turn: dict[str, Any], name: str, other: str, where: str) -> Any:
    """The value under OpenAI's name of a key or ShareGPT's."""
    if turn.get(name) is not None and turn.get(other) is not None and turn[name] != turn[other]:
        raise FormatError(
            f"{where}: a message has {name} {shown(turn[name])} and {other} {shown(turn[other])}; keep one."
        )
    return turn.get(other) if turn.get(name) is None and other in turn else turn.get(name)


def _message(turn: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    role = _either(turn, "role", "from", where)
    for name in NOT_READ:
        if not is_empty(turn.get(name)):
            raise FormatError(f"{where}: a message has {name}, which is not read; {_advice(name)}.")
    others = {name: value for name, value in turn.items() if name not in ("role", "from", "content", "value", *FLAGS)}
    check_encodable(others, key, where)
    content_name = "value" if {"value", "from"} & turn.keys() and "content" not in turn else "content"
    content = _either(turn, "content", "value", where)
    if role == CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, where)} | others
    if not isinstance(role, str) or role not in ROLES:
        found = "no role" if role is None else f"the role {shown(role)}"
        raise FormatError(
            f"{where}: a message has {found}, expected system, user, assistant or tool (or developer, "
            "function, ipython; human, gpt, observation, function_call)."
        )
    role = ROLES[role]
    calls = others.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        raise FormatError(f"{where}: tool_calls is {shown(calls)}, expected a list of objects.")
    message = {"role": role}
    if "content" in turn or "value" in turn or not calls:
        message["content"] = _content(content, role, others, content_name, where)
    return message | others


def _content(content: Any, role: str, others: dict[str, Any], name: str, where: str) -> Any:
    """A message's text, or its list of parts that are text, as it stands."""
    says_more = role == "assistant" and any(not is_empty(others.get(key)) for key in ("tool_calls", *THINKING))
    if content is None and says_more:
        return None
    if isinstance(content, str) and (says_more or role in MAY_BE_EMPTY):
        check_encodable(content, name, where)
        return content
    if content is None:
        raise FormatError(f"{where}: a message of the {role} has no {name}, expected non-empty text.")
    if not isinstance(content, list) or not content:
        return check_text(content, name, where)
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise FormatError(
                f"{where}: {name} holds the part {shown(part)}, expected parts of type text; the model reads no other."
            )
        check_encodable(part, name, where)
    if not says_more and role not in MAY_BE_EMPTY and not any(part["text"].strip() for part in content):
        raise FormatError(f"{where}: {name} is {shown(content)}, expected non-empty text.")
    return content


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The tool calls of a function_call turn: {"name": ..., "arguments": ...} in JSON, or a list of these."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and set(call) == {"name", "arguments"} for call in calls):
        raise FormatError(
            f"{where}: function_call is {shown(value)}, expected JSON of an object with name and arguments, or of a "
            "list of them."
        )
    check_encodable(calls, "function_call", where)
    return [{"type": "function", "function": call} for call in calls]


def _weight(turn: dict[str, Any], role: str, where: str) -> float:
    """What a message's marks say its tokens count in the loss; 1 where it has none."""
    said: dict[str, bool] = {}
    for name in FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        number = isinstance(value, bool | int | float)
        if not number or not (0 <= value <= 1 if name == "weight" else value in (0, 1)):
            expected = "a number from 0 (not trained) to 1" if name == "weight" else "0 or false, 1 or true"
            raise FormatError(f"{where}: {name} of a message is {shown(value)}, expected {expected}.")
        if 0 < value < LEAST_WEIGHT:
            raise FormatError(
                f"{where}: weight of a message is {shown(value)}, of which nothing is left in float32 sums; expected "
                f"0, or {LEAST_WEIGHT:g} to 1."
            )
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        marks = " and ".join(f"{name} {shown(value)}" for name, value in said.items())
        raise FormatError(f"{where}: a message has {marks}, which contradict each other; keep one.")
    if True in said.values() and role != "assistant":
        raise FormatError(
            f"{where}: {next(iter(said))} says that a message of the {role} is trained, and only the assistant's are; "
            "take it out (data.train_on_prompt trains on all prompts)."
        )
    return float(turn["weight"]) if "weight" in said else float(all(said.values()))


def _advice(name: str) -> str:
    if name == "function_call":
        return "write it as tool_calls"
    return "take it out" if name.endswith("detail") else "the model reads text alone"

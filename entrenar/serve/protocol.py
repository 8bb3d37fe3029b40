"""Requests of the OpenAI API as JSON: read, checked, and turned into what the engine takes.

Of `/v1/completions` and `/v1/chat/completions` (OpenAI API reference, 2025). What is not supported is refused by name,
never left out in silence.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrenar.config import nearest, shown
from entrenar.errors import EntrenarError
from entrenar.serve.engine import Engine
from entrenar.serve.request import Settings

DEFAULT_TOKENS = 16  # of /v1/completions, as OpenAI's
MOST_TOP, MOST_STOPS, MOST_PROMPTS = 20, 4, 128
COMMON = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "ignore_eos",
    "cache_prompt",
)
COMPLETION = (*COMMON, "prompt", "echo")
CHAT = (*COMMON, "messages", "max_completion_tokens", "top_logprobs")
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
)  # name who asks, or bill
NEUTRAL: dict[str, tuple[Any, ...]] = {  # not supported, and the values that ask for nothing
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "audio": (),
}


class BadRequest(EntrenarError):
    """A request that cannot be answered: the HTTP status, and the field that is wrong."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True)
class Asked:
    """A checked request. `prompts` has a list of tokens for each choice of the answer."""

    model: str
    prompts: list[list[int]]
    settings: Settings
    stream: bool
    include_usage: bool


def completion(body: Any, engine: Engine) -> Asked:
    """Of /v1/completions; BadRequest."""
    table = _table(body, COMPLETION)
    model = _model(table, engine)
    prompts = _prompts(table.get("prompt"), engine)
    top = _integer(table, "logprobs", None, 0, MOST_TOP)
    echo = _flag(table, "echo")
    tokens = _integer(table, "max_tokens", DEFAULT_TOKENS, 0 if echo else 1)
    settings = _settings(table, tokens, top, echo)
    return _asked(table, model, prompts, settings, engine)


def chat(body: Any, engine: Engine) -> Asked:
    """Of /v1/chat/completions; BadRequest."""
    table = _table(body, CHAT)
    model = _model(table, engine)
    prompt = _chat_prompt(table.get("messages"), engine)
    top = _integer(table, "top_logprobs", None, 0, MOST_TOP)
    if not _flag(table, "logprobs"):
        if top is not None:
            raise BadRequest("top_logprobs has no effect without logprobs = true.", "top_logprobs")
    else:
        top = top or 0
    tokens = _integer(table, "max_completion_tokens", None, 1)
    older = _integer(table, "max_tokens", None, 1)
    if tokens is not None and older is not None and tokens != older:
        raise BadRequest(f"max_tokens is {older} and max_completion_tokens {tokens}; give one of both.", "max_tokens")
    wanted = tokens if tokens is not None else older
    settings = _settings(table, engine.room(model, len(prompt)) if wanted is None else wanted, top, False)
    return _asked(table, model, [prompt], settings, engine)


def _table(body: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise BadRequest(f"The body is {shown(body)}, expected a JSON object.")
    for name, value in body.items():
        if name in known or name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise BadRequest(f"{shown(name)} is no known field; {nearest(name, (*known, *NEUTRAL))}", name)
        if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
            raise BadRequest(f"{name} = {shown(value)} is not supported; leave {name} out.", name)
    return body


def _model(table: Mapping[str, Any], engine: Engine) -> str:
    name = table.get("model")
    if name is None and len(engine.models) == 1:
        return next(iter(engine.models))
    if not isinstance(name, str):
        raise BadRequest(f"model is {shown(name)}, expected one of {', '.join(engine.models)}.", "model")
    if name not in engine.models:
        raise BadRequest(f"model {shown(name)} is not served; {nearest(name, engine.models)}", "model", 404)
    return name


def _prompts(prompt: Any, engine: Engine) -> list[list[int]]:
    """Token ids of a text, of several, of ids, or of several lists of them."""
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    items = prompt if several else [prompt]
    if len(items) > MOST_PROMPTS:
        raise BadRequest(f"prompt has {len(items)} texts, expected at most {MOST_PROMPTS}.", "prompt")
    return [_tokens(item, engine) for item in items]


def _tokens(prompt: Any, engine: Engine) -> list[int]:
    if isinstance(prompt, str):
        found = engine.tokenizer.encode(prompt, add_bos=True)
    elif isinstance(prompt, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        size = next(iter(engine.models.values())).config.vocab_size
        wrong = next((item for item in prompt if not 0 <= item < size), None)
        if wrong is not None:
            raise BadRequest(f"prompt has the token {wrong}, expected ids from 0 to {size - 1}.", "prompt")
        found = prompt
    else:
        raise BadRequest(
            f"prompt is {shown(prompt)}, expected a text, a list of token ids, or a list of either.", "prompt"
        )
    if not found:
        raise BadRequest("prompt has no token; expected at least one.", "prompt")
    return found


def _chat_prompt(messages: Any, engine: Engine) -> list[int]:
    """The prompt of an answer to messages, by the model's own template."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"messages is {shown(messages)}, expected a list of at least one.", "messages")
    if not engine.tokenizer.has_template:
        raise BadRequest("The model has no chat template; ask /v1/completions.", "messages")
    read = [_message(number, message) for number, message in enumerate(messages)]
    try:
        return engine.tokenizer.apply_chat_template(read, add_generation_prompt=True)
    except EntrenarError as error:
        raise BadRequest(f"messages: {error}", "messages") from error


def _message(number: int, message: Any) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{where} is {shown(message)}, expected an object with role and content.", where)
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content is {shown(content)}, expected a text; images are not supported.", where)
    for name in ("tool_calls", "tool_call_id", "function_call", "audio"):
        if message.get(name):
            raise BadRequest(f"{where}.{name} is not supported; leave it out.", where)
    return {"role": message["role"], "content": content}


def _settings(table: Mapping[str, Any], tokens: int | None, top: int | None, echo: bool) -> Settings:
    stop = table.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop is {shown(stop)}, expected a text or up to {MOST_STOPS}, none empty.", "stop")
    return Settings(
        max_tokens=tokens or 0,
        temperature=_number(table, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(table, "top_p", 1.0, 0.0, 1.0) or 1e-9,  # OpenAI takes 0: the likeliest alone
        seed=_integer(table, "seed", secrets.randbits(63), -(2**63), 2**63 - 1) % 2**63,
        stop=tuple(stops),
        echo=echo,
        top=top,
        ignore_eos=_flag(table, "ignore_eos"),
        cache_prompt=_flag(table, "cache_prompt", True),
    )


def _asked(table: Mapping[str, Any], model: str, prompts: list[list[int]], settings: Settings, engine: Engine) -> Asked:
    longest = max(map(len, prompts))
    if settings.max_tokens > engine.room(model, longest) or settings.max_tokens < (not settings.echo):
        raise BadRequest(
            f"The prompt has {longest} tokens and {max(1, settings.max_tokens)} new ones are asked for, expected at "
            f"most {engine.context} together, the server's --context.",
            "max_tokens",
        )
    options = table.get("stream_options")
    stream = _flag(table, "stream")
    if options is not None and (
        not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}
    ):
        raise BadRequest(f"stream_options is {shown(options)}, expected {{'include_usage': true}}.", "stream_options")
    if options is not None and not stream:
        raise BadRequest("stream_options has no effect without stream = true.", "stream_options")
    return Asked(model, prompts, settings, stream, bool((options or {}).get("include_usage")))


def _flag(table: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = table.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} is {shown(value)}, expected true or false.", name)
    return default if value is None else value


def _integer(table: Mapping[str, Any], name: str, default: Any, least: int, most: int = 2**31) -> Any:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequest(f"{name} is {shown(value)}, expected an integer from {least} to {most}.", name)
    return value


def _number(table: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"{name} is {shown(value)}, expected a number.", name)
    if not least <= value <= most:
        raise BadRequest(f"{name} is {shown(value)}, expected a number from {least:g} to {most:g}.", name)
    return float(value)

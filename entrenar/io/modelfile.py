"""Ollama's Modelfile: the files of a model, its chat template, where it stops, how it samples.

Source: Ollama, docs/modelfile.md and parser/parser.go.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.errors import ConfigError, EntrenarError
from entrenar.io.atomic import atomic_file
from entrenar.io.go_template import MARKS, GoTemplate, Messages, derive
from entrenar.io.rendering import rendering_date, today

if TYPE_CHECKING:
    from entrenar.io.tokenizer import Tokenizer

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
LONGEST_CONTEXT = 4096  # tokens, of num_ctx: Ollama allocates its cache for all of them
# Keys of generation_config.json that Ollama has too, with its names for them.
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
OTHER_DATE = datetime(2001, 2, 3)  # whose day, month and year are found in no other text of a template
THOUGHT = "qzThoughtzq"


def modelfile(
    path: str | Path,
    *,
    base: str | Path,
    adapter: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    end_tokens: Sequence[int] = (),
    generation_config: Mapping[str, Any] | None = None,
    context: int | None = None,
) -> tuple[str, list[str]]:
    """The text of a Modelfile at `path` for a GGUF model, or a GGUF adapter over one, and what is to be known of it.

    `end_tokens` stop beside those of the tokenizer; `context` is the longest sequence of the model, in tokens. A chat
    template that has no form in Go is left out, which is said: Ollama then looks for one in the GGUF file itself.
    Raises ConfigError for the name of a file that no Modelfile can hold.
    """
    path = Path(path)
    lines = [f"FROM {_place(base, path)}"]
    if adapter is not None:
        lines.append(f"ADAPTER {_place(adapter, path)}")
    remarks: list[str] = []
    if adapter is not None:
        remarks.append(
            "Ollama 0.34.1 and newer create no model with an ADAPTER: merge it there (entrenar export --to gguf), or "
            "run llama-server --lora."
        )
    if SPLIT.search(Path(base).name):
        remarks.append(f"Ollama reads a model from one file: join the parts of {base} (llama-gguf-split --merge).")
    if tokenizer is not None:
        template, said = go_template(tokenizer)
        remarks += said
        if template is not None:
            lines += ["", f'TEMPLATE """{template.text()}"""']
        lines += ["", *_stops(tokenizer, end_tokens, remarks)]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters(generation_config or {}).items()]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}")
    comments = [f"# {remark}" for remark in remarks]
    return "\n".join([*comments, *lines]) + "\n", [f"{path}: {remark}" for remark in remarks]


def write_modelfile(path: str | Path, **parts: Any) -> list[str]:
    """Write what `modelfile` makes of these; returns what is to be known, a sentence each."""
    text, remarks = modelfile(path, **parts)
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return remarks


def _place(file: str | Path, modelfile: Path) -> str:
    """A file as Ollama finds it: from the Modelfile's folder, or by its whole path."""
    file = Path(file).absolute()
    text = f"./{file.name}" if file.parent == modelfile.absolute().parent else str(file)
    if not text.isprintable():  # its parser drops such characters, and a line ends the name
        raise ConfigError(f"{text}: has a character in its name that a Modelfile cannot hold; rename the file.")
    return text


def _stops(tokenizer: Tokenizer, end_tokens: Sequence[int], remarks: list[str]) -> list[str]:
    lines = []
    for token in dict.fromkeys((*end_tokens, *tokenizer.eos_ids)):
        text = tokenizer.token(token)
        if not text:
            remarks.append(f"The end token {token} is none of the tokenizer's: no text ends at it.")
            continue
        if not text.isprintable() or not text.strip():
            remarks.append(f"The end token {token} ({text!r}) has no form here; the GGUF file itself ends texts by it.")
            continue
        quotes = '"""' if '"' in text else '"'
        lines.append(f"PARAMETER stop {quotes}{text}{quotes}")
    return lines


def parameters(generation_config: Mapping[str, Any]) -> dict[str, str]:
    """Ollama's parameters for what generation_config.json says of sampling; none of it where the file does not sample.

    A penalty of repetitions holds for the whole text, as in transformers.
    """
    found: dict[str, str] = {}
    if generation_config.get("do_sample") is True:
        for key, name in SAMPLING.items():
            if _is_number(value := generation_config.get(key)):
                found[name] = f"{value:g}"
    penalty = generation_config.get("repetition_penalty")
    if _is_number(penalty):
        found |= {"repeat_penalty": f"{penalty:g}", "repeat_last_n": "-1"}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------- the chat template
def go_template(tokenizer: Tokenizer) -> tuple[GoTemplate | None, list[str]]:
    """The tokenizer's chat template for Ollama, None where it has no form in Go; and what is to be known of it."""
    if not tokenizer.has_template:
        return None, ["The model has no chat template, and this file says none: prompts are read as plain text."]
    bos = tokenizer.token(tokenizer.bos_id) if tokenizer.adds_bos else ""  # which Ollama puts there itself

    def render(messages: Messages, answer: bool) -> str:
        return tokenizer.render_chat(messages, add_generation_prompt=answer).text

    found = derive(render, bos)
    if found is None and (error := _error(render)):
        return None, [f"The model's chat template refuses a plain request, so none is written: {error}"]
    if found is None:
        return None, [
            "The model's chat template has no form in Ollama's template language, so none is written: Ollama looks for "
            "one in the GGUF file; compare what `ollama show --template` says with tokenizer.chat_template."
        ]
    return found, _remarks(tokenizer, render, found, bos)


def _remarks(tokenizer: Tokenizer, render: Any, found: GoTemplate, bos: str) -> list[str]:
    """Where conversations can be written in another way than the model's own template writes them."""
    remarks = []
    with rendering_date(OTHER_DATE):
        dated = derive(render, bos) != found
    if dated:
        remarks.append(f"The chat template writes today's date; this file has that of its making, {today():%d %b %Y}.")
    if found.before_system is None:
        remarks.append("The chat template takes no system message; one is left out.")
    user = {"role": "user", "content": f" {MARKS['u']}\n"}
    if _refusing(render, [user], True) != bos + found.render([user]):
        remarks.append("The chat template takes spaces off the ends of messages, Ollama does not.")
    answer = f"<think>\n{THOUGHT}\n</think>\n\n{MARKS['a']}"
    turns = [*({"role": r, "content": c} for r, c in (("user", MARKS["u"]), ("assistant", answer), ("user", "x")))]
    if THOUGHT not in _refusing(render, turns, True):
        remarks.append("The chat template leaves the reasoning of earlier answers out, Ollama's own does not.")
    if "tools" in tokenizer.template().names:
        remarks.append("The chat template can take tools; this one cannot.")
    if tokenizer.adds_bos and not tokenizer.bos_before_chat and not _refusing(render, [user], True).startswith(bos):
        remarks.append(f"Ollama begins every text with {bos!r}, which the model's chat template does not write.")
    return remarks


def _error(render: Any) -> str:
    """Why the template refuses a request, in one line; empty where it takes one."""
    try:
        render([{"role": "user", "content": MARKS["u"]}], True)
    except EntrenarError as error:
        return " ".join(str(error).split())
    return ""


def _refusing(render: Any, messages: Messages, answer: bool) -> str:
    """What the template writes; nothing where it refuses the messages."""
    try:
        return str(render(messages, answer))
    except EntrenarError:
        return ""

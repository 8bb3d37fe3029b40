"""Tokenizers from tokenizer.json and the files beside it, as transformers' AutoTokenizer reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError
from entrenar.io.json_file import read_json_object
from entrenar.io.vocabulary import Vocabulary, template_text


def from_file(path: Path) -> Vocabulary:
    """From a tokenizer.json, with tokenizer_config.json and chat_template.jinja beside it where they exist."""
    import tokenizers

    if not path.is_file():
        raise FormatError(f"{path}: no such file; expected a tokenizer.json.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise FormatError(f"{path}: is no tokenizer.json ({error}).") from error
    backend.no_padding()
    backend.no_truncation()
    config = _json_object(path.with_name("tokenizer_config.json"))

    def special(*names: str) -> int | None:
        for name in names:
            value = config.get(name)
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str) and backend.token_to_id(text) is not None:
                return backend.token_to_id(text)
        return None

    template = config.get("chat_template")
    if isinstance(template, list):  # named templates
        named = [entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    jinja_file = path.with_name("chat_template.jinja")
    if jinja_file.is_file():
        template = jinja_file.read_bytes().decode("utf-8", "replace")
    bos = special("bos_token")
    puts_bos = bos is not None and backend.encode("a").ids[:1] == [bos]  # by its post-processor
    return Vocabulary(
        backend,
        bos_id=bos,
        eos_id=special("eos_token"),
        pad_id=special("pad_token"),
        unk_id=special("unk_token"),
        chat_template=template_text(template, f"{path.with_name('tokenizer_config.json')}: chat_template"),
        adds_bos=bool(config.get("add_bos_token", puts_bos)),
    )


def _json_object(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, "a tokenizer_config.json") if path.is_file() else {}

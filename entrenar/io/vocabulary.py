"""What a tokenizer is made of: the record that its readers fill and `entrenar.io.tokenizer.Tokenizer` is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from entrenar.errors import FormatError

if TYPE_CHECKING:
    import tokenizers


@dataclass
class Vocabulary:
    """The library's tokenizer and what the files say beside it. Ids are None where the vocabulary has none."""

    backend: tokenizers.Tokenizer
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # every token that ends a text or a turn, `eos_id` first
    pad_id: int | None = None
    unk_id: int | None = None
    named: dict[str, str] = field(default_factory=dict)  # further special tokens that templates read, by name
    chat_template: str | None = None
    templates: dict[str, str] = field(default_factory=dict)  # further ones by name
    bos_before_chat: bool = True  # whether `adds_bos` holds for what a template writes too
    adds_bos: bool = False  # whether the reference puts a beginning-of-text token
    adds_eos: bool = False  # whether it puts an end token after a text
    cleans_up: bool = False  # whether decoding takes spaces before punctuation out
    remarks: list[str] = field(default_factory=list)  # what a person must know before training, a sentence each


def template_text(template: Any, where: str) -> str | None:
    """The template; FormatError where it is no text."""
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{where} is {template!r}, expected text.")
    return template

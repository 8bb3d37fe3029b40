"""The chat templates of a Hugging Face directory, in tokenizer_config.json or in files of their own, which win; and of
the metadata of a GGUF file.

Source: transformers/tokenization_utils_base.py (`_from_pretrained`, `get_chat_template`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.vocabulary import template_text

DEFAULT_FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"


def read_templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The default template (None where there is none) and the others by name; FormatError where one is no text."""
    found = _in_files(folder)
    if not found:
        where = f"{folder / 'tokenizer_config.json'}: chat_template"
        found = _in_config(config.get("chat_template"), where)
    return found.pop("default", None), found


def named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The further templates of a GGUF file by name; FormatError where one is no text. Source: llama.cpp, gguf-py."""
    prefix = "tokenizer.chat_template."
    keys = [key for key in metadata if key.startswith(prefix)]
    named = {key.removeprefix(prefix): template_text(metadata[key], key) for key in keys}
    return {name: template for name, template in named.items() if template is not None}


def _in_files(folder: Path) -> dict[str, str]:
    files = {"default": folder / DEFAULT_FILE} if (folder / DEFAULT_FILE).is_file() else {}
    files |= {path.name.removesuffix(".jinja"): path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    templates = {}
    for name, path in files.items():
        try:
            # Line ends of Windows are read as line ends, as Python reads text
            templates[name] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a chat template.") from error
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
            ) from error
    return templates


def _in_config(value: Any, where: str) -> dict[str, str]:
    if isinstance(value, list):
        for entry in value:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or "template" not in entry:
                raise FormatError(f"{where} holds {shown(entry)}, expected objects with a name and a template.")
        value = {entry["name"]: entry["template"] for entry in value}
    templates = value if isinstance(value, Mapping) else {"default": value}
    named = {name: template_text(template, where) for name, template in templates.items()}
    return {name: template for name, template in named.items() if template is not None}

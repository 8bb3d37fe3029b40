"""Where a directory keeps its chat templates, and which of them writes a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import processors

from entrenar.data import Example, encode_example
from entrenar.io.tokenizer import Tokenizer

from .. import chats
from ..harness import Variation, Verdict, judge

AREA = "files of chat templates"
MARKED = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
CONFIG: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
Change = Callable[[Path, dict[str, Any]], None]


def _file(name: str, text: str | bytes) -> Change:
    def change(folder: Path, config: dict[str, Any]) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def _config(value: Any) -> Change:
    return lambda folder, config: config.update(chat_template=value)


def _all(*changes: Change) -> Change:
    def change(folder: Path, config: dict[str, Any]) -> None:
        for each in changes:
            each(folder, config)

    return change


def _named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def _check(change: Change, names: list[str], tools: list[Any] | None, folder: Path) -> Verdict:
    import transformers

    config = dict(CONFIG)
    backend = type(chats.backend()).from_str(chats.backend().to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(folder / "tokenizer.json"))
    change(folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    messages = chats.CONVERSATIONS["two turns"]["messages"]

    def ours() -> tuple[list[int], str]:
        tokenizer = Tokenizer.from_directory(folder)
        ids = encode_example(Example(messages, tools=tools), tokenizer, train_on_prompt=True).tokens.tolist()
        assert ids == tokenizer.apply_chat_template(messages, tools=tools)
        return ids, tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)

    def reference() -> tuple[list[int], str]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(messages, tools=tools)["input_ids"]
        return ids, tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)

    return judge(ours, reference, names=names, folder=folder, compared="text and ids, no token put before them")


OTHER = MARKED.replace(": ", " says ")
WITH_TOOLS = "{{ tools | length }}" + MARKED
SPECIAL = (
    "".join(
        f"{{{{ {name}_token }}}}|"
        for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask", "image", "eot", "nowhere")
    )
    + "{{ extra_special_tokens }}{{ additional_special_tokens }}"
    + MARKED
)
NAMED_TOKENS = {
    "sep_token": "<s>", "cls_token": "<cls>", "mask_token": "</s>", "pad_token": "</s>", "eot_token": "<eot>",
    "extra_special_tokens": {"image_token": "<image>"},
}  # fmt: skip
FOLDER = "additional_chat_templates"
# name: (change, words of a refusal, tools)
CASES: dict[str, tuple[Change, list[str], list[Any] | None]] = {
    "in tokenizer_config.json": (_config(MARKED), [], None),
    "in chat_template.jinja": (_file("chat_template.jinja", MARKED), [], None),
    "in both": (_all(_config(MARKED), _file("chat_template.jinja", OTHER)), [], None),
    "an empty chat_template.jinja": (_file("chat_template.jinja", ""), ["is empty"], None),
    "chat_template.jinja with line ends of Windows": (
        _file("chat_template.jinja", MARKED.replace("%}{{", "%}\r\n{{") + "\r\n"),
        [],
        None,
    ),
    "chat_template.jinja with a byte order mark": (_file("chat_template.jinja", "\ufeff" + MARKED), [], None),
    "chat_template.jinja that is no UTF-8": (_file("chat_template.jinja", b"\xff\xfe"), ["chat_template.jinja"], None),
    "chat_template.jinja that is a folder": (
        _all(_config(MARKED), lambda folder, config: (folder / "chat_template.jinja").mkdir()),
        ["chat_template.jinja"],
        None,
    ),
    "chat_template.json, that of a processor": (
        _all(_config(MARKED), _file("chat_template.json", json.dumps({"chat_template": OTHER}))),
        [],
        None,
    ),
    "named, a default among them": (_config(_named(other=OTHER, default=MARKED)), [], None),
    "named, the default alone": (_config(_named(default=MARKED)), [], None),
    "named, no default": (_config(_named(other=OTHER, more=MARKED)), ["['more', 'other']", "default"], None),
    "named, tool_use without tools": (_config(_named(default=MARKED, tool_use=WITH_TOOLS)), [], None),
    "named, tool_use with tools": (_config(_named(default=MARKED, tool_use=WITH_TOOLS)), [], [chats.TOOL]),
    "named, tool_use and no default, with tools": (_config(_named(tool_use=WITH_TOOLS, a=OTHER)), [], [chats.TOOL]),
    "named, tool_use with an empty list of tools": (
        _config(_named(default=MARKED, tool_use=WITH_TOOLS)),
        [],
        [],
    ),
    "named, an entry without a template": (_config([{"name": "default"}]), ["chat_template", "template"], None),
    "named, an entry that is a text": (_config([MARKED]), ["chat_template", "name"], None),
    "an object of named ones": (_config({"default": MARKED, "other": OTHER}), [], None),
    "a number": (_config(5), ["chat_template is 5"], None),
    "an additional one": (_all(_config(MARKED), _file(f"{FOLDER}/other.jinja", OTHER)), ["['other']"], None),
    "an additional one beside chat_template.jinja": (
        _all(_file("chat_template.jinja", MARKED), _file(f"{FOLDER}/other.jinja", OTHER)),
        [],
        None,
    ),
    "an additional tool_use": (
        _all(_file("chat_template.jinja", MARKED), _file(f"{FOLDER}/tool_use.jinja", WITH_TOOLS)),
        [],
        [chats.TOOL],
    ),
    "an additional file of another kind": (_all(_config(MARKED), _file(f"{FOLDER}/readme.txt", OTHER)), [], None),
    "one that writes the beginning of text": (_config("{{ bos_token }}" + MARKED), [], None),
    "one that writes every special token": (
        _all(_config(SPECIAL), lambda folder, config: config.update(NAMED_TOKENS)), [], None,
    ),
    "one that writes special tokens of no name": (
        _all(_config(SPECIAL), lambda folder, config: config.update(extra_special_tokens=["<a>", "<b>"])), [], None,
    ),
    "one that writes those of special_tokens_map.json": (
        _all(_config(SPECIAL), _file("special_tokens_map.json", json.dumps({"sep_token": "<s>", "eot_token": "</s>"}))),
        [], None,
    ),
    "half a character": (_config(MARKED + "\ud800"), ["tokenizer_config.json"], None),
    "half a character in a text of the template": (_config(MARKED + "{{ '\\ud800' }}"), ["half a character"], None),
    "as long as a book": (_config(MARKED + "{# " + "x" * 2**20 + " #}"), ["characters, more than"], None),
    "nothing but a loop": (_config("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
                           ["loops without an end"], None),
}  # fmt: skip
VARIATIONS = [
    Variation(AREA, name, "AutoTokenizer", partial(_check, change, names, tools))
    for name, (change, names, tools) in CASES.items()
]

"""Seeded mutations of small sound files: bytes flipped, cut, inserted, swapped; lengths, values and structure changed.

The same kind, seed and file give the same mutation. The process that loads the mutated files imports this module by
itself, so it needs nothing but Python.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

# kind -> the files of its sample that are mutated (one of them a time), and how each is built
KINDS: dict[str, dict[str, str]] = {
    "gguf": {"model.gguf": "gguf"},
    "safetensors": {"model/model.safetensors": "safetensors"},
    "safetensors index": {"model/model.safetensors.index.json": "json"},
    "config.json": {"model/config.json": "json"},
    "tokenizer.json": {"model/tokenizer.json": "tokenizer"},
    "tokenizer_config.json": {"model/tokenizer_config.json": "json"},
    "adapter": {"adapter/adapter_config.json": "json", "adapter/adapter_model.safetensors": "safetensors"},
    "checkpoint": {"run/checkpoint/*": "by suffix"},
    "checkpoint, summed again": {"run/checkpoint/*": "by suffix"},
    "JSON": {"data.json": "json"},
    "JSON Lines": {"data.jsonl": "lines"},
    "TOML": {"run.toml": "toml"},
}
DEEP, MANY_DIGITS, LONG = 3000, "1" * 5000, "x" * 100_000
# Values as JSON writes them; each is legal, or what some writer made.
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "1e999", "-1e999", "NaN", "1e-320", MANY_DIGITS),
    *(str(2**bits) for bits in (15, 31, 32, 40, 63, 64)),
    *(str(-(2**bits)) for bits in (31, 63)),
    *('""', '"a"', '"true"', '"1"', r'"\ud800"', r'"\u0000"', r'"a\nb"', r'"\u001b[31mred"', r'"{{ x"', f'"{LONG}"'),
    *("[]", "{}", "[0]", '[""]', "[[]]", '{"a": 1}', '{"": null}', "[1, 2, 3, 4, 5]"),
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    f"[{', '.join(map(str, range(10_000)))}]",
)
INTEGERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
# Components that tokenizer.json files may have, each unsound beside a model that does not fit it.
COMPONENTS = {
    "model": (
        '{"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}',
        '{"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", '
        '"max_input_chars_per_word": 100}',
        '{"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 7}',
        '{"type": "Unigram", "vocab": [], "unk_id": null}',
        '{"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], '
        '"continuing_subword_prefix": "####"}',
        '{"type": "BPE", "vocab": {"a": 2147483648}, "merges": []}',
        '{"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}',
        '{"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}',
    ),
    "normalizer": (
        '{"type": "Precompiled", "precompiled_charsmap": "AAAA"}',
        '{"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"}',
        '{"type": "Replace", "pattern": {"String": ""}, "content": "x"}',
        '{"type": "Replace", "pattern": {"Regex": "("}, "content": ""}',
        '{"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}',
        '{"type": "Prepend", "prepend": ""}',
        '{"type": "Sequence", "normalizers": []}',
    ),
    "pre_tokenizer": (
        '{"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false}',
        '{"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": true}',
        '{"type": "Metaspace", "replacement": "", "prepend_scheme": "first", "split": true}',
        '{"type": "Punctuation", "behavior": "Contiguous"}',
        '{"type": "Digits", "individual_digits": true}',
    ),
    "post_processor": (
        '{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<absent>", "type_id": 0}}], "pair": [], '
        '"special_tokens": {}}',
        '{"type": "BertProcessing", "sep": ["x", 4294967295], "cls": ["y", 0]}',
        '{"type": "RobertaProcessing", "sep": ["x", 2147483648], "cls": ["y", 0], "trim_offsets": true, '
        '"add_prefix_space": true}',
    ),
    "decoder": ('{"type": "WordPiece", "prefix": "", "cleanup": true}', '{"type": "Strip", "content": "", "start": 1}'),
    "added_tokens": (
        '[{"id": 4294967295, "content": "x", "special": true}]',
        '[{"id": 0, "content": "", "special": true, "single_word": false, "lstrip": false, "rstrip": false, '
        '"normalized": false}]',
    ),
    "truncation": ('{"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}',),
    "padding": ('{"strategy": {"Fixed": 4294967295}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}',),
}


def mutated(kind: str, seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """(name of a file of the sample, its mutated bytes); a seed below 0 changes nothing."""
    rng = random.Random(f"{kind} {seed}")
    name, how = rng.choice(sorted(targets(kind, files).items()))
    if seed < 0:
        return name, files[name]
    if rng.random() < 0.02:
        return name, b"" if rng.random() < 0.5 else rng.randbytes(64)
    data = files[name]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = MUTATORS[how](rng, data)
    return name, data


def targets(kind: str, files: dict[str, bytes]) -> dict[str, str]:
    """How each file that is mutated is built."""
    found = {}
    for name, how in KINDS[kind].items():
        for file in files:
            if file == name or (name.endswith("/*") and file.startswith(name[:-1])):
                suffix = file.rsplit(".", 1)[-1]
                found[file] = (
                    {"json": "json", "safetensors": "safetensors"}.get(suffix, "bytes") if "/*" in name else how
                )
    assert found, f"the sample of {kind} has none of its files"
    return found


# ---------------------------------------------------------------------- bytes
def mutate_bytes(rng: random.Random, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """One change between `start` and `stop`."""
    stop = len(data) if stop is None else min(stop, len(data))
    if stop <= start:
        return data + rng.randbytes(8)
    at, size = rng.randrange(start, stop), rng.choice((1, 2, 4, 8, 16, 64, 256))
    end, out = min(at + size, len(data)), bytearray(data)
    change = rng.randrange(8)
    if change == 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
            out[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    elif change == 1:
        del out[at:]
    elif change == 2:
        del out[at:end]
    elif change == 3:
        out[at:at] = rng.randbytes(size)
    elif change == 4:
        out[at:at] = out[at:end] * rng.choice((1, 2, 64))
    elif change == 5:
        other = rng.randrange(start, stop)
        out[at:end], out[other : other + size] = out[other : other + size], out[at:end]
    elif change == 6:
        out[at:end] = rng.choice((b"\0", b"\xff", b"\x7f")) * (end - at)
    else:
        return with_integer(rng, data, at, rng.choice((1, 2, 4, 8)))
    return bytes(out)


def with_integer(rng: random.Random, data: bytes, at: int, size: int) -> bytes:
    """The bytes with an extreme little-endian integer, or one near what was there, in one place."""
    old = int.from_bytes(data[at : at + size], "little")
    value = rng.choice((*INTEGERS, old + 1, old - 1, old * 2, old ^ (1 << rng.randrange(8 * size))))
    return data[:at] + (value % (1 << (8 * size))).to_bytes(size, "little") + data[at + size :]


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header's text or structure, its length, or any byte."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.6 and length < len(data) - 8:
        header = mutate_json(rng, data[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    if rng.random() < 0.2:
        return with_integer(rng, data, 0, 8)
    return mutate_bytes(rng, data, *((8, 8 + length) if rng.random() < 0.3 else ()))


def mutate_gguf(rng: random.Random, data: bytes) -> bytes:
    """One number of the header, any byte of it, or any byte of the file."""
    try:
        fields, header = gguf_fields(data)
    except (struct.error, KeyError, IndexError, MemoryError):  # mutated before
        return mutate_bytes(rng, data)
    where = rng.random()
    if where < 0.5:
        return with_integer(rng, data, *rng.choice(fields))
    return mutate_bytes(rng, data, 0, header if where < 0.85 else None)


GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_STRING, GGUF_ARRAY = 8, 9


def gguf_fields(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """(offset, size) of every count, length, type, value and offset of a GGUF header, and where the header ends."""
    fields, at = [(0, 4)], 4

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise IndexError
        fields.append((at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def value(kind: int) -> None:
        nonlocal at
        if kind == GGUF_STRING:
            at += number(8)
        elif kind == GGUF_ARRAY:
            item, count = number(4), number(8)
            for _ in range(count):
                value(item)
        else:
            number(GGUF_SIZES[kind])

    number(4)
    tensors, keys = number(8), number(8)
    for _ in range(keys):
        value(GGUF_STRING)
        value(number(4))
    for _ in range(tensors):
        value(GGUF_STRING)
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return fields, at


# ---------------------------------------------------------------------- JSON
class Object(list[list[Any]]):
    """A JSON object as [key, value] pairs, so that a key may be there twice."""


class Raw(str):
    """A value that is text of JSON already."""


def parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: Object([key, value] for key, value in pairs))


def dump_json(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Object):
        return "{" + ", ".join(f"{dump_json(key)}: {dump_json(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump_json, value)) + "]"
    return json.dumps(value)


def containers(value: Any) -> list[list[Any]]:
    """Every object and list that is not empty."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            found += [node] if node else []
            waiting += [item[1] for item in node] if isinstance(node, Object) else node
    return found


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """One value, key or entry deleted, replaced, doubled, moved or renamed; or the bytes of the text."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    if rng.random() < 0.03:
        return rng.choice((b"\xef\xbb\xbf" + data, data.decode("utf-8", "replace").encode("utf-16")))
    try:
        tree = parse_json(data.decode())
        nodes = containers(tree)
    except (ValueError, RecursionError):  # mutated before
        return mutate_bytes(rng, data)
    if not nodes:
        return rng.choice(VALUES).encode()
    mutate_node(rng, rng.choice(nodes), nodes)
    return dump_json(tree).encode()


def mutate_node(rng: random.Random, node: list[Any], nodes: list[list[Any]]) -> None:
    """One change to one entry of an object or list."""
    at, pairs, change = rng.randrange(len(node)), isinstance(node, Object), rng.randrange(10)
    if change == 0:
        del node[at]
    elif change == 1:
        node.insert(rng.randrange(len(node)), [node[at][0], Raw(rng.choice(VALUES))] if pairs else node[at])
    elif change == 2:
        other = rng.choice(nodes)
        key = rng.choice([pair[0] for pair in other]) if isinstance(other, Object) else "new"
        node.append([key, Raw(rng.choice(VALUES))] if pairs else Raw(rng.choice(VALUES)))
    elif change == 3 and pairs:
        node[at] = [Raw(rng.choice((r'"\ud800"', '""', r'"a\nb"', f'"{LONG}"', '"x"'))), node[at][1]]
    elif change == 4:
        other = rng.choice(nodes)
        taken = other[rng.randrange(len(other))]
        taken = Raw(dump_json(taken[1] if isinstance(other, Object) else taken))
        node[at] = [node[at][0], taken] if pairs else taken
    else:
        node[at] = [node[at][0], Raw(rng.choice(VALUES))] if pairs else Raw(rng.choice(VALUES))


def mutate_tokenizer(rng: random.Random, data: bytes) -> bytes:
    """As JSON, or one component in the place of another."""
    try:
        tree = parse_json(data.decode()) if rng.random() < 0.4 else None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, Object):
        return mutate_json(rng, data)
    key = rng.choice(list(COMPONENTS))
    component = Raw(rng.choice(COMPONENTS[key]))
    return dump_json(Object([*(pair for pair in tree if pair[0] != key), [key, component]])).encode()


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """One line as JSON, or the lines themselves."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[at] = mutate_json(rng, lines[at])
        return b"\n".join(lines)
    return rng.choice((mutate_bytes(rng, data), data.replace(b"\n", b"\r\n"), b"\n".join(lines[:at] + lines[at + 1 :])))


# ---------------------------------------------------------------------- TOML
TOML_VALUES = (
    *(value for value in VALUES if value not in ("null", "NaN", "1e999", "-1e999") and not value.startswith("{")),
    *("nan", "inf", "-inf", "1979-05-27", "'''a\nb'''", "0x7fffffffffffffffff", "{}", "{a = 1}", "{" * 100),
)
TOML_LINES = (
    "[training]",
    "[lora]",
    "[qlora]",
    "[ia3]",
    "[[data]]",
    "[a.b.c]",
    '"\\ud800" = 1',
    "steps = 1",
    "= 1",
    "a.b = 1",
    "\0",
)


def mutate_toml(rng: random.Random, data: bytes) -> bytes:
    """One value, one line, or the bytes."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    settings = [index for index, line in enumerate(lines) if "=" in line]
    change = rng.random()
    if change < 0.6 and settings:
        at = rng.choice(settings)
        lines[at] = f"{lines[at].split('=')[0]}= {rng.choice(TOML_VALUES)}"
    elif change < 0.7:
        lines.insert(rng.randrange(len(lines)), rng.choice(TOML_LINES))
    elif change < 0.8:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    elif change < 0.85:
        del lines[rng.randrange(len(lines))]
    else:
        return mutate_bytes(rng, data)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


MUTATORS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bytes": mutate_bytes,
    "safetensors": mutate_safetensors,
    "gguf": mutate_gguf,
    "json": mutate_json,
    "lines": mutate_lines,
    "tokenizer": mutate_tokenizer,
    "toml": mutate_toml,
}

"""GGUF files beyond their metadata: types, names, order and place of tensors, versions, parts, damage."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from entrenar.io.gguf import dequantizable
from entrenar.llama import LLaMAConfig

from ...models.builders import gguf_name, permute_rows, random_arrays, small_config, stored
from ..gguf_models import (
    CONFIG,
    FLOAT32,
    TOKENIZER,
    VOCABULARY,
    arrays,
    compare_model,
    peers_log_probabilities,
    transformers_log_probabilities,
    write_model,
)
from ..harness import Variation, Verdict

AREA = "GGUF files"
# llama.cpp multiplies such weights with activations that it rounds to 8 or 16 bits
ROUNDED = {"F16": 4e-3, "BF16": 4e-2}
ROUNDED_BLOCKS = 0.1  # 0.04 was found, and other values differ by 1 and more
EMBEDDING, LINEAR = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
WIDE = small_config(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
TYPES = [type_ for type_ in gguf.GGMLQuantizationType if type_.name != "F32"]
MATRICES = [type_.name for type_ in TYPES if dequantizable(type_)]


# ---------------------------------------------------------------------- files written by hand
class RawWriter:
    """A GGUF file byte by byte, sound or not: metadata, tensors in any order, alignment, parts."""

    def __init__(self, path: Path, version: int = 3, alignment: int = 32) -> None:
        self.path, self.version, self.alignment = path, version, alignment
        self.fields: list[bytes] = []
        self.tensors: list[tuple[str, np.ndarray, Any, tuple[int, ...]]] = []
        self.after = b""  # what follows the last tensor's bytes; its padding is left out

    @staticmethod
    def text(value: str | bytes) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(data)) + data

    def field(self, key: str, value: Any) -> None:
        """A metadata entry; whole numbers in 32 bits, fractions as float32, lists of texts, integers or floats."""
        self.fields.append(self.text(key) + self._value(value))

    def _value(self, value: Any) -> bytes:
        if isinstance(value, bool):
            return struct.pack("<I?", 7, value)
        if isinstance(value, int):
            return struct.pack("<II", 4, value)
        if isinstance(value, float):
            return struct.pack("<If", 6, value)
        if isinstance(value, str | bytes):
            return struct.pack("<I", 8) + self.text(value)
        if value and isinstance(value[0], int):
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        inner = [self._value(entry) for entry in value]
        kind = inner[0][:4] if inner else struct.pack("<I", 8)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(entry[4:] for entry in inner)

    def tensor(self, name: str, rows: np.ndarray, type_name: str = "F32", shape: tuple[int, ...] | None = None) -> None:
        """A tensor whose stored rows are given; `shape` where it is not that of `rows`."""
        type_ = gguf.GGMLQuantizationType[type_name]
        self.tensors.append((name, np.ascontiguousarray(rows), type_, shape or rows.shape))

    def write(self) -> Path:
        """The file, as llama.cpp lays it out."""
        head = struct.pack("<IIQQ", 0x46554747, self.version, len(self.tensors), len(self.fields))
        head += b"".join(self.fields)
        offset, data = 0, b""
        for name, rows, type_name, shape in self.tensors:
            head += self.text(name) + struct.pack("<I", len(shape))
            head += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack(
                "<IQ", type_name, offset
            )
            data += b"\0" * (offset - len(data)) + rows.tobytes()
            offset = -(-len(data) // self.alignment) * self.alignment
        head += b"\0" * (-len(head) % self.alignment)
        self.path.write_bytes(head + data + self.after)
        return self.path


def metadata_of(config: LLaMAConfig = CONFIG) -> dict[str, Any]:
    """The sound model's metadata, the architecture first."""
    return {
        "general.architecture": "llama",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **TOKENIZER,
    }


def stored_tensors(config: LLaMAConfig = CONFIG) -> dict[str, np.ndarray]:
    """The sound model's tensors as its file has them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    weights = arrays() if config is CONFIG else random_arrays(config)
    return {
        gguf_name(name): permute_rows(array, heads[name.split(".")[-2]]) if name.split(".")[-2] in heads else array
        for name, array in weights.items()
    }


def raw_model(path: Path, config: LLaMAConfig = CONFIG, **options: Any) -> RawWriter:
    """The sound model, still to be changed and written."""
    writer = RawWriter(path, **options)
    for key, value in metadata_of(config).items():
        writer.field(key, value)
    for name, rows in stored_tensors(config).items():
        writer.tensor(name, rows)
    return writer


def _parts(folder: Path, sizes: list[int], **changes: Any) -> list[Path]:
    """The model in parts with so many tensors each, as llama.cpp's gguf-split writes them."""
    tensors = list(stored_tensors().items())
    keys = {"split.count": len(sizes), "split.tensors.count": len(tensors)} | changes
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"model-{number + 1:05d}-of-{len(sizes):05d}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, value in metadata_of().items():
                _add(writer, key, value)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", keys["split.count"])
        writer.add_int32("split.tensors.count", keys["split.tensors.count"])
        for name, rows in tensors[:size]:
            writer.add_tensor(name, rows)
        del tensors[:size]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: Mapping[type, Callable[[str, Any], None]] = {
        str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        list: writer.add_array,
    }  # fmt: skip
    if key != "general.architecture":
        kinds[type(value)](key, value)


# ---------------------------------------------------------------------- types
def _typed(type_name: str, name: str, folder: Path) -> Verdict:
    """The embedding, whose rows are looked up exactly, or a linear layer in this type."""
    weights = random_arrays(WIDE, std=0.05)
    path = write_model(
        folder / "model.gguf", config=WIDE, weights=weights, type_name=lambda n: type_name if n == name else "F32"
    )
    tolerance = FLOAT32 if name == EMBEDDING else ROUNDED.get(type_name, ROUNDED_BLOCKS)
    return compare_model(path, [gguf_name(name), type_name], tolerance=tolerance)


def _shaped(changes: dict[str, Any], folder: Path) -> Verdict:
    config = small_config(**{"vocab_size": VOCABULARY} | changes)
    path = write_model(folder / "model.gguf", config=config, weights=random_arrays(config, std=0.15))
    return compare_model(path, [])


def _undecodable(type_name: str, folder: Path) -> Verdict:
    writer = raw_model(folder / "model.gguf", WIDE)
    name, rows, _, shape = writer.tensors[0]
    type_ = gguf.GGMLQuantizationType[type_name]
    elements, size = gguf.GGML_QUANT_SIZES[type_]
    writer.tensors[0] = (name, np.ones((len(rows), shape[1] // elements * size), np.uint8), type_, shape)
    return compare_model(writer.write(), [name, f"type {type_name}"])


def _norm(type_name: str, folder: Path) -> Verdict:
    writer = raw_model(folder / "model.gguf")
    for index, (name, rows, _, shape) in enumerate(writer.tensors):
        if name == "output_norm.weight":
            blocks = stored(rows.reshape(1, -1), type_name)[0]
            writer.tensors[index] = (name, blocks, gguf.GGMLQuantizationType[type_name], shape)
    return compare_model(writer.write(), [], peer=transformers_log_probabilities)


def _norm_that_is_no_block(folder: Path) -> Verdict:
    config = small_config(vocab_size=VOCABULARY, hidden_size=48, num_attention_heads=4)
    path = write_model(folder / "model.gguf", config=config, weights=random_arrays(config))
    data = bytearray(path.read_bytes())
    at = data.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    data[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType.Q8_0)
    path.write_bytes(data)
    return compare_model(path, ["output_norm.weight", "Q8_0", "48", "32"])


# ---------------------------------------------------------------------- tensors
def _changed(change: Callable[[RawWriter], None], names: list[str], folder: Path, **options: Any) -> Verdict:
    writer = raw_model(folder / "model.gguf", **options)
    change(writer)
    return compare_model(writer.write(), names)


def _drop(name: str, writer: RawWriter) -> None:
    writer.tensors = [entry for entry in writer.tensors if entry[0] != name]


def _add_tensor(name: str, shape: tuple[int, ...], writer: RawWriter) -> None:
    writer.tensor(name, np.full(shape, 0.5, np.float32))


def _reverse(writer: RawWriter) -> None:
    writer.tensors.reverse()


def _aligned(value: int, writer: RawWriter) -> None:
    writer.alignment = value
    writer.field("general.alignment", value)


def _twice(writer: RawWriter) -> None:
    writer.tensors.append(writer.tensors[0])


def _key_twice(writer: RawWriter) -> None:
    writer.field("llama.block_count", CONFIG.num_hidden_layers)


def _field(key: str, value: Any, writer: RawWriter) -> None:
    writer.field(key, value)


def _rope_freqs(values: np.ndarray, type_name: str, writer: RawWriter) -> None:
    writer.tensor("rope_freqs.weight", stored(values.reshape(1, -1), type_name)[0], type_name, values.shape)


def _rope_freqs_scaled(values: np.ndarray, writer: RawWriter) -> None:
    writer.field("llama.rope.scaling.factor", 4.0)
    _rope_freqs(values, "F32", writer)


def _nothing(writer: RawWriter) -> None:
    return


def _tail(data: bytes, writer: RawWriter) -> None:
    writer.after = data


def _not_finite(value: float, writer: RawWriter) -> None:
    name, rows, type_name, shape = writer.tensors[-1]
    rows = rows.copy()
    rows.reshape(-1)[5] = value
    writer.tensors[-1] = (name, rows, type_name, shape)


def _reshaped(name: str, shape: tuple[int, ...], writer: RawWriter) -> None:
    writer.tensors = [(n, rows, type_name, shape if n == name else s) for n, rows, type_name, s in writer.tensors]


SHAPES: dict[str, dict[str, Any]] = {
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "heads wider than their share": {"head_dim": 32},
    "heads narrower than their share": {"head_dim": 6},
    "one layer": {"num_hidden_layers": 1},
    "five layers": {"num_hidden_layers": 5},
    "a feed-forward of odd width": {"intermediate_size": 95},
    "tied, with one head": {"tie_word_embeddings": True, "num_attention_heads": 1, "num_key_value_heads": 1},
    "another rotary base": {"rope_theta": 5e5},
    "another epsilon": {"rms_norm_eps": 0.1},
}
FACTORS = np.linspace(0.5, 4.0, CONFIG.head_size // 2).astype(np.float32)
TENSOR_CHANGES: dict[str, tuple[Callable[[RawWriter], None], list[str]]] = {
    "as the harness writes it": (_nothing, []),
    "tensors in reverse order": (_reverse, []),
    "a tensor twice": (_twice, ["token_embd.weight", "twice"]),
    "a key twice": (_key_twice, ["llama.block_count", "twice"]),
    "no output.weight (tied)": (functools.partial(_drop, "output.weight"), []),
    "padding after the last tensor": (functools.partial(_tail, bytes(32)), []),
    "bytes after the last tensor": (functools.partial(_tail, b"more" * 99), []),
    "NaN in a weight": (functools.partial(_not_finite, np.nan), ["output.weight", "F32", "nan"]),
    "infinity in a weight": (functools.partial(_not_finite, np.inf), ["output.weight", "F32", "inf"]),
    "an empty array of texts": (functools.partial(_field, "general.tags", []), ["general.tags"]),
    "a tensor with a name of 64 bytes": (functools.partial(_add_tensor, "x" * 64, (4,)), ["x" * 64, "63"]),
    "a norm as a matrix of one row": (functools.partial(_reshaped, "output_norm.weight", (1, 64)), ["output_norm"]),
    "rope_freqs of ones": (functools.partial(_rope_freqs, np.ones_like(FACTORS), "F32"), []),
    "rope_freqs": (functools.partial(_rope_freqs, FACTORS, "F32"), []),
    "rope_freqs and scaling by 4": (functools.partial(_rope_freqs_scaled, FACTORS), []),
    "rope_freqs in F16": (functools.partial(_rope_freqs, FACTORS, "F16"), ["rope_freqs.weight", "F16", "F32"]),
    "rope_freqs with a zero": (functools.partial(_rope_freqs, FACTORS * 0, "F32"), ["rope_freqs.weight", "0.0"]),
    "rope_freqs too short": (functools.partial(_rope_freqs, FACTORS[:4], "F32"), ["rope_freqs.weight", "(4,)"]),
    **{f"alignment of {value}": (functools.partial(_aligned, value), []) for value in (64, 128, 4096)},
    **{f"alignment of {value}": (functools.partial(_aligned, value), ["alignment"]) for value in (48,)},
}
LAYER_TENSORS = {
    name.format(bid=0): kind
    for kind, name in gguf.constants.TENSOR_NAMES.items()
    if kind in gguf.constants.MODEL_TENSORS[gguf.constants.MODEL_ARCH.LLAMA]
}


def _tensor_variations() -> list[Variation]:
    """Of every tensor that the library names for the architecture: absent, with a bias; those that we have none of."""
    own = stored_tensors()
    found = []
    for name in LAYER_TENSORS:
        weight = f"{name}.weight"
        if weight in own:
            if weight != "output.weight":
                drop = functools.partial(_drop, weight)
                found.append(_of(f"without {weight}", functools.partial(_changed, drop, [weight])))
            shape = own[weight].shape[:1]
            add = functools.partial(_add_tensor, f"{name}.bias", shape)
            found.append(_of(f"with {name}.bias", functools.partial(_changed, add, [f"{name}.bias"])))
        elif name != "rope_freqs":
            add = functools.partial(_add_tensor, weight, (8,))
            found.append(_of(f"with {weight}", functools.partial(_changed, add, [weight])))
    return found


# ---------------------------------------------------------------------- whole files
def _version(version: int, folder: Path) -> Verdict:
    return compare_model(raw_model(folder / "model.gguf", version=version).write(), [f"version {version}"])


def _big_endian(folder: Path) -> Verdict:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    for key, value in metadata_of().items():
        _add(writer, key, value)
    for name, rows in stored_tensors().items():
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return compare_model(path, ["big-endian", "gguf-convert-endian"])


def _cut(share: float, folder: Path) -> Verdict:
    path = raw_model(folder / "model.gguf").write()
    os.truncate(path, int(path.stat().st_size * share))
    return compare_model(path, ["truncated"])


def _written(content: bytes, names: list[str], folder: Path) -> Verdict:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return compare_model(path, names)


def _pipe(folder: Path) -> Verdict:
    path = folder / "model.gguf"
    os.mkfifo(path)
    return compare_model(path, ["pipe"])


def _renamed(folder: Path) -> Verdict:
    path = folder / "model.bin"
    raw_model(folder / "model.gguf").write().rename(path)
    return compare_model(path, [])


def _split(sizes: list[int], folder: Path, names: tuple[str, ...] = (), **changes: Any) -> Verdict:
    return compare_model(_parts(folder, sizes, **changes)[0], list(names))


def _second_part(folder: Path) -> Verdict:
    first, second = _parts(folder, [10, 11])  # llama.cpp wants part 1 of the same model
    return compare_model(second, [], peer=lambda _: peers_log_probabilities(first))


def _missing_part(folder: Path) -> Verdict:
    first, second = _parts(folder, [10, 11])
    second.unlink()
    return compare_model(first, ["part 1 of 2: part 2 is missing"])


def _only_the_head_in_part_2(folder: Path) -> Verdict:
    first, second = _parts(folder, [len(arrays()) - 1, 1])
    second.unlink()
    return compare_model(first, ["part 1 of 2: part 2 is missing"])


def _renamed_part(folder: Path) -> Verdict:
    first, _ = _parts(folder, [10, 11])
    first.rename(folder / "whole.gguf")
    return compare_model(folder / "whole.gguf", ["part 1 of 2", "-00001-of-00002.gguf"])


def _another_models_part(folder: Path) -> Verdict:
    first, second = _parts(folder, [10, 11])
    second.write_bytes(first.read_bytes())
    return compare_model(first, ["split.no 0"], file=second.name)


def _of(name: str, check: Callable[[Path], Verdict], reference: str = "llama.cpp") -> Variation:
    return Variation(AREA, name, reference, check)


FOREIGN = {  # what people give for a GGUF file: how it begins, and what the sentence calls it
    "safetensors": (b"\x40\0\0\0\0\0\0\0{}", "directory that holds it"),
    "a file of GGML": (b"lmgg", "before GGUF"),
    "a file of GGJT 3": (b"tjgg\x03\0\0\0", "before GGUF"),
    "an adapter of GGLA": (b"algg\x01\0\0\0", "LoRA adapter"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an HTML page": (b"<!DOCTYPE html><html>", "HTML page"),
    "pytorch_model.bin": (b"PK\x03\x04\0\0\x08\x08", "PyTorch"),
    "consolidated.00.pth as a pickle": (b"\x80\x02\x8a\nl\xfc\x9cF", "PyTorch"),
    "a GGUF file in gzip": (b"\x1f\x8b\x08\0", "unpack it"),
    "config.json": (b'{"architectures": ["LlamaForCausalLM"]}', "directory of a Hugging Face model"),
    "a download that has its length alone": (bytes(64), "unfinished download"),
    "a file of nothing that is known": (b"model", "begins with the bytes 6d 6f 64 65"),
}
COUNT = len(arrays())
VARIATIONS = [
    *(_of(f"embedding in {type_name}", functools.partial(_typed, type_name, EMBEDDING)) for type_name in MATRICES),
    *(_of(f"ffn_down in {type_name}", functools.partial(_typed, type_name, LINEAR)) for type_name in MATRICES),
    *(
        _of(f"embedding in {type_.name}", functools.partial(_undecodable, type_.name))
        for type_ in TYPES
        if type_.name not in MATRICES
    ),
    *(_of(f"a norm in {name}", functools.partial(_norm, name), "transformers") for name in ("F16", "BF16", "Q8_0")),
    _of("a norm in Q8_0 whose row is no multiple of 32", _norm_that_is_no_block),
    *(_of(name, functools.partial(_changed, change, names)) for name, (change, names) in TENSOR_CHANGES.items()),
    *_tensor_variations(),
    *(_of(name, functools.partial(_shaped, changes)) for name, changes in SHAPES.items()),
    *(_of(f"GGUF version {version}", functools.partial(_version, version)) for version in (1, 2, 4)),
    _of("big-endian", _big_endian),
    *(_of(f"cut to {share:.1%} of its bytes", functools.partial(_cut, share)) for share in (0.01, 0.03, 0.5, 0.999)),
    _of("an empty file", functools.partial(_written, b"", ["is empty", "GGUF"])),
    *(_of(name, functools.partial(_written, start + b" " * 40, ["not a GGUF file", word]))
      for name, (start, word) in FOREIGN.items()),
    _of("a pipe", _pipe),
    _of("another file name", _renamed),
    _of("in one part", functools.partial(_split, [COUNT])),
    _of("in two parts", functools.partial(_split, [10, COUNT - 10])),
    _of("in three parts", functools.partial(_split, [1, 10, COUNT - 11])),
    _of("in two parts, no tensor in the first", functools.partial(_split, [0, COUNT])),
    _of("in two parts, a count of tensors that is wrong",
        functools.partial(_split, [10, COUNT - 10], names=("split.tensors.count",), **{"split.tensors.count": 5})),
    _of("part 2 of 2", _second_part),
    _of("part 1 of 2, part 2 is missing", _missing_part),
    _of("part 1 of 2 without part 2, which has only the head", _only_the_head_in_part_2),
    _of("part 1 under another name", _renamed_part),
    _of("part 1 again as part 2", _another_models_part),
]  # fmt: skip

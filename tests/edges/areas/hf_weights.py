"""The tensors of a Hugging Face directory: types, names, shards, heads, quantized and pickled files, saved copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from transformers.utils.quantization_config import QuantizationMethod

from entrenar.llama import LLaMAModel
from tests.models.builders import Arrays, write_gguf

from ..harness import Variation, Verdict, close, judge
from ..hf import (
    COMPARED,
    CONFIG,
    changed,
    logits_variation,
    peer_logits,
    sound_arrays,
    sound_table,
    write_directory,
)

AREA = "safetensors directory"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"
TIED = {"tie_word_embeddings": True}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def arrays_with(change: dict[str, np.ndarray] | None = None, without: tuple[str, ...] = ()) -> Arrays:
    """The sound weights with some set and some taken out."""
    return {name: array for name, array in (sound_arrays() | (change or {})).items() if name not in without}


def renamed(rename: Callable[[str], str], arrays: Arrays | None = None) -> Arrays:
    return {rename(name): array for name, array in (arrays or sound_arrays()).items()}


def _stored(name: str, named: str, arrays: Callable[[], Any], table: dict[str, Any] | None = None) -> Variation:
    """A directory with these tensors and these changes to config.json."""
    return logits_variation(
        AREA, name, named, lambda folder: write_directory(folder, changed(sound_table(), table or {}), arrays())
    )


# ---------------------------------------------------------------------- types
NUMPY_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
TORCH_TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BF16": torch.bfloat16}


def _in_type(name: str, everything: bool) -> Variation:
    """All weights, or one matrix, in a type of safetensors."""

    def build(folder: Path) -> None:
        write_directory(folder)
        tensors = {key: torch.from_numpy(array) for key, array in sound_arrays().items()}
        for key in tensors if everything else [UP]:
            kind = TORCH_TYPES.get(name) or torch.from_numpy(np.zeros(1, NUMPY_TYPES[name])).dtype
            tensors[key] = tensors[key].to(kind)
        save_torch(tensors, str(folder / "model.safetensors"), {"format": "pt"})

    what = "every tensor" if everything else "one matrix"
    return logits_variation(AREA, f"{what} in {name}", name, build)


# ---------------------------------------------------------------------- shards
def _shards(name: str, named: str, change: Callable[[Path, dict[str, str]], Any]) -> Variation:
    """Two shards and their index, which `change` writes to the folder differently."""

    def build(folder: Path) -> None:
        write_directory(folder)
        (folder / "model.safetensors").unlink()
        names, weight_map = list(sound_arrays()), {}
        for number, part in enumerate((names[::2], names[1::2])):
            file = f"model-{number + 1:05d}-of-00002.safetensors"
            save_file(arrays_with(without=tuple(set(names) - set(part))), str(folder / file), {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        change(folder, weight_map)

    return logits_variation(AREA, name, named, build)


def _index(folder: Path, weight_map: Any, **more: Any) -> None:
    table = {"metadata": {"total_size": 1}, "weight_map": weight_map} | more
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def _swapped(folder: Path, weight_map: dict[str, str]) -> None:
    files = sorted(set(weight_map.values()))
    _index(folder, {name: files[1 - files.index(file)] for name, file in weight_map.items()})


def _twice(folder: Path, weight_map: dict[str, str]) -> None:
    second = sorted(set(weight_map.values()))[1]
    own = {name: array for name, array in sound_arrays().items() if weight_map[name] == second}
    first = next(name for name, file in weight_map.items() if file != second)
    save_file(own | {first: sound_arrays()[first] + 1}, str(folder / second), {"format": "pt"})
    _index(folder, weight_map)


def _single_beside(folder: Path, weight_map: dict[str, str]) -> None:
    _index(folder, weight_map)
    arrays = arrays_with({UP: sound_arrays()[UP][::-1].copy()})
    save_file(arrays, str(folder / "model.safetensors"), {"format": "pt"})


def _text(text: str) -> Callable[[Path, dict[str, str]], None]:
    return lambda folder, weight_map: (folder / "model.safetensors.index.json").write_text(text) and None


def _one_unmapped(folder: Path, weight_map: dict[str, str]) -> None:
    _index(folder, {name: file for name, file in weight_map.items() if name != UP})


SHARDS = [
    _shards("two shards", "", _index),
    _shards("an index that swaps its shards", "", _swapped),
    _shards("an index that lacks one tensor", "", _one_unmapped),
    _shards("a tensor in both shards, with other values", "embed_tokens", _twice),
    _shards("model.safetensors beside an index", "", _single_beside),
    _shards(
        "an index that promises another tensor", "extra", lambda d, m: _index(d, m | {"extra": next(iter(m.values()))})
    ),
    _shards("a shard that is missing", "gone", lambda d, m: _index(d, m | {UP: "gone.safetensors"})),
    _shards("a shard in another folder", "../x", lambda d, m: _index(d, m | {UP: "../x.safetensors"})),
    _shards("a shard whose name has a newline", "a\\nb", lambda d, m: _index(d, m | {UP: "a\nb.safetensors"})),
    _shards("a shard whose name is a number", "3", lambda d, m: _index(d, m | {UP: 3})),
    _shards("an index without weight_map", "weight_map", lambda d, m: _index(d, None)),
    _shards("an index of 3,000 nested brackets", "nested", _text("[" * 3000)),
    _shards("an index with an integer of 5,000 digits", "digits", _text('{"weight_map": ' + "9" * 5000 + "}")),
    _shards("an index that is a list", "list", _text("[]")),
]


# ---------------------------------------------------------------------- names and heads
def _bare(arrays: Arrays) -> Arrays:
    return renamed(lambda name: name.removeprefix("model."), arrays)


def _biases() -> Arrays:
    return arrays_with({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)})


NAMES = [
    _stored("a bare decoder, tied", "", lambda: _bare(arrays_with(without=(HEAD,))), TIED),
    _stored("a bare decoder, not tied, without its head", HEAD, lambda: _bare(arrays_with(without=(HEAD,)))),
    _stored("a bare decoder with lm_head.weight", "", lambda: _bare(sound_arrays())),
    _stored("half of the names without model.", "", lambda: renamed(lambda n: n.replace("model.layers.1", "layers.1"))),
    _stored("model. twice in front", "", lambda: renamed(lambda name: f"model.{name}")),
    _stored("a name of both spellings", "norm", lambda: arrays_with({"norm.weight": np.ones(64, np.float32)})),
    *(
        _stored(f"{prefix} in front", f"there is {prefix}", lambda prefix=prefix: renamed(lambda name: prefix + name))
        for prefix in ("_orig_mod.", "module.", "base_model.model.")
    ),
    _stored("another prefix", "transformer", lambda: renamed(lambda name: name.replace("model.", "transformer."))),
    _stored("tied, and another head stored", "", sound_arrays, TIED),
    _stored("tied, and the same head stored", "", lambda: arrays_with({HEAD: sound_arrays()[EMBEDDING].copy()}), TIED),
    _stored("tied, and no head stored", "", lambda: arrays_with(without=(HEAD,)), TIED),
    _stored("tied, and only the head stored", "", lambda: arrays_with(without=(EMBEDDING,)), TIED),
    _stored("tied, and neither stored", "embed_tokens", lambda: arrays_with(without=(EMBEDDING, HEAD)), TIED),
    _stored("tied, and a head of another shape", HEAD, lambda: arrays_with({HEAD: np.ones((9, 64), np.float32)}), TIED),
    _stored("not tied, and no head stored", HEAD, lambda: arrays_with(without=(HEAD,))),
    _stored(
        "tied, and the head in another type",
        "",
        lambda: arrays_with({HEAD: sound_arrays()[EMBEDDING].astype(np.float64)}),
        TIED,
    ),
    _stored(
        "rotary_emb.inv_freq stored, with other values",
        "",
        lambda: arrays_with(
            {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in (0, 1)}
        ),
    ),
    _stored(
        "model.rotary_emb.inv_freq stored",
        "",
        lambda: arrays_with({"model.rotary_emb.inv_freq": np.ones(8, np.float32)}),
    ),
    _stored("a bias that config.json does not have", "bias", _biases),
    _stored("a layer too many", "layers.2", lambda: arrays_with({UP.replace(".0.", ".2."): sound_arrays()[UP]})),
    _stored("a missing norm", "model.norm.weight", lambda: arrays_with(without=("model.norm.weight",))),
    _stored("a missing matrix", UP, lambda: arrays_with(without=(UP,))),
    _stored("a transposed matrix", UP, lambda: arrays_with({UP: np.ascontiguousarray(sound_arrays()[UP].T)})),
    _stored("a matrix of one axis", UP, lambda: arrays_with({UP: sound_arrays()[UP].reshape(-1)})),
    _stored("a scalar instead of a matrix", UP, lambda: arrays_with({UP: np.ones((), np.float32)})),
    _stored("an empty matrix", UP, lambda: arrays_with({UP: np.zeros((0, 64), np.float32)})),
    _stored(
        "a value head beside the model", "v_head", lambda: arrays_with({"v_head.weight": np.ones((1, 64), np.float32)})
    ),
    _stored(
        "a classifier's head instead",
        "lm_head",
        lambda: arrays_with({"score.weight": np.ones((2, 64), np.float32)}, (HEAD,)),
    ),
]


# ---------------------------------------------------------------------- quantized and other directories
def _quantized(method: str) -> Variation:
    return _stored(
        f"quantization_config of {method}", method, sound_arrays, {"quantization_config": {"quant_method": method}}
    )


def _parts(name: str, parts: dict[str, np.ndarray], named: str) -> Variation:
    """Tensors of a quantized matrix, and a config.json that says nothing of it."""
    return _stored(
        name, named, lambda: arrays_with({UP.removesuffix("weight") + k: v for k, v in parts.items()}, (UP,))
    )


def _folder(name: str, named: str, build: Callable[[Path], Any]) -> Variation:
    return logits_variation(AREA, name, named, build)


def _pickled(folder: Path) -> None:
    write_directory(folder)
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(array) for name, array in sound_arrays().items()}, folder / "pytorch_model.bin")


def _weights(content: bytes) -> Callable[[Path], None]:
    """A directory with these bytes for its weights."""

    def build(folder: Path) -> None:
        write_directory(folder)
        (folder / "model.safetensors").write_bytes(content)

    return build


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )
    save_file(
        {"base_model.model.x.lora_A.weight": np.ones((2, 2), np.float32)}, str(folder / "adapter_model.safetensors")
    )


def _adapter_beside(folder: Path) -> None:
    write_directory(folder)
    _adapter(folder)


def _gguf_inside(folder: Path) -> None:
    write_gguf(folder / "inside.gguf", CONFIG, sound_arrays())


def _cut(folder: Path) -> None:
    file = write_directory(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _config_only(folder: Path) -> None:
    write_directory(folder)
    (folder / "model.safetensors").unlink()


def _damaged_config(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_directory(folder)
        (folder / "config.json").write_text(text)

    return build


ONES = {shape: np.ones(shape, np.int32) for shape in ((8, 96), (1, 12))}
DIRECTORIES = [
    *(_quantized(method.value) for method in QuantizationMethod),
    _stored(
        "quantization_config of bitsandbytes, nf4",
        "bitsandbytes (nf4)",
        sound_arrays,
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    ),
    _stored(
        "quantization_config of bitsandbytes, int8",
        "bitsandbytes (int8)",
        sound_arrays,
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    ),
    _parts(
        "GPTQ tensors", {"qweight": ONES[8, 96], "qzeros": ONES[1, 12], "scales": np.ones((1, 96), np.float16)}, "GPTQ"
    ),
    _parts("bitsandbytes int8 tensors", {"weight": np.ones((96, 64), np.int8), "SCB": np.ones(96, np.float32)}, "int8"),
    _parts(
        "bitsandbytes 4-bit tensors",
        {"weight": np.ones((3072, 1), np.uint8), "weight.absmax": np.ones(96, np.uint8)},
        "bitsandbytes",
    ),
    _parts("compressed tensors", {"weight_packed": ONES[8, 96], "weight_scale": np.ones(96, np.float32)}, "compressed"),
    _folder("pytorch_model.bin only", "pytorch_model.bin", _pickled),
    _folder("an adapter's directory", "adapter_config.json", _adapter),
    _folder("an adapter's files beside a model", "adapter_config.json", _adapter_beside),
    _folder("a GGUF file in a directory without config.json", "inside.gguf", _gguf_inside),
    _folder("an empty directory", "config.json", lambda folder: None),
    _folder("the folder around a model", "checkpoint-500", lambda folder: write_directory(folder / "checkpoint-500")),
    _folder(
        "a pointer of Git LFS for the weights", "git lfs pull", _weights(b"version https://git-lfs.github.com/x\n")
    ),
    _folder("a page of HTML for the weights", "HTML", _weights(b"<!DOCTYPE html><html>")),
    _folder("config.json without weights", "model.safetensors", _config_only),
    _folder("a file that is cut off", "truncated", _cut),
    _folder("config.json that is empty", "config.json", _damaged_config("")),
    _folder("config.json that is a list", "list", _damaged_config("[]")),
    _folder("config.json of 3,000 nested brackets", "nested", _damaged_config('{"a":' + "[" * 3000)),
    _folder("config.json with an integer of 5,000 digits", "digits", _damaged_config('{"a": ' + "9" * 5000 + "}")),
    _folder("config.json with a byte order mark", "config.json", _damaged_config("\ufeff" + json.dumps(sound_table()))),
]


# ---------------------------------------------------------------------- containers
def _container(name: str, named: str, write: Callable[[Path], Any]) -> Variation:
    """The sound weights in a file that `write` makes, over a directory without one."""

    def build(folder: Path) -> None:
        write_directory(folder)
        (folder / "model.safetensors").unlink()
        write(folder)

    return logits_variation(AREA, name, named, build)


def _metadata(value: dict[str, str] | None) -> Callable[[Path], None]:
    return lambda folder: save_file(sound_arrays(), str(folder / "model.safetensors"), value)


def _header(change: Callable[[str], str]) -> Callable[[Path], None]:
    """The file with the text of its header changed."""

    def write(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(sound_arrays(), str(file), {"format": "pt"})
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = change(data[8 : 8 + length].decode()).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])

    return write


def _linked(folder: Path) -> None:
    blob = folder.parent / "blob"
    save_file(sound_arrays(), str(blob), {"format": "pt"})
    (folder / "model.safetensors").symlink_to(blob)


def _index_of_one(folder: Path) -> None:
    save_file(sound_arrays(), str(folder / "weights.safetensors"), {"format": "pt"})
    _index(folder, dict.fromkeys(sound_arrays(), "weights.safetensors"))


def _other_name(name: str) -> Callable[[Path], None]:
    return lambda folder: save_file(sound_arrays(), str(folder / name), {"format": "pt"})


def _reversed(text: str) -> str:
    return json.dumps(dict(reversed(json.loads(text).items())))


CONTAINERS = [
    *(
        _container(f"metadata {json.dumps(value)}", "format", _metadata(value))
        for value in (None, {"format": "np"}, {"format": "mlx"}, {"format": "tf"}, {"format": "flax"}, {"other": "x"})
    ),
    _container("a link to the file, as a cache has it", "", _linked),
    _container("an index of one shard of another name", "", _index_of_one),
    _container("a header at an odd length", "", _header(lambda text: text.rstrip() + " ")),
    _container("a header in another order", "", _header(_reversed)),
    _container(
        "a header with an integer of 5,000 digits", "header", _header(lambda t: '{"a": ' + "9" * 5000 + "," + t[1:])
    ),
    _container("a header of 3,000 nested brackets", "header", _header(lambda t: '{"a": ' + "[" * 3000)),
    _container("a header that begins with a space", "header", _header(lambda text: " " + text)),
    _container("model.fp16.safetensors only", "model.fp16.safetensors", _other_name("model.fp16.safetensors")),
    _container("consolidated.safetensors only", "model.safetensors", _other_name("consolidated.safetensors")),
    _container("a folder called model.safetensors", "model.safetensors", lambda d: (d / "model.safetensors").mkdir()),
]


# ---------------------------------------------------------------------- saved copies
def _saved(name: str, table: dict[str, Any], stored: type = np.float32, **options: Any) -> Variation:
    """transformers reads what entrenar saved, as it reads what entrenar loaded; values that `stored` holds exactly."""

    def check(folder: Path) -> Verdict:
        arrays = {key: array.astype(stored).astype(np.float32) for key, array in sound_arrays().items()}
        source = folder / "source"
        write_directory(source, changed(sound_table(table.get("model_type", "llama")), table), arrays)

        def ours() -> np.ndarray:
            LLaMAModel.from_pretrained(source).save_pretrained(folder / "saved", **options)
            return peer_logits(folder / "saved")

        return judge(ours, lambda: peer_logits(source), names=[], difference=close(1e-4), compared=COMPARED)

    return Variation(AREA, name, "transformers", check)


def _spelling_of_4(name: str, rope: dict[str, Any]) -> Variation:
    """A saved copy without the key that only transformers 5 reads means the same."""

    def check(folder: Path) -> Verdict:
        table = changed(sound_table(), {"rope_parameters": rope})
        source = write_directory(folder / "source", table)

        def ours() -> np.ndarray:
            LLaMAModel.from_pretrained(source).save_pretrained(folder / "saved")
            file = folder / "saved" / "config.json"
            saved = json.loads(file.read_text())
            del saved["rope_parameters"]
            file.write_text(json.dumps(saved))
            return peer_logits(folder / "saved")

        return judge(ours, lambda: peer_logits(source), names=[], difference=close(1e-4), compared=COMPARED)

    return Variation(AREA, name, "transformers", check)


def _factors(folder: Path) -> Verdict:
    """A GGUF file with the factors of llama3 scaling, saved as a directory."""
    scaled = changed(sound_table(), {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}})
    source = write_directory(folder / "source", scaled)
    model = LLaMAModel.from_pretrained(source)
    plain = 10000.0 ** (-np.arange(0, CONFIG.head_size, 2) / CONFIG.head_size)
    factors = (plain / model.config.inverse_frequencies()).astype(np.float32)
    write_gguf(folder / "m.gguf", CONFIG, sound_arrays(), extra={"rope_freqs.weight": factors})

    def ours() -> np.ndarray:
        LLaMAModel.from_pretrained(folder / "m.gguf").save_pretrained(folder / "saved")
        return peer_logits(folder / "saved")

    return judge(
        ours, lambda: peer_logits(source), names=["expected to be saved"], difference=close(1e-4), compared=COMPARED
    )


LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
SAVED = [
    _saved("saved in float32", {}),
    _saved("saved in bfloat16", {}, ml_dtypes.bfloat16, dtype="bfloat16"),
    _saved("saved in shards", {}, max_shard_bytes=20_000),
    _saved("saved from a stored head that was to be tied", TIED),
    _saved("saved with linear scaling", {"rope_parameters": LINEAR}),
    _saved("saved with llama3 scaling", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}}),
    _saved("saved from Mistral", {"model_type": "mistral", "sliding_window": 64}),
    _saved("saved with rms_norm_eps 1e-3 and other keys", {"rms_norm_eps": 1e-3, "pretraining_tp": 2, "foo": "bar"}),
    _spelling_of_4("saved with linear scaling, as transformers 4 reads it", LINEAR),
    _spelling_of_4(
        "saved with another rope_theta, as transformers 4 reads it", {"rope_type": "default", "rope_theta": 77.0}
    ),
    Variation(AREA, "saved from a GGUF file with rope_freqs of llama3 scaling", "transformers", _factors),
]

VARIATIONS = [
    *(_in_type(name, everything) for name in NUMPY_TYPES for everything in (True, False)),
    *SHARDS,
    *NAMES,
    *DIRECTORIES,
    *CONTAINERS,
    *SAVED,
]

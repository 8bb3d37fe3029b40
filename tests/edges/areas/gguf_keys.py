"""Every metadata key that the gguf library names for LLaMA models: set, unset, and contradicting the tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from entrenar.models import gguf_keys
from entrenar.models.gguf_keys import NO_MODEL

from ..gguf_models import (
    BOS,
    CONFIG,
    EOS,
    TOKENIZER,
    VOCABULARY,
    compare_model,
    transformers_log_probabilities,
    write_model,
)
from ..harness import Variation, Verdict

AREA = "GGUF metadata"
USED, UNUSED, DESCRIPTIVE = (
    {f"llama.{key}" for key in keys} for keys in (gguf_keys.USED, gguf_keys.UNUSED, gguf_keys.DESCRIPTIVE)
)
OTHER_ARCHITECTURES = ("clip.", "diffusion.", "xielu.", "adapter.", "imatrix.", "split.", "{arch}.{dense}")
TEXT_SPLITTING = (  # the tokenizers' area
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap",
)  # fmt: skip
# other values for the keys that entrenar reads; the tensors' shapes contradict most of them
USED_VALUES: dict[str, list[Any]] = {
    "llama.vocab_size": [3, VOCABULARY + 1, 0.5],
    "llama.context_length": [4096, 48, "64", 0],
    "llama.embedding_length": [32, 128, 64.0],
    "llama.block_count": [1, 3, 0, 2.0],
    "llama.feed_forward_length": [95, [96, 96], [96, 95], [96], 96.0],
    "llama.attention.head_count": [2, 8, 3, [4, 4], [4, 2], [4, 4, 9], 0],
    "llama.attention.head_count_kv": [1, 4, 3, [2, 2], [2, 1], 0],
    "llama.attention.key_length": [8, 32, 15],
    "llama.attention.value_length": [8, 32],
    "llama.attention.layer_norm_rms_epsilon": [0.25, 1e-6, 1, 0.0, float("nan"), -1.0],
    "llama.attention.causal": [True, False, 1],
    "llama.rope.dimension_count": [8, 32, 0],
    "llama.rope.freq_base": [500000.0, 17.0, 500000, float("inf"), 0.0],
    "llama.rope.scaling.type": ["none", "linear", "yarn", "longrope", "dynamic", 1],
    "llama.rope.scaling.factor": [4.0, 0.5, 1.0, 0.0, 4, -2.0],
    "llama.rope.scale_linear": [4.0, 0.5, 0.0, 2],
    "llama.rope.scaling.attn_factor": [1.0, 0.5],
    "llama.rope.scaling.original_context_length": [32, 64, 0, "32"],
    "llama.expert_count": [0, 4],
    "llama.expert_used_count": [0, 2],
    "llama.expert_group_count": [0, 2],
    "llama.nextn_predict_layers": [0, 1],
}
SEVERAL: dict[str, dict[str, Any]] = {
    "scaling of type linear by 4": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "scaling of type none by 4": {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    "yarn by 4": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
    "both scaling keys": {"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 8.0},
    "a factor of 0 and the legacy key": {"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 8.0},
    "no key_length, no value_length": {"llama.attention.key_length": None, "llama.attention.value_length": None},
    "no tokens, no vocab_size": {
        **dict.fromkeys(TOKENIZER), "tokenizer.ggml.model": "no_vocab", "llama.vocab_size": None
    },
    "one token more than rows": {"tokenizer.ggml.tokens": [*TOKENIZER["tokenizer.ggml.tokens"], "<more>"],
                                 "tokenizer.ggml.token_type": [*TOKENIZER["tokenizer.ggml.token_type"], 3]},
    "one token fewer than rows": {"tokenizer.ggml.tokens": TOKENIZER["tokenizer.ggml.tokens"][:-1],
                                  "tokenizer.ggml.token_type": TOKENIZER["tokenizer.ggml.token_type"][:-1]},
    "a key of tomorrow": {"llama.attention.tomorrow": 1},
}  # fmt: skip
# values for keys that change nothing; 3 for all others
PLAIN_VALUES: dict[str, Any] = {
    "llama.tensor_data_layout": "Meta AI original pth",
    "llama.rope.scaling.finetuned": True,
    "llama.rope.scaling.alpha": 2.0,
    "general.name": "another",
    "general.alignment": 64,
    "general.sampling.mirostat": 1,
}
TYPES = ["model", *NO_MODEL, "something"]
TOKEN_VALUES: dict[str, list[Any]] = {"bos": [EOS, 5], "eos": [BOS, 5]}


def _names(node: type) -> Iterator[str]:
    for name, value in vars(node).items():
        if isinstance(value, type):
            yield from _names(value)
        elif isinstance(value, str) and not name.startswith("__"):
            yield value


def all_keys() -> list[str]:
    """The keys of the library that a LLaMA file may have, as they stand in one."""
    keys = [key for key in _names(gguf.constants.Keys) if not key.startswith(OTHER_ARCHITECTURES)]
    filled = [key.format(arch="llama", id=0, name="other") for key in keys]
    return list(dict.fromkeys(filled))


def _check_without_tokens(path: Path) -> Verdict:
    file = write_model(path / "model.gguf", dict.fromkeys(TOKENIZER))
    return compare_model(file, [], peer=transformers_log_probabilities)


def _check(metadata: dict[str, Any], names: list[str], path: Path) -> Verdict:
    file = path / "model.gguf"
    write_model(file, metadata)
    return compare_model(file, names)


def _variation(name: str, metadata: dict[str, Any], names: list[str]) -> Variation:
    return Variation(AREA, name, "llama.cpp", functools.partial(_check, metadata, names))


def _of(key: str) -> Iterator[Variation]:
    """The variations of one key; a key of the library without a chosen value is an error."""
    if key in USED_VALUES:
        for value in USED_VALUES[key]:
            yield _variation(f"{key} = {value!r}", {key: value}, [_named(key, value)])
    elif key == "general.type":
        for value in TYPES:
            yield _variation(f"{key} = {value!r}", {key: value}, [key, value])
    elif key == "general.architecture":
        for value, named in (("clip", key), ("qwen2", "qwen2.block_count"), ("mistral4", key), (3, key)):
            yield _variation(f"{key} = {value!r}", {key: value}, [named])
    elif key in UNUSED | DESCRIPTIVE or key.startswith("general."):
        value = PLAIN_VALUES.get(key, 3)
        yield _variation(f"{key} = {value!r}", {key: value}, [])
    elif key.startswith("tokenizer."):
        if key not in TEXT_SPLITTING:
            value = TOKENIZER_VALUES.get(key, 5)
            yield _variation(f"{key} = {value!r}", {key: value}, [])
    else:
        raise AssertionError(f"no value is chosen for {key}, which the gguf library names")


def _named(key: str, value: Any) -> str:
    """What a refusal names: the key, or the tensor whose shape contradicts it."""
    by_shape = {
        ("llama.block_count", 1): "llama.block_count",
        ("llama.block_count", 3): "blk.2.attn_norm.weight",
    }
    return by_shape.get((key, value), key) if not isinstance(value, list) else key


TOKENIZER_VALUES: dict[str, Any] = {
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": True,
    "tokenizer.ggml.add_sep_token": True,
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "tokenizer.chat_template.other": "{{ messages[0].content }}",
    "tokenizer.chat_templates": ["other"],
    "tokenizer.huggingface.json": "{}",
    "tokenizer.rwkv.world": "x",
}
BASE_KEYS = (
    "llama.context_length", "llama.embedding_length", "llama.block_count", "llama.feed_forward_length",
    "llama.attention.head_count", "llama.attention.head_count_kv", "llama.attention.key_length",
    "llama.attention.value_length", "llama.rope.dimension_count", "llama.rope.freq_base",
    "llama.attention.layer_norm_rms_epsilon", "llama.vocab_size",
)  # fmt: skip
missing = USED - set(USED_VALUES)
assert not missing, f"keys that are read and have no variation: {sorted(missing)}"
assert CONFIG.head_size * CONFIG.num_attention_heads == CONFIG.hidden_size  # so that lengths may be left out
VARIATIONS = [
    *(variation for key in [*all_keys(), "llama.rope.scale_linear"] for variation in _of(key)),
    *(_variation(f"without {key}", {key: None}, [key]) for key in BASE_KEYS),
    *(_variation(name, metadata, ["llama."]) for name, metadata in SEVERAL.items()),
    Variation(AREA, "no tokens, vocab_size", "transformers", _check_without_tokens),
]

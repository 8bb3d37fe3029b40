"""Tokenizers of Hugging Face directories: tokenizer_config.json and the files beside it, contradicting each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import transformers

from entrenar.io.tokenizer_classes import REBUILT, REGISTERED

from ..harness import Variation
from ..tokenizer_directories import (
    SPECIAL,
    Files,
    byte_level,
    config,
    decoder,
    generation,
    listed,
    metaspace,
    named,
    set_key,
    special_map,
    two,
    unigram,
    variation,
    word_pieces,
)


# ---------------------------------------------------------------------- tokenizer_config.json and its companions
def _added(content: str, **flags: Any) -> Files:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return plain | {"content": content} | flags


def _config_values() -> dict[str, list[Any]]:
    """Values to try for each key of tokenizer_config.json."""
    values: dict[str, list[Any]] = {
        "add_bos_token": [True, False],
        "add_eos_token": [True, False],
        "add_prefix_space": [True, False],
        "legacy": [True, False],
        "clean_up_tokenization_spaces": [True, False],
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": [True],
        "model_max_length": [4, 10**30],
        "padding_side": ["left", "right", "middle"],
        "truncation_side": ["left", "right", "top"],
        "split_special_tokens": [True, False],
        "use_default_system_prompt": [True],
        "errors": ["strict"],
        "spaces_between_special_tokens": [True],
        "sp_model_kwargs": [{}],
        "from_slow": [True],
        "fix_mistral_regex": [True],
        "fast_tokenizer_files": [["tokenizer.json"], ["tokenizer.json", "tokenizer.4.0.0.json"]],
        "init_inputs": [["x"]],
        "tokenizer_object": ["x"],
        "post_processor": ["x"],
        "vocab_file": ["/nowhere/tokenizer.model"],
        "tokenizer_file": ["/nowhere/tokenizer.json"],
        "name_or_path": ["elsewhere"],
        "processor_class": ["P"],
        "trust_remote_code": [True],
        "image_token": ["<image>"],
        "extra_special_tokens": [["<tool>"], {"tool_token": "<tool>"}, [], "x", [5]],
        "additional_special_tokens": [["<tool>", "<|im_end|>"], [_added("<tool>") | {"__type": "AddedToken"}], None],
        "model_specific_special_tokens": [{"tool_token": "<tool>"}],
    }
    for token in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        values[token] = [
            "<|im_end|>",
            "<new>",
            None,
            _added("<|im_end|>"),
            _added("<|im_end|>") | {"__type": "AddedToken"},
            5,
        ]
    return values


def _config_keys() -> list[Variation]:
    values = _config_values()
    known = set(transformers.PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)
    assert known <= set(values), f"transformers has other special tokens: {sorted(known - set(values))}"
    classes = {None: byte_level, "LlamaTokenizer": metaspace, "CodeLlamaTokenizer": metaspace,
               "GPT2Tokenizer": byte_level, "Qwen2Tokenizer": byte_level, "GemmaTokenizer": metaspace}  # fmt: skip
    assert classes.keys() == {None, *REBUILT}
    return [
        variation(
            f"{key} {_short(value)}{f' of a {name}' if name else ''}",
            base,
            two(named(name), config(key, value)) if name else config(key, value),
            key,
        )
        for name, base in classes.items()
        for key, options in values.items()
        for value in options
    ] + [
        variation(f"{key} of a {name}", base, config(key, True), key)
        for name, base in (("WordPiece", word_pieces), ("Unigram", unigram))
        for key in ("clean_up_tokenization_spaces",)
    ]


def _model_types() -> list[Variation]:
    """The class that counts, by the model_type of config.json and the class that tokenizer_config.json names."""
    bases = {"LlamaTokenizer": metaspace, "GemmaTokenizer": metaspace, "LlamaTokenizerFast": byte_level}
    return [
        variation(
            f"tokenizer_class {name} of a model_type {kind}",
            bases.get(str(name), byte_level),
            two(config("tokenizer_class", name), set_key("config.json", "model_type", kind)),
        )
        for kind in (*REGISTERED, "llama", "smollm3")
        for name in (None, "PreTrainedTokenizerFast", *REBUILT, "LlamaTokenizerFast")
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "content" in value:
        return "as an AddedToken" if "__type" in value else "as an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 50 else text[:47] + "..."


def _only_in(
    file: str, content: Any, *, drop: tuple[str, ...] = ("bos_token", "eos_token", "unk_token")
) -> Callable[[Files], None]:
    """The special tokens are no added tokens of tokenizer.json, and stand in `file` alone."""

    def change(files: Files) -> None:
        files["tokenizer.json"]["added_tokens"] = []
        for key in drop:
            files["tokenizer_config.json"].pop(key, None)
        if file == "tokenizer_config.json":
            files[file] |= content
        else:
            files[file] = content

    return change


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _map_only() -> Callable[[Files], None]:
    objects = {key: _added(value) for key, value in NAMES.items()}
    for entry in objects.values():
        entry.pop("special")
    return _only_in("special_tokens_map.json", objects)


def _companion_changes() -> dict[str, Callable[[Files], None]]:
    """Where special tokens can stand, by what the variation is called."""
    config_only = _config_only()
    contradicting = special_map("eos_token", "<|im_end|>")
    return {
        "special tokens only in added_tokens_decoder": config_only,
        "special tokens only in special_tokens_map.json": _map_only(),
        "special tokens only in special_tokens_map.json, as texts": _only_in("special_tokens_map.json", NAMES),
        "special tokens only in added_tokens.json": _only_in(
            "added_tokens.json", {t: i for i, t in enumerate(SPECIAL)}
        ),
        "special tokens in no file": _only_in("tokenizer_config.json", {}),
        "special_tokens_map.json against tokenizer_config.json": contradicting,
        "special_tokens_map.json against added_tokens_decoder": two(config_only, contradicting),
        "special_tokens_map.json with additional_special_tokens": special_map(
            "additional_special_tokens", ["<tool>", "<|im_end|>"]
        ),
        "objects as additional_special_tokens of special_tokens_map.json": special_map(
            "additional_special_tokens", [_added("<tool>")]
        ),
        "special_tokens_map.json with extra_special_tokens": special_map(
            "extra_special_tokens", [_added("<tool>"), "<mask>"]
        ),
        "special_tokens_map.json with extra_special_tokens, plain": special_map(
            "extra_special_tokens", [{"content": "<tool>", "lstrip": True}, "<mask>"]
        ),
        "special_tokens_map.json with an object of extra tokens": special_map(
            "extra_special_tokens", {"tool_token": "<tool>"}
        ),
    } | _added_token_changes()


def _config_only() -> Callable[[Files], None]:
    entries = {str(i): _added(token) for i, token in enumerate(SPECIAL)}
    return _only_in("tokenizer_config.json", {"added_tokens_decoder": entries, **NAMES})


def _added_token_changes() -> dict[str, Callable[[Files], None]]:
    """Files that add tokens, and files that name other ends."""
    return {
        "added_tokens.json with a new token": listed("<tool>", 299),
        "added_tokens.json with another id": listed("<|im_end|>", 7),
        "added_tokens.json beside added_tokens_decoder": two(_config_only(), listed("<tool>", 299)),
        "added_tokens.json with an id as text": listed("<tool>", "299"),
        "added_tokens_decoder with a new token": decoder({"299": _added("<tool>")}),
        "added_tokens_decoder with a plain new token": decoder(
            {"299": _added("<tool>", special=False, normalized=True)}
        ),
        "added_tokens_decoder beyond a hole": decoder({"305": _added("<tool>"), "301": _added("<mask>")}),
        "added_tokens_decoder with another id": decoder({"7": _added("<|im_end|>")}),
        "added_tokens_decoder with other flags": decoder({"4": _added("<|im_end|>", lstrip=True, rstrip=True)}),
        "added_tokens_decoder without special": decoder(
            {"4": _added("<|im_end|>", special=False), "2": _added("</s>", special=False)}
        ),
        "added_tokens_decoder empty": decoder({}),
        "added_tokens_decoder with a text as token": decoder({"4": "<|im_end|>"}),
        "added_tokens_decoder with an index that is none": decoder({"x": _added("<tool>")}),
        "generation_config.json with a list of ends": generation("eos_token_id", [2, 4]),
        "generation_config.json with another end": generation("eos_token_id", 4),
        "config.json with another end": set_key("config.json", "eos_token_id", 4),
        "config.json with another beginning": set_key("config.json", "bos_token_id", 4),
        "an end beyond the vocabulary": generation("eos_token_id", 99999),
    }


def _companions() -> list[Variation]:
    variations = [
        variation(name, byte_level, change, *_names_of(name)) for name, change in _companion_changes().items()
    ]
    for name in REBUILT:
        base = metaspace if name.startswith(("Llama", "CodeLlama", "Gemma")) else byte_level
        ids = {token: base()["tokenizer.json"]["model"]["vocab"][token] for token in SPECIAL}
        own = {"added_tokens_decoder": {str(index): _added(token) for token, index in ids.items()}, **NAMES}
        variations.append(
            variation(
                f"special tokens only in added_tokens_decoder of a {name}",
                base,
                two(_only_in("tokenizer_config.json", own), named(name)),
            )
        )
        variations.append(
            variation(
                f"special tokens only in special_tokens_map.json of a {name}", base, two(_map_only(), named(name))
            )
        )
        variations.append(
            variation(
                f"special tokens in no file of a {name}", base, two(_only_in("tokenizer_config.json", {}), named(name))
            )
        )
        flags = decoder({"4": _added("<|im_end|>", lstrip=True, rstrip=True)})
        variations.append(
            variation(
                f"added_tokens_decoder with other flags for the end of a {name}",
                base,
                two(two(flags, named(name)), config("eos_token", "<|im_end|>")),
            )
        )
    object_and_list = two(
        config("extra_special_tokens", {"tool_token": "<tool>"}), special_map("extra_special_tokens", ["<|im_end|>"])
    )
    variations.append(variation("extra_special_tokens an object, and a list in the map", byte_level, object_and_list))
    only_model = {"tokenizer.json": None, "tokenizer.model": "x"}
    variations.append(
        variation("tokenizer.model alone", byte_level, lambda files: files.update(only_model), "tokenizer.model")
    )
    return variations


def _names_of(name: str) -> tuple[str, ...]:
    return (name.split(" ", 1)[0],) if name.startswith(("added_tokens", "special_tokens_map")) else ("token",)


VARIATIONS = [*_config_keys(), *_model_types(), *_companions()]

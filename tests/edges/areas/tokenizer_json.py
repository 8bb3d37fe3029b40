"""Tokenizers of Hugging Face directories: components of tokenizer.json, its settings, and the classes over them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from entrenar.io.tokenizer_classes import OTHERS, REBUILT

from ..harness import Variation
from ..tokenizer_directories import (
    SPECIAL,
    Files,
    byte_level,
    component,
    metaspace,
    named,
    tok,
    two,
    unigram,
    variation,
    word_pieces,
    words,
)


# ---------------------------------------------------------------------- components
def _charsmap() -> str:
    """The smallest of SentencePiece's maps: one double array without entries."""
    return base64.b64encode((4 * 256).to_bytes(4, "little") + bytes(4 * 256)).decode()


NORMALIZERS: dict[str, list[Any]] = {
    "BertNormalizer": [normalizers.BertNormalizer(), normalizers.BertNormalizer(strip_accents=True, lowercase=False)],
    "ByteLevel": [normalizers.ByteLevel()],
    "Lowercase": [normalizers.Lowercase()],
    "NFC": [normalizers.NFC()],
    "NFD": [normalizers.NFD()],
    "NFKC": [normalizers.NFKC()],
    "NFKD": [normalizers.NFKD()],
    "Nmt": [normalizers.Nmt()],
    "Precompiled": [{"type": "Precompiled", "precompiled_charsmap": _charsmap()}],
    "Prepend": [normalizers.Prepend("▁"), normalizers.Prepend("xy")],
    "Replace": [normalizers.Replace("a", "bb"), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")],
    "Sequence": [normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), normalizers.Sequence([])],
    "Strip": [normalizers.Strip(), normalizers.Strip(left=False, right=True)],
    "StripAccents": [normalizers.StripAccents()],
}
PRE_TOKENIZERS: dict[str, list[Any]] = {
    "BertPreTokenizer": [pre_tokenizers.BertPreTokenizer()],
    "ByteLevel": [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False),
    ],
    "CharDelimiterSplit": [pre_tokenizers.CharDelimiterSplit("e")],
    "Digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Digits(individual_digits=False)],
    "FixedLength": [pre_tokenizers.FixedLength(length=3)],
    "Metaspace": [
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
        pre_tokenizers.Metaspace(replacement="_"),
    ],
    "Punctuation": [pre_tokenizers.Punctuation(), pre_tokenizers.Punctuation(behavior="merged_with_previous")],
    "Sequence": [
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]),
        pre_tokenizers.Sequence([]),
    ],
    "Split": [
        pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|\p{L}+"), behavior=behavior)
        for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
    ]
    + [pre_tokenizers.Split("e", behavior="isolated", invert=True)],
    "UnicodeScripts": [pre_tokenizers.UnicodeScripts()],
    "Whitespace": [pre_tokenizers.Whitespace()],
    "WhitespaceSplit": [pre_tokenizers.WhitespaceSplit()],
}


def _template(single: str, *special: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=[(s, SPECIAL.index(s)) for s in special])


PROCESSORS: dict[str, list[Any]] = {
    "BertProcessing": [
        processors.BertProcessing(("</s>", 2), ("<s>", 1)),
        processors.BertProcessing(("<pad>", 5), ("<s>", 1)),
    ],
    "ByteLevel": [processors.ByteLevel(), processors.ByteLevel(trim_offsets=False)],
    "RobertaProcessing": [processors.RobertaProcessing(("</s>", 2), ("<s>", 1))],
    "Sequence": [processors.Sequence([processors.ByteLevel(), _template("<s> $A", "<s>")])],
    "TemplateProcessing": [
        _template("<s> $A", "<s>"),
        _template("$A </s>", "</s>"),
        _template("<s> $A </s>", "<s>", "</s>"),
        _template("<s> <s> $A", "<s>"),
        _template("<|im_start|> $A", "<|im_start|>"),
        _template("$A"),
    ],
}
DECODERS: dict[str, list[Any]] = {
    "BPEDecoder": [decoders.BPEDecoder(suffix="</w>")],
    "ByteFallback": [decoders.ByteFallback()],
    "ByteLevel": [decoders.ByteLevel()],
    "CTC": [decoders.CTC(pad_token="<pad>")],
    "Fuse": [decoders.Fuse()],
    "Metaspace": [decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never")],
    "Replace": [decoders.Replace("Ġ", " ")],
    "Sequence": [decoders.Sequence([decoders.Replace("Ġ", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])],
    "Strip": [decoders.Strip("a", 1, 1)],
    "WordPiece": [decoders.WordPiece(), decoders.WordPiece(prefix="Ġ", cleanup=False)],
}
MODELS = {"BPE": byte_level, "Unigram": unigram, "WordLevel": words, "WordPiece": word_pieces}


def _kinds(module: Any, base: str, *other: str) -> set[str]:
    """The component types that the library has."""
    names = {name for name in dir(module) if isinstance(getattr(module, name), type)}
    return names - {base, *other}


for _module, _base, listed, _other in (
    (normalizers, "Normalizer", NORMALIZERS, ()),
    (pre_tokenizers, "PreTokenizer", PRE_TOKENIZERS, ()),
    (processors, "PostProcessor", PROCESSORS, ()),
    (decoders, "Decoder", DECODERS, ("DecodeStream",)),
    (models, "Model", MODELS, ()),
):
    assert _kinds(_module, _base, *_other) == set(listed), f"tokenizers has other {_base}s than are listed"


def _components() -> list[Variation]:
    variations = [variation(f"model {name}", base, lambda files: None) for name, base in MODELS.items()]
    variations += [variation("model BPE with byte fallback", metaspace, lambda files: None)]
    for section, kinds in (
        ("normalizer", NORMALIZERS),
        ("pre_tokenizer", PRE_TOKENIZERS),
        ("post_processor", PROCESSORS),
        ("decoder", DECODERS),
    ):
        for name, values in kinds.items():
            for number, value in enumerate(values):
                title = f"{section} {name}" + (f", {number + 1}" if number else "")
                base = metaspace if section in ("normalizer",) and number == 0 else byte_level
                variations.append(variation(title, base, component(section, value), section))
        variations.append(variation(f"{section} absent", byte_level, tok(section, None), section))
    return variations


# ---------------------------------------------------------------------- the model's and the added tokens' settings
def _flag(token: str, **flags: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for entry in files["tokenizer.json"]["added_tokens"]:
            if entry["content"] == token:
                entry.update(flags)

    return change


def _append(**entry: Any) -> Callable[[Files], None]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return lambda files: files["tokenizer.json"]["added_tokens"].append(flags | entry)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
assert set(json.loads(json.dumps(tokenizers.AddedToken("x").__getstate__()))) == {"content", *FLAGS}


def _bad_components() -> list[Variation]:
    sequence = [{"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1))]
    absent = {"SpecialToken": {"id": "[X]", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [absent, sequence[0]], "pair": sequence, "special_tokens": {}}
    empty = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    bad: dict[str, tuple[str, Files]] = {
        "Precompiled with a bad map": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "Replace of an empty pattern": ("normalizer", empty),
        "naming an absent token": ("post_processor", template),
        "FixedLength of 0": ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
        "of an unknown type": ("decoder", {"type": "Unheard"}),
    }
    return [
        variation(f"{section} {name}", byte_level, component(section, value), section)
        for name, (section, value) in bad.items()
    ]


def _settings() -> list[Variation]:
    variations = [
        variation(f"added token with {flag} {value}".lower(), base, _flag("<|im_end|>", **{flag: value}))
        for flag in FLAGS
        for value in (True, False)
        for base in (byte_level,)
    ]
    model = {
        "dropout": [0.5, 0.0],
        "unk_token": ["<unk>", "<none>"],
        "fuse_unk": [True],
        "byte_fallback": [True],
        "ignore_merges": [True],
        "continuing_subword_prefix": ["", "##"],
        "end_of_word_suffix": ["", "</w>"],
    }
    assert {*model, "type", "vocab", "merges"} == set(byte_level()["tokenizer.json"]["model"])
    for key, values in model.items():
        for value in values:
            variations.append(variation(f"model.{key} {value!r}", byte_level, tok(f"model.{key}", value), "model"))
    variations.append(variation("merges as texts", byte_level, _merges_as_texts))
    variations.append(variation("version absent", byte_level, lambda files: files["tokenizer.json"].pop("version")))
    padding = {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5, "pad_type_id": 0}
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    size = 299
    return [
        *variations,
        *_bad_components(),
        variation("padding", byte_level, tok("padding", padding | {"pad_token": "<pad>"})),
        *(
            variation(f"padding of a {name}", base, two(named(name), tok("padding", padding | {"pad_token": "<pad>"})))
            for name, base in (("LlamaTokenizer", metaspace), ("GPT2Tokenizer", byte_level))
        ),
        variation("padding of an absent token", byte_level, tok("padding", padding | {"pad_token": "<no>"})),
        variation("truncation", byte_level, tok("truncation", truncation)),
        variation("added token of the next id", byte_level, _append(id=size, content="<tool>", special=True)),
        variation("added token beyond a hole", byte_level, _append(id=size + 7, content="<tool>", special=True)),
        variation("added token of a taken id", byte_level, _append(id=3, content="<tool>", special=True)),
        variation("added token that is a plain entry", byte_level, _append(id=70, content="a")),
        variation("added token twice", byte_level, _append(id=4, content="<|im_end|>", special=False)),
        variation("added token without a text", byte_level, _append(id=size, content="", special=True)),
        variation("added tokens absent", byte_level, lambda files: files["tokenizer.json"].update(added_tokens=[])),
        variation("id of 2^31", byte_level, _append(id=2**31, content="<tool>"), "added_tokens", "id"),
        variation("vocabulary id of 2^32 - 1", byte_level, tok("model.vocab.zzz", 2**32 - 1), "model.vocab"),
        variation("vocabulary id below 0", byte_level, tok("model.vocab.zzz", -1), "model.vocab"),
        variation("WordLevel without its unknown token", words, tok("model.unk_token", "<none>"), "model"),
        variation("WordPiece without its unknown token", word_pieces, tok("model.unk_token", "<none>"), "model"),
        variation("Unigram without its unknown token", unigram, tok("model.unk_id", None), "model"),
        variation("Unigram with an unknown token beyond", unigram, tok("model.unk_id", 10**6), "model"),
        variation(
            "merge of an absent token",
            byte_level,
            lambda files: files["tokenizer.json"]["model"]["merges"].append(["☃", "a"]),
            "model",
        ),
        variation("a lone surrogate in a token", byte_level, _surrogate, "tokenizer.json"),
    ]


def _merges_as_texts(files: Files) -> None:
    model = files["tokenizer.json"]["model"]
    model["merges"] = [" ".join(merge) for merge in model["merges"]]


def _surrogate(files: Files) -> None:
    text = json.dumps(files["tokenizer.json"]).replace('"<pad>"', '"\\ud800"')
    files["tokenizer.json"] = text


# ---------------------------------------------------------------------- classes
def _model_type(name: str, then: Callable[[Files], None]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files["config.json"]["model_type"] = name
        then(files)

    return change


def all_classes() -> set[str]:
    """The tokenizer classes of transformers that make their tokenizer in a way of their own."""
    backend = transformers.PreTrainedTokenizerFast
    names = {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    names |= {name for name in dir(transformers) if name.endswith(("Tokenizer", "TokenizerFast", "Backend"))}
    for file in (Path(transformers.__file__).parent / "models").glob("*/tokenization_*.py"):
        names |= set(re.findall(r"^(?:class )?(\w+)(?:\(| = \w+Tokenizer)", file.read_text(encoding="utf-8"), re.M))
    own = set()
    for name in names:
        found = tokenizer_class_from_name(name)
        if found in (None, backend, transformers.PreTrainedTokenizerBase, transformers.PythonBackend):
            continue
        if not issubclass(found, transformers.PreTrainedTokenizerBase) and name != "MistralCommonBackend":
            continue
        if not issubclass(found, backend) or "__init__" in vars(found):
            own.add(name.removesuffix("Fast"))
    return own


_new = all_classes() - set(OTHERS) - set(REBUILT)
assert not _new, f"transformers makes these tokenizers in ways of their own: {sorted(_new)}"


def _classes() -> list[Variation]:
    variations = []
    for base in (byte_level, metaspace):
        kind = "byte level" if base is byte_level else "metaspace"
        for name in (
            None,
            "PreTrainedTokenizerFast",
            "PreTrainedTokenizer",
            "TokenizersBackend",
            "NoSuchTokenizer",
            "CodeGenTokenizer",
            "SqueezeBertTokenizer",
            "SentencePieceBackend",
            "MistralCommonBackend",
            *REBUILT,
        ):
            for suffix in ("", "Fast") if name in REBUILT else ("",):
                shown = f"{name}{suffix}" if name else None
                variations.append(variation(f"tokenizer_class {shown}, {kind}", base, named(shown), "tokenizer_class"))
        for name in ("LlamaTokenizer", "GPT2Tokenizer", None):
            variations.append(
                variation(f"tokenizer_class {name} of a mistral, {kind}", base, _model_type("mistral", named(name)))
            )
    for prefix in (True, False, None):
        for name in REBUILT:
            base = metaspace if "Llama" in name else byte_level
            variations.append(
                variation(f"{name}, add_prefix_space {prefix}", base, named(name, add_prefix_space=prefix))
            )
    for legacy in (True, False, None):
        variations.append(
            variation(f"LlamaTokenizer, legacy {legacy}", metaspace, named("LlamaTokenizer", legacy=legacy))
        )
    for name in ("GemmaTokenizer", "CohereTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"):
        variations.append(variation(f"tokenizer_class {name}", byte_level, named(name), "tokenizer_class", name))
    variations += [
        variation(
            "LlamaTokenizer over a Unigram model", unigram, named("LlamaTokenizer"), "tokenizer_class", "Unigram"
        ),
        variation("LlamaTokenizer with a beginning by template", metaspace, _with_template(named("LlamaTokenizer"))),
        variation(
            "CodeLlamaTokenizer with a beginning by template", metaspace, _with_template(named("CodeLlamaTokenizer"))
        ),
        variation("tokenizer_class only in config.json", metaspace, _class_of_config, "tokenizer_class"),
        variation("tokenizer_config.json absent", byte_level, lambda files: files.pop("tokenizer_config.json")),
        variation("config.json absent", byte_level, lambda files: files.pop("config.json")),
        variation(
            "auto_map",
            byte_level,
            named("MyTokenizer", auto_map={"AutoTokenizer": [None, "t.MyTokenizer"]}),
            "auto_map",
        ),
    ]
    return variations


def _with_template(then: Callable[[Files], None]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        then(files)
        component("post_processor", _template("<s> $A", "<s>"))(files)

    return change


def _class_of_config(files: Files) -> None:
    files["tokenizer_config.json"].pop("tokenizer_class")
    files["config.json"] = {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"}


VARIATIONS = [*_components(), *_settings(), *_classes()]

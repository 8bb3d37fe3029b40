"""Tokenizers from tokenizer.json and the files beside it, as transformers' AutoTokenizer (5.24) reads them.

tokenizer_config.json names the class and the special tokens; special_tokens_map.json and added_tokens.json count only
where it has no `added_tokens_decoder`; the post-processor of tokenizer.json decides what is put around a text.
Source: transformers/tokenization_utils_base.py (`_from_pretrained`) and tokenization_utils_tokenizers.py (`__init__`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io import tokenizer_library as library
from entrenar.io.json_file import read_json_object
from entrenar.io.sentencepiece_model import CONTROL, read_sentencepiece
from entrenar.io.template_files import read_templates
from entrenar.io.tokenizer_check import MOST_ID, read_tokenizer_json
from entrenar.io.tokenizer_classes import MISNAMED, OTHERS, REBUILT, Rebuilt, class_name
from entrenar.io.tokenizer_spm import sentencepiece_table
from entrenar.io.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OWN_IDS = ("bos_token", "eos_token", "unk_token", "pad_token")  # those whose ids a Vocabulary holds
SIDES = ("padding_side", "truncation_side")
# What a configuration may not hand to the class: objects of a program, or other files
NOT_FROM_FILES = (
    "tokenizer_object",
    "gguf_file",
    "post_processor",
    "tokenizer_padding",
    "tokenizer_truncation",
    "vocab",
)
OTHER_VOCABULARIES = ("tekken.json", "vocab.json", "tiktoken.model")


def from_file(path: Path) -> Vocabulary:
    """From a tokenizer.json or a tokenizer.model, with the configuration files beside it where they exist.

    Raises FormatError where a file is damaged, or asks for what transformers does in a way that is not followed here.
    """
    if not path.is_file():
        raise FormatError(f"{path}: {_missing(path.parent)}")
    return _Reader(path).vocabulary()


def vocabulary_file(folder: Path) -> Path:
    """The tokenizer.json of a directory, or the tokenizer.model where it has that alone, as transformers chooses."""
    model = folder / "tokenizer.model"
    return model if model.is_file() and not (folder / "tokenizer.json").is_file() else folder / "tokenizer.json"


def _missing(folder: Path) -> str:
    others = [name for name in OTHER_VOCABULARIES if (folder / name).is_file()]
    if not others:
        return "no such file; expected a tokenizer.json or a tokenizer.model."
    return (
        f"no such file, and {others[0]} is not read; write a tokenizer.json with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
    )


class _Reader:
    """The files of one directory, and what is made of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.config_path = path, path.with_name("tokenizer_config.json")
        self.pieces = read_sentencepiece(path) if path.suffix == ".model" else None
        self.config, self.model_config = self.read("tokenizer_config.json"), self.read("config.json")
        self.remarks: list[str] = []
        self.elsewhere: dict[str, tuple[Path, str]] = {}  # the file and key of a setting that another file gives
        self.check_config()
        if self.pieces is None:
            self.table = read_tokenizer_json(path)
        else:
            legacy = self.config.get("legacy", True) is not False
            self.table = sentencepiece_table(path, self.pieces, legacy, self.rebuilt() is not None)

    def read(self, name: str) -> dict[str, Any]:
        """The object in the file beside; empty where there is no file. FormatError where a text in it is no Unicode."""
        path = self.path.with_name(name)
        if not path.is_file():
            return {}
        table = read_json_object(path, f"a {name}")
        try:
            json.dumps(table, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            what = "half a character" if isinstance(error, UnicodeEncodeError) else "brackets that are nested too deep"
            raise FormatError(f"{path}: holds {what}; the file is damaged.") from error
        return table

    def wrong(self, key: str, found: Any, expected: str) -> FormatError:
        path, key = self.elsewhere.get(key, (self.config_path, key))
        return FormatError(f"{path}: {key} is {shown(found)}, expected {expected}.")

    def check_config(self) -> None:
        """FormatError for a setting that changes what transformers gives and is not followed here."""
        config = self.config
        for key in NOT_FROM_FILES:
            if config.get(key) is not None:
                raise self.wrong(key, config[key], "none: a file cannot hold it")
        for key in SIDES:
            if key in config and config[key] not in ("left", "right"):
                raise self.wrong(key, config[key], "'left' or 'right'")
        if config.get("split_special_tokens"):
            raise self.wrong(
                "split_special_tokens",
                config["split_special_tokens"],
                "false, or the end token is cut into pieces and not trained",
            )
        if config.get("fix_mistral_regex"):
            raise self.wrong("fix_mistral_regex", config["fix_mistral_regex"], "false; save the mended tokenizer.json")
        if config.get("init_inputs"):
            raise self.wrong("init_inputs", config["init_inputs"], "none")
        automatic = config.get("auto_map")
        if isinstance(automatic, list) or (isinstance(automatic, Mapping) and automatic.get("AutoTokenizer")):
            raise self.wrong("auto_map", automatic, "none: the code of a model is not executed")
        files = config.get("fast_tokenizer_files") or []
        if not isinstance(files, list) or any(name != "tokenizer.json" for name in files):
            raise self.wrong("fast_tokenizer_files", files, "tokenizer.json alone")

    # ------------------------------------------------------------------ the class
    def rebuilt(self) -> Rebuilt | None:
        """The class that makes the tokenizer anew, or None where tokenizer.json is taken as it is."""
        name = self.config.get("tokenizer_class") or self.model_config.get("tokenizer_class")
        if name is not None and not isinstance(name, str):
            raise self.wrong("tokenizer_class", name, "a name")
        kind = self.model_config.get("model_type")
        byte_level = name is not None and name.removesuffix("Fast") == "LlamaTokenizer" and self.over_bytes()
        name = None if byte_level and kind not in MISNAMED else class_name(name, kind)
        if name in OTHERS:
            raise self.wrong(
                "tokenizer_class",
                name,
                f"one of {', '.join(REBUILT)}, or PreTrainedTokenizerFast, which takes tokenizer.json as it is",
            )
        if self.pieces is not None and name != "LlamaTokenizer":  # SentencePiece's own settings say all of it
            return None
        return None if name is None else REBUILT.get(name)

    def over_bytes(self) -> bool:
        """Whether tokenizer.json has a component over bytes anywhere, by its text as in transformers."""
        return self.pieces is None and '"ByteLevel"' in self.path.read_text(encoding="utf-8")

    def backend(self, rebuilt: Rebuilt | None) -> tokenizers.Tokenizer:
        table = self.table | {"padding": None, "truncation": None}
        model = dict(table["model"])
        if model.get("dropout"):
            rate = model["dropout"]
            self.remarks.append(f"{self.path}: model.dropout {rate} is switched off, so that runs see the same tokens.")
            model["dropout"] = None
        table["model"] = model
        backend = library.load(json.dumps(table, ensure_ascii=False), str(self.path), table)
        return backend if rebuilt is None else self.make(rebuilt, backend)

    def make(self, rebuilt: Rebuilt, original: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        """The class's own tokenizer over the vocabulary and merges of the file; a remark where they part."""
        model = self.table["model"]
        name = str(self.config.get("tokenizer_class") or self.model_config.get("tokenizer_class"))
        if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
            raise FormatError(
                f"{self.path}: model.type is {shown(model.get('type'))}, and the {name} that "
                "tokenizer_config.json names needs 'BPE' with merges; set tokenizer_class to PreTrainedTokenizerFast."
            )
        if self.config.get("trust_remote_code"):
            raise self.wrong(
                "trust_remote_code", self.config["trust_remote_code"], f"none, as a {name} is otherwise made"
            )
        prefix = self.config.get("add_prefix_space", False)
        if not isinstance(prefix, bool) and (prefix is not None or not rebuilt.without_prefix):
            raise self.wrong("add_prefix_space", prefix, "true or false")
        vocabulary = model["vocab"]
        if not isinstance(vocabulary, Mapping):
            raise FormatError(f"{self.path}: model.vocab is a list, expected an object for the {name}.")
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        with library.making(f"{self.path}: its vocabulary and merges make no {name}"):
            backend = rebuilt.make(dict(vocabulary), merges, self.config)
            library.try_out(backend)
        parts = ("normalizer", "pre_tokenizer", "decoder")
        ours, theirs = (json.loads(_without_model(each)) for each in (backend, original))
        other = [part for part in parts if ours[part] != theirs[part]]
        if other and self.pieces is None:
            self.remarks.append(
                f"{self.config_path}: tokenizer_class {name} makes its own {', '.join(other)}, as in transformers 5, "
                "and leaves aside tokenizer.json's; PreTrainedTokenizerFast would take those."
            )
        backend.post_processor = original.post_processor
        return backend

    # ------------------------------------------------------------------ special and added tokens
    def settings(self) -> tuple[dict[str, Any], dict[int, tokenizers.AddedToken]]:
        """The settings with special tokens as text or AddedToken, and the added tokens by index."""
        settings = self.piece_settings() | self.config
        if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
            settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        decoder: dict[int, tokenizers.AddedToken] = {}
        if "added_tokens_decoder" in settings:
            entries = settings["added_tokens_decoder"]
            if not isinstance(entries, Mapping):
                raise self.wrong("added_tokens_decoder", entries, "an object")
            for index, token in entries.items():
                number = int(index) if index.isdecimal() and index.isascii() and len(index) < 9 else index
                decoder[self.index("added_tokens_decoder", number)] = self.added(
                    f"added_tokens_decoder[{index}]", token
                )
        else:
            self.legacy(settings, decoder)
            if "additional_special_tokens" in settings and "extra_special_tokens" not in settings:
                settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        self.compare(decoder)
        settings["added_tokens_decoder"] = None
        settings = {key: self.typed(key, value) for key, value in settings.items()}
        known = {token.content: token for token in decoder.values()}
        for key in NAMED:
            if settings.get(key) is not None:
                settings[key] = known.get(str(settings[key]), settings[key])
        return settings, decoder

    def piece_settings(self) -> dict[str, Any]:
        """The special tokens that a SentencePiece model has of its own."""
        if self.pieces is None:
            return {}
        model = self.pieces
        ids = {
            "unk_token": model.unk_id,
            "bos_token": model.bos_id,
            "eos_token": model.eos_id,
            "pad_token": model.pad_id,
        }
        named = {key: model.pieces[index].text for key, index in ids.items() if index >= 0}
        more = [piece.text for piece in model.pieces if piece.kind == CONTROL and piece.text not in named.values()]
        return named | ({"extra_special_tokens": more} if more else {})

    def legacy(self, settings: dict[str, Any], decoder: dict[int, tokenizers.AddedToken]) -> None:
        """special_tokens_map.json over the settings, then added_tokens.json, then tokenizer.json's added tokens."""
        for key, value in self.read("special_tokens_map.json").items():
            final = "extra_special_tokens" if key == "additional_special_tokens" else key
            self.elsewhere[final] = self.path.with_name("special_tokens_map.json"), key
            if isinstance(value, Mapping) and key != "extra_special_tokens":
                value = self.added(key, value, special=True)
            elif key == "extra_special_tokens" and isinstance(value, list):
                more = [self.extra(each) if isinstance(each, Mapping) else each for each in value]
                present = settings.get(key) or []
                if isinstance(present, Mapping):
                    settings["model_specific_special_tokens"], present = present, []
                value = [*present] + [each for each in more if each not in present]
            settings[key] = value
        names = {str(settings[key]) for key in NAMED if settings.get(key)}
        extra = settings.get("extra_special_tokens") or []
        names |= {str(each) for each in extra} if isinstance(extra, Iterable) else set()
        for text, index in self.read("added_tokens.json").items():
            special = text in names
            entry = {"content": text, "normalized": not special, "special": special}
            decoder[self.index("added_tokens.json", index)] = self.added("added_tokens.json", entry)
        for entry in self.table.get("added_tokens") or []:
            decoder[entry["id"]] = self.added("added_tokens", {k: v for k, v in entry.items() if k != "id"})

    def extra(self, value: Mapping[str, Any]) -> tokenizers.AddedToken:
        """A nameless special token of special_tokens_map.json; it cannot say that it is special."""
        if "special" in value:
            raise self.wrong("extra_special_tokens", value, "objects without the key `special`")
        return self.added("extra_special_tokens", value, special=True)

    def compare(self, decoder: Mapping[int, tokenizers.AddedToken]) -> None:
        """A remark for each token that is added under another id than the configuration says."""
        ids = dict(self.table["model"]["vocab"]) if isinstance(self.table["model"].get("vocab"), Mapping) else {}
        ids |= {entry["content"]: entry["id"] for entry in self.table.get("added_tokens") or []}
        for index, token in decoder.items():
            if token.content in ids and ids[token.content] != index:
                self.remarks.append(
                    f"{self.config_path}: the token {token.content!r} has the id {index}, and {ids[token.content]} in "
                    "tokenizer.json, which decides, as in transformers."
                )

    def index(self, where: str, value: Any) -> int:
        """The id that an added token is stated to have."""
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_ID:
            if where.endswith(".json"):
                self.elsewhere[f"an id of {where}"] = self.path.with_name(where), "an id"
            raise self.wrong(f"an id of {where}", value, f"a number from 0 to {MOST_ID - 1}")
        return value

    def added(self, where: str, value: Any, **more: Any) -> tokenizers.AddedToken:
        import tokenizers

        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise self.wrong(where, value, "an object with the text `content`")
        flags = {
            key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in value
        }
        for key, flag in flags.items():
            if not isinstance(flag, bool):
                raise self.wrong(f"{where}: {key}", flag, "true or false")
        return tokenizers.AddedToken(value["content"], **(flags | more))

    def typed(self, key: str, value: Any) -> Any:
        """`value` with its objects {"__type": "AddedToken", ...} as such tokens."""
        if isinstance(value, Mapping) and value.get("__type") == "AddedToken":
            return self.added(key, value)
        if isinstance(value, list):
            return [self.typed(key, each) for each in value]
        return value

    def special_tokens(self, settings: Mapping[str, Any], rebuilt: Rebuilt | None) -> tuple[dict[str, Any], list[Any]]:
        """The named special tokens in transformers' order, and the nameless ones."""
        import tokenizers

        kinds = (str, tokenizers.AddedToken)
        defaults = rebuilt.special if rebuilt else {}
        padding = self.table.get("padding")
        if (
            (rebuilt is None or rebuilt.pads)
            and isinstance(padding, Mapping)
            and isinstance(padding.get("pad_token"), str)
        ):
            defaults = defaults if "pad_token" in defaults else defaults | {"pad_token": padding["pad_token"]}
        values = {**defaults, **settings}
        named = {key: values[key] for key in NAMED if values.get(key) is not None}
        extra = values.get("extra_special_tokens")
        more = {
            key: value
            for key, value in values.items()
            if key.endswith("_token") and key not in NAMED and isinstance(value, kinds)
        }
        if isinstance(extra, Mapping):
            more |= {key: self.typed(key, value) for key, value in extra.items()}
            extra = []
        models = values.get("model_specific_special_tokens") or {}
        if not isinstance(models, Mapping):
            raise self.wrong("model_specific_special_tokens", models, "an object")
        configured = self.config.get("extra_special_tokens")
        own = self.config.keys() | (configured.keys() if isinstance(configured, Mapping) else ())
        stated = {key: value for key, value in more.items() if key in own}  # in whose place `models` is not read
        named |= {key: value for key, value in more.items() if key not in own}
        named |= stated or {key: self.typed(key, value) for key, value in models.items()}
        if extra is not None and not isinstance(extra, list):
            raise self.wrong("extra_special_tokens", extra, "a list or an object")
        nameless = [*(extra or []), *(values[key] for key in (rebuilt.extra if rebuilt else ()) if values.get(key))]
        for key, value in [*named.items(), *(("extra_special_tokens", each) for each in nameless)]:
            if not isinstance(value, kinds):
                raise self.wrong(key, value, "a text, or an object with `__type` 'AddedToken'")
        return named, nameless

    def vocabulary(self) -> Vocabulary:
        rebuilt = self.rebuilt()
        backend = self.backend(rebuilt)
        settings, decoder = self.settings()
        named, nameless = self.special_tokens(settings, rebuilt)
        with library.making(f"{self.path}: its special tokens cannot be added"):
            size = backend.get_vocab_size()
            _add(backend, decoder, named, nameless)
            if rebuilt is not None and rebuilt.plain:
                _add(backend, {}, {}, [str(token) for token in (*named.values(), *nameless)], again=True)
            more = [backend.id_to_token(index) for index in range(size, backend.get_vocab_size())]
        if more:
            self.remarks.append(
                f"{self.path}: {len(more)} tokens of the files beside it are added at its end ({shown(more)[1:-1]}), "
                "as in transformers; the model needs a row for each that is used."
            )
        ids = {name: backend.token_to_id(str(token)) for name, token in named.items()}
        bos, eos = ids.get("bos_token"), ids.get("eos_token")
        adds_bos, adds_eos = self.around(backend, bos, eos)
        if rebuilt is not None and rebuilt.adds_bos is not None:
            adds_bos, adds_eos = rebuilt.adds_bos and bos is not None, False
        if self.pieces is None:
            self.note_around("add_bos_token", adds_bos)
            self.note_around("add_eos_token", adds_eos)
        else:
            adds_bos = bool(self.config.get("add_bos_token")) and bos is not None
            adds_eos = bool(self.config.get("add_eos_token")) and eos is not None
        template, templates = read_templates(self.path.parent, self.config)
        return Vocabulary(
            backend,
            bos_id=bos,
            eos_id=eos,
            eos_ids=self.end_ids(eos, backend),
            pad_id=ids.get("pad_token"),
            unk_id=ids.get("unk_token"),
            named={name: str(token) for name, token in named.items() if name not in OWN_IDS},
            chat_template=template,
            templates=templates,
            bos_before_chat=False,
            adds_bos=adds_bos,
            adds_eos=adds_eos,
            cleans_up=self.cleans_up(),
            remarks=self.remarks,
        )

    # ------------------------------------------------------------------ what is put around a text, and after it
    def around(self, backend: tokenizers.Tokenizer, bos: int | None, eos: int | None) -> tuple[bool, bool]:
        """Whether the post-processor puts `bos` before and `eos` after a text, then taken out: it moves offsets too."""
        with library.making(f"{self.path}: its post_processor does not work"):
            text = next(t for t in ("a", *library.PROBES) if backend.encode(t, add_special_tokens=False).ids)
            plain = backend.encode(text, add_special_tokens=False).ids
            whole = backend.encode(text).ids
        backend.post_processor = None
        for before in range(len(whole) - len(plain) + 1):
            if whole[before : before + len(plain)] == plain:
                prefix, suffix = whole[:before], whole[before + len(plain) :]
                if prefix in ([], [bos]) and suffix in ([], [eos]):
                    return bool(prefix), bool(suffix)
        raise FormatError(
            f"{self.path}: its post_processor makes {whole} of the tokens {plain}, and bos_token has the id {bos}, "
            f"eos_token {eos}; only these are put around a text: name them in tokenizer_config.json."
        )

    def note_around(self, key: str, does: bool) -> None:
        if key in self.config and bool(self.config[key]) != does:
            self.remarks.append(
                f"{self.config_path}: {key} {shown(self.config[key])} is ignored, as in transformers: "
                f"{'what the class does' if self.rebuilt() else 'the post-processor of tokenizer.json'} decides."
            )

    def end_ids(self, eos: int | None, backend: tokenizers.Tokenizer) -> tuple[int, ...]:
        """The tokenizer's end token, and those of generation_config.json (of config.json where that has none)."""
        source, table = self.path.with_name("generation_config.json"), self.read("generation_config.json")
        if table.get("eos_token_id") is None:
            source, table = self.path.with_name("config.json"), self.model_config
        value = table.get("eos_token_id")
        listed = self.config.get("end_token_ids") or []  # as `Tokenizer.save` writes it
        found = [] if eos is None else [eos]
        for index in [*(value if isinstance(value, list) else [] if value is None else [value]), *listed]:
            if isinstance(index, bool) or not isinstance(index, int):
                raise FormatError(f"{source}: eos_token_id is {shown(value)}, expected token ids.")
            if not 0 <= index < MOST_ID or backend.id_to_token(index) is None:
                self.remarks.append(
                    f"{source}: eos_token_id {shown(index)} is ignored: the tokenizer has no such token."
                )
            else:
                found.append(index)
        return tuple(dict.fromkeys(found))

    def cleans_up(self) -> bool:
        """Whether decoding takes spaces before punctuation out."""
        forced = self.config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        kind = self.table["model"].get("type")
        return bool(self.config.get("clean_up_tokenization_spaces")) and bool(kind != "BPE" or forced)


def _add(
    backend: tokenizers.Tokenizer,
    decoder: Mapping[int, tokenizers.AddedToken],
    named: Mapping[str, Any],
    nameless: Iterable[Any],
    again: bool = False,
) -> None:
    """Add the tokens in transformers' order: by index, the named special ones, the nameless ones.

    `again` adds those that there are as well, which sets their flags anew.
    """
    import tokenizers

    tokens: list[Any] = [token for _, token in sorted(decoder.items())]
    texts = {token.content for token in backend.get_added_tokens_decoder().values()} | {str(t) for t in tokens}
    for token in [*named.values(), *nameless]:
        if again or str(token) not in texts:
            tokens.append(token)
    names = {str(token) for token in named.values()}
    made = []
    for token in tokens:
        added = tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token
        if not added.special and str(added) in names:
            added.special = True
        made.append(added)
    backend.add_tokens(made)


def _without_model(backend: tokenizers.Tokenizer) -> str:
    """The tokenizer's JSON with the smallest of models: its components alone."""
    import tokenizers
    from tokenizers import models

    small = tokenizers.Tokenizer(models.BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, part) is not None:
            setattr(small, part, getattr(backend, part))
    return small.to_str()

"""Tokenizers from GGUF metadata or tokenizer.json through the `tokenizers` library, with their chat templates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar.errors import ConfigError, FormatError
from entrenar.io.json_file import read_json_object

if TYPE_CHECKING:
    import tokenizers

Message = Mapping[str, str]

# The regular expressions by which GGUF's pre-tokenizer names split text, as their models' tokenizer.json state them.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (splits single digits first, expression)
GGUF_PRE = {
    "default": (False, GPT2_SPLIT),
    "gpt-2": (False, GPT2_SPLIT),
    "smollm": (True, GPT2_SPLIT),
    "starcoder": (True, GPT2_SPLIT),
    "refact": (True, GPT2_SPLIT),
    "command-r": (True, GPT2_SPLIT),
    "llama-bpe": (False, LLAMA3_SPLIT),
    "llama3": (False, LLAMA3_SPLIT),
    "qwen2": (False, QWEN2_SPLIT),
}
LLAMA3_PRE = ("llama-bpe", "llama3")  # whole words that are tokens need no merges; a beginning-of-text token by default
CONTROL, USER_DEFINED, UNKNOWN = 3, 4, 2  # token types of GGUF
TRAINED_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """Text to token ids and back.

    Made by `from_gguf`, `from_file`, `from_directory` or `train`. Ids of special tokens are None where the vocabulary
    has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        unk_id: int | None = None,
        chat_template: str | None = None,
        adds_bos: bool = False,
    ) -> None:
        self.backend = backend
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos_id, eos_id, pad_id, unk_id
        self.chat_template = chat_template
        self.adds_bos = adds_bos  # whether the model was trained with a beginning-of-text token

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token(self, index: int | None) -> str:
        """The text of one id; empty for None."""
        return "" if index is None else self.backend.id_to_token(index) or ""

    def id(self, token: str) -> int | None:
        """The id of one token's text, or None."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. `parse_special` reads the text of special tokens as those tokens, else as plain text."""
        self.backend.encode_special_tokens = not parse_special
        ids = list(self.backend.encode(text, add_special_tokens=False).ids)
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """Token ids of consecutive parts of one text, special tokens read as such.

        They are those of the whole text, so that no part but the first begins with a space that a tokenizer puts before
        a text. Where a token would cross a border, each part is encoded alone, as in generation.
        """
        self.backend.encode_special_tokens = False
        encoding = self.backend.encode("".join(parts), add_special_tokens=False)
        borders = list(itertools.accumulate(len(part) for part in parts))
        ids: list[list[int]] = [[] for _ in parts]
        current = 0
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            while start >= borders[current] and current < len(parts) - 1:
                current += 1
            if stop > borders[current]:
                return [self.encode(part, parse_special=True) for part in parts]
            ids[current].append(index)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    # ------------------------------------------------------------------ chat
    @cached_property
    def _template(self) -> Any:
        from entrenar.io.chat_template import compile_template

        return compile_template(self.chat_template or "")

    def apply_chat_template(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The messages ({"role", "content"}) as the model expects to read them, through its own template in a sandbox.

        Raises ConfigError where the tokenizer has no template or the template refuses, FormatError where it fails.
        """
        from entrenar.io.chat_template import first_line

        if self.chat_template is None:
            raise ConfigError("The tokenizer has no chat template; format the prompt as plain text.")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.token(self.bos_id),
                eos_token=self.token(self.eos_id),
                pad_token=self.token(self.pad_id),
                unk_token=self.token(self.unk_id),
                tools=None,
                documents=None,
            )
        except ConfigError:
            raise
        except Exception as error:  # a template is a program from outside: it fails in any way
            raise FormatError(f"The chat template failed on these messages: {first_line(error)}.") from error

    # ------------------------------------------------------------------ making one
    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.*` metadata of a GGUF file: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""
        kind = metadata.get("tokenizer.ggml.model")
        tokens = _list(metadata, "tokens", str)
        if kind == "gpt2":
            backend = _byte_level_bpe(metadata, tokens)
        elif kind == "llama":
            backend = _sentencepiece_bpe(metadata, tokens)
        else:
            raise FormatError(f"tokenizer.ggml.model is {kind!r}, expected 'gpt2' or 'llama'.")
        _add_special(backend, metadata, tokens)

        def special(name: str) -> int | None:
            index = metadata.get(f"tokenizer.ggml.{name}_token_id")
            return index if isinstance(index, int) and 0 <= index < len(tokens) else None

        usual = kind == "llama" or metadata.get("tokenizer.ggml.pre") in LLAMA3_PRE
        return Tokenizer(
            backend,
            bos_id=special("bos"),
            eos_id=special("eos"),
            pad_id=special("padding"),
            unk_id=special("unknown"),
            chat_template=_template_text(metadata.get("tokenizer.chat_template"), "tokenizer.chat_template"),
            adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", usual)),
        )

    @staticmethod
    def from_file(path: str | Path) -> Tokenizer:
        """From a tokenizer.json, with tokenizer_config.json and chat_template.jinja beside it where they exist."""
        import tokenizers

        path = Path(path)
        if not path.is_file():
            raise FormatError(f"{path}: no such file; expected a tokenizer.json.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise FormatError(f"{path}: is no tokenizer.json ({error}).") from error
        backend.no_padding()
        backend.no_truncation()
        config = _json_object(path.with_name("tokenizer_config.json"))

        def special(*names: str) -> int | None:
            for name in names:
                value = config.get(name)
                text = value.get("content") if isinstance(value, Mapping) else value
                if isinstance(text, str) and backend.token_to_id(text) is not None:
                    return backend.token_to_id(text)
            return None

        template = config.get("chat_template")
        if isinstance(template, list):  # named templates
            named = [entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        jinja_file = path.with_name("chat_template.jinja")
        if jinja_file.is_file():
            template = jinja_file.read_bytes().decode("utf-8", "replace")
        bos = special("bos_token")
        puts_bos = bos is not None and backend.encode("a").ids[:1] == [bos]  # by its post-processor
        return Tokenizer(
            backend,
            bos_id=bos,
            eos_id=special("eos_token"),
            pad_id=special("pad_token"),
            unk_id=special("unk_token"),
            chat_template=_template_text(template, f"{path.with_name('tokenizer_config.json')}: chat_template"),
            adds_bos=bool(config.get("add_bos_token", puts_bos)),
        )

    @staticmethod
    def from_directory(directory: str | Path) -> Tokenizer:
        """From a Hugging Face directory that holds a tokenizer.json."""
        return Tokenizer.from_file(Path(directory) / "tokenizer.json")

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE trained on `texts`, with ChatML special tokens and template; any text round-trips."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        least = 256 + len(TRAINED_SPECIAL)
        if vocab_size < least:
            raise ConfigError(
                f"vocab_size is {vocab_size}, expected at least {least}: 256 bytes and the special tokens."
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(TRAINED_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(
            backend,
            bos_id=backend.token_to_id("<|im_start|>"),
            eos_id=backend.token_to_id("<|im_end|>"),
            pad_id=backend.token_to_id("<|pad|>"),
            unk_id=backend.token_to_id("<|endoftext|>"),
            chat_template=CHATML_TEMPLATE,
        )

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (with the chat template) into `directory`."""
        from entrenar.io.checkpoint import atomic_file

        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.adds_bos,
            "chat_template": self.chat_template,
            **{
                f"{name}_token": self.token(index)
                for name, index in (
                    ("bos", self.bos_id),
                    ("eos", self.eos_id),
                    ("pad", self.pad_id),
                    ("unk", self.unk_id),
                )
                if index is not None
            },
        }
        with atomic_file(Path(directory) / "tokenizer.json") as temporary:
            temporary.write_text(self.backend.to_str(), encoding="utf-8")
        with atomic_file(Path(directory) / "tokenizer_config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _json_object(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, "a tokenizer_config.json") if path.is_file() else {}


def _template_text(template: Any, where: str) -> str | None:
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{where} is {template!r}, expected text.")
    return template


def _list(metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> list[Any]:
    """A list of the tokenizer's metadata; FormatError where it is missing or holds something else."""
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values:
        raise FormatError(f"The GGUF metadata has no tokenizer.ggml.{name}; the file holds no complete tokenizer.")
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise FormatError(f"tokenizer.ggml.{name}: entry {index} is {value!r}, of a type that has no place there.")
    return values


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in GGUF_PRE:
        raise FormatError(
            f"tokenizer.ggml.pre is {pre!r}, a split that is not known; expected one of {sorted(GGUF_PRE)}."
        )
    pairs = [tuple(merge.split(" ", 1)) for merge in _list(metadata, "merges", str)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in LLAMA3_PRE))
    except Exception as error:  # the library raises plain Exception
        raise FormatError(f"The GGUF vocabulary and merges do not fit together ({error}).") from error
    digits, expression = GGUF_PRE[pre]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    scores = _list(metadata, "scores", (int, float))
    if len(scores) != len(tokens):
        raise FormatError(f"tokenizer.ggml.scores has {len(scores)} entries, expected {len(tokens)}.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # SentencePiece merges the adjacent pair whose union scores highest: every way to split a piece is a merge,
    # ranked by the score of the whole
    merges = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise FormatError(f"tokenizer.ggml.unknown_token_id is {unknown}, outside the {len(tokens)} tokens.")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, _, _, left, right in merges],
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    steps.append(normalizers.Replace(" ", "▁"))
    backend.normalizer = normalizers.Sequence(steps)
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(undo)
    return backend


def _add_special(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Tell the backend which entries are control tokens: those are never made from plain text."""
    import tokenizers

    types = _list(metadata, "token_type", int) if metadata.get("tokenizer.ggml.token_type") else [1] * len(tokens)
    special, added = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (CONTROL, UNKNOWN):
            special.append(tokenizers.AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            added.append(tokenizers.AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(added)

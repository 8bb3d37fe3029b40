"""Tokenizers from GGUF metadata or tokenizer.json through the `tokenizers` library, with their chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
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
    "llama-bpe": (False, LLAMA3_SPLIT),
    "llama3": (False, LLAMA3_SPLIT),
    "qwen2": (False, QWEN2_SPLIT),
}
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

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    # ------------------------------------------------------------------ chat
    @cached_property
    def _template(self) -> Any:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox

        def raise_exception(message: str) -> None:
            raise ConfigError(f"The chat template refuses the messages: {message}")

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
        try:
            return environment.from_string(self.chat_template or "")
        except jinja2.TemplateError as error:
            raise FormatError(f"The chat template is no valid Jinja template: {error}.") from error

    def apply_chat_template(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The messages ({"role", "content"}) as the model expects to read them, through its own template in a sandbox.

        Raises ConfigError where the tokenizer has no template or the template refuses, FormatError where it fails.
        """
        import jinja2

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
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise FormatError(f"The chat template failed on these messages: {error}.") from error

    # ------------------------------------------------------------------ making one
    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.*` metadata of a GGUF file: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""
        kind = metadata.get("tokenizer.ggml.model")
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens:
            raise FormatError("The GGUF metadata has no tokenizer.ggml.tokens; the file holds no tokenizer.")
        if kind == "gpt2":
            backend = _byte_level_bpe(metadata, tokens)
        elif kind == "llama":
            backend = _sentencepiece_bpe(metadata, tokens)
        else:
            raise FormatError(f"tokenizer.ggml.model is {kind!r}, expected 'gpt2' or 'llama'.")
        _add_special(backend, metadata, tokens)

        def special(name: str) -> int | None:
            index = metadata.get(f"tokenizer.ggml.{name}_token_id")
            return int(index) if index is not None and 0 <= int(index) < len(tokens) else None

        return Tokenizer(
            backend,
            bos_id=special("bos"),
            eos_id=special("eos"),
            pad_id=special("padding"),
            unk_id=special("unknown"),
            chat_template=metadata.get("tokenizer.chat_template"),
            adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")),
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
            template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
        jinja_file = path.with_name("chat_template.jinja")
        if jinja_file.is_file():
            template = jinja_file.read_text(encoding="utf-8")
        return Tokenizer(
            backend,
            bos_id=special("bos_token"),
            eos_id=special("eos_token"),
            pad_id=special("pad_token"),
            unk_id=special("unk_token"),
            chat_template=template,
            adds_bos=bool(config.get("add_bos_token", False)),
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


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in GGUF_PRE:
        raise FormatError(
            f"tokenizer.ggml.pre is {pre!r}, a split that is not known; expected one of {sorted(GGUF_PRE)}."
        )
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise FormatError("The GGUF metadata has no tokenizer.ggml.merges; a byte-level BPE tokenizer needs them.")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        backend = tokenizers.Tokenizer(
            models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in ("llama-bpe", "llama3"))
        )
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

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise FormatError(
            "The GGUF metadata has no tokenizer.ggml.scores for its tokens; a SentencePiece tokenizer needs them."
        )
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
    if not 0 <= int(unknown) < len(tokens):
        raise FormatError(f"tokenizer.ggml.unknown_token_id is {unknown}, outside the {len(tokens)} tokens.")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, _, _, left, right in merges],
            unk_token=tokens[int(unknown)],
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

    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    special, added = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (CONTROL, UNKNOWN):
            special.append(tokenizers.AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            added.append(tokenizers.AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(added)

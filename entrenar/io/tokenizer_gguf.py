"""Tokenizers from the `tokenizer.*` metadata of a GGUF file, as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrenar.errors import FormatError
from entrenar.io.vocabulary import Vocabulary, template_text

if TYPE_CHECKING:
    import tokenizers

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


def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE ("gpt2") or SentencePiece BPE ("llama"); FormatError where the metadata hold no such tokenizer."""
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
    return Vocabulary(
        backend,
        bos_id=special("bos"),
        eos_id=special("eos"),
        pad_id=special("padding"),
        unk_id=special("unknown"),
        chat_template=template_text(metadata.get("tokenizer.chat_template"), "tokenizer.chat_template"),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", usual)),
    )


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

"""How GGUF's pre-tokenizer names split text before merges: the regular expressions of llama.cpp, a row each.

A text is split by the first expression, what comes of it by the second, and so on; matches and what lies between them
stay apart. Source: llama.cpp, src/llama-vocab.cpp (`llm_tokenizer_bpe`, and `load` for the names and flags).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_LINES = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"  # all but ASCII's letters count as both cases
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_ASCII_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_RUNS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_NUMBERS = r"\p{N}{1,3}"

_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+"

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = f"{_CONTRACTIONS}|{_WORD}|{_NUMBERS}|{_END}"
QWEN2_SPLIT = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_END}"
DEEPSEEK3 = (
    _NUMBERS,
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+",
    rf"{_ASCII_WORD}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
GPT4O = (rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|{_NUMBERS}|{_SLASH}",)


@dataclass(frozen=True)
class Split:
    """Expressions in order; whether a whole word that is a token needs no merges; whether a beginning token is put."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


def _split(*alternatives: str) -> Split:
    return Split(("|".join(alternatives),))


_GPT2 = Split((GPT2_SPLIT,))
_DIGITS = Split((r"\p{N}", GPT2_SPLIT))
_LLAMA3 = Split((LLAMA3_SPLIT,))
_QWEN2 = Split((QWEN2_SPLIT,))
# A file without a name is split so by llama.cpp, which warns of it
DEFAULT = Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"))
_ROWS: tuple[tuple[str, Split], ...] = (
    ("default", DEFAULT),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Split((LLAMA3_SPLIT,), ignore_merges=True, adds_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", _LLAMA3),
    ("glm4 glm5", Split((LLAMA3_SPLIT,), ignore_merges=True)),
    ("gpt-2 phi-2 gigachat a.x-4.0 mellum modern-bert jina-es jina-de jina-v2-es jina-v2-de mpt olmo jais", _GPT2),
    ("trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe", _GPT2),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGITS),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2", _QWEN2),
    (
        "qwen35",
        _split(_CONTRACTIONS, _HEAD + r"[\p{L}\p{M}]+", _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _LINES, _SPACES),
    ),
    ("ufakzeka", Split((rf"{_WORD}|\p{{N}}|{_END}",))),
    ("minicpm5", Split((_NUMBERS, rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_END}"), ignore_merges=True)),
    ("falcon", Split((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_SPLIT, "[0-9][0-9][0-9]"))),
    (
        "deepseek-coder",
        Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"(?:(?!\s)[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}])+", r"\p{N}")),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Split(DEEPSEEK3)),
    ("tekken", Split((rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH}",), True, True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Split(GPT4O)),
    ("poro-chat bloom gpt3-finnish", Split((_BLOOM,))),
    ("viking", Split((_BLOOM, r"\p{N}"))),
    (
        "bailingmoe bailingmoe2 llada-moe",
        _split("'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", _WORD, _DIGIT, _SIGNS + r"[\r\n]*", r"\s*[\r\n]", _SPACES),
    ),
    ("seed-coder", Split((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",))),
    ("jais-2", _split(_CONTRACTIONS, _WORD, _NUMBERS, _SIGNS + r"[\r\n]*", _LINES, _RUNS, r"\s{1,2}(?!\S)", r"\s")),
    ("superbpe", Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    ("laguna", Split((r"[^\n]+|[\n]+", QWEN2_SPLIT))),
    (
        "exaone-moe",
        _split(
            _CONTRACTIONS,
            _HEAD + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            _DIGIT,
            _SIGNS + r"[\r\n/]?",
            r"\s*[\r\n]",
            _SPACES,
        ),
    ),
)
SPLITS: dict[str, Split] = {name: split for names, split in _ROWS for name in names.split()}


def pre_tokenizer(split: Split) -> Any:
    """The library's pre-tokenizer of a row, over bytes."""
    import tokenizers
    from tokenizers import pre_tokenizers

    steps = [
        pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated") for expression in split.expressions
    ]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

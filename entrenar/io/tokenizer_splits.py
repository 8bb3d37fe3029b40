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

_EAST_ASIAN = r"(?:(?!\s)[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}])+"


def _ranges(points: str) -> str:
    """The inside of a bracket from hexadecimal ranges."""
    return "".join("-".join(rf"\x{{{point}}}" for point in part.split("-")) for part in points.split())


_PUNCTUATION = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3001-3002")  # U+3000 counts as a space
# Letters that have a case, in Unicode 11
_CASED = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
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
        "deepseek-llm",
        Split(
            ("[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_PUNCTUATION}]+", r"\s+$", _EAST_ASIAN, r"\p{N}+"),
        ),
    ),
    (
        "deepseek-coder",
        Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")),
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

# What the models were trained with where llama.cpp's expressions come close to it: other letters than ASCII's have
# one case there, and marks are no letters
_UPPERS, _LOWERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (rf"{_HEAD}{_UPPERS}*{_LOWERS}+", rf"{_HEAD}{_UPPERS}+{_LOWERS}*")
ORIGINALS: dict[str, Split] = {
    "tekken": Split(("|".join((*_CASES, _DIGIT, _SLASH)),), ignore_merges=True, adds_bos=True),
    "gpt-4o": _split(*(f"{case}{_CONTRACTIONS}?" for case in _CASES), _NUMBERS, _SLASH),
}


def pre_tokenizer(split: Split) -> Any:
    """The library's pre-tokenizer of a row, over bytes."""
    import tokenizers
    from tokenizers import pre_tokenizers

    steps = [
        pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated") for expression in split.expressions
    ]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

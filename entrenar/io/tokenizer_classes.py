"""The tokenizer classes that transformers makes anew from a tokenizer.json's vocabulary and merges.

transformers 5 takes a tokenizer.json as it is only for its base class. A class of its own brings its own normalizer,
pre-tokenizer and decoder, and leaves aside those of the file. The families' directories name the classes of `REBUILT`.
Source: transformers/models/{llama,code_llama,gpt2,qwen2,gemma}/tokenization_*.py, auto/tokenization_auto.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Rebuilt:
    """How a class makes its tokenizer, and the special tokens that it has where no file names others."""

    make: Callable[[dict[str, int], Merges, Mapping[str, Any]], tokenizers.Tokenizer]
    special: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()  # names in `special` of further special tokens
    without_prefix: bool = True  # whether add_prefix_space may be null
    plain: bool = False  # whether its special tokens lose the flags that files give them
    pads: bool = True  # whether the pad_token of tokenizer.json's padding is one of its special tokens
    adds_bos: bool | None = None  # whatever the file's post-processor does


def _metaspace(scheme: str, strip: bool, model: Any) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if strip else undo)
    return backend


def _prefix_space(config: Mapping[str, Any], default: bool) -> bool:
    value = config.get("add_prefix_space")
    return default if value is None else bool(value)


def _llama(vocabulary: dict[str, int], merges: Merges, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import models

    prefix = _prefix_space(config, True)
    scheme = ("always" if config.get("legacy", False) else "first") if prefix else "never"
    return _metaspace(scheme, prefix, models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))


def _code_llama(vocabulary: dict[str, int], merges: Merges, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import models

    unknown = str(special_text(config.get("unk_token", "<unk>")))
    model = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    return _metaspace("first" if _prefix_space(config, True) else "never", True, model)


def _gpt2(vocabulary: dict[str, int], merges: Merges, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_prefix_space(config, False))
    backend.decoder = decoders.ByteLevel()
    return backend


def _qwen2(vocabulary: dict[str, int], merges: Merges, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers

    backend = _gpt2(vocabulary, merges, {})
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), behavior="isolated", invert=False)
    prefix = _prefix_space(config, False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)]
    )
    return backend


def _gemma(vocabulary: dict[str, int], merges: Merges, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    unknown = str(special_text(config.get("unk_token", "<unk>")))
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


_LLAMA_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_FILL = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}
_END = "<|endoftext|>"
_GEMMA_SPECIAL = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
REBUILT: dict[str, Rebuilt] = {
    "LlamaTokenizer": Rebuilt(_llama, _LLAMA_SPECIAL),
    "CodeLlamaTokenizer": Rebuilt(_code_llama, _LLAMA_SPECIAL | _FILL, tuple(_FILL), adds_bos=True),
    "GPT2Tokenizer": Rebuilt(
        _gpt2, {"unk_token": _END, "bos_token": _END, "eos_token": _END}, without_prefix=False, pads=False
    ),
    "Qwen2Tokenizer": Rebuilt(_qwen2, {"unk_token": _END, "eos_token": _END, "pad_token": _END}, plain=True),
    "GemmaTokenizer": Rebuilt(_gemma, _GEMMA_SPECIAL),
}
BASE = "TokenizersBackend"  # the class that takes tokenizer.json as it is
# The class that transformers keeps for a model_type: that of the files counts where it is another than BASE
REGISTERED: dict[str, str] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    **dict.fromkeys(("mistral", "ministral", "ministral3", "phi3", "granite", "olmo2", "stablelm"), BASE),
}
MISNAMED = frozenset(("qwen2", "phi3"))  # whose files name the wrong class: REGISTERED decides alone
# Classes that transformers makes in yet other ways: refused, as what they give is not known here
_NAMES = """
Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot
BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp CodeGen Cohere ConvBert Cpm CpmAnt DPRContextEncoder
DPRQuestionEncoder DPRReader DistilBert FNet FastSpeech2Conformer SqueezeBert Deberta DebertaV2
Dia Esm Esmc FSMT Flaubert Funnel GPTNeoX GPTNeoXJapanese GPTSw3 Herbert LED Lasr LayoutLMv2
LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM Mgpstr MobileBert Mvp MyT5
Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert ProphetNet Qwen3_5 Rag Reformer RemBert RoCBert
RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter T5 Tapas Tipsv2 Udop VideoPrism
Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLM XLMRoberta XLNet
"""
OTHERS = frozenset(f"{name}Tokenizer" for name in _NAMES.split()) | {
    "BertTokenizerLegacy",
    "MistralCommonBackend",
    "SentencePieceBackend",
}


def class_name(named: str | None, model_type: Any) -> str | None:
    """The class that transformers takes where the files name one: None for BASE. Byte-level files are another matter.

    Source: `AutoTokenizer.from_pretrained`.
    """
    registered = REGISTERED.get(model_type) if isinstance(model_type, str) else None
    named = None if named is None else named.removesuffix("Fast")
    if named is None or model_type in MISNAMED:
        named = registered
    return None if BASE in (registered, named) else named


def special_text(value: Any) -> str | None:
    """The text of a special token as a configuration names it: a text, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None

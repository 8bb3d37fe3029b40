"""The words that options of several packages take: a command line is parsed by them, without what acts on them."""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")  # of matrix products, by the number of their format in simd/gemm.h
DTYPES = ("auto", "float32", "float16", "bfloat16", "int16")  # of frozen weights
SAVED_DTYPES = ("float32", "float16", "bfloat16")  # of a directory's weights
QUANTIZE = (None, "auto", "nf4", "int4")
PREFERENCES = ("none", "dpo", "orpo", "kto")  # losses over preferences in the place of examples
TOO_LONG = ("auto", "truncate", "drop", "split", "error")
FALLS = ("cosine", "linear", "1-sqrt")  # how a learning rate decays at the end
# What data.format may say, and the key that a record of it has.
FORMATS = {
    "auto": "",
    "messages": "messages",
    "prompt_completion": "prompt",
    "alpaca": "instruction",
    "sharegpt": "conversations",
    "text": "text",
    "segments": "segments",
}

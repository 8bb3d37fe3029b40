"""A SentencePiece model as the table of a tokenizer.json that encodes as SentencePiece does.

Source: google/sentencepiece, src/normalizer.cc; transformers/convert_slow_tokenizer.py (`SpmConverter`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError
from entrenar.io.sentencepiece_model import BPE, KINDS, NORMAL, USER_DEFINED, SentencePieceModel

SPACE = "▁"
Table = dict[str, Any]


def sentencepiece_table(path: Path, model: SentencePieceModel, every_part: bool, by_id: bool) -> Table:
    """tokenizer.json's object; `every_part` puts the dummy prefix before each part between added tokens.

    `by_id` ranks merges of all pieces by the id of what they make, as transformers does for its LlamaTokenizer.

    FormatError for a model of another type than BPE, one that normalizes characters, or one with spaces as suffixes.
    """
    for what, found, wanted in (
        ("model_type", KINDS.get(model.kind, model.kind), KINDS[BPE]),
        ("precompiled_charsmap", f"{len(model.charsmap)} bytes", "0 bytes"),
        ("treat_whitespace_as_suffix", str(model.space_last).lower(), "false"),
    ):
        if found != wanted:
            raise FormatError(
                f"{path}: its {what} is {found}, expected {wanted} as in the families that are run; write a "
                "tokenizer.json with transformers."
            )
    user_defined = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model, every_part)},
        "pre_tokenizer": _pre_tokenizer(model, user_defined, every_part),
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": _bpe(model, bool(user_defined), by_id),
    }


def _bpe(model: SentencePieceModel, whole: bool, by_id: bool) -> Table:
    """Each pair of normal pieces that makes another is a merge, ranked by the score of the whole, then by its id."""
    pieces = [(index, piece) for index, piece in enumerate(model.pieces) if by_id or piece.kind == NORMAL]
    ranks = {piece.text: (0.0 if by_id else -piece.score, index) for index, piece in pieces}
    ranked = [
        (*rank, cut if by_id else 0, token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": whole,
        "vocab": {piece.text: index for index, piece in enumerate(model.pieces)},
        "merges": [[left, right] for *_, left, right in sorted(ranked)],
    }


def _replace(pattern: Table, content: str) -> Table:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(model: SentencePieceModel, every_part: bool) -> list[Table]:
    """In SentencePiece's order: extra spaces, escapes."""
    steps: list[Table] = []
    if model.remove_extra_whitespaces:
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if model.escape_whitespaces:
        steps.append(_replace({"String": " "}, SPACE))
    if model.add_dummy_prefix and every_part:  # else a text that begins with one would get none
        steps.append(_replace({"Regex": rf"\A{SPACE}"}, SPACE * 2))
    return steps


def _pre_tokenizer(model: SentencePieceModel, user_defined: list[str], every_part: bool) -> Table | None:
    """The dummy prefix; and user-defined pieces for themselves, which are never merged."""
    steps: list[Table] = []
    if model.add_dummy_prefix:
        scheme = "always" if every_part else "first"
        steps.append({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False})
    if user_defined:
        pattern = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoders(model: SentencePieceModel) -> list[Table]:
    fallback = [{"type": "ByteFallback"}] if model.byte_fallback else []
    steps: list[Table] = [_replace({"String": SPACE}, " "), *fallback, {"type": "Fuse"}]
    return [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else steps

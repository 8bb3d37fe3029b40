"""The types that a GGUF file is written in, as llama-quantize names them."""

from __future__ import annotations

from dataclasses import dataclass

KEEP = "keep"  # the types that a model has


@dataclass(frozen=True)
class FileType:
    """A kind of file: its number in general.file_type, the type of its matrices, and of those that get more bits.

    `more` is the type of MORE_BITS in the first and last eighth of the layers and in each third one between. The head,
    and an embedding that is one, have Q6_K unless the others have Q8_0 or more.
    """

    number: int
    matrices: str
    more: str | None = None


FILE_TYPES = {
    "F32": FileType(0, "F32"),
    "F16": FileType(1, "F16"),
    "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"),
    "Q4_0": FileType(2, "Q4_0"),
    "Q4_1": FileType(3, "Q4_1"),
    "Q5_0": FileType(8, "Q5_0"),
    "Q5_1": FileType(9, "Q5_1"),
    "Q4_K": FileType(14, "Q4_K"),
    "Q4_K_M": FileType(15, "Q4_K", more="Q6_K"),
    "Q5_K": FileType(16, "Q5_K"),
    "Q5_K_M": FileType(17, "Q5_K", more="Q6_K"),
    "Q6_K": FileType(18, "Q6_K"),
}

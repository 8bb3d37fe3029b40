"""Files that are given as a model and are no GGUF: what they are, told by their first bytes, and what to give instead.

The formats that llama.cpp had before GGUF begin with a number of four bytes, so that their letters stand in reverse.
"""

from __future__ import annotations

OLD = "a file of one of llama.cpp's formats before GGUF, which no program reads any more; use a GGUF file of the model"
COMPRESSED = "a compressed file; unpack it"
PAGE = "an HTML page, as a download that failed leaves; fetch the file again"
PYTORCH = "weights of PyTorch or another archive; use a model that is saved as safetensors and give its directory"
KINDS = (
    (b"lmgg", OLD),
    (b"fmgg", OLD),
    (b"tjgg", OLD),
    (b"algg", "a LoRA adapter in llama.cpp's format before GGUF; give the model that it was trained over"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file that it stands for by `git lfs pull`"),
    (b"<!DOCTYPE", PAGE),
    (b"<!doctype", PAGE),
    (b"<html", PAGE),
    (b"PK\x03\x04", PYTORCH),
    (b"\x80\x02", PYTORCH),
    (b"\x1f\x8b", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", COMPRESSED),
    (b"\xfd7zXZ\x00", COMPRESSED),
    (b"BZh", COMPRESSED),
    (b"{", "JSON; give a GGUF file, or the directory of a Hugging Face model"),
    (b"\x00\x00\x00\x00", "one whose beginning was never written, as an unfinished download; fetch the file again"),
)


def what_it_is(start: bytes) -> str:
    """What begins with these 24 bytes, and what to do; empty where that is not known."""
    if start[8:9] == b"{":  # after the length of a header
        return "safetensors; give the directory that holds it and config.json"
    return next((what for magic, what in KINDS if start.startswith(magic)), "")

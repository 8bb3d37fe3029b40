"""llama.cpp's vocabularies as the reference for the metadata of GGUF files: its C functions, in a process of its own.

Only the metadata are loaded, so that a file needs no tensors. As a program this file is that process: a request a line
of its input, an answer a line of its output; an assertion of llama.cpp ends it.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ != "__main__":
    from .llama_cpp import Refused

VOCAB_ONLY = 72  # where the first flag stands in `llama_model_params` (include/llama.h)
SOME = 60  # texts that are tokenized in all ways: llama.cpp compiles its expressions for each anew
CONTROL = 1 << 3  # of a token's attributes


class _Process:
    def __init__(self) -> None:
        self._log = os.fdopen(os.memfd_create("llama.cpp"), "r+b", buffering=0)
        environment = os.environ | {"GGML_NO_BACKTRACE": "1"}  # it would start a debugger
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        weakref.finalize(self, self._process.kill)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        start = self._log.seek(0, os.SEEK_END)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if not answer:
            self._log.seek(start)
            said = self._log.read().decode("utf-8", "replace").splitlines()
            raise Refused(" / ".join(text for text in said if text.strip())[-300:] or "llama.cpp does not load it")
        return answer


@functools.cache
def _processes() -> list[_Process]:
    return []


def vocabulary(path: Path, texts: Sequence[str], decode: bool = False) -> dict[str, Any]:
    """What llama.cpp makes of the vocabulary in the file and of `texts`; Refused where it does not load or ends.

    bos, eos, pad (-1: none), add_bos, add_eos, ends (ids at which it ends a generation), control (ids), ids (of the
    texts), and of the first `SOME` texts plain (without special tokens) and whole (with what is put around). With
    `decode` pieces (the texts' ids decoded one after the other) and decoded (all at once), special tokens shown.
    """
    processes = _processes()
    if not processes or processes[-1].ended:
        processes[:] = [_Process()]
    return processes[-1].ask({"path": str(path), "texts": list(texts), "decode": decode})


# ---------------------------------------------------------------------- the process
class _Library:
    def __init__(self) -> None:
        import xllamacpp

        (path,) = Path(xllamacpp.__file__).parent.glob("*.so")
        self.c = ctypes.CDLL(str(path))
        # passed by value on the stack, so that more room than the library knows of is harmless
        self.parameters = type("Parameters", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_uint8 * 512)]})
        self.c.llama_model_default_params.restype = self.parameters
        self.c.llama_model_load_from_file.argtypes = [ctypes.c_char_p, self.parameters]
        for name in ("llama_model_load_from_file", "llama_model_get_vocab"):
            getattr(self.c, name).restype = ctypes.c_void_p
        self.c.llama_backend_init()

    def load(self, path: str) -> int | None:
        parameters = self.c.llama_model_default_params()
        flags = bytes(parameters.bytes)[VOCAB_ONLY : VOCAB_ONLY + 5]
        assert flags == bytes([0, 0, 1, 0, 0]), f"the layout of llama_model_params has changed: {flags!r}"
        parameters.bytes[VOCAB_ONLY] = 1
        found = self.c.llama_model_load_from_file(path.encode(), parameters)
        return found if found is None else int(found)

    def ids(self, vocabulary: ctypes.c_void_p, text: str, around: bool, special: bool) -> list[int] | None:
        data = text.encode()
        room = (ctypes.c_int32 * (4 * len(data) + 16))()
        arguments = (vocabulary, data, len(data), room, len(room), ctypes.c_bool(around), ctypes.c_bool(special))
        count = self.c.llama_tokenize(*arguments)
        return None if count < 0 else list(room[:count])

    def piece(self, vocabulary: ctypes.c_void_p, index: int) -> bytes:
        room = ctypes.create_string_buffer(1 << 12)
        count = self.c.llama_token_to_piece(vocabulary, index, room, len(room), 0, ctypes.c_bool(True))
        return room.raw[:count]

    def decoded(self, vocabulary: ctypes.c_void_p, ids: Sequence[int]) -> str:
        room = ctypes.create_string_buffer(1 << 16)
        of = (ctypes.c_int32 * len(ids))(*ids)
        flags = ctypes.c_bool(False), ctypes.c_bool(True)
        count = self.c.llama_detokenize(vocabulary, of, len(ids), room, len(room), *flags)
        return room.raw[:count].decode("utf-8", "replace")

    def answer(self, path: str, texts: Sequence[str], decode: bool) -> dict[str, Any]:
        model = self.load(path)
        if model is None:
            return {}
        vocabulary = ctypes.c_void_p(self.c.llama_model_get_vocab(ctypes.c_void_p(model)))
        of = {name: getattr(self.c, f"llama_vocab_{name}") for name in ("bos", "eos", "pad", "n_tokens")}
        found: dict[str, Any] = {name: int(function(vocabulary)) for name, function in of.items()}
        every = range(found["n_tokens"])
        for name in ("add_bos", "add_eos"):
            found[name] = bool(getattr(self.c, f"llama_vocab_get_{name}")(vocabulary) & 1)
        found["ends"] = [index for index in every if self.c.llama_vocab_is_eog(vocabulary, index) & 1]
        found["control"] = [index for index in every if self.c.llama_vocab_get_attr(vocabulary, index) & CONTROL]
        found["ids"] = [self.ids(vocabulary, text, False, True) for text in texts]
        found["plain"] = [self.ids(vocabulary, text, False, False) for text in texts[:SOME]]
        found["whole"] = [self.ids(vocabulary, text, True, True) for text in texts[:SOME]]
        if decode:
            pieces = [b"".join(self.piece(vocabulary, index) for index in ids) for ids in found["ids"]]
            found["pieces"] = [each.decode("utf-8", "replace") for each in pieces]
            found["decoded"] = [self.decoded(vocabulary, ids) for ids in found["ids"]]
        self.c.llama_model_free(ctypes.c_void_p(model))
        return found


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library = _Library()
    for line in sys.stdin:
        print(json.dumps(library.answer(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

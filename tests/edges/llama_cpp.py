"""llama.cpp as the reference for GGUF files: its server, in a process of its own, which an assertion of it may end.

As a program this file is that process: a request a line of its input, an answer a line of its output.
"""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Refused(Exception):
    """llama.cpp does not load the file, does not answer, or ends; the message has the end of its log."""


class _Worker:
    """The process; one serves every file until it ends."""

    def __init__(self) -> None:
        self._log = io.FileIO(os.memfd_create("llama.cpp"), "r+")
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

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer, or Refused with what the log says."""
        assert self._process.stdin is not None and self._process.stdout is not None
        start = self._log.seek(0, os.SEEK_END)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise Refused(f"llama.cpp ended: {self._since(start)}")
        answer = json.loads(line)
        if "refused" in answer:
            raise Refused(f"{answer['refused']} {self._since(start)}")
        return answer

    def _since(self, start: int) -> str:
        self._log.seek(start)
        return " / ".join(self._log.read().decode("utf-8", "replace").splitlines()[-5:])


@functools.cache
def _workers() -> list[_Worker]:
    return []


def _worker() -> _Worker:
    """The living one."""
    workers = _workers()
    if not workers or workers[-1].ended:
        workers[:] = [_Worker()]
    return workers[-1]


class LlamaCpp:
    """A GGUF file as llama.cpp reads it: on one thread of the CPU, with a cache in float32 and no flash attention.

    Raises Refused where it does not load. A prompt may have up to `context` tokens; `adapter` is a GGUF adapter.
    """

    def __init__(self, path: str | Path, *, context: int = 128, adapter: str | Path | None = None) -> None:
        adapters = [] if adapter is None else [str(adapter)]
        self._open = {"do": "open", "path": str(path), "context": context, "adapters": adapters}
        self._worker: _Worker | None = None
        self._number = 0
        self._ask("hello", {})

    def _ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        worker = _worker()
        if worker is not self._worker:
            self._number = worker.ask(self._open)["number"]
            self._worker = worker
        return worker.ask({"do": what, "number": self._number, **arguments})

    def close(self) -> None:
        """Let the file go."""
        if self._worker is not None and not self._worker.ended:
            self._ask("close", {})
        self._worker = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer of one of the server's addresses, to a GET where there is no body."""
        return self._ask("post", {"path": path, "body": body})["answer"]

    def log_probabilities(self, tokens: Sequence[int], vocabulary: int) -> np.ndarray:
        """log p(next token | tokens) of every token of the vocabulary: (vocabulary,), float64."""
        body = {"prompt": [int(token) for token in tokens], "n_predict": 1, "n_probs": vocabulary, "temperature": 0,
                "cache_prompt": False, "ignore_eos": True}  # fmt: skip
        found = np.full(vocabulary, np.nan)
        answer = self.post("/completion", body)
        if "completion_probabilities" not in answer:  # a token that is a part of a character is left out: take another
            answer = self.post("/completion", body | {"logit_bias": [[self.tokenize("a")[-1], 1e6]]})
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that follow, each the most probable one that does not end the text."""
        body = {"prompt": [int(token) for token in tokens], "n_predict": count, "temperature": 0, "return_tokens": True,
                "cache_prompt": False, "ignore_eos": True}  # fmt: skip
        return list(self.post("/completion", body)["tokens"])

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of `text`; `add_special` puts the tokens around it that the file asks for."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return list(self.post("/tokenize", body)["tokens"])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        return str(self.post("/detokenize", {"tokens": list(tokens)})["content"])

    def render(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        """The messages through the file's own chat template, with the beginning of the answer."""
        return str(self.post("/apply-template", {"messages": list(messages), **more})["prompt"])

    def properties(self) -> dict[str, Any]:
        """The server's /props: bos_token, eos_token, chat_template, ..."""
        return dict(self.post("/props"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


# ---------------------------------------------------------------------- the process
def _server(xllamacpp: Any, path: str, context: int, adapters: Sequence[str]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0) for adapter in adapters]
    parameters.model.path = path
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.n_gpu_layers, parameters.n_threads_http = 0, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = parameters.fit_params = parameters.ui = False
    parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.endpoint_props = parameters.use_jinja = True
    parameters.verbosity = 1  # errors
    return xllamacpp.Server(parameters)


def _post(address: str, body: Mapping[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import xllamacpp

    servers: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "open":
                answer["number"] = len(servers)
                servers[len(servers)] = _server(xllamacpp, request["path"], request["context"], request["adapters"])
            elif request["do"] == "post":
                address = servers[request["number"]].listening_address + request["path"]
                answer["answer"] = _post(address, request["body"])
            elif request["do"] == "close":
                servers[request["number"]] = None
        except urllib.error.HTTPError as error:
            answer["refused"] = error.read().decode("utf-8", "replace")
        except Exception as error:
            answer["refused"] = str(error)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

"""Generation: a token at a time over 4-bit bases against PEFT + bitsandbytes, and the real model against llama.cpp.

`entrenar chat` over the same model is measured beside the bare loop, from the first token that it prints to the last.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from harness import Bench, Row, Target, Times
from models import ALL_LINEARS, REAL
from timing import ON_CPU

PEERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "xllamacpp")
# With the target against PEFT + bitsandbytes, which multiplies 4-bit weights by one row only where the processor has
# products of bfloat16; elsewhere it dequantizes all of them for a token.
CASES = [(REAL, 10.0), ("1.1b", 8.0)]
BESIDE_KERNEL = 1.0
PREFILL = 512
QUESTION = "Explain what lists, tuples and dictionaries in Python are, with examples."  # its answer is long


class Chat:
    """The program `entrenar chat`, whose greedy answer is that of `entrenar generate`, which counts its tokens."""

    def __init__(self, precision: str, new: int) -> None:
        from entrenar.io.hub import fetch_default_model

        model = str(fetch_default_model(progress=False))
        options = ["--model", model, "--precision", precision, "--max-tokens", str(new + 1)]
        entrenar = [sys.executable, "-m", "entrenar"]
        said = subprocess.run([*entrenar, "generate", QUESTION, "--json", *options], stdout=subprocess.PIPE, check=True)
        found = json.loads(said.stdout)
        if found["tokens"] != new + 1:
            raise RuntimeError(f"The answer has {found['tokens']} tokens, expected {new + 1}; ask something else.")
        self.new, self.prompt_tokens, self.expected = new, int(found["prompt_tokens"]), f"{found['text']}\n".encode()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*entrenar, "chat", *options], stdin=pipe, stdout=pipe)
        atexit.register(self.process.terminate)  # however this process ends its work

    def prompt(self) -> int:
        """The tokens of the question in the model's template."""
        return self.prompt_tokens

    def decode(self) -> float:
        """Seconds for each token of an answer after the first, as they come."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"/reset\n{QUESTION}\n".encode())
        self.process.stdin.flush()
        answer = self._read()
        started = self._clock()
        while len(answer) < len(self.expected):
            answer += self._read()
        seconds = self._clock() - started
        if answer != self.expected:
            raise RuntimeError(f"chat answers {answer!r}, and generate {self.expected!r}.")
        return seconds / self.new

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        part = os.read(self.process.stdout.fileno(), 1 << 16)
        if not part:
            raise RuntimeError(f"chat ended with status {self.process.wait()}.")
        return part

    def _clock(self) -> float:
        """Wall time, or what the program used of a CPU: Linux makes the number of that clock of the process's."""
        return time.clock_gettime(~self.process.pid << 3 | 2) if ON_CPU else time.perf_counter()


def _row(case: str, times: Times, of: str, to: str, tokens: int, target: Target) -> Row:
    rates = ", ".join(f"{name} {tokens / times.median(name):.1f} tokens/s" for name in (of, to))
    return Row("decode", case, times.ratios(of, to), target=target, detail=rates)


def run(bench: Bench) -> None:
    """Decoding with adapters attached, then decoding and prefill of the bare model."""
    new = 8 if bench.quick else 64
    chosen = CASES[:1] if bench.quick else CASES
    with bench.worker("models", "Preparation") as preparation:
        for model, _ in chosen:
            preparation.call("prepare", model=model)
    for model, limit in chosen:
        arguments = {"model": model, "mode": "qlora", "targets": ALL_LINEARS}
        with bench.worker("models", "Ours", **arguments) as ours, bench.worker("models", "Peer", **arguments) as peer:
            decoded = _decoded(bench)
            turns = {name: partial(ours.call, "decode", new=new, precision=name) for name in decoded}
            times = bench.interleave(turns | {"peer": partial(peer.call, "decode", new=new)})
        target = Target(BESIDE_KERNEL if _multiplies_bfloat16() else limit)
        for name in decoded:
            bench.add(_row(f"{model} qlora, decode / PEFT + bitsandbytes, {name}", times, name, "peer", 1, target))
    _llama_cpp(bench, new)
    for precision in bench.precisions(four_bits=False):
        _chat(bench, new, precision)


def _chat(bench: Bench, new: int, precision: str) -> None:
    with (
        bench.worker("decode", "Chat", precision=precision, new=new) as chat,
        bench.worker("models", "Ours", model=REAL, mode="base", targets=[]) as ours,
    ):
        bare = partial(ours.call, "decode", new=new, precision=precision, prompt=chat.call("prompt"))
        times = bench.interleave({"chat": partial(chat.call, "decode"), "decode": bare})
    case = f"{REAL} q4_1, entrenar chat / decode, {precision}"
    bench.add(_row(case, times, "chat", "decode", 1, Target(0.95, tiers=None)))


def _decoded(bench: Bench) -> list[str]:
    """The precisions that differ for a single token: medium is high for it."""
    return [name for name in bench.precisions(four_bits=True) if name != "medium"]


def _multiplies_bfloat16() -> bool:
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def _llama_cpp(bench: Bench, new: int) -> None:
    precisions = bench.precisions(four_bits=True)
    with (
        bench.worker("models", "Ours", model=REAL, mode="base", targets=[]) as ours,
        bench.worker("models", "LlamaCpp", threads=bench.threads) as peer,
    ):
        decoded = _decoded(bench)
        turns = {name: partial(ours.call, "decode", new=new, precision=name) for name in decoded}
        times = bench.interleave(turns | {"llama.cpp": partial(peer.call, "decode", new=new)}, peaks=["read"])
        weights = ours.call("weight_bytes")  # all of them are read for a token
        for name in decoded:
            row = _row(f"{REAL} q4_1, decode / llama.cpp, {name}", times, name, "llama.cpp", 1, Target(1.0))
            row.roof = times.share(name, weights, "read")
            bench.add(row)
        turns = {name: partial(ours.call, "prefill", prompt=PREFILL, precision=name) for name in precisions}
        times = bench.interleave(turns | {"llama.cpp": partial(peer.call, "prefill", prompt=PREFILL)})
        for name in precisions:
            target = Target(2.0)  # in every precision, though llama.cpp multiplies 8-bit activations
            case = f"{REAL} q4_1, prefill of {PREFILL} / llama.cpp, {name}"
            bench.add(_row(case, times, name, "llama.cpp", PREFILL, target))

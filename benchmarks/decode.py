"""Generation: a token at a time over 4-bit bases against PEFT + bitsandbytes, and the real model against llama.cpp."""

from __future__ import annotations

from functools import partial

from harness import Bench, Row, Target, Times
from models import ALL_LINEARS, REAL

PEERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "xllamacpp")
CASES = [(REAL, 10.0), ("1.1b", 8.0)]  # with the target against PEFT + bitsandbytes
PREFILL = 512


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
            turns = {"ours": partial(ours.call, "decode", new=new), "peer": partial(peer.call, "decode", new=new)}
            times = bench.interleave(turns)
        bench.add(_row(f"{model} qlora, decode / PEFT + bitsandbytes", times, "ours", "peer", 1, Target(limit)))
    _llama_cpp(bench, new)


def _llama_cpp(bench: Bench, new: int) -> None:
    precisions = bench.precisions(four_bits=True)
    with (
        bench.worker("models", "Ours", model=REAL, mode="base", targets=[]) as ours,
        bench.worker("models", "LlamaCpp", threads=bench.threads) as peer,
    ):
        decoded = [name for name in precisions if name != "medium"]  # which is high for a single token
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

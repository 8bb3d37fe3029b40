"""Importing the package, and loading a model: seconds and peak memory, a fresh process each time."""

from __future__ import annotations

import importlib

from harness import Bench, Row, Target
from models import ALL_LINEARS, REAL
from timing import clock

PEERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
ANYWHERE = None
IMPORTS = {
    "entrenar": ["entrenar"],
    "what trains": ["entrenar.llama", "entrenar.qlora", "entrenar.optim"],
    "the peer's": ["torch", "transformers", "peft", "bitsandbytes"],
}
CASES = [(REAL, "qlora"), ("134m", "full"), ("134m", "qlora"), ("1.1b", "qlora")]


class Import:
    """A process that imports these modules and nothing else of weight."""

    def seconds(self, modules: list[str]) -> float:
        """What the imports take, one after the other."""
        started = clock()
        for module in modules:
            importlib.import_module(module)
        return clock() - started


def _imports(bench: Bench) -> None:
    limits = [Target(0.2, at_most=True, tiers=ANYWHERE), Target(60.0, at_most=True, tiers=ANYWHERE)]
    for label, modules in IMPORTS.items():
        targets = limits if modules[0].startswith("entrenar") else [None, None]
        seconds, peaks = [], []
        for _ in range(bench.repetitions):
            with bench.worker("load", "Import") as worker:
                seconds.append(worker.call("seconds", modules=modules))
            peaks.append(worker.close())
        bench.add(Row("load", f"import {label}", seconds, "s", targets[0]))
        bench.add(Row("load", f"import {label}", peaks, "MiB", targets[1], timed=False))


def run(bench: Bench) -> None:
    """Imports first, then every model on both sides, alternating."""
    _imports(bench)
    chosen = CASES[:1] if bench.quick else CASES
    with bench.worker("models", "Preparation") as preparation:
        for model in dict.fromkeys(model for model, _ in chosen):
            preparation.call("prepare", model=model)
    for model, mode in chosen:
        loads: dict[str, list[tuple[float, float]]] = {"Ours": [], "Peer": []}
        for _ in range(min(3, bench.repetitions)):
            for side, found in loads.items():
                with bench.worker("models", side, model=model, mode=mode, targets=ALL_LINEARS) as worker:
                    seconds = worker.call("loaded")["seconds"]
                found.append((seconds, worker.close()))
        ours, peer = loads["Ours"], loads["Peer"]
        for index, unit in ((0, "s"), (1, "MiB")):
            values = [mine[index] / theirs[index] for mine, theirs in zip(ours, peer, strict=True)]
            ranges = [f"{side.lower()} {min(v[index] for v in found):.3g} {unit}" for side, found in loads.items()]
            name = "seconds" if unit == "s" else "peak RSS"
            detail = f"least: {', '.join(ranges)}"
            bench.add(Row("load", f"{model} {mode} {name}, ours / peer", values, detail=detail, less=True))

"""One optimizer step on one sequence, loss to AdamW, against PyTorch + PEFT + bitsandbytes (and torch.compile)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness import Bench, Row, Target, milliseconds
from models import ALL_LINEARS, REAL

PEERS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
LENGTH = 512


@dataclass(frozen=True)
class Case:
    """A row of the table of targets: speed by precision, and peak memory as a share of the peer's."""

    model: str
    mode: str
    targets: list[str]
    speed: dict[str, float]
    memory: float | None
    compiled: bool = False  # whether torch.compile is worth trying
    options: dict[str, Any] = field(default_factory=dict)  # of our side alone

    @property
    def label(self) -> str:
        base = (
            {"dtype": "bf16 base"} if self.mode == "lora" else {}
        )  # as the file stores it, where nothing else is said
        named = {"dtype": "{} base", "checkpointing": "{} layers recomputed"}
        extra = base | {key: named.get(key, "{}").format(value) for key, value in self.options.items()}
        every = " all linears" if self.targets == ALL_LINEARS else "" if self.mode == "full" else " q,v"
        return ", ".join([f"{self.model} {self.mode}{every}", *extra.values()])

    @property
    def base(self) -> dict[str, Any]:
        """The arguments that both sides take."""
        return {"model": self.model, "mode": self.mode, "targets": self.targets}


QV = ["q_proj", "v_proj"]
CASES = [
    Case(REAL, "qlora", ALL_LINEARS, {"highest": 1.5, "high": 2.2, "medium": 2.8}, 0.35),
    Case(REAL, "qlora", ALL_LINEARS, {"highest": 1.5, "high": 2.2, "medium": 2.8}, 0.35, options={"quantize": "nf4"}),
    Case("134m", "full", [], {"highest": 1.15, "high": 1.7}, 0.9, compiled=True),
    Case("134m", "lora", QV, {"highest": 1.2, "high": 1.9}, 0.6, compiled=True),
    Case("134m", "qlora", QV, {"highest": 1.35, "high": 2.2, "medium": 3.0}, 0.45),
    Case("1.1b", "lora", QV, {"highest": 1.1, "high": 1.7}, 0.75),
    # of 22 layers some are computed again: what the memory's target costs in speed is in the speed's row
    Case("1.1b", "lora", QV, {}, 0.45, options={"dtype": "int16", "checkpointing": 4}),
    Case("1.1b", "qlora", QV, {"highest": 1.25, "high": 2.1, "medium": 2.8}, 0.40, options={"checkpointing": 7}),
]


def cases(bench: Bench) -> list[Case]:
    """Those of this run, their checkpoints written."""
    chosen = CASES[:1] if bench.quick else CASES
    with bench.worker("models", "Preparation") as preparation:
        for model in dict.fromkeys(case.model for case in chosen):
            preparation.call("prepare", model=model)
    return chosen


def run(bench: Bench) -> None:
    """Tokens a second of every case, in every precision, as a ratio to the best of the peer's configurations."""
    for case in cases(bench):
        with ExitStack() as stack:
            ours = stack.enter_context(bench.worker("models", "Ours", **case.base, **case.options))
            peers = {"peer": stack.enter_context(bench.worker("models", "Peer", **case.base))}
            if case.compiled and not bench.quick:
                peers["peer compiled"] = stack.enter_context(bench.worker("models", "Peer", **case.base, compiled=True))
            turns = {name: partial(side.call, "step", length=LENGTH) for name, side in peers.items()}
            precisions = bench.precisions(case.mode == "qlora")
            turns |= {name: partial(ours.call, "step", length=LENGTH, precision=name) for name in precisions}
            times = bench.interleave(turns)
        best = times.best(list(peers))
        for precision in precisions:
            limit = case.speed.get(precision)
            row = Row("step", f"{case.label} {precision}", times.ratios(precision, best))
            row.target = None if limit is None else Target(limit)
            rates = [f"{name} {LENGTH / times.median(name):.0f} tokens/s" for name in (precision, best)]
            row.detail = f"{milliseconds(times, [precision, best])}; {', '.join(rates)}"
            bench.add(row)

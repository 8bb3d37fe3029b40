"""Peak resident memory of loading and two steps, in a process of its own, as /usr/bin/time sees it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from harness import Bench, Row, Target, Worker
from models import ALL_LINEARS
from step import LENGTH, PEERS, QV, Case, cases

__all__ = ["PEERS", "run"]
ANYWHERE = None  # bytes do not depend on the SIMD tier
SEVEN_BILLION_MIB = 4.9 * 1024
DATA_MIB = 128  # 64 MiB of tokens in memory, and the index of a file
# without a target: the base as wide as the peer's, and every activation kept
FOR_COMPARISON = [
    Case("1.1b", "lora", QV, {}, None, options={"dtype": "float32"}),
    Case("1.1b", "qlora", QV, {}, None),
]


def _peak(worker: Worker, steps: int = 2) -> tuple[float, str]:
    """The peak of the whole process in MiB, and what it was after loading."""
    loaded = worker.call("loaded")["peak_mib"]
    for _ in range(steps):
        worker.call("step", length=LENGTH)
    return worker.close(), f"{loaded:.0f} loading"


class Reading:
    """A process that does with a file of examples what a run does before its first step, without a model's weights."""

    def first_rows(self, megabytes: int) -> dict[str, int]:
        """Encode a file of so many MB (1 kB a record), pack and hash it, and take a batch; records and tokens."""
        from entrenar.io.hub import fetch_default_model
        from entrenar.models.checkpoint import Checkpoint
        from entrenar.train import dataset, fingerprint, run
        from entrenar.train.config import Checkpointing, Data, TrainConfig

        checkpoint = Checkpoint.open(fetch_default_model(progress=False))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "examples.jsonl"
            with path.open("w") as file:
                for number in range(megabytes * 1000):
                    answer = f"the answer to {number} has words of several lengths. " * 18
                    file.write(json.dumps({"prompt": f"What is {number}?", "completion": answer}) + "\n")
            config = TrainConfig(data=Data(path=str(path)), checkpointing=Checkpointing(folder))
            found = dataset.encode(config, checkpoint.tokenizer(), checkpoint.config.vocab_size)
            loader, _ = run.batches(config, found.training, found.held_out, 0)
            fingerprint.of_examples(loader.samples)
            loader.next_batch()
        return {"records": megabytes * 1000, "tokens": loader.tokens}


def _data(bench: Bench) -> None:
    """What a file of examples adds to a run that reads a small one."""
    large = 50 if bench.quick else 500
    peaks, tokens = [], 0
    for megabytes in (1, large):
        with bench.worker("memory", "Reading") as worker:
            tokens = worker.call("first_rows", megabytes=megabytes)["tokens"]
        peaks.append(worker.close())
    target = Target(DATA_MIB, at_most=True, tiers=ANYWHERE)
    detail = f"{large},000 records, {tokens:,} tokens; {peaks[0]:.0f} MiB with 1 MB"
    label = f"examples, a file of {large} MB beside one of 1 MB"
    bench.add(Row("memory", label, [peaks[1] - peaks[0]], "MiB", target, detail=detail, timed=False))


def _compare(bench: Bench, case: Case, checkpointing: bool = False) -> None:
    """One row; under `checkpointing` both sides compute every layer again."""
    again = {"checkpointing": True} if checkpointing else {}
    with bench.worker("models", "Ours", **case.base, **case.options, **again) as ours:
        mine, my_load = _peak(ours)
    with bench.worker("models", "Peer", **case.base, **again) as peer:
        theirs, their_load = _peak(peer)
    label = f"{case.label}{', checkpointing' if checkpointing else ''}"
    target = None if case.memory is None else Target(case.memory, at_most=True, tiers=ANYWHERE)
    detail = f"ours {mine:.0f} MiB ({my_load}), peer {theirs:.0f} MiB ({their_load})"
    bench.add(Row("memory", label, [mine / theirs], target=target, detail=detail, timed=False, less=True))


def run(bench: Bench) -> None:
    """A file of examples, every case of `step`, 4-bit bases with checkpointing too, a 7B shape against a limit."""
    _data(bench)
    chosen = cases(bench)
    for case in chosen:
        _compare(bench, case)
        if case.mode == "qlora":
            options = {key: value for key, value in case.options.items() if key != "checkpointing"}
            _compare(bench, replace(case, memory=None, options=options), checkpointing=True)
    if not bench.quick:
        for case in FOR_COMPARISON:
            _compare(bench, case)
        _seven_billion(bench)


def _seven_billion(bench: Bench) -> None:
    with bench.worker("models", "Preparation") as preparation:
        preparation.call("prepare", model="7b")
    with bench.worker("models", "Ours", model="7b", mode="qlora", targets=ALL_LINEARS, checkpointing=True) as ours:
        peak, loading = _peak(ours, steps=1)
    target = Target(SEVEN_BILLION_MIB, at_most=True, tiers=ANYWHERE)
    bench.add(Row("memory", "7b qlora checkpointing", [peak], "MiB", target, detail=loading, timed=False))

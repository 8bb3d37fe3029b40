"""The loss of every step of a fine-tuning beside that of PEFT: same start, samples in the same order, schedule, AdamW.

Ours is `finetune` as a user runs it, from an adapter that PEFT drew. PEFT computes each sample for itself, where ours
packs several into a row: what leaked from one into another would show.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import Bench, Row, Target
from instructions import instructions
from models import ALL_LINEARS, ALPHA, RANK

PEERS = ("torch", "transformers", "peft", "accelerate")
STEPS, QUICK_STEPS = 300, 20
LENGTH = 128
LIMIT = 0.005
RATE, DECAY, CLIP, BETAS, EPS = 1e-3, 0.01, 1.0, (0.9, 0.999), 1e-8


def warmup(steps: int) -> int:
    """Steps of linear warmup."""
    return max(1, steps // 10)


class Files:
    """What both sides read, fetched once."""

    def paths(self) -> tuple[str, str]:
        """The default model and the instructions."""
        from entrenar.io.hub import fetch_default_model

        return str(fetch_default_model(progress=False)), str(instructions())


class Ours:
    """entrenar's own fine-tuning; what its loader gives is kept for the peer."""

    def train(
        self, model: str, data: str, start: str, steps: int, length: int, mode: str, precision: str, seen: str
    ) -> list[float]:
        """The loss of each step, from the adapter in `start`; the step's samples are written to `seen`.

        `mode` lora computes over a float32 base, qlora over the 4-bit values of the file.
        """
        import json

        from rich.console import Console

        from entrenar.data import Batch, DataLoader
        from entrenar.lora import LoRAConfig
        from entrenar.qlora import QLoRAConfig
        from entrenar.train import TrainConfig, finetune
        from entrenar.train.config import Checkpointing, Data, LRSchedule, Training

        given: list[list[Any]] = []

        class Kept(DataLoader):
            def next_batches(self, count: int, rank: int = 0, size: int = 1) -> list[Batch]:
                batches = super().next_batches(count, rank, size)
                given.append([pair for batch in batches for pair in separate(batch)])
                return batches

        import entrenar.train.run as run

        adapter = {"rank": RANK, "alpha": ALPHA, "target_modules": ALL_LINEARS}
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                training=Training(
                    steps=steps,
                    sequence_length=length,
                    learning_rate=RATE,
                    weight_decay=DECAY,
                    max_grad_norm=CLIP,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    eps=EPS,
                    precision=precision,
                    continue_adapter=start,
                ),
                lr_schedule=LRSchedule(name="warmup_cosine", warmup_steps=warmup(steps)),
                data=Data(path=data, held_out_fraction=0.01),
                checkpointing=Checkpointing(directory=folder, minutes=0),
                adapter=QLoRAConfig(**adapter) if mode == "qlora" else LoRAConfig(**adapter),
            )
            run.DataLoader = Kept  # type: ignore[misc]
            try:
                reports = finetune(model, config, console=Console(quiet=True)).reports
            finally:
                run.DataLoader = DataLoader  # type: ignore[misc]
        Path(seen).write_text(json.dumps(given))
        return [report.loss for report in reports]


def separate(batch: Any) -> list[tuple[list[int], list[int]]]:
    """The samples of packed rows: the tokens of each, and the target of each token (the next one, or -100)."""
    tokens, targets = batch.tokens.reshape(-1), batch.targets.reshape(-1)
    bounds = batch.cu_seqlens.tolist()
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    return [(tokens[part].tolist(), targets[part].tolist()) for part in parts if (targets[part] != -100).any()]


class Peer:
    """PyTorch, transformers and PEFT in float32: a loop that a user of them would write."""

    def __init__(self, model: str, start: str | None = None) -> None:
        import torch
        import transformers
        from peft import LoraConfig, PeftModel, get_peft_model

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        path = Path(model)
        of_file = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", use_cache=False, **of_file
        )
        settings = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=ALL_LINEARS, task_type="CAUSAL_LM")
        self.model: Any = (
            get_peft_model(base, settings)
            if start is None
            else PeftModel.from_pretrained(base, start, is_trainable=True)
        )

    def save(self, folder: str) -> None:
        """Write the adapter as it is."""
        self.model.save_pretrained(folder)

    def train(self, seen: str, steps: int) -> list[float]:
        """The loss of each step over the samples in `seen`."""
        import json

        import torch

        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, warmup(steps), steps))
        losses = []
        for samples in json.loads(Path(seen).read_text()):
            count = sum(target != -100 for _, targets in samples for target in targets)
            total = 0.0
            for tokens, targets in samples:
                logits = self.model(input_ids=torch.tensor([tokens])).logits[0]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum") / count
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(total)
        return losses


def share(step: int, warm: int, steps: int) -> float:
    """The learning rate's share of its peak: linear warmup whose first step trains, then half a cosine."""
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


@dataclass(frozen=True)
class Furthest:
    """The step whose losses are furthest apart."""

    step: int
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        """Relative to the peer's; infinite where a loss is no number."""
        found = abs(self.ours - self.theirs) / abs(self.theirs)
        return found if math.isfinite(found) else math.inf


def furthest(ours: list[float], theirs: list[float]) -> Furthest:
    """The greatest relative difference of two curves of as many steps."""
    steps = [Furthest(number, *pair) for number, pair in enumerate(zip(ours, theirs, strict=True), 1)]
    return max(steps, key=lambda step: step.difference)


CASES = [("lora", "highest"), ("qlora", "auto")]  # the second is how the programs train by default


def run(bench: Bench) -> None:
    """The curves of the default model on the instructions."""
    steps = QUICK_STEPS if bench.quick else STEPS
    with bench.worker("curve", "Files") as files:
        model, data = files.call("paths")
    with tempfile.TemporaryDirectory() as folder:
        start, seen = f"{folder}/start", f"{folder}/seen.json"
        with bench.worker("curve", "Peer", model=model) as peer:
            peer.call("save", folder=start)
            with bench.worker("curve", "Ours") as side:
                options = {"model": model, "data": data, "start": start, "steps": steps, "length": LENGTH, "seen": seen}
                ours = {case: side.call("train", mode=case[0], precision=case[1], **options) for case in CASES}
            theirs = peer.call("train", seen=seen, steps=steps)
    for (mode, precision), losses in ours.items():
        far = furthest(losses, theirs)
        row = Row("curve", f"loss of {steps} steps, {mode} {precision} / PEFT", [far.difference], unit="")
        row.timed, row.target = False, Target(LIMIT, at_most=True, tiers=None)
        row.detail = f"furthest at step {far.step}: {far.ours:.6f}, PEFT {far.theirs:.6f}; last {losses[-1]:.6f}"
        row.detail += f", PEFT {theirs[-1]:.6f}"
        bench.add(row)

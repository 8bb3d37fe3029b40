"""What a precision costs in loss: the same 60 steps of QLoRA in each, and their held-out losses at `highest`."""

from __future__ import annotations

import tempfile

from harness import Bench, Row, Target
from instructions import instructions
from models import ALL_LINEARS, ALPHA, RANK

PEERS = ()
STEPS, QUICK_STEPS = 60, 4
LIMITS = {"high": 0.002, "medium": 0.01}


class Ours:
    """entrenar's own fine-tuning, from files to an adapter."""

    def __init__(self) -> None:
        from entrenar.io.hub import fetch_default_model

        self.model = fetch_default_model(progress=False)
        self.data = instructions()

    def train(self, precision: str, steps: int) -> float:
        """The held-out loss at `highest` of the adapter that training in `precision` writes."""
        from rich.console import Console

        from entrenar.data import encode_example, evaluation_batches, read_examples, split_held_out
        from entrenar.llama import LLaMAModel
        from entrenar.lora import load_adapter
        from entrenar.models.checkpoint import Checkpoint
        from entrenar.qlora import QLoRAConfig
        from entrenar.train import TrainConfig, evaluate, finetune
        from entrenar.train.config import Checkpointing, Data, Training

        data = Data(path=str(self.data), held_out_fraction=0.1)
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                training=Training(steps=steps, precision=precision),
                data=data,
                checkpointing=Checkpointing(directory=folder),
                qlora=QLoRAConfig(rank=RANK, alpha=ALPHA, target_modules=ALL_LINEARS),
            )
            adapter = finetune(self.model, config, console=Console(quiet=True)).output
            checkpoint = Checkpoint.open(self.model)
            tokenizer, length = checkpoint.tokenizer(), config.training.sequence_length
            _, held_out = split_held_out(read_examples(self.data), data.held_out_fraction)
            samples = [encode_example(example, tokenizer, length) for example in held_out]
            model = LLaMAModel.from_pretrained(self.model, quantize="auto")
            load_adapter(model, adapter)
            kept = [sample for sample in samples if sample.trained.any()]
            return evaluate(model, list(evaluation_batches(kept, 1, length, True, tokenizer.pad_id or 0))).loss


def run(bench: Bench) -> None:
    """Every precision of this tier beside `highest`."""
    steps = QUICK_STEPS if bench.quick else STEPS
    with bench.worker("quality", "Ours") as ours:
        losses = {name: ours.call("train", precision=name, steps=steps) for name in bench.precisions(four_bits=True)}
    for name, loss in losses.items():
        if name == "highest":
            continue
        row = Row("quality", f"held-out loss after {steps} steps, {name} - highest", [abs(loss - losses["highest"])])
        row.unit, row.timed, row.target = "nats", False, Target(LIMITS[name], at_most=True, tiers=None)
        row.detail = f"{name} {loss:.5f}, highest {losses['highest']:.5f}"
        bench.add(row)

"""AdamW and SGD with momentum: bytes a second against what memory gives, and against torch's fused optimizers."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness import Bench, Row, Target, milliseconds
from models import ALL_LINEARS, RANK
from timing import timed

PEERS = ("torch",)
# streams of 4 bytes for each parameter: reads of parameter, gradient and state, writes of all but the gradient
STREAMS = {"AdamW": 7, "SGD": 5}
MATRICES = [(2048, 1024)] * 16  # 33.5 million parameters: far beyond any cache
SHARE_OF_BANDWIDTH = 0.85


def adapters() -> list[tuple[int, int]]:
    """The LoRA matrices of SmolLM2-135M: 420 small tensors."""
    hidden, inner, kv = 576, 1536, 192
    sizes = {"k_proj": (hidden, kv), "v_proj": (hidden, kv), "gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    sizes["down_proj"] = (inner, hidden)
    layer = []
    for name in ALL_LINEARS:
        columns, rows = sizes.get(name, (hidden, hidden))
        layer += [(RANK, columns), (rows, RANK)]
    return layer * 30


class Ours:
    """entrenar.optim."""

    def __init__(self, shapes: list[tuple[int, int]], optimizer: str) -> None:
        import numpy as np

        from entrenar import optim
        from entrenar.autograd import Tensor

        rng = np.random.default_rng(0)
        self.parameters = [Tensor(rng.standard_normal(shape, np.float32), requires_grad=True) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = rng.standard_normal(parameter.shape, np.float32)
        options: dict[str, Any] = {"lr": 1e-6} | ({"momentum": 0.9} if optimizer == "SGD" else {})
        self.optimizer = getattr(optim, optimizer)(self.parameters, **options)

    def step(self, clip: bool) -> float:
        from entrenar.optim import clip_factor, grad_norm

        def update() -> None:
            self.optimizer.step(clip_factor(grad_norm(self.parameters), 1.0) if clip else 1.0)

        return timed(update)


class Torch:
    """torch.optim, fused."""

    def __init__(self, shapes: list[tuple[int, int]], optimizer: str) -> None:
        import torch

        torch.manual_seed(0)
        self.parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = torch.randn_like(parameter)
        options: dict[str, Any] = {"lr": 1e-6, "fused": True} | ({"momentum": 0.9} if optimizer == "SGD" else {})
        self.optimizer = getattr(torch.optim, optimizer)(self.parameters, **options)

    def step(self, clip: bool) -> float:
        import torch

        def update() -> None:
            if clip:
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
            self.optimizer.step()

        return timed(update)


def run(bench: Bench) -> None:
    """Large matrices by bandwidth, many small ones by overhead; with and without clipping of the gradient's norm."""
    for label, shapes in (("33.5M parameters", MATRICES), ("420 LoRA matrices", adapters())):
        count = sum(rows * columns for rows, columns in shapes)
        for name, streams in STREAMS.items():
            arguments = {"shapes": shapes, "optimizer": name}
            with (
                bench.worker("optimizer", "Ours", **arguments) as ours,
                bench.worker("optimizer", "Torch", **arguments) as torch,
            ):
                for clip in (False, True):
                    sides = {"ours": ours, "torch fused": torch}
                    turns = {side: partial(worker.call, "step", clip=clip) for side, worker in sides.items()}
                    times = bench.interleave(turns, ["update"])
                    case = f"{name}{' + clipping' if clip else ''}, {label}"
                    row = Row("optimizer", f"{case} / torch fused", times.ratios("ours", "torch fused"))
                    row.detail = milliseconds(times, list(turns))
                    bench.add(row)
                    if shapes is MATRICES and not clip:
                        gigabytes = 4e-9 * streams * count
                        pairs = zip(times.seconds["ours"], times.peaks, strict=True)
                        shares = [gigabytes / seconds / peaks["update"] for seconds, peaks in pairs]
                        row = Row("optimizer", f"{case}, share of bandwidth", shares, target=Target(SHARE_OF_BANDWIDTH))
                        row.detail = f"{gigabytes / times.median('ours'):.1f} GB/s"
                        bench.add(row)

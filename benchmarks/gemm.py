"""Matrix multiplication: the three products of a linear layer, every type of W, every precision, against torch.

    forward  Y = X W^T        input  dX = dY W        weight  dW = dY^T X        X (m, k), W (n, k), dY (m, n)

Ours runs through the public operations, so that dequantizing, packing and recording are in the time; torch writes into
memory that it already has.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from harness import Bench, Row, Target, Times, milliseconds
from timing import timed

PEERS = ("torch",)
SHAPES = [
    (512, 768, 768), (512, 2048, 768), (512, 768, 2048), (512, 32000, 768),
    (512, 4096, 4096), (512, 11008, 4096), (512, 4096, 11008),
    (2048, 768, 768), (2048, 2048, 768), (2048, 32000, 768), (2048, 4096, 4096), (2048, 11008, 4096),
]  # fmt: skip
INTEGER_SHAPES = [(512, 768, 768), (512, 2048, 2048), (512, 4096, 4096), (512, 11008, 4096), (512, 4096, 11008)]
QUICK_SHAPES = [(512, 768, 768), (512, 2048, 768)]
LAYOUTS = ("forward", "input", "weight")
WEIGHT_TYPES = ("fp32", "bf16", "nf4", "q4_1")
PEAK = {"highest": "fp32", "high": "int16", "medium": "int8"}


class Ours:
    """entrenar's `linear`, forward and backward."""

    def prepare(self, m: int, n: int, k: int) -> None:
        import ml_dtypes
        import numpy as np

        from entrenar.autograd import QuantizedTensor, Tensor

        rng = np.random.default_rng(0)
        self.x = Tensor.from_numpy(rng.standard_normal((m, k), np.float32))
        self.dy = Tensor.from_numpy(rng.standard_normal((m, n), np.float32))
        w = rng.standard_normal((n, k), np.float32)
        self.weights: dict[str, Any] = {
            "fp32": Tensor.from_numpy(w),
            "bf16": Tensor.from_numpy(w.astype(ml_dtypes.bfloat16)),
            "nf4": QuantizedTensor.quantize(w, "nf4"),
            "q4_1": QuantizedTensor.quantize(w, "q4_1"),
        }

    def run(self, layout: str, weight_type: str, precision: str) -> float:
        from entrenar import matmul_precision
        from entrenar.autograd import Tensor, linear, no_grad

        weight = self.weights[weight_type]
        with matmul_precision(precision):
            if layout == "forward":
                with no_grad():
                    return timed(lambda: linear(self.x, weight))

            def recorded() -> Tensor:
                if layout == "weight":
                    leaf = Tensor.from_numpy(weight.numpy(), requires_grad=True)
                    return linear(self.x, leaf)
                return linear(Tensor.from_numpy(self.x.numpy(), requires_grad=True), weight)

            return timed(lambda y: y.backward(self.dy), recorded)


class Torch:
    """torch.mm."""

    def prepare(self, m: int, n: int, k: int) -> None:
        import torch

        torch.manual_seed(0)
        self.x, self.w, self.dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)

    def run(self, layout: str) -> float:
        import torch

        x, w, dy = self.x, self.w, self.dy
        a, b = {"forward": (x, w.T), "input": (dy, w), "weight": (dy.T, x)}[layout]
        out = torch.empty(a.shape[0], b.shape[1])
        return timed(lambda: torch.mm(a, b, out=out))


def _turn_names(bench: Bench, layout: str) -> list[tuple[str, str]]:
    """(weight_type, precision) of our turns; the weight's gradient has no frozen weight."""
    weight_types = ("fp32",) if layout == "weight" else WEIGHT_TYPES
    return [
        (weight_type, precision)
        for weight_type in weight_types
        for precision in bench.precisions(weight_type in ("nf4", "q4_1"))
    ]


def _show(bench: Bench, case: str, times: Times, names: list[tuple[str, str]], work: float) -> None:
    for weight_type, precision in names:
        name = f"{weight_type} {precision}"
        row = Row("gemm", f"{case} {name}", times.ratios(name, "torch"), detail=milliseconds(times, [name, "torch"]))
        row.roof = times.share(name, work, PEAK[precision])
        bench.add(row)


def run(bench: Bench) -> None:
    """Every shape and layout, then what the targets are about."""
    shapes = QUICK_SHAPES if bench.quick else [*SHAPES, *(shape for shape in INTEGER_SHAPES if shape not in SHAPES)]
    measured: dict[tuple[tuple[int, int, int], str], Times] = {}
    with bench.worker("gemm", "Ours") as ours, bench.worker("gemm", "Torch") as torch:
        for shape in shapes:
            m, n, k = shape
            ours.call("prepare", m=m, n=n, k=k)
            torch.call("prepare", m=m, n=n, k=k)
            for layout in LAYOUTS:
                names = _turn_names(bench, layout)
                turns = {"torch": partial(torch.call, "run", layout=layout)}
                for weight_type, precision in names:
                    turn = partial(ours.call, "run", layout=layout, weight_type=weight_type, precision=precision)
                    turns[f"{weight_type} {precision}"] = turn
                peaks = sorted({PEAK[precision] for _, precision in names})
                times = measured[shape, layout] = bench.interleave(turns, peaks)
                _show(bench, f"{m}x{n}x{k} {layout}", times, names, 2.0 * m * n * k)
    _summaries(bench, measured)


def _geometric(tables: list[list[float]]) -> list[float]:
    """The geometric mean over cases, by repetition."""
    return [statistics.geometric_mean(column) for column in zip(*tables, strict=True)]


def _summaries(bench: Bench, measured: dict[tuple[tuple[int, int, int], str], Times]) -> None:
    listed = [times for (shape, _), times in measured.items() if shape in SHAPES]
    ratios = [times.ratios("fp32 highest", "torch") for times in listed]
    bench.add(Row("gemm", f"highest / torch, {len(ratios)} products", _geometric(ratios), target=Target(1.0)))
    worst = min(ratios, key=statistics.median)
    bench.add(Row("gemm", "highest / torch, slowest product", worst, target=Target(0.92)))
    frozen = [times for (_, layout), times in measured.items() if layout != "weight"]
    for weight_type in ("nf4", "q4_1", "bf16"):
        costs = [times.ratios("fp32 highest", f"{weight_type} highest") for times in frozen]
        target = Target(1.05, at_most=True) if weight_type == "nf4" else None
        bench.add(Row("gemm", f"time of {weight_type} / fp32, highest", _geometric(costs), target=target, less=True))
        worst = max(costs, key=statistics.median)
        bench.add(
            Row("gemm", f"time of {weight_type} / fp32, highest, slowest product", worst, target=target, less=True)
        )
    integer = [(layout, times) for (shape, layout), times in measured.items() if shape in INTEGER_SHAPES]
    for precision, limit in (("high", 1.8), ("medium", 3.0)):
        if precision not in bench.precisions(four_bits=True):
            continue
        for weight_type in ("nf4", "q4_1") if precision == "medium" else WEIGHT_TYPES:
            gains = [
                times.ratios(f"{weight_type} {precision}", "fp32 highest")
                for layout, times in integer
                if layout != "weight" or weight_type == "fp32"
            ]
            bench.add(Row("gemm", f"{precision} {weight_type} / highest fp32", _geometric(gains), target=Target(limit)))

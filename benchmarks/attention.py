"""Causal attention, forward and backward, against torch's scaled_dot_product_attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness import Bench, Row, Target, milliseconds
from timing import timed

PEERS = ("torch",)
# heads, key and value heads, length, head size, and the target for forward + backward
CASES = [
    (9, 9, 512, 64, 1.5),
    (12, 12, 512, 64, 1.5),
    (32, 32, 512, 64, 1.5),
    (9, 3, 512, 64, 1.5),
    (32, 4, 512, 64, 1.5),
    (32, 32, 512, 128, 1.5),
    (9, 9, 2048, 64, 1.2),
    (12, 12, 2048, 64, 1.2),
    (32, 32, 2048, 64, 1.2),
    (32, 32, 2048, 128, 1.2),
    (32, 8, 2048, 128, 1.2),
]
QUICK_CASES = CASES[:1] + CASES[3:4]


class Ours:
    """entrenar's `attention` over (1, length, heads, head size)."""

    def prepare(self, heads: int, kv_heads: int, length: int, size: int) -> None:
        import numpy as np

        from entrenar.autograd import Tensor

        rng = np.random.default_rng(0)
        shapes = [(1, length, count, size) for count in (heads, kv_heads, kv_heads)]
        self.qkv = [Tensor(rng.standard_normal(shape, np.float32), requires_grad=True) for shape in shapes]
        self.gradient = Tensor(rng.standard_normal(shapes[0], np.float32))

    def forward(self) -> float:
        from entrenar.autograd import attention, no_grad

        with no_grad():
            return timed(lambda: attention(self.qkv[0], self.qkv[1], self.qkv[2]))

    def both(self) -> float:
        from entrenar.autograd import attention

        def clear() -> None:
            for tensor in self.qkv:
                tensor.grad = None

        return timed(lambda _: attention(self.qkv[0], self.qkv[1], self.qkv[2]).backward(self.gradient), clear)


class Torch:
    """torch's SDPA over contiguous (1, heads, length, head size); grouped heads by its own flag, or repeated."""

    def prepare(self, heads: int, kv_heads: int, length: int, size: int) -> None:
        import torch

        torch.manual_seed(0)
        shapes = [(1, count, length, size) for count in (heads, kv_heads, kv_heads)]
        self.qkv = [torch.randn(shape, requires_grad=True) for shape in shapes]
        self.gradient = torch.randn(shapes[0])
        self.repeats = heads // kv_heads

    def _attend(self, repeat: bool) -> Any:
        from torch.nn.functional import scaled_dot_product_attention

        q, k, v = self.qkv
        if repeat:
            k, v = k.repeat_interleave(self.repeats, dim=1), v.repeat_interleave(self.repeats, dim=1)
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.repeats > 1 and not repeat)

    def forward(self, repeat: bool) -> float:
        import torch

        with torch.no_grad():
            return timed(lambda: self._attend(repeat))

    def both(self, repeat: bool) -> float:
        def clear() -> None:
            for tensor in self.qkv:
                tensor.grad = None

        return timed(lambda _: self._attend(repeat).backward(self.gradient), clear)


def run(bench: Bench) -> None:
    """Forward alone, and forward with backward, of every case."""
    with bench.worker("attention", "Ours") as ours, bench.worker("attention", "Torch") as torch:
        for heads, kv_heads, length, size, limit in QUICK_CASES if bench.quick else CASES:
            shape = {"heads": heads, "kv_heads": kv_heads, "length": length, "size": size}
            ours.call("prepare", **shape)
            torch.call("prepare", **shape)
            case = f"{heads}{'' if heads == kv_heads else f' (kv {kv_heads})'}x{length}x{size}"
            # multiply-adds of the lower triangle: 2 products forward, 5 more backward
            triangle = 2.0 * heads * size * length * (length + 1) / 2
            for method, products, target in (("forward", 2, None), ("both", 7, Target(limit))):
                turns = {"ours": partial(ours.call, method), "torch": partial(torch.call, method, repeat=False)}
                if heads != kv_heads:
                    turns["torch repeated"] = partial(torch.call, method, repeat=True)
                times = bench.interleave(turns, ["fp32"])
                peer = times.best([name for name in turns if name != "ours"])
                label = "forward + backward" if method == "both" else method
                row = Row("attention", f"{case} {label}", times.ratios("ours", peer), target=target)
                row.roof = times.share("ours", products * triangle, "fp32")
                row.detail = milliseconds(times, list(turns))
                bench.add(row)

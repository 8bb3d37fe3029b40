"""The cost of recording: scalar operations, and a step of a model too small for its arithmetic to matter."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness import Bench, Row, Target, Times, milliseconds
from timing import clock, timed

PEERS = ("torch", "transformers")
ANYWHERE = None
CHAIN = 2000  # scalar operations of a graph
MICROSECONDS = 1.0  # a scalar operation may take, and as much again backward
TINY: dict[str, Any] = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
HEADS, LENGTH, EPS = 4, 32, 1e-5


def _chain(one: Any, scale: Any) -> dict[str, float]:
    """Seconds an operation to record a chain of products and sums, and to walk it back."""
    started = clock()
    value = one
    for _ in range(CHAIN // 2):
        value = value * scale + one
    recorded = clock()
    value.backward()
    walked = clock()
    return {"record": (recorded - started) / CHAIN, "backward": (walked - recorded) / CHAIN}


def _unheard() -> float:
    """Seconds of a span and a metric within it that nobody listens to."""
    from entrenar.observe import metric, span

    started = clock()
    for _ in range(CHAIN):
        with span("entrenar.step", step=1):
            metric("entrenar_step_duration_seconds", 1.0)
    return (clock() - started) / CHAIN


class Ours:
    """entrenar's tape and its LLaMA."""

    def __init__(self) -> None:
        from entrenar.llama import LLaMAConfig, LLaMAModel
        from entrenar.optim import AdamW

        self.model = LLaMAModel(LLaMAConfig(**TINY, num_attention_heads=HEADS))
        self.optimizer = AdamW(self.model.trainable_parameters(), lr=1e-4)

    def scalars(self) -> dict[str, float]:
        from entrenar.autograd import Tensor

        found = _chain(Tensor(1.0, requires_grad=True), Tensor(0.5))
        return found | {"event": _unheard()}

    def step(self) -> float:
        import numpy as np

        tokens = np.random.default_rng(0).integers(0, TINY["vocab_size"], (1, LENGTH + 1))

        def once() -> None:
            self.model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return timed(once)


class Torch:
    """torch eager: its tape, transformers' LLaMA, and the leanest LLaMA that its own operations allow."""

    def __init__(self) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        settings: dict[str, Any] = {**TINY, "num_attention_heads": HEADS, "attn_implementation": "sdpa"}
        config = transformers.LlamaConfig(**settings, rms_norm_eps=EPS)
        self.hugging_face = transformers.LlamaForCausalLM(config)
        self.weights = [p.detach().clone().requires_grad_() for p in self.hugging_face.parameters()]
        angles = torch.outer(torch.arange(LENGTH), 10_000.0 ** -(torch.arange(0, 16, 2) / 16))
        self.cos, self.sin = (torch.cat([f(angles), f(angles)], dim=-1) for f in (torch.cos, torch.sin))
        options: Any = {"lr": 1e-4, "fused": True}
        self.optimizers = {
            "lean": torch.optim.AdamW(self.weights, **options),
            "transformers": torch.optim.AdamW(self.hugging_face.parameters(), **options),
        }

    def scalars(self) -> dict[str, float]:
        import torch

        return _chain(torch.tensor(1.0, requires_grad=True), torch.tensor(0.5))

    def _rotate(self, x: Any) -> Any:
        import torch

        a, b = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-b, a], dim=-1) * self.sin

    def _lean_loss(self, tokens: Any) -> Any:
        """The loss by torch.nn.functional alone; the weights come in transformers' order."""
        from torch.nn import functional as F

        weights = iter(self.weights)
        x = F.embedding(tokens[:, :-1], next(weights))
        size = x.shape[-1]
        for _ in range(TINY["num_hidden_layers"]):
            q, k, v, o, gate, up, down, first_norm, second_norm = (next(weights) for _ in range(9))
            y = F.rms_norm(x, (size,), first_norm, EPS)
            heads = [F.linear(y, w).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in (q, k, v)]
            y = F.scaled_dot_product_attention(self._rotate(heads[0]), self._rotate(heads[1]), heads[2], is_causal=True)
            x = x + F.linear(y.transpose(1, 2).flatten(-2), o)
            y = F.rms_norm(x, (size,), second_norm, EPS)
            x = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
        x = F.rms_norm(x, (size,), next(weights), EPS)
        return F.cross_entropy(F.linear(x, next(weights))[0], tokens[0, 1:])

    def step(self, kind: str) -> float:
        import torch

        tokens = torch.randint(0, TINY["vocab_size"], (1, LENGTH + 1), generator=torch.Generator().manual_seed(0))

        def once() -> None:
            if kind == "lean":
                self._lean_loss(tokens).backward()
            else:
                self.hugging_face(input_ids=tokens, labels=tokens).loss.backward()
            self.optimizers[kind].step()
            self.optimizers[kind].zero_grad(set_to_none=True)

        return timed(once)

    def check(self) -> None:
        """The lean model computes what transformers' does."""
        import torch

        tokens = torch.randint(0, TINY["vocab_size"], (1, LENGTH + 1))
        with torch.no_grad():
            lean = self._lean_loss(tokens)
            logits = self.hugging_face(input_ids=tokens[:, :-1]).logits[0]
            torch.testing.assert_close(lean, torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))


def run(bench: Bench) -> None:
    """Microseconds an operation, and ratios to torch eager."""
    with bench.worker("tape", "Ours") as ours, bench.worker("tape", "Torch") as torch:
        torch.call("check")
        found: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
        for repetition in range(bench.repetitions + 1):
            for name, side in (("ours", ours), ("torch", torch)):
                measured = side.call("scalars")
                if repetition:  # the first one warms up
                    found[name].append(measured)
        for what in ("record", "backward"):
            times = Times({name: [values[what] for values in found[name]] for name in found})
            values = [1e6 * seconds for seconds in times.seconds["ours"]]
            target = Target(MICROSECONDS, at_most=True, tiers=ANYWHERE)
            bench.add(Row("tape", f"scalar operation, {what}", values, "us", target))
            bench.add(Row("tape", f"scalar operation, {what} / torch eager", times.ratios("ours", "torch")))
        events = [1e6 * values["event"] for values in found["ours"]]
        bench.add(Row("tape", "span and metric that nobody hears", events, "us"))
        kinds = {f"torch {kind}": partial(torch.call, "step", kind=kind) for kind in ("lean", "transformers")}
        times = bench.interleave({"ours": partial(ours.call, "step"), **kinds})
        for name in kinds:
            row = Row("tape", f"step of a 2-layer, 64-wide model / {name}", times.ratios("ours", name))
            row.target = Target(5.0, tiers=ANYWHERE) if name == "torch lean" else None
            row.detail = milliseconds(times, ["ours", name])
            bench.add(row)

"""Where the time of one training step goes, by operation: `python benchmarks/profile_step.py [--precision high]`.

Every operation of the model is timed where it stands. Backward is timed too: the output of each operation is handed on
as a leaf, so that its node can be walked alone once the operations after it have filled the leaf's gradient. That adds
a copy of the gradient to residual additions, and spares norms and SwiGLU from being computed again for the adapters'
gradients; the table's sum is printed beside the time of an untouched step to show what that amounts to. The adapters'
share of the linears is their time without that of the same frozen products run again.

`--perf` samples an untouched step with Linux perf instead and prints percent by function.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import ALL_LINEARS, REAL, SHAPES, Ours, Preparation
from timing import clock

from entrenar import matmul_precision
from entrenar.autograd import Tensor, no_grad, ops
from entrenar.autograd.precision import auto_precision
from entrenar.nn import layers
from entrenar.optim import AdamW, clip_grad_norm

FROZEN, LINEAR, AGAIN = "frozen products of grouped_linear", "grouped_linear", "again"
OPERATIONS = (
    "add", "attention", "embedding", "linear", "linear_cross_entropy", "rms_norm", "rope", "swiglu"
)  # fmt: skip


class Profiler:
    """Seconds and calls by (operation, phase)."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)
        self.tape: list[tuple[str, Tensor, Tensor, tuple[Any, ...]]] = []
        self.linear, self.grouped_linear = ops.linear, ops.grouped_linear

    def time(self, name: str, phase: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The function's result; its seconds are added to `name`'s."""
        started = clock()
        result = function(*arguments, **options)
        self.seconds[name, phase] += clock() - started
        self.calls[name, phase] += 1
        return result

    def wrapped(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function`, timed, its output cut off from what computed it."""

        def call(*arguments: Any, **options: Any) -> Tensor:
            out = self.time(name, "forward", function, *arguments, **options)
            return self.cut_off(name, out, arguments)

        return call

    def cut_off(self, name: str, out: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        """A leaf in the place of `out`, whose node is walked alone; `arguments` are those of the operation."""
        if not out.requires_grad:
            return out
        leaf = out.detach()
        leaf.requires_grad = True
        self.tape.append((name, out, leaf, arguments))
        return leaf

    def grouped(self, x: Tensor, weights: Any, biases: Any = None, updates: Any = None) -> list[Tensor]:
        """`grouped_linear`, timed once with the adapters and once without them."""
        function = self.grouped_linear
        outputs = self.time(LINEAR, "forward", function, x, weights, biases, updates)
        with no_grad():
            self.time(AGAIN, "forward", function, x, weights, biases)
        return [self.cut_off(LINEAR, y, (x, weight)) for y, weight in zip(outputs, weights, strict=True)]

    def install(self) -> None:
        """Put the wrapped operations wherever the model looks them up."""
        modules = [module for key, module in sys.modules.items() if key.startswith("entrenar.")]
        for name in OPERATIONS:
            original = getattr(ops, name)
            replacement = self.wrapped(name, original)
            for module in modules:
                if vars(module).get(name) is original:
                    setattr(module, name, replacement)
        layers.grouped_linear = self.grouped

    def walk(self) -> None:
        """Backward, newest operation first."""
        gradient = None
        while self.tape:
            name, out, leaf, arguments = self.tape.pop()
            gradient, leaf.grad = leaf.grad, None
            self.time(name, "backward", out.backward, gradient)
            if name == LINEAR and arguments[0].requires_grad:
                x = arguments[0].detach()
                x.requires_grad = True
                again = self.linear(x, arguments[1])
                self.time(AGAIN, "backward", again.backward, gradient)

    def split_adapters(self) -> None:
        """Separate the adapters' part of the linears from their frozen products."""
        for phase in ("forward", "backward"):
            again = self.seconds.pop((AGAIN, phase), 0.0)
            self.seconds[FROZEN, phase] += again
            self.calls[FROZEN, phase] += self.calls.pop((AGAIN, phase), 0)
            self.seconds["adapters of grouped_linear", phase] = self.seconds.pop((LINEAR, phase), 0.0) - again
            self.calls["adapters of grouped_linear", phase] = self.calls.pop((LINEAR, phase), 0)

    def table(self, steps: int) -> str:
        """Milliseconds of a step by operation, the longest first."""
        total = sum(self.seconds.values())
        rows = [["operation", "calls", "forward ms", "backward ms", "percent"], ["---", "--:", "--:", "--:", "--:"]]
        for name in sorted({name for name, _ in self.seconds}, key=lambda name: -sum(self.both(name))):
            forward, backward = (1e3 * seconds / steps for seconds in self.both(name))
            calls = max(self.calls[name, phase] for phase in ("forward", "backward")) // steps
            share = 100 * steps * (forward + backward) / 1e3 / total
            rows.append([name, str(calls), f"{forward:.1f}", f"{backward:.1f}", f"{share:.1f}"])
        return "\n".join(f"| {name:30} | {' | '.join(f'{cell:>11}' for cell in cells)} |" for name, *cells in rows)

    def both(self, name: str) -> tuple[float, float]:
        """Seconds of forward and backward."""
        return self.seconds.get((name, "forward"), 0.0), self.seconds.get((name, "backward"), 0.0)


def by_operation(side: Ours, length: int, precision: str, steps: int) -> None:
    """Print the table of operations, and what an untouched step takes."""
    plain = sorted(side.step(length, precision) for _ in range(steps + 1))[steps // 2]
    profiler = Profiler()
    profiler.install()
    parameters = side.model.trainable_parameters()
    optimizer = AdamW(parameters, lr=1e-4)
    with matmul_precision(precision):
        for step in range(steps + 1):
            tokens = side.rng.integers(0, side.model.config.vocab_size, (1, length))
            side.model.loss(tokens, tokens)
            profiler.walk()
            profiler.time("clip_grad_norm", "forward", clip_grad_norm, parameters, 1.0)
            profiler.time("AdamW", "forward", optimizer.step)
            optimizer.zero_grad()
            if step == 0:  # warm now
                profiler.seconds.clear()
                profiler.calls.clear()
    profiler.split_adapters()
    total = sum(profiler.seconds.values()) / steps
    print(profiler.table(steps))
    print(f"\nSum {1e3 * total:.0f} ms; an untouched step {1e3 * plain:.0f} ms ({length / plain:.0f} tokens/s).")


def by_function(options: argparse.Namespace) -> None:
    """Sample the same steps in another process with perf; print functions beyond half a percent."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder, "perf.data"))
        arguments = ["--model", options.model, "--length", str(options.length), "--precision", options.precision]
        command = [sys.executable, __file__, *arguments, "--steps", str(options.steps), "--only-steps"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # loaded and warm
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", data, "-p", str(child.pid)]
        sampler = subprocess.Popen(record)
        time.sleep(1)  # until it has attached
        child.communicate("go\n")
        if child.returncode or sampler.wait():
            raise SystemExit(f"The steps ended with status {child.returncode}, perf with {sampler.returncode}.")
        report = ["perf", "report", "-q", "-i", data, "-F", "overhead,sym", "--percent-limit", "0.5", "--stdio"]
        print(subprocess.run(report, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Profile steps of a 4-bit base under adapters on every linear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=REAL, choices=[REAL, *SHAPES])
    parser.add_argument("--length", type=int, default=512, help="tokens of the sequence")
    parser.add_argument("--precision", default=auto_precision(), choices=["highest", "high", "medium"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--perf", action="store_true", help="by function, sampled with Linux perf")
    parser.add_argument("--only-steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model != REAL:
        Preparation().prepare(options.model)
    if options.perf:
        return by_function(options)
    side = Ours(options.model, "qlora", ALL_LINEARS)
    if options.only_steps:
        side.step(options.length, options.precision)
        print("warm", flush=True)
        sys.stdin.readline()
        for _ in range(options.steps):
            side.step(options.length, options.precision)
        return None
    return by_operation(side, options.length, options.precision, options.steps)


if __name__ == "__main__":
    main()

"""Weight types: what packing them costs over fp32, what eight rows of x cost over one, and whole GGUF files.

The products are those of `gemm`, and the few rows those of the server's batches. The files are one random model in each
type, the same file for both sides, on the same threads. llama.cpp multiplies 8-bit activations, whatever our precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import Bench, Row, Target, milliseconds
from models import gguf_file
from timing import timed

PEERS = ("xllamacpp",)
TYPES = ("q4_k", "q5_k", "q6_k", "q8_0")
SHAPES = [(768, 768), (2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008)]  # (n, k)
ROWS = (128, 512)
QUICK_SHAPES = [(768, 768)]
FEW, FEW_SHAPES = 8, [(2048, 2048), (11008, 4096)]  # rows; weights of the L2 cache, and of memory
LAYOUTS = ("forward", "input")
MODEL = "228m"
LOADED = ("Q4_K_M", "Q4_0")
FILES = ("Q4_K", "Q6_K", "Q8_0")
PREFILL = 512


class Ours:
    """entrenar's `linear` over each type: y = x W^T, and dx = dy W with it."""

    def types(self) -> list[str]:
        """Every weight type of quantized values."""
        from entrenar.autograd.weight_types import WEIGHT_TYPES

        return [name for name, row in WEIGHT_TYPES.items() if row.is_quantized]

    def prepare(self, m: int, n: int, k: int, types: Sequence[str] = TYPES) -> None:
        import numpy as np

        from entrenar.autograd import QuantizedTensor, Tensor

        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((m, -(-k // 256) * 256), np.float32)
        self.dy = Tensor.from_numpy(rng.standard_normal((m, n), np.float32))
        w = rng.standard_normal((n, self.x.shape[1]), np.float32)
        self.weights: dict[str, Any] = {"fp32": Tensor.from_numpy(w)}
        self.weights |= {name: QuantizedTensor.quantize(w, name) for name in types}

    def few(self, rows: int, weight_type: str, precision: str) -> float:
        """Seconds of y = x W^T for the first `rows` of x, as a step of generation multiplies them."""
        from entrenar import matmul_precision
        from entrenar.autograd import Tensor, linear, no_grad

        x, weight = Tensor.from_numpy(self.x[:rows]), self.weights[weight_type]
        with matmul_precision(precision), no_grad():
            return timed(lambda: linear(x, weight))

    def run(self, layout: str, weight_type: str, precision: str) -> float:
        from entrenar import matmul_precision
        from entrenar.autograd import Tensor, linear, no_grad

        weight = self.weights[weight_type]
        with matmul_precision(precision):
            if layout == "forward":
                with no_grad():
                    x = Tensor.from_numpy(self.x)
                    return timed(lambda: linear(x, weight))

            def recorded() -> Tensor:
                return linear(Tensor.from_numpy(self.x, requires_grad=True), weight)

            return timed(lambda y: y.backward(self.dy), recorded)


def _packing(bench: Bench) -> None:
    with bench.worker("weights", "Ours") as ours:
        for m in ROWS[:1] if bench.quick else ROWS:
            for n, k in QUICK_SHAPES if bench.quick else SHAPES:
                ours.call("prepare", m=m, n=n, k=k)
                for layout in LAYOUTS:
                    turns = {
                        name: partial(ours.call, "run", layout=layout, weight_type=name, precision="highest")
                        for name in ("fp32", *TYPES)
                    }
                    times = bench.interleave(turns)
                    for name in TYPES:
                        case = f"time of {name} / fp32, {m}x{n}x{k} {layout}, highest"
                        costs, detail = times.ratios("fp32", name), milliseconds(times, [name, "fp32"])
                        bench.add(Row("weights", case, costs, target=Target(1.10, at_most=True), detail=detail))


def _few_rows(bench: Bench) -> None:
    one, eight = "1 row", f"{FEW} rows"
    with bench.worker("weights", "Ours") as ours:
        types = TYPES if bench.quick else ours.call("types")
        for n, k in QUICK_SHAPES if bench.quick else FEW_SHAPES:
            ours.call("prepare", m=FEW, n=n, k=k, types=types)
            for precision in bench.precisions(four_bits=True):
                for name in types:
                    turn = partial(ours.call, "few", weight_type=name, precision=precision)
                    times = bench.interleave({one: partial(turn, rows=1), eight: partial(turn, rows=FEW)})
                    nanoseconds = (f"{of} {1e9 * times.median(of) / (n * k / 32):.3g} ns" for of in (one, eight))
                    case = f"time of {eight} / {one} of {name}, {n}x{k}, {precision}"
                    detail = f"for 32 columns of a row of W: {', '.join(nanoseconds)}"
                    bench.add(Row("weights", case, times.ratios(one, eight), detail=detail, less=True))


def _files(bench: Bench) -> None:
    new = 8 if bench.quick else 64
    precisions = bench.precisions(four_bits=True)
    with bench.worker("models", "Preparation") as preparation:
        for file_type in FILES:
            preparation.call("prepare_gguf", model=MODEL, file_type=file_type)
    for file_type in FILES:
        with (
            bench.worker("models", "Ours", model=MODEL, mode="base", targets=[], file_type=file_type) as ours,
            bench.worker("models", "LlamaCpp", threads=bench.threads, model=MODEL, file_type=file_type) as peer,
        ):
            decoded = [name for name in precisions if name != "medium"]  # which is high for a single token
            for case, names, tokens, method, arguments, target in (
                ("decode", decoded, 1, "decode", {"new": new}, {"high": Target(0.9)}),
                (f"prefill of {PREFILL}", precisions, PREFILL, "prefill", {"prompt": PREFILL}, {"high": Target(2.0)}),
            ):
                turns = {name: partial(ours.call, method, precision=name, **arguments) for name in names}
                turns |= {"llama.cpp": partial(peer.call, method, **arguments)}
                peaks = ["read"] if tokens == 1 else []
                times = bench.interleave(turns, peaks)
                for name in names:
                    rates = ", ".join(f"{of} {tokens / times.median(of):.1f} tokens/s" for of in (name, "llama.cpp"))
                    row = Row("weights", f"{MODEL} {file_type}, {case} / llama.cpp, {name}",
                              times.ratios(name, "llama.cpp"), target=target.get(name), detail=rates)  # fmt: skip
                    row.roof = times.share(name, ours.call("weight_bytes"), "read") if peaks else ""
                    bench.add(row)


class Loaded:
    """A process that loads a GGUF file and nothing else of weight."""

    def peak(self, model: str, file_type: str) -> float:
        """The most memory that loading adds to what the imports take, over the bytes of the file and the norms."""
        import entrenar.qlora  # noqa: F401
        from entrenar.llama import LLaMAModel

        before, path = self._resident("VmRSS"), gguf_file(model, file_type)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        loaded = LLaMAModel.from_pretrained(path, quantize="auto")
        norms = sum(weight.nbytes for _, weight in loaded.named_parameters() if weight.ndim == 1)
        return (self._resident("VmHWM") - before) / (path.stat().st_size + norms)

    def _resident(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def _memory(bench: Bench) -> None:
    with bench.worker("models", "Preparation") as preparation:
        for file_type in LOADED:
            preparation.call("prepare_gguf", model=MODEL, file_type=file_type)
    for file_type in LOADED:
        peaks = []
        for _ in range(min(3, bench.repetitions)):
            with bench.worker("weights", "Loaded") as worker:
                peaks.append(worker.call("peak", model=MODEL, file_type=file_type))
        case = f"{MODEL} {file_type}, peak RSS of loading / file and norms"
        bench.add(Row("weights", case, peaks, target=Target(1.10, at_most=True, tiers=None), timed=False))


def run(bench: Bench) -> None:
    """Packing, few rows, then whole files: loaded, decoded and prefilled."""
    _packing(bench)
    _few_rows(bench)
    _memory(bench)
    _files(bench)

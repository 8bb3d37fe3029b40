"""Memory of a 4-bit model: it is read piece by piece, and no step ever holds a full-precision copy of a matrix."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor, empty_cache, memory_stats, no_grad, reset_peak_memory
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models import weights
from entrenar.models.checkpoint import Checkpoint

from .builders import random_arrays, random_tokens, small_config, write_gguf, write_hf

pytestmark = pytest.mark.memory

# Every decoder linear is 8192 x 256 or its transpose: 8 MiB in float32, 1 MiB in 4 bits; activations are small.
WIDE = 8192
MATRIX = WIDE * 256 * 4
KINDS = {"nf4": ("hf", "nf4"), "q4_0": ("Q4_0", "auto"), "q4_1": ("Q4_1", "auto")}


def wide_config() -> LLaMAConfig:
    return small_config(
        hidden_size=256,
        intermediate_size=WIDE,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=256,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wide model in each format."""
    config = wide_config()
    arrays = random_arrays(config, std=0.02)
    folder = tmp_path_factory.mktemp("wide")
    write_hf(folder / "hf", config, arrays)
    write_hf(folder / "bf16", config, arrays, "bfloat16")
    for type_name in ("F16", "Q4_0", "Q4_1"):
        write_gguf(folder / type_name, config, arrays, type_name)
    return {name: folder / name for name in ("hf", "bf16", "F16", "Q4_0", "Q4_1")}


def resident(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(key))


class Peaks:
    """The highest additional memory during a call by each account: tensors, NumPy, kernel scratch, the system's."""

    def __init__(self, function: Callable[[], Any]) -> None:
        gc.collect()
        empty_cache()
        cpu.release_scratch()
        ctypes.CDLL(None).malloc_trim(0)  # what the C library kept of freed memory would hide new memory
        reset_peak_memory()
        tensors = memory_stats()["in_use"]
        Path("/proc/self/clear_refs").write_text("5")  # the system's high-water mark starts here
        system = resident("VmRSS")
        function()  # unwatched by tracemalloc, whose own tables would count
        self.system = resident("VmHWM") - system
        self.tensors = memory_stats()["peak"] - tensors
        self.scratch = cpu.scratch_bytes()
        tracemalloc.start()
        try:
            function()
            self.python = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @property
    def largest(self) -> int:
        """At least the size of a matrix where any account held one."""
        return max(self.tensors, self.scratch, self.python, self.system)


def adapted(path: Path, quantize: str) -> LLaMAModel:
    model = LLaMAModel.from_pretrained(path, quantize=quantize)
    model.to_lora(LoRAConfig(rank=4, target_modules=["all-linear"]))
    linears = [weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")]
    assert len(linears) == 7 and all(isinstance(weight, QuantizedTensor) for weight in linears)
    return model


def step(model: LLaMAModel, tokens: np.ndarray) -> Callable[[], None]:
    def run() -> None:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        for _, weight in model.trainable_parameters():
            weight.grad = None

    return run


def test_the_meters_see_a_full_precision_copy(files: dict[str, Path]) -> None:
    model = LLaMAModel.from_pretrained(files["hf"], quantize="nf4")
    weight = model.model.layers[0].mlp.gate_proj.weight
    peaks = Peaks(lambda: weight.dequantize().sum())
    assert min(peaks.python, peaks.system) > 0.9 * MATRIX
    full = LLaMAModel.from_pretrained(files["Q4_1"])
    tokens = random_tokens(full.config, 1, 5)
    assert Peaks(step(full, tokens)).tensors > 6 * MATRIX  # gradients of full matrices


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("file", "quantize"), KINDS.values(), ids=KINDS.keys())
def test_a_training_step_never_holds_a_matrix_in_full_precision(
    file: str, quantize: str, checkpointing: bool, files: dict[str, Path], tier: str
) -> None:
    model = adapted(files[file], quantize)
    model.gradient_checkpointing = checkpointing
    tokens = random_tokens(model.config, 1, 7)
    peaks = Peaks(step(model, tokens))
    assert peaks.largest < MATRIX, vars(peaks)


@pytest.mark.parametrize(("file", "quantize"), KINDS.values(), ids=KINDS.keys())
def test_generation_never_holds_a_matrix_in_full_precision(file: str, quantize: str, files: dict[str, Path]) -> None:
    model = LLaMAModel.from_pretrained(files[file], quantize=quantize)
    for prompt in ([1], list(range(8))):  # one row, and several
        peaks = Peaks(lambda prompt=prompt: model.generate(prompt, max_new_tokens=3))
        assert peaks.largest < MATRIX, vars(peaks)


def test_a_step_leaves_nothing_but_gradients_behind(files: dict[str, Path]) -> None:
    model = adapted(files["hf"], "nf4")
    tokens = random_tokens(model.config, 2, 20)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    after_one = memory_stats()["in_use"]
    for _ in range(3):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        assert memory_stats()["in_use"] == after_one
    gradients = sum(weight.grad.nbytes for _, weight in model.trainable_parameters())
    for _, weight in model.trainable_parameters():
        weight.grad = None
    gc.collect()
    assert after_one - memory_stats()["in_use"] >= gradients


def test_evaluation_keeps_no_activations(files: dict[str, Path]) -> None:
    model = adapted(files["hf"], "nf4")
    tokens = random_tokens(model.config, 1, 60)
    before = memory_stats()["in_use"]
    with no_grad():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert memory_stats()["in_use"] - before < 1 << 12
    recorded = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert memory_stats()["in_use"] - before > 59 * WIDE * 4  # what backward would need
    assert loss.item() == recorded.item()


@pytest.mark.parametrize("quantize", ["nf4", "int4"])
@pytest.mark.parametrize("file", ["hf", "bf16", "F16", "Q4_0"])
def test_a_matrix_is_quantized_piece_by_piece(
    file: str, quantize: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "ROW_CHUNK_BYTES", 1 << 20)
    checkpoint = Checkpoint.open(files[file])
    tracemalloc.start()
    try:
        model = LLaMAModel.from_pretrained(checkpoint, quantize=quantize)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model.unquantized == {}
    assert peak - held < 0.5 * MATRIX  # down_proj has few, long rows: a piece of it is not small


# Twice, as the first load imports libraries; prints the bytes of the weights and what the second load added at most.
LOADS = """
import ctypes, gc, sys
from pathlib import Path
from entrenar.llama import LLaMAModel
from entrenar.models import weights

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

weights.ROW_CHUNK_BYTES = 1 << 20
path, quantize = sys.argv[1:]
models = [LLaMAModel.from_pretrained(path, quantize=quantize)]
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
models.append(LLaMAModel.from_pretrained(path, quantize=quantize))
print(sum(weight.nbytes for _, weight in models[0].named_parameters()), resident("VmHWM") - before)
"""


@pytest.mark.parametrize(("file", "quantize"), [("hf", "nf4"), ("bf16", "nf4"), ("F16", "auto"), ("Q4_0", "nf4")])
def test_no_pages_of_a_file_that_was_converted_stay(file: str, quantize: str, files: dict[str, Path]) -> None:
    """In a process of its own: what a long test run left in the C library's heap would count."""
    command = [sys.executable, "-c", LOADS, str(files[file]), quantize]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    weights_held, added = map(int, done.stdout.split())
    assert added < weights_held + MATRIX  # the pages of the file: 1.5 to 7 matrices


def test_quantized_values_of_a_file_are_used_where_they_lie(files: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(files["Q4_1"])
    tracemalloc.start()
    try:
        LLaMAModel.from_pretrained(checkpoint, quantize="auto")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    reordered = 2 * MATRIX * 20 // 128  # q and k, whose rows change places
    assert peak < 2 * reordered + (1 << 20)

"""Show that every fuzz target finds a bug planted in a Python check and one planted in a kernel.

Works on a copy of the checkout. The sound copy must pass; then one bug at a time is planted and the target must fail an
assertion; at the end the inputs that showed the bugs must pass on the sound copy again. Needs Cython, setuptools, a C
compiler and atheris.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RUNS = {"parameter_calc": 20_000, "lora_config": 20_000, "tensor_ops": 5_000}


@dataclass(frozen=True)
class Plant:
    """A line of a file and the wrong one that takes its place; `target` must notice."""

    target: str
    file: str
    right: str
    wrong: str

    @property
    def compiled(self) -> bool:
        """Whether planting it takes a build."""
        return not self.file.endswith(".py")


PLANTS = (
    Plant(
        "parameter_calc",
        "entrenar/models/config.py",
        "if self.num_attention_heads % self.kv_heads:",
        "if self.num_attention_heads < self.kv_heads:",
    ),
    Plant("parameter_calc", "entrenar/models/decoder.py", 'v_proj", (kv_size,', 'v_proj", (q_size,'),
    Plant("parameter_calc", "entrenar/_kernels/simd/softmax.c", "return vsum(sum);", "return 2 * vsum(sum);"),
    Plant("lora_config", "entrenar/adapters/targets.py", "[-1] in (*LINEARS, *FUSED)", "[-1] != ''"),
    Plant(
        "lora_config",
        "entrenar/_kernels/simd/weights/gemv.h",
        "for (; j < k - p; j++) rest",
        "for (; j < k - p - 1; j++) rest",
    ),
    Plant("tensor_ops", "entrenar/optim/clip.py", "1.0 if factor >= 1 else", "1.0 if factor >= 0.5 else"),
    Plant(
        "tensor_ops",
        "entrenar/autograd/ops/matmul.pyx",
        "if t.ndim == 0 or t.dims[t.ndim - 1] != k:",
        "if t.ndim == 0 or t.dims[t.ndim - 1] < k:",
    ),
    Plant(
        "tensor_ops",
        "entrenar/_kernels/simd/norm.c",
        "dot * rstd * rstd / (float)dim;",
        "dot * rstd / (float)dim;",
    ),
    Plant("tensor_ops", "entrenar/_kernels/simd/rope.c", "high = b * c + a * s;", "high = b * c - a * s;"),
)


def fuzz(root: Path, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a target of the copy, which comes before an installed package."""
    command = [sys.executable, f"fuzz/{target}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root), "ENTRENAR_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def build(root: Path) -> None:
    """Compile what has changed."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)


def finds(root: Path, plant: Plant, crash: Path) -> bool:
    """Plant the bug, fuzz, and put the file right again; whether an assertion of the target failed on an input."""
    path = root / plant.file
    text = path.read_text()
    if text.count(plant.right) == 0:
        raise SystemExit(f"{plant.file} no longer holds {plant.right!r}: plant another bug there.")
    path.write_text(text.replace(plant.right, plant.wrong, 1))
    if plant.compiled:
        build(root)
    result = fuzz(root, plant.target, f"-runs={RUNS[plant.target]}", f"-exact_artifact_path={crash}")
    path.write_text(text)
    return result.returncode != 0 and crash.exists() and "AssertionError" in result.stdout + result.stderr


def main() -> int:
    """0 where every sound target passes, every plant is found, and the inputs that found them pass without it."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "checkout")
        shutil.copytree(".", root, ignore=shutil.ignore_patterns(".git", "corpus", "outputs", ".*cache", "*.egg-info"))
        build(root)
        for target, runs in RUNS.items():
            sound = fuzz(root, target, f"-runs={runs}")
            print(f"{target}: {'passes' if sound.returncode == 0 else 'FAILS'} without a planted bug", flush=True)
            failures += sound.returncode != 0
        for i, plant in enumerate(PLANTS):
            found = finds(root, plant, Path(folder, f"crash-{plant.target}-{i}"))
            print(f"{plant.target}: {'finds' if found else 'MISSES'} {plant.wrong!r} in {plant.file}", flush=True)
            failures += not found
        build(root)
        for target in RUNS:
            inputs = [str(path) for path in sorted(Path(folder).glob(f"crash-{target}-*"))]
            again = fuzz(root, target, *inputs)
            print(
                f"{target}: {'passes' if again.returncode == 0 else 'FAILS'} on those {len(inputs)} inputs, put right"
            )
            failures += again.returncode != 0
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Show that every fuzz target finds a bug planted in a Python check and one planted in a kernel.

Works on a copy of the checkout: plants one bug at a time, rebuilds where it is in C, fuzzes, and expects a failure. A
sound copy must pass first. Needs Cython, setuptools, a C compiler and atheris.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RUNS = 20_000


@dataclass(frozen=True)
class Plant:
    """A line of a file and the wrong one that takes its place; `target` must notice."""

    target: str
    file: str
    right: str
    wrong: str


PLANTS = (
    Plant("parameter_calc", "entrenar/llama/config.py", "v_proj.weight\": (kv_size,", "v_proj.weight\": (q_size,"),
    Plant("parameter_calc", "entrenar/_kernels/simd/softmax.c", "return vsum(sum);", "return 2 * vsum(sum);"),
    Plant("lora_config", "entrenar/lora/config.py", "if name not in LINEAR_LAYERS:", "if not name:"),
    Plant("lora_config", "entrenar/_kernels/simd/gemm.c", "const ptrdiff_t n = depth - p < CHUNK ?", "const ptrdiff_t n = depth - p < CHUNK ? depth - p - 1 :"),
    Plant("tensor_ops", "entrenar/optim/clip.py", "if not factor >= 1:", "if not factor >= 0.5:"),
    Plant("tensor_ops", "entrenar/_kernels/simd/norm.c", "const float back = dot * rstd * rstd / (float)dim;", "const float back = dot * rstd / (float)dim;"),
)  # fmt: skip


def fuzz(root: Path, target: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"fuzz/{target}.py", f"-runs={RUNS}", f"-artifact_prefix={root}/"]
    environment = os.environ | {"PYTHONPATH": str(root), "ENTRENAR_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def build(root: Path) -> None:
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=root, check=True, capture_output=True)


def main() -> int:
    """0 where every sound target passes and every plant is found."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "checkout")
        shutil.copytree(".", root, ignore=shutil.ignore_patterns(".git", "corpus", "outputs", ".*cache", "*.egg-info"))
        build(root)
        for target in ("parameter_calc", "lora_config", "tensor_ops"):
            sound = fuzz(root, target)
            print(f"{target}: {'passes' if sound.returncode == 0 else 'FAILS'} without a planted bug")
            failures += sound.returncode != 0
        for plant in PLANTS:
            path = root / plant.file
            text = path.read_text()
            if text.count(plant.right) == 0:
                print(f"{plant.file} no longer holds {plant.right!r}: plant another bug")
                failures += 1
                continue
            path.write_text(text.replace(plant.right, plant.wrong, 1))
            if plant.file.endswith(".c"):
                build(root)
            found = fuzz(root, plant.target).returncode != 0
            print(f"{plant.target}: {'finds' if found else 'MISSES'} {plant.wrong!r} in {plant.file}")
            failures += not found
            path.write_text(text)
            if plant.file.endswith(".c"):
                build(root)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Build the sdist, build the wheel from that sdist, install the wheel in a fresh environment and use it outside.

Exits with the status of the first command that fails. Nothing is uploaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
STEPS = ("train", "--config", "llama2/tiny", "--steps", "1", "--max-examples", "600", "--batch-size", "1")


def run(*command: object, cwd: Path = ROOT) -> None:
    """Run and show a command; end with its status where it fails."""
    print("+", *command, flush=True)
    if status := subprocess.run([str(part) for part in command], cwd=cwd, check=False).returncode:
        sys.exit(status)


def main() -> None:
    """The files in dist/ are of this run alone."""
    for old in DIST.glob("entrenar-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)  # the wheel is built from the sdist
    wheel, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=True)
        run(environment / "bin" / "pip", "install", "-q", wheel)
        run(environment / "bin" / "entrenar", "--version", cwd=Path(folder))
        run(environment / "bin" / "entrenar", *STEPS, "--output", Path(folder, "run"), cwd=Path(folder))
    print(f"{sdist.name} and {wheel.name} are in {DIST.name}/; the wheel installs and trains")


if __name__ == "__main__":
    main()

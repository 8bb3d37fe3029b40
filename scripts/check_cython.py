"""Fail where Cython's compiler prints a performance hint: a GIL check inside a parallel loop, a missing noexcept."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Compile every .pyx to C in a temporary folder and look at what the compiler says."""
    sources = sorted(str(path) for path in Path("entrenar").rglob("*.pyx"))
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import sys; from Cython.Build import cythonize; "
            f"cythonize(sys.argv[1:], build_dir={folder!r}, force=True, quiet=True, "
            "compiler_directives={'language_level': 3, 'cdivision': True, 'embedsignature': True})"
        )
        result = subprocess.run([sys.executable, "-c", code, *sources], capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    hints = [line for line in said.splitlines() if "performance hint" in line or line.startswith("warning:")]
    for line in hints:
        print(line)
    if result.returncode:
        print(said, file=sys.stderr)
    return int(bool(hints) or result.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

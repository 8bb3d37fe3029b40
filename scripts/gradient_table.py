"""Print the finite-difference error of every op's cases: `make gradients`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the cases live beside the tests that use them

from kernels import gradient_table

if __name__ == "__main__":
    sys.exit(gradient_table.main())

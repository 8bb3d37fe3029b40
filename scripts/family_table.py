"""Print what the models of every family agree with, and how nearly: `make family-table`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the cases live beside the tests; an installed package comes first

from tests.models import family_cases

if __name__ == "__main__":
    sys.exit(family_cases.main())

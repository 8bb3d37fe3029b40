"""Print the circles and the upward imports of the package, Cython included; exit with 1 where there are any."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the reader of imports lives beside its tests

from architecture.imports import circles, higher, package_imports, upward


def main() -> int:
    """One line an import that reaches up, one line a circle, and how much was read."""
    graph = package_imports()
    found = []
    for name, imports in sorted(graph.items()):
        found += [f"up: {name} imports {dotted}" for dotted in upward(name, imports.runtime)]
        found += [f"up: {name} imports {dotted} for its types" for dotted in higher(name, imports.types)]
    found += [
        "circle: " + ", ".join(group) for group in circles({name: imports.runtime for name, imports in graph.items()})
    ]
    print("\n".join(found) if found else "no circle and no upward import", end="\n")
    print(f"{len(graph)} modules, {sum(len(imports.runtime) for imports in graph.values())} imports")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

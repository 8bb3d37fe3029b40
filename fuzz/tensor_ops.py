"""Fuzz target: random graphs of operations, forward and backward, against float64 NumPy.

python fuzz/tensor_ops.py -runs=100000
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["graphs", "entrenar"]):
    import graphs
    import harness


def target(data: bytes) -> None:
    graphs.check_graph(harness.chooser(data))


if __name__ == "__main__":
    harness.fuzz("tensor_ops", target)

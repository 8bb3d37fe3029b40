"""Fuzz target: random graphs of operations, forward and backward, and calls that often do not fit, against NumPy.

python fuzz/tensor_ops.py -runs=100000
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["calls", "graphs", "nodes", "reference", "entrenar"]):
    import calls
    import graphs
    import harness

GRAPHS_IN = 4  # of so many inputs, all but one are graphs


def target(data: bytes) -> None:
    choose = harness.chooser(data)
    if choose(GRAPHS_IN):
        graphs.check_graph(choose)
    else:
        calls.check_call(choose)


if __name__ == "__main__":
    harness.fuzz("tensor_ops", target)

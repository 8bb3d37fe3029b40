"""Random graphs of operations beside float64 NumPy: every op, reuse, residuals, fan-out, frozen and 4-bit weights.

The graph is a function of a sequence of choices, so a fuzzer's bytes and a hypothesis strategy both can make it.
"""

from __future__ import annotations

import numpy as np
import reference as ref
from nodes import KINDS, SHAPES, Choose, Graph, Pair, settled

from entrenar.autograd import Tensor, manual_seed
from entrenar.optim import clip_grad_norm

MOST_NODES = 12
MOST_ELEMENTS = 500
MOST_MAGNITUDE = 10.0  # rounding errors of a gradient grow with products of what stands on its way
GRADIENT_TOLERANCE = 5e-5  # norm-wise; the worst of 20,000 graphs is 3e-6


def random_graph(choose: Choose) -> tuple[list[Pair], Pair]:
    """Leaves (some frozen), and a scalar root that every node's value went into."""
    seed = choose(1 << 16)
    manual_seed(seed)  # dropout draws from the process's random state: the same choices must give the same graph
    graph = Graph(choose, np.random.default_rng(seed))
    for i in range(1 + choose(3)):
        graph.leaf(SHAPES[choose(len(SHAPES))], True if i == 0 else None)
    graph.nodes = list(graph.leaves)
    for _ in range(1 + choose(MOST_NODES)):
        kind = KINDS[choose(len(KINDS))]
        made = settled(*kind(graph, *graph.pick()), kind.__name__)
        if 0 < made[0].size <= MOST_ELEMENTS and np.abs(made[1].data).max() < MOST_MAGNITUDE:
            graph.nodes.append(made)
    total: Pair | None = None
    for t, v in graph.nodes:  # fan-out: every node also feeds the result
        weights = graph.rng.standard_normal(t.shape).astype(np.float32)
        part = (t * weights).sum(), ref.reduction("sum", ref.binary("mul", v, ref.constant(weights)), None, False)
        total = part if total is None else (total[0] + part[0], ref.binary("add", total[1], part[1]))
    assert total is not None
    return graph.leaves, total


def check_graph(choose: Choose) -> None:
    """Make a graph, hold its values and gradients against float64 and clip them; AssertionError where they differ."""
    leaves, (ours, reference) = random_graph(choose)
    ours.backward()
    largest = ref.reverse(reference, np.array(1.0))
    for tensor, value in leaves:
        if not tensor.requires_grad:
            assert tensor.grad is None, "a frozen leaf has a gradient"
        elif value.grad is None:
            assert tensor.grad is None or not tensor.grad.numpy().any(), "a leaf that nothing kept has a gradient"
        else:
            found = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
            error = np.linalg.norm(found - value.grad)
            bound = GRADIENT_TOLERANCE * (np.linalg.norm(value.grad) + 1 + 0.1 * largest)
            assert error <= bound, f"gradient of shape {tensor.shape}: {error:.2e}, bound {bound:.2e}"
    check_clipping([tensor for tensor, _ in leaves if tensor.grad is not None])


def check_clipping(leaves: list[Tensor]) -> None:
    """clip_grad_norm returns the joint norm and leaves gradients of at most the norm asked for, in their direction."""
    before = [leaf.grad.numpy().astype(np.float64) for leaf in leaves]
    expected = float(np.sqrt(sum((g * g).sum() for g in before)))
    norm = clip_grad_norm(leaves, 1.0)
    assert abs(norm - expected) <= 1e-5 * expected, f"norm {norm}, expected {expected}"
    factor = min(1.0, 1.0 / (expected + 1e-6))
    for tensor, gradient in zip(leaves, before, strict=True):
        assert np.allclose(tensor.grad.numpy(), gradient * factor, rtol=1e-4, atol=1e-30), "clipped gradients differ"

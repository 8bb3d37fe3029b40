"""Cross-entropy beyond its cases: chunks of the fused head, bounded memory, masked rows, divisors, extremes, errors."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import Tensor, memory_stats, reset_peak_memory
from entrenar.autograd.ops.cross_entropy import HEAD_CHUNK_BYTES
from entrenar.errors import ConfigError, NumericsError, ShapeError

from .cases.cross_entropy import make_targets, reference_cross_entropy
from .cases.softmax import reference_softmax
from .cases.weights import FROZEN, frozen_weight, whole_blocks

INF, NAN = float("inf"), float("nan")
CHUNK = HEAD_CHUNK_BYTES // 4  # logits


def fused(x: np.ndarray, w: np.ndarray, targets: np.ndarray, scale: float = 1.0, **options: object) -> list[np.ndarray]:
    """The loss and the gradients of x and w, all times `scale` as if the loss were one term of a sum."""
    tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    loss = autograd.linear_cross_entropy(*tensors, targets, **options)
    loss.backward(Tensor(scale))
    return [loss.numpy(), *[tensor.grad.numpy() for tensor in tensors]]


def plain(x: np.ndarray, w: np.ndarray, targets: np.ndarray, scale: float = 1.0, **options: object) -> list[np.ndarray]:
    tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    loss = autograd.cross_entropy(autograd.linear(*tensors), targets, **options)
    loss.backward(Tensor(scale))
    return [loss.numpy(), *[tensor.grad.numpy() for tensor in tensors]]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-12))


@pytest.mark.gradient
@pytest.mark.parametrize("rows", [CHUNK // 60_000 + extra for extra in (-1, 0, 1, 2)])
def test_the_edges_of_a_chunk_lose_nothing(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 8)).astype(np.float32)
    w = rng.standard_normal((60_000, 8)).astype(np.float32)
    targets = make_targets((rows,), 60_000)
    for one, two in zip(fused(x, w, targets), plain(x, w, targets), strict=True):
        assert relative_error(one, two) < 2e-6


@pytest.mark.unit
def test_a_vocabulary_beyond_a_chunk_goes_row_by_row() -> None:
    vocabulary = CHUNK + 3
    x = np.array([[0.5], [-1.0]], np.float32)
    w = np.random.default_rng(1).standard_normal((vocabulary, 1)).astype(np.float32)
    loss = autograd.linear_cross_entropy(x, w, [7, vocabulary - 1]).item()
    # a standard normal weight makes sum e^(x w) a lognormal mean: ln V + x^2 / 2 - x w[target]
    expected = np.log(vocabulary) + np.mean(x[:, 0] ** 2 / 2 - x[:, 0] * w[[7, vocabulary - 1], 0])
    assert loss == pytest.approx(expected, abs=3e-3)


@pytest.mark.gradient
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"ignore_index": 5}], ids=str)
@pytest.mark.parametrize("shape", [(1, 9, 4), (3, 4, 33), (70, 64, 65)], ids=str)
def test_fused_is_linear_then_cross_entropy(shape: tuple[int, int, int], options: dict[str, object], tier: str) -> None:
    rows, hidden, vocabulary = shape
    rng = np.random.default_rng(2)
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    w = rng.standard_normal((vocabulary, hidden)).astype(np.float32)
    targets = make_targets((rows,), vocabulary, 0.4, int(options.get("ignore_index", -100)))
    for one, two in zip(fused(x, w, targets, 2.5, **options), plain(x, w, targets, 2.5, **options), strict=True):
        assert relative_error(one, two) < 2e-6


@pytest.mark.gradient
@pytest.mark.parametrize("weight_type", FROZEN)
def test_a_frozen_head_passes_the_gradient_of_its_own_weights(weight_type: str, tier: str) -> None:
    hidden = whole_blocks(weight_type, 64)
    x = np.random.default_rng(3).standard_normal((9, hidden)).astype(np.float32)
    weight, exact = frozen_weight(weight_type, 33, hidden)
    targets = make_targets((9,), 33, 0.3)
    tensor = Tensor(x, requires_grad=True)
    loss = autograd.linear_cross_entropy(tensor, weight, targets)
    loss.backward()
    logits = x.astype(np.float64) @ exact.T
    assert loss.item() == pytest.approx(float(reference_cross_entropy(logits, targets)), rel=3e-7)
    counted = targets != -100
    dlogits = reference_softmax(logits) - np.eye(33)[np.where(counted, targets, 0)]
    expected = (dlogits * counted[:, None] / counted.sum()) @ exact
    assert relative_error(tensor.grad.numpy(), expected) < 1e-6


@pytest.mark.gradient
def test_accumulated_steps_with_a_common_divisor_are_one_step() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((12, 8)).astype(np.float32)
    w = rng.standard_normal((30, 8)).astype(np.float32)
    targets = make_targets((12,), 30, 0.4)
    counted = int((targets != -100).sum())
    whole = fused(x, w, targets)
    weight = Tensor(w, requires_grad=True)
    total, pieces = 0.0, []
    for part in np.array_split(np.arange(12), 5):
        tensor = Tensor(x[part], requires_grad=True)
        loss = autograd.linear_cross_entropy(tensor, weight, targets[part], divisor=counted)
        loss.backward()
        total += loss.item()
        pieces.append(tensor.grad.numpy())
    assert total == pytest.approx(float(whole[0]), rel=1e-6)
    assert relative_error(np.concatenate(pieces), whole[1]) < 1e-6
    assert relative_error(weight.grad.numpy(), whole[2]) < 1e-6


@pytest.mark.memory
def test_the_fused_head_never_holds_all_logits(threads: None) -> None:
    cpu.set_num_threads(2)  # each has scratch of its own
    rows, hidden, vocabulary = 700, 4, 60_001  # 160 MiB of logits
    rng = np.random.default_rng(5)
    x = Tensor(rng.standard_normal((rows, hidden)), requires_grad=True)
    w = Tensor(rng.standard_normal((vocabulary, hidden)), requires_grad=True)
    targets = make_targets((rows,), vocabulary)
    cpu.release_scratch()
    before = memory_stats()["in_use"]
    reset_peak_memory()
    autograd.linear_cross_entropy(x, w, targets).backward()
    peak = memory_stats()["peak"] - before + cpu.scratch_bytes()
    assert peak < 80 << 20, f"{peak / 2**20:.0f} MiB"  # a chunk, its packed copy, the gradients of w and x


@pytest.mark.unit
def test_what_stands_in_an_ignored_row_does_not_matter(tier: str) -> None:
    x = np.random.default_rng(6).standard_normal((4, 21)).astype(np.float32)
    w = np.random.default_rng(7).standard_normal((21, 21)).astype(np.float32)
    targets = np.array([3, -100, 20, -100])
    expected = fused(x, w, targets), plain(x, w, targets)
    x[1], x[3] = NAN, INF
    for found, exact in zip((fused(x, w, targets), plain_logits(x, w, targets)), expected, strict=True):
        np.testing.assert_array_equal(found[0], exact[0])
        assert not found[1][[1, 3]].any()
        np.testing.assert_array_equal(found[1][[0, 2]], exact[1][[0, 2]])


def plain_logits(x: np.ndarray, w: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """As plain, with the ignored rows of the logits made NaN: in dW of a plain linear they would count as 0 * NaN."""
    logits = autograd.linear(x, w).numpy().copy()
    tensor = Tensor(logits, requires_grad=True)
    loss = autograd.cross_entropy(tensor, targets)
    loss.backward()
    assert not tensor.grad.numpy()[targets == -100].any()
    kept = np.where((targets == -100)[:, None], 0, tensor.grad.numpy())
    weight = Tensor(w)
    rows = Tensor(np.where(np.isfinite(x), x, 0), requires_grad=True)
    autograd.linear(rows, weight).backward(Tensor(kept))
    return [loss.numpy(), rows.grad.numpy()]


@pytest.mark.unit
def test_extreme_logits(tier: str) -> None:
    x = np.array([[1e4, -1e4, 0], [-1e30, 1e30, 0], [88, 89, -INF], [-INF, 0, 0]], np.float32)
    losses = autograd.cross_entropy(x, [1, 1, 0, 1], reduction="none").numpy()
    np.testing.assert_allclose(losses, [2e4, 0, 1 + np.log1p(np.exp(-1)), np.log(2)], rtol=2e-6)
    assert autograd.cross_entropy(x[3:], [0]).item() == INF
    assert np.isnan(autograd.cross_entropy(np.array([[NAN, 1.0]]), [1]).item())
    assert np.isnan(autograd.cross_entropy(np.array([[1.0] * 20 + [NAN]]), [1]).item())


@pytest.mark.gradient
@pytest.mark.parametrize("vocabulary", [5, 67])
def test_a_second_use_adds_its_gradient(vocabulary: int, tier: str) -> None:
    x = np.random.default_rng(8).standard_normal((6, vocabulary)).astype(np.float32)
    targets = [make_targets((6,), vocabulary, ignored) for ignored in (0.0, 0.5)]
    p = reference_softmax(x.astype(np.float64))
    tensor = Tensor(x, requires_grad=True)
    expected = np.zeros(x.shape)
    for ids in targets:
        autograd.cross_entropy(tensor, ids, reduction="sum").backward()
        counted = ids != -100
        expected += (p - np.eye(vocabulary)[np.where(counted, ids, 0)]) * counted[:, None]
    assert relative_error(tensor.grad.numpy(), expected) < 3e-7


@pytest.mark.unit
def test_what_does_not_fit_is_refused() -> None:
    x, w = np.ones((2, 3), np.float32), np.ones((5, 3), np.float32)
    for op, arguments in (("cross_entropy", (np.ones((2, 5)),)), ("linear_cross_entropy", (x, w))):
        run = getattr(autograd, op)
        with pytest.raises(ShapeError, match=rf"{op}: targets\[1\] is 5, outside the vocabulary of 5"):
            run(*arguments, [4, 5])
        with pytest.raises(ShapeError, match=rf"{op}: targets\[0\] is -1"):
            run(*arguments, [-1, 2])
        with pytest.raises(ShapeError, match=rf"{op}: targets must be integers, not float64"):
            run(*arguments, [1.0, 2.0])
        with pytest.raises(ShapeError, match=r"targets have shape \(3,\), expected \(2,\)"):
            run(*arguments, [1, 2, 3])
        with pytest.raises(ConfigError, match="reduction='average' is unknown; choose one of mean, sum"):
            run(*arguments, [1, 2], reduction="average")
        with pytest.raises(NumericsError, match=r"every target is ignored.* check the prompt masking"):
            run(*arguments, [-100, -100])
    for divisor in (0, -1.0, NAN):
        with pytest.raises(ConfigError, match="expected a positive number of tokens"):
            autograd.linear_cross_entropy(x, w, [1, 2], divisor=divisor)
    with pytest.raises(ShapeError, match=r"x of shape \(2, 4\) does not fit a weight of shape \(5, 3\)"):
        autograd.linear_cross_entropy(np.ones((2, 4)), w, [1, 2])
    with pytest.raises(ShapeError, match=r"weight has shape \(0, 3\), expected at least one"):
        autograd.linear_cross_entropy(x, np.ones((0, 3)), [-100, -100], reduction="sum")
    with pytest.raises(ShapeError, match=r"logits have shape \(2, 0\)"):
        autograd.cross_entropy(np.ones((2, 0)), [1, 2])

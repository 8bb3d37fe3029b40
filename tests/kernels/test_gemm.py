"""GEMM beyond its cases: three layouts on every tier, every weight type, groups, stacks, sizes of zero."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import entrenar
from entrenar import autograd
from entrenar._kernels import cpu
from entrenar._kernels.cpu import PRECISIONS
from entrenar.autograd import LowRankUpdate, QuantizedTensor, Tensor, memory_stats, random, reset_peak_memory
from entrenar.errors import ConfigError, ShapeError

from .cases.matmul import tolerance
from .cases.weights import FROZEN, frozen_weight, whole_blocks
from .products import exact, normal, relative_error, three_products

every_frozen_type = pytest.mark.parametrize("weight_type", FROZEN)


def check_three_products(m: int, n: int, k: int, seed: int = 1) -> None:
    """Each element within four standard deviations of its rounding (Higham and Mary, 2019, SIAM J. Sci. Comput. 41)."""
    x, w, dy = normal(seed, (m, k), (n, k), (m, n))
    found = three_products(x, w, dy)
    x, w, dy = exact(x, w, dy)
    factors = {"Y": (x, w.T), "dX": (dy, w), "dW": (dy.T, x)}
    for product, (name, (left, right)) in zip(found, factors.items(), strict=True):
        limit = 4 * left.shape[1] ** 0.5 * 2.0**-24 * (np.abs(left) @ np.abs(right))
        excess = np.abs(product - left @ right) - limit
        assert (excess <= 0).all(), f"{name} of m {m}, n {n}, k {k}, {(excess > 0).sum()} elements"


# ---------------------------------------------------------------- the three layouts
@pytest.mark.unit
@pytest.mark.parametrize("size", range(1, 36))
def test_every_edge_of_the_micro_kernel_in_every_layout(size: int, tier: str) -> None:
    # each size in turn is m, n and k of the micro-kernel, in all three products
    for m, n, k in ((size, 19, 13), (13, size, 19), (19, 13, size), (size, size, size)):
        check_three_products(m, n, k)


@pytest.mark.unit
@pytest.mark.parametrize("long", [383, 384, 385, 447, 769, 1023, 1025, 1100])
def test_every_block_edge_in_every_layout(long: int, tier: str) -> None:
    # 384 is KC, 96 MC, 1024 MA, 6 micro-panels of B are NC
    for m, n, k in ((long, 21, 34), (34, long, 21), (21, 34, long)):
        check_three_products(m, n, k)


@pytest.mark.property
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 450), st.integers(0, 2**32 - 1))
def test_any_size_in_every_layout(tier: str, m: int, n: int, k: int, seed: int) -> None:
    check_three_products(m, n, k, seed)


@pytest.mark.unit
@pytest.mark.parametrize(("m", "n", "k"), [(65, 130, 400), (300, 70, 1030), (3, 97, 800)])
def test_every_layout_is_as_close_as_float32_sums_are(m: int, n: int, k: int, tier: str) -> None:
    x, w, dy = normal(1, (m, k), (n, k), (m, n))
    found = three_products(x, w, dy)
    x, w, dy = exact(x, w, dy)
    for one, two, length in zip(found, (x @ w.T, dy @ w, dy.T @ x), (k, n, m), strict=True):
        assert relative_error(one, two) <= tolerance(length)


@pytest.mark.unit
def test_small_integers_multiply_exactly(tier: str) -> None:
    # one product at a wrong place or left out shows in full, whatever a tolerance would forgive
    rng = np.random.default_rng(2)
    for m, n, k in ((3, 50, 530), (47, 35, 400), (130, 66, 97)):
        x, w, dy = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((m, k), (n, k), (m, n)))
        for one, two in zip(three_products(x, w, dy), (x @ w.T, dy @ w, dy.T @ x), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.gradient
@pytest.mark.parametrize(("m", "k"), [(2, 67), (5, 67), (40, 800)])
def test_a_second_use_adds_its_gradient(m: int, k: int, tier: str) -> None:
    x, w, one, two = normal(3, (m, k), (33, k), (m, 33), (m, 33))
    tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    for upstream in (one, two):
        autograd.linear(*tensors).backward(Tensor(upstream))
    x, w, one, two = exact(x, w, one, two)
    assert relative_error(tensors[0].grad.numpy(), (one + two) @ w) < tolerance(33)
    assert relative_error(tensors[1].grad.numpy(), (one + two).T @ x) < tolerance(m)


@pytest.mark.unit
@pytest.mark.parametrize("m", [1, 4, 5, 20])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_reaches_what_it_multiplies_and_nothing_else(m: int, bad: float, tier: str) -> None:
    x, w = normal(4, (m, 70), (37, 70))
    before = autograd.linear(x, w).numpy().copy()
    x[m - 1, 69] = bad
    w[5, 69] = 0  # 0 * inf is NaN too
    after = autograd.linear(x, w).numpy()
    assert not np.isfinite(after[m - 1]).any()
    assert np.isnan(after[m - 1, 5])
    np.testing.assert_array_equal(np.delete(after[:-1], 5, 1), np.delete(before[:-1], 5, 1))


# ---------------------------------------------------------------- weight types
@pytest.mark.unit
@every_frozen_type
@pytest.mark.parametrize("m", [1, 2, 4, 5, 13, 97])
@pytest.mark.parametrize(("n", "k"), [(1, 64), (33, 64), (70, 448), (19, 576)])
def test_a_frozen_weight_has_the_bits_of_its_float32_copy(weight_type: str, m: int, n: int, k: int, tier: str) -> None:
    k = whole_blocks(weight_type, k)
    weight, values = frozen_weight(weight_type, n, k)
    x, dy = normal(5, (m, k), (m, n))
    expected = three_products(x, values.astype(np.float32), dy)[:2]
    tensor = Tensor(x, requires_grad=True)
    y = autograd.linear(tensor, weight)
    y.backward(Tensor(dy))
    for one, two in zip((y.numpy(), tensor.grad.numpy()), expected, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.unit
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("m", [1, 3, 40, 1100])
def test_products_of_one_x_are_those_of_each_weight(m: int, precision: str, tier: str, threads: None) -> None:
    """Formats that differ, a weight of too few rows for integers, gemv, and more rows than are packed at once."""
    weight_types = ["nf4", "nf4", "bfloat16", "q4_1", "int16", "float16"]
    weights = [frozen_weight(weight_type, 64 + 17 * i, 192)[0] for i, weight_type in enumerate(weight_types)]
    weights += [Tensor(np.random.default_rng(1).standard_normal((33, 192))), Tensor(np.zeros((0, 192)))]
    x = Tensor(np.random.default_rng(2).standard_normal((m, 192)), requires_grad=True)
    with entrenar.matmul_precision(precision):
        alone = [autograd.linear(x, weight) for weight in weights]
        for count in (1, 2, 3):
            cpu.set_num_threads(count)
            for one, grouped in zip(alone, autograd.grouped_linear(x, weights), strict=True):
                assert grouped.numpy().tobytes() == one.numpy().tobytes()


def every_gradient(outputs: list[Tensor], upstream: list[np.ndarray], inputs: list[Tensor]) -> list[bytes]:
    """The bytes of the outputs and of the gradients that they give the inputs together."""
    autograd.concatenate([y.reshape(-1) for y in outputs]).backward(np.concatenate([g.reshape(-1) for g in upstream]))
    found = [t.numpy().tobytes() for t in (*outputs, *(t.grad for t in inputs))]
    for t in inputs:
        t.grad = None
    return found


@pytest.mark.gradient
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_grouped_linears_are_linear_and_lora_linear_one_by_one(dropout: float, tier: str, threads: None) -> None:
    """Values and every gradient, bit for bit: with and without biases, frozen ones too, and adapters on some."""
    arrays = normal(8, (7, 64), (33, 64), (17, 64), (4, 64), (17, 4), (33,), (17,), (9,))
    x, w, v, a, b, bias, frozen_bias, other_bias = (Tensor(array, requires_grad=True) for array in arrays)
    frozen_bias.requires_grad = False
    nf4 = frozen_weight("nf4", 9, 64)[0]
    upstream = normal(9, (7, 33), (7, 17), (7, 9))
    inputs = [x, w, v, a, b, bias, other_bias]

    random.manual_seed(3)
    grouped = autograd.grouped_linear(
        x, [w, v, nf4], [bias, frozen_bias, other_bias], [None, LowRankUpdate(a, b, 0.5, dropout), None]
    )
    found = every_gradient(grouped, upstream, inputs)
    random.manual_seed(3)
    single = [
        autograd.linear(x, w, bias),
        autograd.lora_linear(x, v, a, b, 0.5, dropout, frozen_bias),
        autograd.linear(x, nf4, other_bias),
    ]
    assert found == every_gradient(single, upstream, inputs)


@pytest.mark.unit
@pytest.mark.parametrize("m", [0, 1, 5, 70])
def test_a_bias_is_added_to_each_row_and_takes_the_sum_of_the_gradients(m: int, tier: str) -> None:
    x, w, b, a, down, dy = normal(10, (m, 64), (33, 64), (33,), (4, 64), (33, 4), (m, 33))
    bias = Tensor(b, requires_grad=True)
    for weight in (Tensor(w), frozen_weight("nf4", 33, 64)[0]):
        for with_bias, without in [
            (autograd.linear(x, weight, bias), autograd.linear(x, weight)),
            (autograd.lora_linear(x, weight, a, 0 * down, 1.0, 0.0, bias), autograd.linear(x, weight)),
        ]:
            assert with_bias.numpy().tobytes() == (without.numpy() + b).tobytes()
            bias.grad = None
            with_bias.backward(dy)
            np.testing.assert_allclose(bias.grad.numpy(), dy.sum(0, dtype=np.float64), rtol=1e-6, atol=1e-5)


@pytest.mark.unit
def test_groups_that_do_not_fit_are_refused() -> None:
    x, w, bias = Tensor(np.ones((4, 8))), Tensor(np.ones((3, 8))), Tensor(np.ones(3))
    update = LowRankUpdate(np.ones((1, 8)), np.ones((3, 1)), 1.0)
    with pytest.raises(ShapeError, match="9 weights, expected 1 to 8"):
        autograd.grouped_linear(x, [w] * 9)
    with pytest.raises(ShapeError, match="0 weights, expected 1 to 8"):
        autograd.grouped_linear(x, [])
    with pytest.raises(ShapeError, match="grouped_linear: x of shape"):
        autograd.grouped_linear(Tensor(np.ones((4, 7))), [w])
    with pytest.raises(ShapeError, match="1 biases for 2 weights"):
        autograd.grouped_linear(x, [w, w], [bias])
    with pytest.raises(ShapeError, match=r"bias has shape \(3, 1\), expected \(3,\)"):
        autograd.grouped_linear(x, [w], [np.ones((3, 1))])
    with pytest.raises(ShapeError, match="3 updates for 2 weights"):
        autograd.grouped_linear(x, [w, w], None, [update] * 3)
    with pytest.raises(ShapeError, match=r"lora_A \(1, 8\) and lora_B \(3, 1\) do not fit a weight of shape \(2, 8\)"):
        autograd.grouped_linear(x, [np.ones((2, 8))], None, [update])
    with pytest.raises(ConfigError, match="an update is int, expected a LowRankUpdate or None"):
        autograd.grouped_linear(x, [w], None, [1])
    with pytest.raises(ConfigError, match="weights must be a list, not Tensor"):
        autograd.grouped_linear(x, w)
    with pytest.raises(ConfigError, match="bias is bfloat16"):
        autograd.linear(x, w, Tensor(np.ones(3), dtype="bfloat16"))


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", ["bfloat16", "q4_0", "q4_1", "q8_0"])
@pytest.mark.parametrize("k", [32, 96, 544, 1056])
@pytest.mark.parametrize("m", [1, 3, 6, 50])
def test_a_contraction_that_is_no_multiple_of_64(weight_type: str, k: int, m: int, tier: str) -> None:
    weight, values = frozen_weight(weight_type, 35, k)
    x, dy = normal(6, (m, k), (m, 35))
    with entrenar.matmul_precision("high"):
        assert relative_error(autograd.linear(x, weight).numpy(), x.astype(np.float64) @ values.T) < 1e-3
    tensor = Tensor(x, requires_grad=True)
    y = autograd.linear(tensor, weight)
    y.backward(Tensor(dy))
    assert relative_error(y.numpy(), x.astype(np.float64) @ values.T) < tolerance(k)
    assert relative_error(tensor.grad.numpy(), dy.astype(np.float64) @ values) < tolerance(35)


@pytest.mark.memory
def test_a_quantized_weight_is_never_whole_in_full_precision(threads: None) -> None:
    cpu.set_num_threads(2)  # each has scratch of its own
    n = k = 2048  # 16 MiB in float32
    weight = QuantizedTensor.quantize(np.ones((n, k), np.float32), "nf4")
    x, upstream = normal(7, (8, k), (8, n))
    tensor = Tensor(x, requires_grad=True)
    cpu.release_scratch()
    before = memory_stats()["in_use"]
    reset_peak_memory()
    autograd.linear(tensor, weight).backward(Tensor(upstream))
    used = memory_stats()["peak"] - before + cpu.scratch_bytes()
    assert used < 2 << 20, f"{used / 2**20:.1f} MiB"


@pytest.mark.memory
def test_under_a_frozen_weight_nothing_of_the_input_is_kept() -> None:
    x, w = normal(7, (50, 64), (33, 64))
    for weight in (Tensor(w), frozen_weight("bfloat16", 33, 64)[0], frozen_weight("nf4", 33, 64)[0]):
        hidden = Tensor(x, requires_grad=True) * 2.0
        y = autograd.linear(hidden, weight)
        assert y.grad_fn.saved_bytes == (weight.nbytes if isinstance(weight, Tensor) else 0)
        if isinstance(weight, Tensor) and weight.dtype == "float32":
            weight.requires_grad = True  # too late for y: this graph goes on without its gradient
            y.sum().backward()
            assert weight.grad is None


# ---------------------------------------------------------------- stacks
STACKS = [
    ((5, 6, 7), (5, 7, 9)),
    ((5, 6, 7), (7, 9)),
    ((6, 7), (5, 7, 9)),
    ((2, 1, 40, 17), (3, 17, 33)),
    ((4, 1, 1, 7), (1, 3, 7, 1)),
    ((2, 3, 65, 48), (2, 3, 48, 65)),
]


@pytest.mark.gradient
@pytest.mark.parametrize(("a", "b"), STACKS, ids=str)
def test_stacks_broadcast_and_their_gradients_sum(a: tuple[int, ...], b: tuple[int, ...], tier: str) -> None:
    left, right = normal(12, a, b)
    tensors = [Tensor(left, requires_grad=True), Tensor(right, requires_grad=True)]
    y = autograd.matmul(*tensors)
    dy = normal(13, y.shape)[0]
    y.backward(Tensor(dy))
    left, right, dy = exact(left, right, dy)
    assert relative_error(y.numpy(), left @ right) < tolerance(a[-1])
    for tensor, whole in zip(tensors, (dy @ right.swapaxes(-1, -2), left.swapaxes(-1, -2) @ dy), strict=True):
        lead = (1,) * (whole.ndim - tensor.ndim) + tensor.shape
        axes = tuple(i for i, size in enumerate(lead) if size == 1 and whole.shape[i] > 1)
        assert relative_error(tensor.grad.numpy(), whole.sum(axes).reshape(tensor.shape)) < 1e-6


@pytest.mark.unit
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weight_type", ["float32", "nf4", "q8_0", "int16"])
def test_a_contraction_of_several_slices(weight_type: str, precision: str, tier: str, threads: None) -> None:
    """8192 steps or so are packed at once: y over a long row, dx over many rows of the weight, dw over many tokens."""
    limit = {"highest": 3e-6, "high": 1e-3, "medium": 3e-2}[precision]
    for m, n, k in ((6, 65, 16448), (6, 16448, 64), (16448, 65, 64)):
        x, dy = normal(11, (m, k), (m, n))
        if weight_type == "float32":
            (values,) = normal(12, (n, k))
            weight = Tensor(values, requires_grad=True)
        else:
            weight, values = frozen_weight(weight_type, n, k)
        bits = []
        for count in (1, 2):
            cpu.set_num_threads(count)
            tensor = Tensor(x, requires_grad=True)
            with entrenar.matmul_precision(precision):
                y = autograd.linear(tensor, weight)
                y.backward(Tensor(dy))
            found = [y.numpy(), tensor.grad.numpy()]
            if weight_type == "float32":
                found.append(weight.grad.numpy())
                weight.grad = None
            bits.append([array.tobytes() for array in found])
        assert bits[0] == bits[1]
        x64, dy64, w64 = exact(x, dy, values)
        for one, two in zip(found, (x64 @ w64.T, dy64 @ w64, dy64.T @ x64), strict=False):
            assert relative_error(one, two) < limit


# ---------------------------------------------------------------- sizes of zero
@pytest.mark.unit
def test_no_rows_touch_nothing() -> None:
    """Four rows of what an adapter of no tokens might write would reach into the neighbours."""
    n, k = 576, 192
    w, a, b = normal(15, (n, k), (16, k), (n, 16))
    neighbours = [Tensor(np.full(size, 7.0)) for size in (1, 8, 16, 64, 256, 1024, 4096) for _ in range(16)]
    holes = [Tensor(np.full(size, 7.0)) for size in (1, 8, 16, 64) for _ in range(16)]
    del holes[::2]
    for op in (lambda x: autograd.linear(x, w), lambda x: autograd.lora_linear(x, w, a, b, 2.0)):
        assert op(Tensor(np.zeros((0, k), np.float32))).shape == (0, n)
    assert all((tensor.numpy() == 7.0).all() for tensor in neighbours + holes)


def spoil_free_memory() -> None:
    """Fill blocks that the allocator will hand out next with NaN, so that unwritten memory shows."""
    blocks = [Tensor(np.full(size, np.nan)) for size in (1, 8, 12, 16, 20, 64) for _ in range(8)]
    del blocks


@pytest.mark.unit
@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 5), (3, 0, 0), (0, 4, 0)])
@pytest.mark.parametrize("op", ["linear", "lora_linear", "matmul"])
def test_an_empty_contraction_gives_zeros_and_nothing_stays_unwritten(op: str, m: int, n: int, k: int) -> None:
    x, w, a, b, dy = normal(14, (m, k), (n, k), (2, k), (n, 2), (m, n))
    arrays = {"linear": [x, w], "lora_linear": [x, w, a, b], "matmul": [x, w.T.copy()]}[op]
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    spoil_free_memory()
    y = autograd.lora_linear(*tensors, 1.0) if op == "lora_linear" else getattr(autograd, op)(*tensors)
    spoil_free_memory()
    y.backward(Tensor(dy))
    assert y.shape == (m, n)
    assert not y.numpy().any()
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.grad.shape == array.shape
        assert not tensor.grad.numpy().any()


# Each loops over nothing; a loop over the axis of 2^36 would take minutes.
EMPTY_AND_LONG = """
import numpy as np
from entrenar.autograd import QuantizedTensor, Tensor, linear, lora_linear, matmul

long = 1 << 36

def zeros(*shape):
    return Tensor(np.zeros(shape, np.float32), requires_grad=True)

outputs = [linear(zeros(m, k), zeros(n, k)) for m, n, k in ((long, 0, 0), (0, long, 0), (0, 0, long))]
for m, n, k, r in ((long, 0, 0, 0), (0, long, 0, 0), (0, 0, long, 0), (0, 0, 0, long)):
    outputs.append(lora_linear(zeros(m, k), zeros(n, k), zeros(r, k), zeros(n, r), 1.0))
outputs += [matmul(zeros(m, k), zeros(k, n)) for m, n, k in ((long, 0, 0), (0, long, 0), (0, 0, long))]
outputs += [matmul(zeros(long, 0, 4), zeros(4, 5)), matmul(zeros(long, 4, 0), zeros(long, 0, 0))]
for y in outputs:
    y.backward(Tensor(np.zeros(y.shape, np.float32)))
for weight_type in ("nf4", "q4_0", "int16"):
    for shape in ((long, 0), (0, long)):
        weight = QuantizedTensor.quantize(np.zeros(shape, np.float32), weight_type)
        assert weight.dequantize().shape == shape
    linear(zeros(0, long), weight)
print(len(outputs))
"""


@pytest.mark.unit
def test_nothing_is_looped_over_where_the_size_is_zero() -> None:
    found = subprocess.run(
        [sys.executable, "-c", EMPTY_AND_LONG], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.stdout, found.stderr) == ("12\n", "")


# ---------------------------------------------------------------- errors
def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [
        ("matmul", (ones(2, 3), ones(4, 5)), ShapeError, r"\(2, 3\) and \(4, 5\) do not fit: 3 columns meet 4 rows"),
        ("matmul", (ones(3), ones(4)), ShapeError, r"\(3,\) and \(4,\) do not fit"),
        ("matmul", (ones(), ones(4, 5)), ShapeError, "a scalar has no rows or columns; use mul"),
        ("matmul", (ones(2, 3, 4), ones(5, 4, 6)), ShapeError, r"leading axes of \(2, 3, 4\) and \(5, 4, 6\)"),
        (
            "linear",
            (ones(2, 3), ones(5, 4)),
            ShapeError,
            r"x of shape \(2, 3\) does not fit a weight of shape \(5, 4\)",
        ),
        ("linear", (ones(), ones(5, 4)), ShapeError, "its last axis must be 4"),
        ("linear", (ones(2, 3), ones(3)), ShapeError, r"weight has shape \(3,\), expected \(out_features, in_feat"),
        ("linear", (ones(2, 3), ones(5, 3), ones(4)), ShapeError, r"bias has shape \(4,\), expected \(5,\)"),
        ("linear", (ones(2, 3), frozen_weight("q4_0", 3, 32)[0]), ShapeError, r"weight of shape \(3, 32\)"),
        ("lora_linear", (ones(2, 3), ones(5, 3), ones(2, 4), ones(5, 2), 1.0), ShapeError, r"lora_A \(2, 4\)"),
        ("lora_linear", (ones(2, 3), ones(5, 3), ones(2, 3), ones(5, 3), 1.0), ShapeError, r"lora_B \(5, 3\)"),
        ("lora_linear", (ones(2, 3), ones(5, 3), ones(2, 3), ones(4, 2), 1.0), ShapeError, r"lora_B \(4, 2\)"),
        (
            "lora_linear",
            (*[ones(2, 2)] * 4, 1.0, 1.0),
            ConfigError,
            r"dropout is 1.0, expected a probability in \[0, 1\)",
        ),
        ("lora_linear", (*[ones(2, 2)] * 4, 1.0, float("nan")), ConfigError, "dropout is nan"),
        ("matmul", (ones(2, 2), Tensor(np.ones((2, 2)), dtype="bfloat16")), ConfigError, "bfloat16"),
        ("linear", (Tensor(np.ones((2, 2)), dtype="bfloat16"), ones(2, 2)), ConfigError, "bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(op: str, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(autograd, op)(*arguments)

"""The precisions of matrix multiplication: errors by weight type and layout, on every tier that has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import entrenar
from entrenar._kernels import cpu
from entrenar._kernels.cpu import effective_precision
from entrenar.autograd import QuantizedTensor, Tensor, linear
from entrenar.autograd.weight_types import WEIGHT_TYPES
from entrenar.errors import ConfigError
from tests.conftest import MEASURED

from .cases.weights import whole_blocks

NAMES = tuple(WEIGHT_TYPES)
FEW_BITS = [row.name for row in WEIGHT_TYPES.values() if row.bits <= 8]  # that "medium" multiplies in 8 bits
GAUSSIAN = {"highest": 2e-6, "high": 1e-3, "medium": 3e-2}
OUTLIERS = {"highest": 2e-6, "high": 2e-3, "medium": 6e-2}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    entrenar.set_matmul_precision("highest")


def weight_of(array: np.ndarray, weight_type: str) -> tuple[Tensor | QuantizedTensor, np.ndarray]:
    """The weight of a weight type, and the float64 values that it stands for."""
    if weight_type == "float32":
        return Tensor(array, requires_grad=True), array.astype(np.float64)
    if weight_type in ("bfloat16", "float16"):
        weight = Tensor(array, dtype=weight_type)
        return weight, weight.numpy().astype(np.float64)
    quantized = QuantizedTensor.quantize(Tensor(array), weight_type)
    return quantized, quantized.dequantize().astype(np.float64)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def all_layouts(x: np.ndarray, w: np.ndarray, dy: np.ndarray, weight_type: str, precision: str) -> dict[str, float]:
    """The relative error of y = x w^T, dx = dy w and dw = dy^T x (fp32 weights only)."""
    weight, exact = weight_of(w, weight_type)
    tensor = Tensor(x, requires_grad=True)
    with entrenar.matmul_precision(precision):
        y = linear(tensor, weight)
        y.backward(Tensor(dy))
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    errors = {"y": error(y.numpy(), x64 @ exact.T), "dx": error(tensor.grad.numpy(), dy64 @ exact)}
    if isinstance(weight, Tensor) and weight.grad is not None:
        errors["dw"] = error(weight.grad.numpy(), dy64.T @ x64)
    return errors


def gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(4, shape).astype(np.float32)


def outlier_channels(count: int) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    def make(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        x = rng.standard_normal(shape).astype(np.float32)
        x[:, rng.choice(shape[1], count, replace=False)] *= 30
        return x

    return make


DATA = {
    "gaussian": (gaussian, GAUSSIAN),
    "heavy tails": (heavy_tailed, OUTLIERS),
    "4 outlier channels": (outlier_channels(4), OUTLIERS),
    "16 outlier channels": (outlier_channels(16), OUTLIERS),
}


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, ...], float]]:
    """The largest error of each case; printed after the run, a line for each tier, precision and kind of data."""
    errors: dict[tuple[str, ...], float] = {}
    yield errors
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for (*case, weight_type), found in errors.items():
        lines.setdefault(tuple(case), {})[weight_type] = found
    columns = "".join(f"{name:>10}" for name in NAMES)
    printed = [f"{'tier':6}{'precision':10}{'computed':9}{'data':20}{columns}"]
    for (tier, precision, computed, data), found in lines.items():
        cells = "".join(f"{found[name]:10.1e}" if name in found else f"{'':10}" for name in NAMES)
        printed.append(f"{tier:6}{precision:10}{computed:9}{data:20}{cells}")
    request.config.stash.setdefault(MEASURED, []).append(("errors of matmul against float64", printed))


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("weight_type", NAMES)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("rows", [70, 3])
def test_errors_stay_within_what_each_precision_promises(
    rows: int, data: str, weight_type: str, precision: str, tier: str, table: dict[tuple[str, ...], float]
) -> None:
    make, limits = DATA[data]
    rng = np.random.default_rng(3)
    k = whole_blocks(weight_type, 320)
    x, w, dy = make(rng, (rows, k)), gaussian(rng, (200, k)), make(rng, (rows, 200))
    errors = all_layouts(x, w, dy, weight_type, precision)
    case = tier, precision, effective_precision(precision), data, weight_type
    table[case] = max(table.get(case, 0.0), *errors.values())
    for layout, found in errors.items():
        assert found <= limits[precision], f"{layout} on {tier}: {found:.1e}"


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("shape", [(5, 64, 64), (17, 65, 97), (61, 131, 70), (130, 77, 449), (1030, 66, 100)])
def test_tails_in_every_dimension(shape: tuple[int, int, int], precision: str, tier: str) -> None:
    m, n, k = shape
    rng = np.random.default_rng(4)
    for layout, found in all_layouts(
        *(gaussian(rng, s) for s in ((m, k), (n, k), (m, n))), "float32", precision
    ).items():
        assert found <= GAUSSIAN["high"], (
            f"{layout} on {tier}: {found:.1e}"
        )  # an fp32 weight is never multiplied in 8 bits


@pytest.mark.unit
@pytest.mark.parametrize("shape", [(17, 65, 128), (1030, 77, 448), (130, 131, 832)])
@pytest.mark.parametrize("weight_type", FEW_BITS)
def test_tails_of_weights_of_few_bits(weight_type: str, shape: tuple[int, int, int], tier: str) -> None:
    """In 8 bits where the tier has them: several blocks of the contraction, and more rows than are packed at once."""
    m, n, k = shape[0], shape[1], whole_blocks(weight_type, shape[2])
    rng = np.random.default_rng(8)
    found = all_layouts(*(gaussian(rng, s) for s in ((m, k), (n, k), (m, n))), weight_type, "medium")
    assert max(found.values()) <= GAUSSIAN["medium"], found


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", FEW_BITS)
def test_a_coarser_precision_really_is_one(weight_type: str, tier: str) -> None:
    rng = np.random.default_rng(5)
    x, w, dy = gaussian(rng, (64, 256)), gaussian(rng, (128, 256)), gaussian(rng, (64, 128))
    found = {name: all_layouts(x, w, dy, weight_type, name)["y"] for name in GAUSSIAN}
    for name, finer in (("high", "highest"), ("medium", "high")):
        if effective_precision(name) == name:
            assert found[name] > 3 * found[finer]
        else:
            assert found[name] == found[finer]


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_zero_rows_stay_zero_and_extreme_magnitudes_stay_relative(precision: str, tier: str) -> None:
    rng = np.random.default_rng(6)
    x, w = gaussian(rng, (30, 128)), gaussian(rng, (80, 128))
    x[7] = 0
    with entrenar.matmul_precision(precision):
        for factor in (1e-25, 1.0, 1e18, 1e36):
            y = linear(Tensor(x * np.float32(factor)), Tensor(w)).numpy()
            assert not y[7].any()
            assert error(y.astype(np.float64) / factor, x.astype(np.float64) @ w.T) < GAUSSIAN["high"]
            # large times small: neither scale may overflow on its own
            y = linear(Tensor(x * np.float32(factor)), Tensor(w / np.float32(factor))).numpy()
            if factor <= 1e25:
                assert error(y, x.astype(np.float64) @ w.T) < GAUSSIAN["high"]


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("weight_type", NAMES)
def test_the_largest_integers_do_not_wrap_around(weight_type: str, precision: str, tier: str) -> None:
    """Every integer of a block the largest, in both operands and all of one sign or of two."""
    n, k = whole_blocks(weight_type, 192), whole_blocks(weight_type, 512)
    for sign, other in itertools.product((1, -1), repeat=2):
        x, w, dy = (np.full(shape, 5, np.float32) for shape in ((70, k), (n, k), (70, n)))
        x[:9] *= sign
        dy *= other
        for name, found in all_layouts(x, w * other, dy, weight_type, precision).items():
            assert found < 1e-3, name


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["x", "w"])
def test_what_is_not_finite_is_never_hidden(side: str, value: float, precision: str, tier: str) -> None:
    rng = np.random.default_rng(7)
    x, w = gaussian(rng, (20, 192)), gaussian(rng, (70, 192))
    (x if side == "x" else w)[3, 100] = value
    with entrenar.matmul_precision(precision):
        y = linear(Tensor(x), Tensor(w)).numpy()
    hit = y[3] if side == "x" else y[:, 3]
    assert not np.isfinite(hit).any()
    assert np.isfinite(np.delete(y, 3, 0 if side == "x" else 1)).all()


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("weight_type", NAMES)
def test_same_bits_for_any_thread_count(weight_type: str, precision: str, tier: str, threads: None) -> None:
    rng = np.random.default_rng(8)
    k = whole_blocks(weight_type, 448)
    x, w, dy = gaussian(rng, (150, k)), gaussian(rng, (210, k)), gaussian(rng, (150, 210))
    weight, _ = weight_of(w, weight_type)
    results = []
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        tensor = Tensor(x, requires_grad=True)
        with entrenar.matmul_precision(precision):
            y = linear(tensor, weight)
            y.backward(Tensor(dy))
        results.append((y.numpy().tobytes(), tensor.grad.numpy().tobytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.unit
def test_small_products_are_fp32_in_every_precision(tier: str) -> None:
    rng = np.random.default_rng(9)
    x, w = gaussian(rng, (40, 48)), gaussian(rng, (16, 48))
    expected = linear(Tensor(x), Tensor(w)).numpy()
    with entrenar.matmul_precision("medium"):
        assert linear(Tensor(x), Tensor(w)).numpy().tobytes() == expected.tobytes()


@pytest.mark.unit
def test_the_precision_is_set_for_a_block_and_restored_after_an_error() -> None:
    entrenar.set_matmul_precision("high")
    with entrenar.matmul_precision("medium"):
        assert entrenar.get_matmul_precision() == "medium"
    assert entrenar.get_matmul_precision() == "high"
    with pytest.raises(ConfigError), entrenar.matmul_precision("medium"):
        entrenar.set_matmul_precision("slow")
    assert entrenar.get_matmul_precision() == "high"
    with pytest.raises(ConfigError, match="'fast' is unknown; choose one of highest, high, medium"):
        entrenar.set_matmul_precision("fast")

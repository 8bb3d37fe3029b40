"""Elementwise functions over their full range: errors in ulp as simd/math.h states them, extremes, slopes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import numpy as np
import pytest

from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, ShapeError

from .cases.activation import FUNCTIONS, erf, sigmoid
from .native import KERNELS, compile_for_tier

INF, NAN = float("inf"), float("nan")
LARGEST = float(np.finfo(np.float32).max)
STATEMENT = re.compile(r"^//[^\n]*At most ([\d.]+) ulp[^\n]*\n(?://[^\n]*\n)*INLINE vf v(\w+)\(", re.MULTILINE)
STATED = {name: float(ulp) for ulp, name in STATEMENT.findall((KERNELS / "simd/math.h").read_text())}


def samples() -> np.ndarray:
    """Every 4099th float32 of all, and the stretch where functions bend densely."""
    every = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    rng = np.random.default_rng(0)
    dense = [rng.uniform(-reach, reach, 300_000) for reach in (0.01, 1.0, 12.0, 110.0)]
    # where exp, log, tanh and sigmoid have their largest errors of all float32, with and without FMA
    worst = [59.3060379, 59.2802429, 1.41364205, 0.699976802, 0.628309548, -4.1572938]
    return np.concatenate([every[np.isfinite(every)], *dense, worst]).astype(np.float32)


def error_in_ulp(y: np.ndarray, exact: np.ndarray) -> float:
    """The largest |y - exact| in units of the last place of the exact value; both must overflow together."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(y[~finite], rounded[~finite])
    unit = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    return float((np.abs(y[finite].astype(np.float64) - exact[finite]) / unit).max())


CAP = 30.0
REFERENCES: dict[str, tuple[Callable[[np.ndarray], Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "exp": (autograd.exp, np.exp),
    "log": (autograd.log, np.log),
    "tanh": (autograd.tanh, np.tanh),
    "sigmoid": (autograd.sigmoid, sigmoid),
    "softcap": (lambda x: autograd.softcap(x, CAP), lambda x: CAP * np.tanh(x / CAP)),
}


@pytest.mark.architecture
def test_math_h_states_an_error_for_every_function() -> None:
    assert set(STATED) == {*REFERENCES, "erf"}


@pytest.mark.unit
@pytest.mark.parametrize("name", REFERENCES)
def test_error_over_the_full_range_is_at_most_what_math_h_states(name: str, tier: str) -> None:
    x = samples()
    x = np.abs(x) if name == "log" else x
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        exact = REFERENCES[name][1](x.astype(np.float64))
    found = error_in_ulp(REFERENCES[name][0](x).numpy(), exact)
    assert found <= STATED[name], f"{name} on {tier}: {found:.3f} ulp"


@pytest.mark.unit
def test_square_root_is_correctly_rounded(tier: str) -> None:
    x = np.abs(samples())
    np.testing.assert_array_equal(autograd.sqrt(x).numpy(), np.sqrt(x.astype(np.float64)).astype(np.float32))


@pytest.fixture(scope="session")
def error_function(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, np.ndarray], np.ndarray]:
    """verf of a tier, compiled by itself: gelu adds 1 to it, which hides its last digits."""
    folder = tmp_path_factory.mktemp("erf")
    source = folder / "erf.c"
    source.write_text(
        '#include "simd/math.h"\n'
        '__attribute__((visibility("default"))) void apply(float *y, const float *x, long n) {\n'
        "    for (long i = 0; i < n; i += VLEN) vstore(y + i, verf(vload(x + i)));\n"
        "}\n"
    )

    def apply(tier: str, x: np.ndarray) -> np.ndarray:
        library = folder / f"erf_{tier}.so"
        if not library.exists():
            compile_for_tier(source, tier, library, "-shared", "-lm")
        padded = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])
        y = np.empty_like(padded)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (y, padded)]
        ctypes.CDLL(str(library)).apply(*pointers, ctypes.c_long(len(padded)))
        return y[: len(x)]

    return apply


@pytest.mark.unit
def test_error_function_keeps_what_math_h_states(
    error_function: Callable[[str, np.ndarray], np.ndarray], tier: str
) -> None:
    rng = np.random.default_rng(1)
    spread = np.exp2(rng.uniform(-140, 127, 50_000)) * rng.choice([-1.0, 1.0], 50_000)
    x = np.concatenate([rng.uniform(-5, 5, 300_000), spread, [0.927734375, 4.0]])
    x = np.concatenate([x, [0.951968968, 0.958146811]]).astype(np.float32)  # the largest errors of all float32
    found = error_in_ulp(error_function(tier, x), erf(x.astype(np.float64)))
    assert found <= STATED["erf"], f"{tier}: {found:.3f} ulp"
    special = error_function(tier, np.array([INF, -INF, 0.0, -0.0, NAN], np.float32))
    np.testing.assert_array_equal(special, np.array([1, -1, 0, -0.0, NAN], np.float32))
    assert np.signbit(special[3])


# function -> (argument, value) at the ends of float32; the sign of zero counts
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (88.7229, INF), (-104.0, 0.0), (LARGEST, INF), (-LARGEST, 0.0)],
    "log": [(INF, INF), (0.0, -INF), (-0.0, -INF), (1.0, 0.0), (-1.0, NAN), (-INF, NAN), (-1e-45, NAN)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (LARGEST, 1.0), (-1e-45, -1e-45)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-LARGEST, 0.0), (LARGEST, 1.0)],
    "softcap 0.5": [(INF, 0.5), (-INF, -0.5), (0.0, 0.0), (-0.0, -0.0), (LARGEST, 0.5), (1e-30, 1e-30)],
    "softcap 30.0": [(INF, 30.0), (-INF, -30.0), (0.0, 0.0), (-0.0, -0.0), (-LARGEST, -30.0), (1e-30, 1e-30)],
    "sqrt": [(INF, INF), (0.0, 0.0), (-0.0, -0.0), (-1.0, NAN), (4.0, 2.0)],
    "relu": [(INF, INF), (-INF, 0.0), (-0.0, 0.0), (-1e-45, 0.0), (1e-45, 1e-45)],
    "gelu": [(INF, INF), (0.0, 0.0), (LARGEST, LARGEST), (-LARGEST, -0.0), (-20.0, -0.0)],
    "gelu tanh": [(INF, INF), (0.0, 0.0), (LARGEST, LARGEST), (-LARGEST, -0.0), (-20.0, -0.0)],
    "silu": [(INF, INF), (0.0, 0.0), (LARGEST, LARGEST), (-LARGEST, -0.0), (-1e3, -0.0)],
}


@pytest.mark.unit
@pytest.mark.parametrize("name", SPECIAL)
def test_extremes_have_their_limits_and_not_a_number_stays(name: str, tier: str) -> None:
    arguments, values = np.array([*SPECIAL[name], (NAN, NAN)], np.float32).T
    run = FUNCTIONS[name][1]
    for length in (1, 16, 21):  # alone, in a whole vector, in the last vector that is not full
        for place in {0, length // 2, length - 1}:
            for argument, value in zip(arguments, values, strict=True):
                x = np.ones(length, np.float32)
                ordinary = run(x).numpy().copy()
                x[place] = argument
                y = run(x).numpy()
                np.testing.assert_array_equal(y[place], value, f"{name}({argument})")
                assert np.isnan(value) or np.signbit(y[place]) == np.signbit(value), f"{name}({argument})"
                np.testing.assert_array_equal(np.delete(y, place), np.delete(ordinary, place))


def tanh_gelu_slope(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -50, 50)  # constant long before
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    bend = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2) / np.cosh(np.clip(u, -300, 300)) ** 2
    return 0.5 * (1 + np.tanh(u)) + 0.5 * x * bend


# name -> derivative in float64 and the largest absolute error of ours
SLOPES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "relu": (lambda x: (x > 0).astype(np.float64), 0.0),
    "gelu": (lambda x: 0.5 * (1 + erf(x / np.sqrt(2))) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), 2e-7),
    "gelu tanh": (tanh_gelu_slope, 7e-7),
    "silu": (lambda x: sigmoid(x) * (1 + x * sigmoid(-x)), 1.1e-6),
    "sigmoid": (lambda x: sigmoid(x) * sigmoid(-x), 1.2e-7),
    "tanh": (lambda x: np.cosh(np.clip(x, -300, 300)) ** -2, 1.6e-7),
    "softcap 0.5": (lambda x: np.cosh(np.clip(x / 0.5, -300, 300)) ** -2, 3e-7),
    "softcap 30.0": (lambda x: np.cosh(np.clip(x / 30, -300, 300)) ** -2, 3e-7),
}


def slope_of(name: str, x: np.ndarray, upstream: np.ndarray | float = 1.0) -> np.ndarray:
    tensor = Tensor(x, requires_grad=True)
    FUNCTIONS[name][1](tensor).backward(Tensor(np.broadcast_to(upstream, x.shape)))
    return tensor.grad.numpy()


@pytest.mark.gradient
@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_right_over_the_full_range(name: str, tier: str) -> None:
    rng = np.random.default_rng(2)
    ends = [0.0, 1e-30, -1e-30, 1e10, -1e10, 1e20, -1e20, LARGEST, -LARGEST]
    x = np.concatenate([rng.uniform(-25, 25, 60_000), rng.uniform(-1, 1, 20_000), ends]).astype(np.float32)
    derivative, limit = SLOPES[name]
    with np.errstate(over="ignore", under="ignore"):
        exact = derivative(x.astype(np.float64))
    difference = np.abs(slope_of(name, x) - exact)
    assert difference.max() <= limit, f"{name} on {tier} at {x[difference.argmax()]}: {difference.max():.2e}"
    assert np.isnan(slope_of(name, np.full(21, NAN, np.float32))).all() or name == "relu"


# name -> derivative in float64 of those whose derivative has no bound
UNBOUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.reciprocal,
    "sqrt": lambda x: 0.5 / np.sqrt(x),
}


@pytest.mark.gradient
@pytest.mark.parametrize("name", UNBOUNDED)
def test_relative_error_of_unbounded_slopes(name: str, tier: str) -> None:
    x = np.exp2(np.random.default_rng(3).uniform(-20, 6, 20_003)).astype(np.float32)
    exact = UNBOUNDED[name](x.astype(np.float64))
    np.testing.assert_allclose(slope_of(name, x), exact, rtol=1.3e-7)
    assert slope_of("log", np.zeros(1, np.float32))[0] == INF
    assert slope_of("sqrt", np.zeros(1, np.float32))[0] == INF


@pytest.mark.architecture
def test_every_function_has_its_extremes_and_its_slope() -> None:
    functions = {name for name in FUNCTIONS if not name.startswith("pow ")}
    assert functions == set(SPECIAL), f"FUNCTIONS and SPECIAL differ: {sorted(functions ^ set(SPECIAL))}"
    sloped = {*SLOPES, *UNBOUNDED}
    assert functions == sloped, f"FUNCTIONS and SLOPES with UNBOUNDED differ: {sorted(functions ^ sloped)}"


@pytest.mark.gradient
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [5, 21, 9001])
def test_a_second_use_adds_its_gradient(name: str, size: int, tier: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(0.2, 3, size).astype(np.float32)
    upstream = rng.standard_normal((2, size)).astype(np.float32)
    run = FUNCTIONS[name][1]
    tensor = Tensor(x, requires_grad=True)
    for row in upstream:
        run(tensor).backward(Tensor(row))
    apart = [slope_of(name, x, row) for row in upstream]
    # the product and the sum may be one rounding instead of two
    limit = 1.2e-7 * (np.abs(apart[0]) + np.abs(apart[1]))
    assert (np.abs(tensor.grad.numpy() - (apart[0] + apart[1])) <= limit).all()


@pytest.mark.unit
def test_powers_are_those_of_c(tier: str) -> None:
    x = np.array([0.0, -0.0, -2.0, 4.0, INF, NAN, 1.0], np.float32)
    for exponent in (-1.0, -0.5, 0, 0.5, 1, 2, 3, 7.5):
        with np.errstate(all="ignore"):
            expected = np.power(x.astype(np.float64), float(exponent)).astype(np.float32)
        np.testing.assert_allclose(autograd.pow(x, exponent).numpy(), expected, rtol=1.2e-7, err_msg=str(exponent))
    with np.errstate(over="ignore"):
        for exponent, reach in ((3.7, 30), (-11.0, 11), (0.1, 120)):
            base = np.exp2(np.random.default_rng(5).uniform(-reach, reach, 50_000)).astype(np.float32)
            exact = base.astype(np.float64) ** float(np.float32(exponent))
            assert error_in_ulp(autograd.pow(base, exponent).numpy(), exact) <= 1.0


@pytest.mark.gradient
def test_powers_have_slopes_at_zero(tier: str) -> None:
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0), (0.5, INF)):
        tensor = Tensor(np.zeros(3), requires_grad=True)
        autograd.pow(tensor, exponent).sum().backward()
        np.testing.assert_array_equal(tensor.grad.numpy(), slope, str(exponent))


@pytest.mark.gradient
@pytest.mark.parametrize("wanted", ["gate", "up"])
@pytest.mark.parametrize("size", [5, 5001])
@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_a_gated_product_gives_a_gradient_to_what_wants_one_and_adds_up(
    op: str, wanted: str, size: int, tier: str
) -> None:
    rng = np.random.default_rng(6)
    arrays = dict(zip(("gate", "up"), rng.standard_normal((2, size)).astype(np.float32), strict=True))
    upstream = rng.standard_normal(size).astype(np.float32)
    tensors = {name: Tensor(array, requires_grad=name == wanted) for name, array in arrays.items()}
    gate, up = (array.astype(np.float64) for array in arrays.values())
    function = {"swiglu": "silu", "geglu": "gelu tanh"}[op]
    slope = {"gate": up * SLOPES[function][0](gate), "up": FUNCTIONS[function][2](gate)}[wanted]
    for turns in (1, 2):
        getattr(autograd, op)(**tensors).backward(Tensor(upstream))
        np.testing.assert_allclose(tensors[wanted].grad.numpy(), turns * upstream * slope, rtol=2e-6, atol=1e-6)
    assert all(tensor.grad is None for name, tensor in tensors.items() if name != wanted)


@pytest.mark.unit
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"approximate='sigmoid' is unknown; choose 'none' or 'tanh'"):
        autograd.gelu([1.0], approximate="sigmoid")
    with pytest.raises(ConfigError, match="the exponent must be a number, not Tensor"):
        autograd.pow([1.0], Tensor([2.0]))
    with pytest.raises(ConfigError, match="not True"):
        autograd.pow([1.0], True)
    with pytest.raises(ShapeError, match=r"gate has shape \(3,\) and up \(1, 3\)"):
        autograd.swiglu(np.ones(3), np.ones((1, 3)))
    with pytest.raises(ShapeError, match=r"geglu: gate has shape \(3,\) and up \(1, 3\)"):
        autograd.geglu(np.ones(3), np.ones((1, 3)))
    for cap in (0, -1.0, INF, NAN, 1e-40):
        with pytest.raises(ConfigError, match="softcap: cap must be a positive finite number, found"):
            autograd.softcap([1.0], cap)
    for _, run, *_ in FUNCTIONS.values():
        with pytest.raises(ConfigError, match="bfloat16"):
            run(Tensor(np.ones(3), dtype="bfloat16"))


@pytest.mark.unit
def test_an_unaligned_view_is_as_good(tier: str) -> None:
    whole = np.random.default_rng(7).standard_normal(67).astype(np.float32)
    for start in range(1, cpu.vector_floats()):
        view = Tensor.from_numpy(whole[start:])
        np.testing.assert_array_equal(autograd.exp(view).numpy(), autograd.exp(whole[start:].copy()).numpy())

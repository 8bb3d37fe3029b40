"""4-bit weights, bit for bit: NF4 against its definition and bitsandbytes, Q4_0 and Q4_1 against the gguf library."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrenar._kernels import cpu
from entrenar.autograd.quantized import (
    NF4_VALUES,
    dequantize_int4,
    dequantize_nf4,
    pack_nibbles,
    quantize_int4,
    quantize_nf4,
    unpack_nibbles,
)
from entrenar.errors import ConfigError, QuantizationError

GGML = {"q4_0": GGMLQuantizationType.Q4_0, "q4_1": GGMLQuantizationType.Q4_1}
MIDPOINTS = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / np.float32(2)
formats = pytest.mark.parametrize("weight_type", ["q4_0", "q4_1"])
# the tier of a test does not change between hypothesis examples
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heavy_tailed(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_t(1.5, shape).astype(np.float32)


def tied(blocks: int) -> np.ndarray:
    """Blocks whose largest magnitude is a power of two and whose other weights sit on midpoints, or one ulp beside."""
    rng = np.random.default_rng(2)
    x = rng.choice(MIDPOINTS, (blocks, 64))
    x = np.where(rng.random(x.shape) < 0.5, x, np.nextafter(x, rng.choice(np.float32([-9, 9]), x.shape)))
    x[:, 17] = rng.choice(np.float32([-1, 1]), blocks)
    return (x * np.exp2(rng.integers(-20, 20, (blocks, 1)))).astype(np.float32)


def reference_nf4(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = x.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1)
    scaled = blocks * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))[:, None]
    quantized = np.searchsorted(MIDPOINTS, scaled, side="left").astype(np.uint8)  # ties to the lower value
    return (quantized[:, ::2] << 4 | quantized[:, 1::2]).reshape(len(x), -1), absmax.reshape(len(x), -1)


NF4_INPUTS = {
    "normal": normal((37, 192)),
    "heavy-tailed": heavy_tailed((64, 256)),
    "ties": tied(256),
    "zeros": np.zeros((3, 128), np.float32),
    "one weight": np.where(np.arange(64) == 5, np.float32(-3), np.float32(0))[None],
    "1e30": normal((4, 64)) * np.float32(1e30),
    "largest float": np.full((1, 64), np.finfo(np.float32).max, np.float32),
    "1e-30": normal((4, 64)) * np.float32(1e-30),
    "subnormal": normal((4, 64)) * np.float32(1e-40),
    "many threads": normal((300, 1024)),
    "no rows": np.zeros((0, 64), np.float32),
}


@pytest.mark.unit
@pytest.mark.parametrize("x", NF4_INPUTS.values(), ids=NF4_INPUTS.keys())
def test_nf4_values_and_absmax_are_those_of_the_definition(x: np.ndarray, tier: str) -> None:
    quantized, absmax = quantize_nf4(x)
    expected_quantized, expected_absmax = reference_nf4(x) if x.size else (quantized, absmax)
    np.testing.assert_array_equal(quantized, expected_quantized)
    np.testing.assert_array_equal(absmax, expected_absmax)
    values = NF4_VALUES[unpack_nibbles(quantized)].reshape(-1, 64) * absmax.reshape(-1, 1)
    np.testing.assert_array_equal(dequantize_nf4(quantized, absmax), values.reshape(x.shape))


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "ties"])
def test_nf4_is_bit_equal_with_bitsandbytes(name: str, dtype: str, tier: str) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    makers = {
        "normal": lambda: normal((2048, 1024), 5),
        "heavy-tailed": lambda: heavy_tailed((2048, 1024)),
        "ties": lambda: tied(8192),
    }
    x = torch.from_numpy(makers[name]()).clamp(-6e4, 6e4).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4")
    quantized, absmax = quantize_nf4(x.float().numpy())
    assert quantized.tobytes() == packed.numpy().tobytes()
    assert absmax.tobytes() == state.absmax.float().numpy().tobytes()
    if dtype == "float32":
        theirs = functional.dequantize_4bit(packed, state).numpy()
        np.testing.assert_array_equal(dequantize_nf4(quantized, absmax), theirs)


@pytest.mark.unit
@formats
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-5, 3e-7, 1e-20, 1e3])
def test_q4_is_bit_equal_with_the_gguf_library(weight_type: str, scale: float, tier: str) -> None:
    for x in (normal((130, 160)) * np.float32(scale), np.clip(heavy_tailed((64, 1024)), -50, 50) * np.float32(scale)):
        expected = quants.quantize(x, GGML[weight_type])
        blocks = quantize_int4(x, weight_type)
        np.testing.assert_array_equal(blocks, expected)
        np.testing.assert_array_equal(
            dequantize_int4(blocks, weight_type), quants.dequantize(expected, GGML[weight_type])
        )


@pytest.mark.unit
@formats
def test_q4_ties_and_constant_blocks_are_those_of_the_gguf_library(weight_type: str, tier: str) -> None:
    rng = np.random.default_rng(3)
    grid = rng.integers(-16, 17, (256, 32)).astype(np.float32) / 2  # values that fall on rounding boundaries
    grid[:, 7], grid[:, 20] = -8, 8  # of two weights as large, the first gives Q4_0's sign
    constant = np.repeat(np.float32([0, 1, -1, 0.1, -1e-3])[:, None], 32, axis=1)
    for x in (grid, -grid, constant):
        np.testing.assert_array_equal(quantize_int4(x, weight_type), quants.quantize(x, GGML[weight_type]))


@pytest.mark.unit
def test_float16_scales_are_converted_exactly(tier: str) -> None:
    scales = np.arange(65536, dtype=np.uint16)
    scales = scales[np.isfinite(scales.view(np.float16))]
    blocks = np.full((len(scales), 18), 0x99, np.uint8)  # every value is 9: the weight is the scale
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    expected = np.repeat(scales.view(np.float16).astype(np.float32)[:, None], 32, axis=1)
    assert dequantize_int4(blocks, "q4_0").tobytes() == expected.tobytes()


@pytest.mark.unit
def test_float16_scales_round_to_nearest_even(tier: str) -> None:
    rng = np.random.default_rng(4)
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (exact[:-1] + exact[1:]) / 2
    anywhere = np.exp2(rng.uniform(-26, 15.9, 20000)).astype(np.float32)
    scales = np.concatenate(
        [exact, halfway, np.nextafter(halfway, np.float32(9e9)), np.nextafter(halfway, 0), anywhere]
    )
    scales = np.concatenate([scales, -scales])
    x = np.zeros((len(scales), 32), np.float32)
    x[:, 3] = scales * -8
    stored = quantize_int4(x, "q4_0")[:, :2].copy().view(np.float16)[:, 0]
    expected = scales.astype(np.float16)
    nonzero = scales != 0
    np.testing.assert_array_equal(stored[nonzero].view(np.uint16), expected[nonzero].view(np.uint16))


@pytest.mark.unit
def test_int4_is_q4_1(tier: str) -> None:
    x = normal((3, 64))
    np.testing.assert_array_equal(quantize_int4(x), quantize_int4(x, "q4_1"))
    np.testing.assert_array_equal(dequantize_int4(quantize_int4(x)), dequantize_int4(quantize_int4(x), "q4_1"))


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", ["nf4", "q4_0", "q4_1"])
def test_same_quantized_values_for_any_thread_count(weight_type: str, threads: None) -> None:
    x = normal((1001, 512))
    results = set()
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        made = quantize_nf4(x) if weight_type == "nf4" else (quantize_int4(x, weight_type),)
        results.add(b"".join(array.tobytes() for array in made))
    assert len(results) == 1


weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([64, 128, 192])),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


@pytest.mark.property
@examples
@given(x=weights)
def test_nf4_error_is_within_half_the_widest_gap(tier: str, x: np.ndarray) -> None:
    quantized, absmax = quantize_nf4(x)
    error = np.abs(dequantize_nf4(quantized, absmax) - x).reshape(-1, 64)
    assert (error <= absmax.reshape(-1, 1) * np.float32(0.15191)).all()  # (1 - 0.69619) / 2


@pytest.mark.property
@examples
@given(x=weights)
def test_nf4_values_survive_requantization(tier: str, x: np.ndarray) -> None:
    x = np.where(np.abs(x) < 1e-30, np.float32(0), x)
    quantized, absmax = quantize_nf4(x)
    again, absmax_again = quantize_nf4(dequantize_nf4(quantized, absmax))
    np.testing.assert_array_equal(again, quantized)
    np.testing.assert_array_equal(absmax_again, absmax)


@pytest.mark.property
@examples
@given(x=weights)
def test_q4_error_is_within_the_step(tier: str, x: np.ndarray) -> None:
    blocks = x.reshape(-1, 32).astype(np.float64)
    half, tiny = 2.0**-11, 2.0**-24
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    step = largest / 8  # Q4_0 clips the far end by one step; its scale is rounded to float16
    error = np.abs(dequantize_int4(quantize_int4(x, "q4_0"), "q4_0").reshape(-1, 32) - blocks)
    assert (error <= step * (1 + 1e-5) + largest * half + 8 * tiny).all()
    spread = blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)
    error = np.abs(dequantize_int4(quantize_int4(x)).reshape(-1, 32) - blocks)
    assert (error <= spread / 30 * (1 + 1e-4) + (spread + largest) * half + 16 * tiny).all()


@pytest.mark.property
@examples
@given(x=weights)
@formats
def test_q4_blocks_survive_requantization(weight_type: str, tier: str, x: np.ndarray) -> None:
    # Where the float16 minimum swamps the step, or the step is subnormal, rounding moves values: keep clear of both.
    x = np.round(x) / np.float32(16)
    x.reshape(-1, 32)[:, 0] = -64
    x.reshape(-1, 32)[:, 1] = 64
    blocks = quantize_int4(np.clip(x, -64, 64), weight_type)
    np.testing.assert_array_equal(quantize_int4(dequantize_int4(blocks, weight_type), weight_type), blocks)


@pytest.mark.property
@given(
    quantized=hnp.arrays(
        np.uint8, st.tuples(st.integers(0, 4), st.integers(0, 9).map(lambda n: 2 * n)), elements=st.integers(0, 15)
    )
)
def test_nibbles_round_trip(quantized: np.ndarray) -> None:
    packed = pack_nibbles(quantized)
    np.testing.assert_array_equal(packed, quantized[:, ::2] * 16 + quantized[:, 1::2])
    np.testing.assert_array_equal(unpack_nibbles(packed), quantized)


@pytest.mark.unit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 31, 63, 100])
def test_a_weight_that_is_not_finite_is_refused_with_its_position(bad: float, column: int, tier: str) -> None:
    x = normal((5, 128))
    x[3, column] = bad
    position = f"row 3, column {column}"
    with pytest.raises(QuantizationError, match=position):
        quantize_nf4(x)
    for weight_type in GGML:
        with pytest.raises(QuantizationError, match=position):
            quantize_int4(x, weight_type)


@pytest.mark.unit
@formats
@pytest.mark.parametrize("magnitude", [1e30, 3.4e38, 2e6])
def test_weights_beyond_a_float16_scale_are_refused(weight_type: str, magnitude: float, tier: str) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 40] = magnitude
    with pytest.raises(QuantizationError, match=r"row 1, column 40 .* float16 scale .* use nf4"):
        quantize_int4(x, weight_type)


@pytest.mark.unit
def test_wrong_input_is_refused() -> None:
    with pytest.raises(QuantizationError, match="100 columns are no multiple of the block size 64"):
        quantize_nf4(np.zeros((2, 100), np.float32))
    with pytest.raises(QuantizationError, match="48 columns are no multiple of the block size 32"):
        quantize_int4(np.zeros((2, 48), np.float32))
    with pytest.raises(QuantizationError, match="complex64"):
        quantize_nf4(np.zeros((2, 64), np.complex64))
    with pytest.raises(QuantizationError, match="scalar"):
        quantize_nf4(np.float32(1))
    with pytest.raises(ConfigError, match="'q9_0' is unknown"):
        quantize_int4(np.zeros((2, 64), np.float32), "q9_0")
    with pytest.raises(ConfigError, match=r"as q4_0 and q4_1 \(int4\) have"):
        quantize_int4(np.zeros((2, 64), np.float32), "q8_0")
    with pytest.raises(ConfigError, match="quantize_nf4"):
        quantize_int4(np.zeros((2, 64), np.float32), "nf4")
    with pytest.raises(QuantizationError, match=r"scales has 1 elements, expected 2"):
        dequantize_nf4(np.zeros((2, 32), np.uint8), np.zeros(1, np.float32))
    with pytest.raises(QuantizationError, match="0 to 15"):
        pack_nibbles(np.array([16, 0]))
    with pytest.raises(QuantizationError, match="even number"):
        pack_nibbles(np.array([1, 2, 3]))

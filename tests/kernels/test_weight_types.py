"""The traits table of weight types: agrees with ggml, is read by everyone, and has cases for each of its rows."""

from __future__ import annotations

import importlib
from fractions import Fraction

import gguf
import numpy as np
import pytest
from gguf import quants

from entrenar.autograd import QuantizedTensor, Tensor, embedding
from entrenar.autograd.weight_types import (
    ALIASES,
    WEIGHT_TYPES,
    WeightType,
    gguf_weight_type,
    quantized_type,
    weight_type,
)
from entrenar.errors import ConfigError, QuantizationError

from . import ggml
from .cases.weights import FROZEN, scales_at
from .native import KERNELS, ROOT

OPS = {"matmul": ("linear", "lora_linear"), "embedding": ("embedding",), "cross_entropy": ("linear_cross_entropy",)}
every_type = pytest.mark.parametrize("row", WEIGHT_TYPES.values(), ids=WEIGHT_TYPES)
GGML = [row for row in WEIGHT_TYPES.values() if row.gguf_name is not None and row.is_quantized]
# whose scales are searched for: no bits of their own
SEARCHED = [row for row in GGML if row.block_size == 256 or row.name.startswith("iq4")]
IN_FILES = [row for row in WEIGHT_TYPES.values() if row.gguf_name is not None]


def random_blocks(row: WeightType) -> np.ndarray:
    """64 rows of 8 blocks of any bytes; some scales 0, the least and the largest fp16."""
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (64, 8 * row.block_bytes), np.uint8)
    blocks = raw.reshape(-1, row.block_bytes)
    for at in scales_at(row):
        blocks[:, at + 1] &= 0xBB  # no exponent of all ones
        extreme = np.array([0.0, -0.0, 2.0**-24, -(2.0**-24), 65504, -65504], "<f2")
        blocks[:48, at : at + 2] = rng.choice(extreme, 48).view(np.uint8).reshape(48, 2)
    return raw


def matrices(columns: int) -> dict[str, np.ndarray]:
    """What weights look like, and what they had better not."""
    rng = np.random.default_rng(3)
    gaussian = rng.standard_normal((96, columns))
    return {
        name: x.astype(np.float32)
        for name, x in {
            "gaussian": gaussian,
            "heavy tails": rng.standard_t(3, gaussian.shape),
            "positive": np.abs(gaussian),
            "scaled rows": gaussian * np.exp2(rng.integers(-12, 9, (96, 1))),
            "scaled columns": gaussian * np.exp(rng.standard_normal(columns)),
        }.items()
    }


def without_a_case(rows: dict[str, WeightType]) -> list[tuple[str, str]]:
    """(op, weight type) of what no table of kernel cases has."""
    missing = []
    for stem, ops in OPS.items():
        cases = importlib.import_module(f"tests.kernels.cases.{stem}").CASES
        for op in ops:
            named = {case.label.split(" ")[0] for case in cases if case.op == op}
            missing += [(op, name) for name in rows if name not in named | {"float32"}]
    return missing


@pytest.mark.architecture
def test_every_weight_type_has_a_case_of_every_op_that_reads_weights() -> None:
    assert without_a_case(dict(WEIGHT_TYPES)) == []
    assert set(WEIGHT_TYPES) - {"float32"} == {name.split()[0] for name in FROZEN}
    unknown = {"q9_9": WEIGHT_TYPES["q4_0"]}
    assert without_a_case(unknown) == [(op, "q9_9") for ops in OPS.values() for op in ops]


@pytest.mark.architecture
@pytest.mark.parametrize("row", GGML, ids=lambda row: row.name)
def test_a_weight_type_is_a_file_and_a_row(row: WeightType) -> None:
    """What the package says of ggml's types by name stands in the table and in the type's own file."""
    folder = KERNELS / "simd/weights"
    assert (folder / f"{row.name}.c").is_file()
    words = (f'"{row.name}"', f'"{row.gguf_name}"', f"weight_{row.name}")
    files = [*(ROOT / "entrenar").rglob("*.py*"), *KERNELS.rglob("*.[ch]"), *KERNELS.rglob("*.p[yx][xd]")]
    code = {path: path.read_text() for path in files if path.suffix in {".py", ".pyx", ".pxd", ".c", ".h"}}
    aliased = {ROOT / "entrenar/autograd/weight_types.pyx"} if row.name in ALIASES.values() else set()
    named = {path for path, text in code.items() if any(word in text for word in words)}
    # which type llama-quantize gives a tensor, and the names of its mixes
    mixes = {ROOT / "entrenar/models/gguf_types.py", ROOT / "entrenar/models/file_types.py"}
    assert named - mixes == {folder / "types.c", folder / f"{row.name}.c"} | aliased


@pytest.mark.unit
@pytest.mark.parametrize("row", IN_FILES, ids=lambda row: row.name)
def test_sizes_and_numbers_are_those_of_gguf(row: WeightType) -> None:
    theirs = gguf.GGMLQuantizationType[row.gguf_name or ""]
    assert (row.gguf_type, row.block_size, row.block_bytes) == (theirs.value, *gguf.GGML_QUANT_SIZES[theirs])
    assert row.name == {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(
        row.gguf_name or "", (row.gguf_name or "").lower()
    )
    assert gguf_weight_type(row.gguf_name or "") is row


@pytest.mark.unit
@pytest.mark.parametrize("row", GGML, ids=lambda row: row.name)
def test_any_block_is_worth_what_ggml_says(row: WeightType, tier: str) -> None:
    raw = random_blocks(row)
    theirs = quants.dequantize(raw, gguf.GGMLQuantizationType[row.gguf_name or ""])
    ours = QuantizedTensor.from_gguf_blocks(raw, row.name, theirs.shape)
    assert ours.dequantize().tobytes() == theirs.tobytes()


@pytest.mark.unit
def test_every_float16_is_worth_what_numpy_says(tier: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    table = bits[np.isfinite(bits)].reshape(-1, 62)  # rows that are no whole vectors
    found = embedding(np.arange(len(table)), Tensor.from_numpy(table)).numpy()
    assert found.tobytes() == table.astype(np.float32).tobytes()


@pytest.mark.peers
@pytest.mark.parametrize("row", GGML, ids=lambda row: row.name)
def test_any_block_is_worth_what_llama_cpp_says(row: WeightType) -> None:
    raw = random_blocks(row)
    ours = QuantizedTensor.from_gguf_blocks(raw, row.name, (len(raw), 8 * row.block_size)).dequantize()
    assert ggml.dequantize(raw, row).tobytes() == ours.tobytes()


@pytest.mark.chaos
@pytest.mark.parametrize("row", GGML, ids=lambda row: row.name)
def test_a_scale_that_is_no_number_is_refused(row: WeightType, tier: str) -> None:
    for at in scales_at(row):
        for value in (np.inf, -np.inf, np.nan):
            raw = random_blocks(row)
            raw.reshape(-1, row.block_bytes)[37, at : at + 2] = np.array([value], "<f2").view(np.uint8)
            with pytest.raises(QuantizationError, match=f"A {row.name} block has a scale that is infinite or NaN"):
                QuantizedTensor.from_gguf_blocks(raw, row.name, (len(raw), 8 * row.block_size))


@pytest.mark.unit
@pytest.mark.parametrize("row", SEARCHED, ids=lambda row: row.name)
def test_quantizing_by_search(row: WeightType, tier: str) -> None:
    """Half a step of the values at most, more where a scale or a minimum of few bits is rounded; zeros stay zeros."""
    for name, x in matrices(256).items():
        found = QuantizedTensor.quantize(x, row.name).dequantize()
        blocks = x.reshape(-1, 16 if row.name in ("q2_k", "q3_k", "q6_k") else 32)
        span = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
        assert (np.abs(found.reshape(blocks.shape) - blocks).max(1) <= 2.5 * span.max() / 2**row.bits).all(), name
    assert not QuantizedTensor.quantize(np.zeros((2, 512)), row.name).dequantize().any()
    for sign in (1, -1):  # one value in a block of zeros, and the same value everywhere
        alone = np.where(np.arange(256) == 77, np.float32(sign * 3e-3), np.float32(0))[None]
        for x in (alone, np.full((1, 256), sign * 0.37, np.float32)):
            found = QuantizedTensor.quantize(x, row.name).dequantize()
            coarse = 4e-2 if row.name == "iq4_xs" else 2e-2  # where d is a subnormal fp16
            np.testing.assert_allclose(found, x, rtol=0, atol=coarse * np.abs(x).max())
    for large in (1e9, -3e38):
        with pytest.raises(QuantizationError, match=f"row 0, column 5 .* float16 scale of {row.name}"):
            QuantizedTensor.quantize(np.where(np.arange(256) == 5, np.float32(large), np.float32(0))[None], row.name)
    with pytest.raises(QuantizationError, match="row 0, column 3 is nan"):
        QuantizedTensor.quantize(np.where(np.arange(256) == 3, np.nan, 1.0)[None], row.name)
    with pytest.raises(QuantizationError, match=f"16 columns are no multiple of the block size {row.block_size}"):
        QuantizedTensor.quantize(np.zeros((1, 16)), row.name)


@pytest.mark.peers
@pytest.mark.parametrize("row", GGML, ids=lambda row: row.name)
def test_the_error_of_quantizing_is_at_most_that_of_llama_cpp(row: WeightType, tier: str) -> None:
    for name, x in matrices(1024).items():
        quantized = QuantizedTensor.quantize(x, row.name).dequantize(), ggml.dequantize(ggml.quantize(x, row), row)
        power = np.square(x, dtype=np.float64).mean(1)
        ours, theirs = (np.mean(np.square(values - x, dtype=np.float64).mean(1) / power) for values in quantized)
        assert ours <= 1.02 * theirs, name


@pytest.mark.unit
@pytest.mark.parametrize("row", [row for row in GGML if row not in SEARCHED], ids=lambda row: row.name)
def test_quantizing_has_the_bits_of_ggml(row: WeightType, tier: str) -> None:
    rng = np.random.default_rng(2)
    gaussian = rng.standard_normal((96, 256)).astype(np.float32)
    scaled = gaussian * np.exp2(rng.integers(-12, 9, (96, 1))).astype(np.float32)
    ties = rng.integers(-64, 65, (96, 256)).astype(np.float32) / 2  # many between two values, many largest ones
    flat = np.repeat(rng.integers(-2, 3, (96, 8)), 32, axis=1).astype(np.float32)
    for x in (gaussian, scaled, ties, flat, -np.abs(gaussian), np.zeros((2, 64), np.float32)):
        theirs = quants.quantize(x, gguf.GGMLQuantizationType[row.gguf_name or ""])
        assert QuantizedTensor.quantize(x, row.name).quantized_values.tobytes() == theirs.tobytes()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("weight_type", "steps"), [("q4_0", 8), ("q5_0", 16), ("q8_0", 127), ("q4_1", 15), ("q5_1", 31)]
)
def test_a_scale_is_refused_from_what_float16_rounds_to_infinity(weight_type: str, steps: int, tier: str) -> None:
    for scale, fits in ((65504.0, True), (65519.0, True), (65521.0, False), (65535.0, False)):
        x = np.where(np.arange(32) == 5, np.float32(-scale * steps), np.float32(0))[None]
        if weight_type.endswith("_1"):
            x = -x
        if fits:
            assert np.isfinite(QuantizedTensor.quantize(x, weight_type).dequantize()).all()
            continue
        with pytest.raises(QuantizationError, match=f"row 0, column 5 .* float16 scale of {weight_type}"):
            QuantizedTensor.quantize(x, weight_type)


@pytest.mark.unit
@every_type
def test_a_tensor_takes_the_bytes_that_the_table_says(row: WeightType) -> None:
    x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    for double in (True, False):
        if row.is_quantized:
            held = QuantizedTensor.quantize(x, row.name, double_quantization=double)
            assert held.double_quantized == (double and row.scale_block > 0)
            assert (held.scales is not None) == row.has_scales
            assert held.quantized_values.shape == (256, row.row_bytes(256))
            found = held.nbytes
        else:
            found = Tensor(x, dtype=row.name).nbytes
        assert found == x.size * row.bytes_per_weight(double)
    assert 0 <= row.bytes_per_weight(False) - Fraction(row.bits, 8) <= Fraction(1, 8)


@pytest.mark.unit
def test_names_are_rows_or_aliases() -> None:
    assert weight_type("int4") is WEIGHT_TYPES["q4_1"]
    assert gguf_weight_type("IQ1_S") is None
    with pytest.raises(
        ConfigError, match="The weight type 'fp4' is unknown; choose one of float32, bfloat16, float16, nf"
    ):
        weight_type("fp4")
    with pytest.raises(ConfigError, match="The weight type 'bfloat16' is not quantized; choose one of nf4, "):
        quantized_type("bfloat16")
    with pytest.raises(TypeError):
        WEIGHT_TYPES["q4_2"] = WEIGHT_TYPES["q4_0"]  # type: ignore[index]

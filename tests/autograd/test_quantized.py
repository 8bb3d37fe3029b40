"""QuantizedTensor: quantizing, streaming, importing and saving 4-bit matrices."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from entrenar import matmul_precision
from entrenar._kernels import cpu
from entrenar.autograd import Tensor, linear
from entrenar.autograd.quantized import (
    DYNAMIC_MAP,
    NF4_VALUES,
    STREAM_BYTES,
    QuantizedTensor,
    dequantize_bitsandbytes,
    dequantize_nf4,
    quantize_int4,
    quantize_nf4,
)
from entrenar.autograd.weight_types import WEIGHT_TYPES, weight_type
from entrenar.errors import ConfigError, QuantizationError, ShapeError

TYPES = [row.name for row in WEIGHT_TYPES.values() if row.is_quantized and row.name != "int16"]
GGML = {type_name: GGMLQuantizationType[type_name.upper()] for type_name in TYPES if WEIGHT_TYPES[type_name].gguf_name}
K = 256  # columns that are whole blocks of every type
every_type = pytest.mark.parametrize("type_name", TYPES)
either_nf4 = pytest.mark.parametrize("double", [False, True], ids=["absmax fp32", "absmax 8 bit"])


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def reference_absmax(q: QuantizedTensor) -> np.ndarray:
    """The absmax of every block by the definition of double quantization."""
    quantized = q.quantized_scales.reshape(-1)
    second = np.repeat(q.scales, 256)[: quantized.size]
    return q.scale_map[quantized] * second + np.float32(q.scale_offset)


@pytest.mark.unit
@every_type
def test_quantize_holds_the_values_of_the_plain_functions_and_of_the_gguf_library(type_name: str, tier: str) -> None:
    x = normal(37, K)
    q = QuantizedTensor.quantize(x, type_name, double_quantization=False)
    if type_name in ("nf4", "q4_0", "q4_1"):
        np.testing.assert_array_equal(
            q.quantized_values, quantize_nf4(x)[0] if type_name == "nf4" else quantize_int4(x, type_name)
        )
    if (
        type_name in GGML and WEIGHT_TYPES[type_name].block_size == 32 and type_name != "iq4_nl"
    ):  # the library encodes no others
        np.testing.assert_array_equal(q.quantized_values, quants.quantize(x, GGML[type_name]))
    assert (q.weight_type, q.shape, q.ndim, q.size, q.requires_grad) == (type_name, (37, K), 2, 37 * K, False)
    assert q.nbytes == 37 * K * weight_type(type_name).bytes_per_weight(False)
    assert np.linalg.norm(q.dequantize() - x) / np.linalg.norm(x) < {"q2_k": 0.32, "q3_k": 0.16}.get(type_name, 0.1)


@pytest.mark.unit
def test_double_quantization_follows_its_definition(tier: str) -> None:
    x = normal(50, 1024) * np.exp2(np.random.default_rng(1).normal(0, 2, (50, 1))).astype(np.float32)
    quantized, absmax = quantize_nf4(x)
    q = QuantizedTensor.quantize(x, "nf4")
    np.testing.assert_array_equal(q.quantized_values, quantized)
    assert q.scale_offset == np.float32(absmax.mean(dtype=np.float64))
    centred = absmax.reshape(-1) - np.float32(q.scale_offset)
    groups = [centred[i : i + 256] for i in range(0, centred.size, 256)]  # 800 blocks: the last group is short
    np.testing.assert_array_equal(q.scales, [np.abs(group).max() for group in groups])
    for i, group in enumerate(groups):
        distances = np.abs((group / np.abs(group).max())[:, None] - DYNAMIC_MAP)
        chosen = q.quantized_scales.reshape(-1)[256 * i : 256 * i + len(group)]
        np.testing.assert_array_equal(distances[np.arange(len(group)), chosen], distances.min(axis=1))
    np.testing.assert_array_equal(q.dequantize(), dequantize_nf4(quantized, reference_absmax(q)))
    assert q.nbytes == 50 * 1024 / 2 + 800 + 4 * 4
    assert q.double_quantized


@pytest.mark.unit
def test_double_quantization_of_equal_and_zero_blocks() -> None:
    for value in (0.0, 1.5, -2.0):
        x = np.full((4, 256), value, np.float32)
        np.testing.assert_array_equal(QuantizedTensor.quantize(x, "nf4").dequantize(), x)
    x = normal(4, 256)
    x[1:3] = 0
    values = QuantizedTensor.quantize(x, "nf4").dequantize()
    assert not values[1:3].any()
    assert np.abs(values[[0, 3]]).max() > 0


@pytest.mark.unit
@pytest.mark.parametrize(("type_name", "double"), [("nf4", True), *((type_name, False) for type_name in TYPES)])
def test_any_run_of_a_row_dequantizes_like_the_whole(type_name: str, double: bool, tier: str) -> None:
    q = QuantizedTensor.quantize(normal(4, 2 * K), type_name, double_quantization=double)
    whole = q.dequantize()
    for start in (0, 1, 8, 15, 16, 31, 33, 63, 64, 100, 255, 303, 511, 512):
        for count in (0, 1, 2, 7, 15, 16, 17, 31, 32, 48, 64, 65, 130, 512):
            stop = min(512, start + count)
            np.testing.assert_array_equal(q.dequantize_run(3, start, stop), whole[3, start:stop])
    np.testing.assert_array_equal(q.dequantize_rows(1, 3), whole[1:3])
    assert q.dequantize_rows(2, 2).shape == (0, 2 * K)
    for rows in ((-1, 2), (0, 5), (3, 2)):
        with pytest.raises(ShapeError, match="4 rows"):
            q.dequantize_rows(*rows)
    with pytest.raises(ShapeError, match="Row 4"):
        q.dequantize_run(4, 0, 1)
    with pytest.raises(ShapeError, match=r"\[511, 513\)"):
        q.dequantize_run(0, 511, 513)


@pytest.mark.unit
@every_type
def test_streamed_rows_give_the_same_tensor(type_name: str, threads: None) -> None:
    x = normal(61, 256)
    whole = QuantizedTensor.quantize(x, type_name).to_arrays()
    cpu.set_num_threads(2)
    by_function = QuantizedTensor.quantize_streaming(lambda a, b: x[a:b], x.shape, type_name)
    by_chunks = QuantizedTensor.quantize_streaming(iter([x[:1], x[1:1], x[1:40], x[40:]]), x.shape, type_name)
    for other in (by_function.to_arrays(), by_chunks.to_arrays()):
        assert {name: array.tobytes() for name, array in other.items()} == {n: a.tobytes() for n, a in whole.items()}


@pytest.mark.unit
def test_every_float_dtype_and_tensor_quantizes() -> None:
    import ml_dtypes

    x = normal(8, 128).astype(np.float16).astype(np.float32)
    expected = QuantizedTensor.quantize(x, "nf4").dequantize()
    for same in (
        x.astype(np.float16),
        x.astype(np.float64),
        Tensor(x),
        Tensor(x, requires_grad=True),
        np.asfortranarray(x),
    ):
        np.testing.assert_array_equal(QuantizedTensor.quantize(same, "nf4").dequantize(), expected)
    rounded = x.astype(ml_dtypes.bfloat16)
    expected = QuantizedTensor.quantize(rounded.astype(np.float32), "q4_1").quantized_values
    np.testing.assert_array_equal(QuantizedTensor.quantize(rounded, "q4_1").quantized_values, expected)
    np.testing.assert_array_equal(
        QuantizedTensor.quantize(Tensor.from_numpy(rounded), "int4").quantized_values, expected
    )


@pytest.mark.memory
@every_type
def test_streaming_holds_only_a_few_rows_in_full_precision(type_name: str) -> None:
    rows, columns = 16384, 1024  # 64 MiB in float32
    row = normal(1, columns)
    tracemalloc.start()
    try:
        q = QuantizedTensor.quantize_streaming(lambda a, b: np.repeat(row, b - a, axis=0), (rows, columns), type_name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    fp32_absmax = 4 * rows * columns // 64 if type_name == "nf4" else 0
    assert peak < q.nbytes + fp32_absmax + 2.5 * STREAM_BYTES
    assert peak < 4 * rows * columns


@pytest.mark.unit
def test_rows_that_do_not_add_up_are_refused() -> None:
    x = normal(4, 64)
    with pytest.raises(QuantizationError, match="Only 4 rows came, expected the 5"):
        QuantizedTensor.quantize_streaming([x], (5, 64), "nf4")
    with pytest.raises(QuantizationError, match="More rows came than the 3"):
        QuantizedTensor.quantize_streaming([x], (3, 64), "nf4")
    with pytest.raises(QuantizationError, match=r"shape \(4, 64\), expected \(any, 128\)"):
        QuantizedTensor.quantize_streaming([x], (4, 128), "nf4")
    x[2, 5] = np.nan
    with pytest.raises(QuantizationError, match="row 6, column 5 is nan"):
        QuantizedTensor.quantize_streaming([normal(4, 64), x], (8, 64), "nf4")
    with pytest.raises(QuantizationError, match=r"row 0, column 0 is inf"):
        QuantizedTensor.quantize(np.full((1, 64), 1e300), "nf4")
    with pytest.raises(QuantizationError, match="96 columns are no multiple of the block size 64"):
        QuantizedTensor.quantize(normal(2, 96), "nf4")
    with pytest.raises(QuantizationError, match="must be \\(rows, columns\\)"):
        QuantizedTensor.quantize(np.zeros(64, np.float32), "nf4")
    with pytest.raises(ConfigError, match="'fp4' is unknown"):
        QuantizedTensor.quantize(normal(2, 64), "fp4")
    with pytest.raises(TypeError):
        QuantizedTensor()


@pytest.mark.unit
@pytest.mark.parametrize("scale", [1.0, 1e-5, 3e-7, 1e-20, 1e3])
def test_q8_0_is_bit_equal_with_the_gguf_library(scale: float, tier: str) -> None:
    rng = np.random.default_rng(9)
    grid = rng.integers(-254, 255, (64, 64)).astype(np.float32) / 2  # values that fall between two
    grid[:, [3, 40]] = 127
    for x in (normal(130, 160), rng.standard_t(1.5, (64, 512)).clip(-50, 50).astype(np.float32), grid, -grid, 0 * grid):
        x = x * np.float32(scale)
        expected = quants.quantize(x, GGML["q8_0"])
        q = QuantizedTensor.quantize(x, "q8_0")
        np.testing.assert_array_equal(q.quantized_values, expected)
        np.testing.assert_array_equal(q.dequantize(), quants.dequantize(expected, GGML["q8_0"]))
    with pytest.raises(QuantizationError, match=r"row 0, column 5 .* float16 scale of q8_0"):
        QuantizedTensor.quantize(np.where(np.arange(32) == 5, np.float32(1e8), np.float32(0))[None], "q8_0")


@pytest.mark.unit
@pytest.mark.parametrize("type_name", GGML)
def test_gguf_blocks_are_used_in_place(type_name: str, tier: str, tmp_path: Path) -> None:
    columns = 3 * WEIGHT_TYPES[type_name].block_size
    raw = QuantizedTensor.quantize(normal(12, columns), type_name).quantized_values
    file = tmp_path / "tensor"
    file.write_bytes(b"?" * 6 + raw.tobytes())
    mapped = np.memmap(file, np.uint8, mode="r", offset=6)
    q = QuantizedTensor.from_gguf_blocks(mapped, type_name, (12, columns))
    assert np.shares_memory(q.quantized_values, mapped)
    del mapped
    np.testing.assert_array_equal(q.dequantize(), quants.dequantize(raw, GGML[type_name]))


@pytest.mark.unit
@pytest.mark.parametrize("head_dim", [2, 6, 20])
@pytest.mark.parametrize("type_name", GGML)
def test_rows_that_a_file_has_in_turn_stay_where_they_are(type_name: str, head_dim: int, tier: str) -> None:
    """An interleaved head of a GGUF file: values and products have the bits of a copy whose rows are in order."""
    columns = 3 * WEIGHT_TYPES[type_name].block_size
    raw = QuantizedTensor.quantize(normal(60, columns), type_name).quantized_values
    order = np.arange(60).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    kept = QuantizedTensor.from_gguf_blocks(raw, type_name, (60, columns), head_dim)
    copy = QuantizedTensor.from_gguf_blocks(raw[order], type_name, (60, columns))
    assert kept.quantized_values.tobytes() == raw[order].tobytes() and kept.nbytes == copy.nbytes
    assert kept.dequantize().tobytes() == copy.dequantize().tobytes()
    assert kept.dequantize_rows(7, 23).tobytes() == copy.dequantize_rows(7, 23).tobytes()
    assert kept.dequantize_run(31, 5, 40).tobytes() == copy.dequantize_run(31, 5, 40).tobytes()
    assert pickle.loads(pickle.dumps(kept)).dequantize().tobytes() == copy.dequantize().tobytes()
    for precision in ("highest", "high", "medium"):
        for rows in (1, 3, 40):
            x, dy = normal(rows, columns, seed=rows), normal(rows, 60, seed=5)
            found = []
            for weight in (kept, copy):
                leaf = Tensor(x, requires_grad=True)
                with matmul_precision(precision):
                    y = linear(leaf, weight)
                    y.backward(Tensor(dy))
                found.append((y.numpy().tobytes(), leaf.grad.numpy().tobytes()))
            assert found[0] == found[1], (precision, rows)


@pytest.mark.chaos
def test_damaged_gguf_blocks_are_refused() -> None:
    raw = quants.quantize(normal(4, 64), GGML["q4_1"])
    with pytest.raises(QuantizationError, match="159 elements, expected 160"):
        QuantizedTensor.from_gguf_blocks(raw.reshape(-1)[:-1], "q4_1", (4, 64))
    with pytest.raises(QuantizationError, match="dtype int8"):
        QuantizedTensor.from_gguf_blocks(raw.view(np.int8), "q4_1", (4, 64))
    with pytest.raises(QuantizationError, match="negative size"):
        QuantizedTensor.from_gguf_blocks(raw, "q4_1", (-4, -64))
    with pytest.raises(QuantizationError, match="no GGUF form"):
        QuantizedTensor.from_gguf_blocks(raw, "nf4", (4, 64))
    for head_dim in (-2, 1, 3, 8):
        with pytest.raises(
            QuantizationError, match=f"head_dim is {head_dim}, expected an even number that divides the 4"
        ):
            QuantizedTensor.from_gguf_blocks(raw, "q4_1", (4, 64), head_dim)
    for value in (np.inf, np.nan, -np.inf):
        for offset in (0, 2):  # scale, minimum
            damaged = raw.copy()
            damaged[2, 20 + offset : 22 + offset] = np.array([value], np.float16).view(np.uint8)
            with pytest.raises(QuantizationError, match="scale that is infinite or NaN"):
                QuantizedTensor.from_gguf_blocks(damaged, "q4_1", (4, 64))


def bitsandbytes_parts(x: np.ndarray, double: bool, blocksize: int = 64, quant_type: str = "nf4") -> tuple[Any, dict]:
    """What bitsandbytes makes of x, as the arguments of from_bitsandbytes, and its own dequantization."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.from_numpy(x), blocksize=blocksize, quant_type=quant_type, compress_statistics=double
    )
    parts = {
        "quantized_values": packed,
        "absmax": state.absmax,
        "shape": x.shape,
        "blocksize": blocksize,
        "quant_map": state.code,
    }
    if double:
        nested = state.state2
        parts |= {"nested_absmax": nested.absmax, "nested_quant_map": nested.code, "nested_offset": state.offset}
        parts["nested_blocksize"] = nested.blocksize
    state.shape = torch.Size([1, x.size])  # its AVX-512 kernel takes a wrong scale where a block is longer than a row
    return functional.dequantize_4bit(packed, state).numpy().reshape(x.shape), parts


@pytest.mark.peers
def test_the_dynamic_map_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    # PyTorch rounds it differently on CPUs without FMA, by an ulp
    np.testing.assert_allclose(DYNAMIC_MAP, functional.create_dynamic_map(signed=True).numpy(), rtol=0, atol=6e-8)


@pytest.mark.peers
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_double_quantization_agrees_with_bitsandbytes(tail: str, tier: str) -> None:
    x = normal(2048, 2048, 3)
    if tail == "heavy":
        x = np.random.default_rng(3).standard_t(3, (2048, 2048)).astype(np.float32)
    _, parts = bitsandbytes_parts(x, double=True)
    q = QuantizedTensor.quantize(x, "nf4")
    assert q.quantized_values.tobytes() == parts["quantized_values"].numpy().tobytes()
    np.testing.assert_allclose(q.scale_offset, float(parts["nested_offset"]), rtol=1e-6)
    np.testing.assert_allclose(q.scales, parts["nested_absmax"].numpy(), rtol=1e-6)
    assert (q.quantized_scales == parts["absmax"].numpy()).mean() >= 0.995


@pytest.mark.peers
@either_nf4
def test_a_bitsandbytes_tensor_keeps_its_values(double: bool, tier: str) -> None:
    theirs, parts = bitsandbytes_parts(normal(160, 448, 4), double)
    q = QuantizedTensor.from_bitsandbytes(**parts)
    assert q.quantized_values.tobytes() == parts["quantized_values"].numpy().tobytes()
    assert q.double_quantized == double
    np.testing.assert_allclose(q.dequantize(), theirs, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dequantize_bitsandbytes(**parts), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.peers
@either_nf4
@pytest.mark.parametrize(("shape", "blocksize"), [((30, 100), 64), ((7, 4), 64), ((9, 64), 128), ((300, 256), 32)])
def test_other_bitsandbytes_tensors_dequantize(shape: tuple[int, int], blocksize: int, double: bool) -> None:
    theirs, parts = bitsandbytes_parts(normal(*shape), double, blocksize)
    np.testing.assert_allclose(dequantize_bitsandbytes(**parts), theirs, rtol=1e-6, atol=1e-7)
    with pytest.raises(QuantizationError, match="no multiple of the block size 64" if shape[1] % 64 else "blocks of"):
        QuantizedTensor.from_bitsandbytes(**parts)


@pytest.mark.peers
def test_fp4_is_refused() -> None:
    _, parts = bitsandbytes_parts(normal(4, 64), False, quant_type="fp4")
    with pytest.raises(QuantizationError, match="FP4"):
        QuantizedTensor.from_bitsandbytes(**parts)


@pytest.mark.chaos
def test_damaged_bitsandbytes_tensors_are_refused() -> None:
    q = QuantizedTensor.quantize(normal(8, 64), "nf4")
    parts = {
        "quantized_values": q.quantized_values,
        "absmax": q.quantized_scales,
        "shape": (8, 64),
        "nested_absmax": q.scales,
    }
    parts |= {"nested_quant_map": q.scale_map, "nested_offset": q.scale_offset, "quant_map": NF4_VALUES}
    np.testing.assert_array_equal(QuantizedTensor.from_bitsandbytes(**parts).dequantize(), q.dequantize())
    damage = {
        "quantized_values": (q.quantized_values[:-1], "quantized_values has 224 elements, expected 256"),
        "absmax": (q.quantized_scales[:-1], "quantized_scales has 7 elements, expected 8"),
        "nested_absmax": (np.float32([1, 2]), "scales has 2 elements, expected 1"),
        "nested_quant_map": (DYNAMIC_MAP[:255], "scale_map has 255 elements, expected 256"),
        "nested_offset": (np.float32("nan"), "scale_offset holds a value that is infinite or NaN"),
    }
    for name, (value, message) in damage.items():
        with pytest.raises(QuantizationError, match=message):
            QuantizedTensor.from_bitsandbytes(**{**parts, name: value})


@pytest.mark.unit
@pytest.mark.parametrize(("type_name", "double"), [("nf4", False), ("nf4", True), ("q4_0", False), ("q4_1", False)])
def test_arrays_and_pickles_round_trip(type_name: str, double: bool) -> None:
    q = QuantizedTensor.quantize(normal(10, 192), type_name, double_quantization=double)
    for copy in (QuantizedTensor.from_arrays(q.to_arrays(), type_name), pickle.loads(pickle.dumps(q))):
        assert (copy.weight_type, copy.shape, copy.nbytes) == (type_name, (10, 192), q.nbytes)
        assert copy.dequantize().tobytes() == q.dequantize().tobytes()
    arrays = q.to_arrays()
    with pytest.raises(QuantizationError, match="must be"):
        QuantizedTensor.from_arrays({k: v for k, v in arrays.items() if k != "quantized_values"}, type_name)
    with pytest.raises(QuantizationError, match="must be"):
        QuantizedTensor.from_arrays(arrays | {"zero_point": np.zeros(1)}, type_name)
    with pytest.raises(QuantizationError, match="quantized_values of"):
        QuantizedTensor.from_arrays(arrays | {"quantized_values": q.quantized_values[:, :-1]}, type_name)


@pytest.mark.unit
@every_type
def test_empty_matrices(type_name: str) -> None:
    for shape in ((0, K), (3, 0)):
        q = QuantizedTensor.quantize(np.zeros(shape, np.float32), type_name)
        assert q.dequantize().shape == shape
        assert QuantizedTensor.from_arrays(q.to_arrays(), type_name).shape == shape

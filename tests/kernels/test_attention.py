"""Attention beyond its cases: masks as behaviour, extreme scores, memory, errors, and PyTorch's gradients."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar._kernels import cpu
from entrenar.autograd import Tensor, no_grad
from entrenar.autograd.ops.attention import CacheRows, attention, cached_attention, write_cache
from entrenar.errors import ConfigError, GraphError, ShapeError

from .cases.attention import qkv, reference_attention


def with_gradients(arrays: list[np.ndarray], gradient: np.ndarray, **options: object) -> list[np.ndarray]:
    """The output and the gradients of q, k and v."""
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    out = attention(*tensors, **options)
    out.backward(Tensor(gradient))
    return [out.numpy()] + [tensor.grad.numpy() for tensor in tensors]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.peers
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        *[(2, length, 3, 1, 48) for length in (7, 64, 65, 130)],
        *[(1, 70, 6, 2, dim) for dim in (16, 64, 80, 128, 20)],
        *[(1, 90, heads, kv, 16) for heads, kv in ((1, 1), (3, 3), (8, 1), (9, 3))],
        (1, 700, 9, 3, 64),
    ],
    ids=str,
)
def test_value_and_gradients_agree_with_torch_float64(shape: tuple[int, ...], causal: bool, tier: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    arrays = qkv(shape)(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    theirs = [torch.tensor(a, dtype=torch.float64).transpose(1, 2).requires_grad_() for a in arrays]
    out = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal, enable_gqa=True)
    gradients = torch.autograd.grad(out, theirs, torch.tensor(gradient, dtype=torch.float64).transpose(1, 2))
    expected = [t.detach().transpose(1, 2).numpy() for t in (out, *gradients)]
    for name, one, other in zip("oqkv", with_gradients(arrays, gradient, causal=causal), expected, strict=True):
        assert relative_error(one, other) < 6e-7, name


@pytest.mark.peers
@pytest.mark.parametrize(
    ("shape", "keys", "window", "softcap"),
    [
        ((2, 130, 3, 1, 48), 130, 17, None),
        ((1, 200, 6, 2, 20), 200, 64, 3.0),
        ((1, 70, 8, 1, 16), 300, 65, None),
        ((1, 90, 4, 4, 16), 90, None, 0.8),
        ((1, 700, 9, 3, 16), 700, 100, 5.0),
        ((1, 1100, 8, 8, 16), 1100, 1, None),
        ((2, 600, 8, 8, 16), 600, 130, 2.0),
    ],
    ids=str,
)
def test_windows_and_soft_caps_agree_with_torch_float64(
    shape: tuple[int, ...], keys: int, window: int | None, softcap: float | None, tier: str
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    arrays = qkv(shape, keys)(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    q, k, v = theirs = [torch.tensor(a, dtype=torch.float64).transpose(1, 2).requires_grad_() for a in arrays]
    group, offset = shape[2] // shape[3], keys - shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) * 0.4
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = torch.ones(scores.shape[2:]).triu(offset + 1).bool()
    if window is not None:
        hidden |= torch.ones(scores.shape[2:]).tril(offset - window).bool()
    out = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(group, 1)
    gradients = torch.autograd.grad(out, theirs, torch.tensor(gradient, dtype=torch.float64).transpose(1, 2))
    expected = [t.detach().transpose(1, 2).numpy() for t in (out, *gradients)]
    found = with_gradients(arrays, gradient, scale=0.4, window=window, softcap=softcap)
    for name, one, other in zip("oqkv", found, expected, strict=True):
        if window == 1 and name in "qk":  # one key has all the probability: no gradient but for rounding
            assert np.abs(one).max() < 1e-5
        else:
            assert relative_error(one, other) < 1e-6, name


@pytest.mark.gradient
def test_a_window_of_everything_has_the_bits_of_none(tier: str) -> None:
    rng = np.random.default_rng(3)
    arrays = qkv((2, 300, 4, 2, 20))(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    plain = with_gradients(arrays, gradient)
    for window in (300, 10_000):
        for one, other in zip(plain, with_gradients(arrays, gradient, window=window), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 3), st.integers(1, 3), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_no_token_sees_what_lies_before_its_window(
    length: int, kv_heads: int, group: int, window: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = qkv((1, length, kv_heads * group, kv_heads, 8))(rng)
    cut = int(rng.integers(0, length))  # the first token that does not see the first keys
    before = attention(q, k, v, window=window).numpy().copy()
    first = max(0, cut - window + 1)
    k[:, :first], v[:, :first] = 1e3, 1e4
    after = attention(q, k, v, window=window).numpy()
    assert before[:, cut:].tobytes() == after[:, cut:].tobytes()
    start = int(rng.integers(0, length))
    cached = cached_attention(q[:, start:], k, v, length, window=window).numpy()
    np.testing.assert_allclose(cached, after[:, start:], rtol=2e-5, atol=2e-6)


@pytest.mark.unit
def test_kv_tiles_outside_a_window_are_not_computed() -> None:
    q, k, v = (Tensor(a, requires_grad=True) for a in qkv((1, 2048, 2, 1, 64))(np.random.default_rng(9)))
    ones_of_out = Tensor(np.ones(q.shape))

    def seconds(**options: object) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            attention(q, k, v, **options).backward(ones_of_out)
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(window=64) < seconds() / 3  # a ninth of the pairs


@pytest.mark.gradient
@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 48), (2, 1, 2, 2, 5)], ids=str)
def test_one_token_passes_the_gradient_to_its_value_only(shape: tuple[int, ...], tier: str) -> None:
    rng = np.random.default_rng(3)
    arrays = qkv(shape)(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    out, dq, dk, dv = with_gradients(arrays, gradient)
    assert np.array_equal(out, arrays[2].repeat(shape[2] // shape[3], 2))
    assert max(np.abs(dq).max(), np.abs(dk).max()) < 1e-5
    np.testing.assert_allclose(dv, gradient.reshape(*dv.shape[:3], -1, shape[4]).sum(3), rtol=1e-5, atol=1e-6)


@pytest.mark.gradient
@pytest.mark.parametrize("cuts", [(0, 65, 65, 66, 130), (0, 1, 2, 3, 130), (0, 0, 130, 130)], ids=str)
def test_packed_sequences_have_the_bits_of_sequences_alone(cuts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    arrays = qkv((1, 130, 4, 2, 20))(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    packed = with_gradients(arrays, gradient, cu_seqlens=np.array(cuts, np.int32))
    for start, end in itertools.pairwise(cuts):
        alone = with_gradients([a[:, start:end] for a in arrays], gradient[:, start:end])
        for one, other in zip(packed, alone, strict=True):
            assert one[:, start:end].tobytes() == other.tobytes()


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 140), st.integers(1, 3), st.integers(1, 3), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_no_token_sees_the_future(length: int, kv_heads: int, group: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = qkv((1, length, kv_heads * group, kv_heads, dim))(rng)
    cut = int(rng.integers(0, length))
    before = attention(q, k, v).numpy().copy()
    k[:, cut + 1 :] = rng.standard_normal(k[:, cut + 1 :].shape)
    v[:, cut + 1 :] = 1e4
    after = attention(q, k, v).numpy()
    assert before[:, : cut + 1].tobytes() == after[:, : cut + 1].tobytes()
    assert cut + 1 == length or not np.array_equal(before[:, -1], after[:, -1])


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_prompt_in_chunks_through_the_cache_is_the_whole(
    length: int, kv_heads: int, group: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = qkv((2, length, kv_heads * group, kv_heads, dim))(rng)
    whole = attention(q, k, v).numpy()
    caches = [np.concatenate([a, np.full((2, 3, kv_heads, dim), np.nan, np.float32)], 1) for a in (k, v)]
    start = 0
    while start < length:
        end = min(length, start + int(rng.integers(1, 80)))
        chunk = cached_attention(q[:, start:end], *caches, end).numpy()
        np.testing.assert_allclose(chunk, whole[:, start:end], rtol=2e-5, atol=2e-6)
        start = end


@pytest.mark.unit
def test_scores_of_ten_thousands_neither_overflow_nor_lose_precision(tier: str) -> None:
    rng = np.random.default_rng(5)
    # whole numbers: every score is exact in float32, so nothing but the softmax itself can go wrong
    q, k = (rng.integers(-50, 51, (1, 130, heads, 16)).astype(np.float32) for heads in (4, 2))
    v = rng.standard_normal((1, 130, 2, 16)).astype(np.float32)
    gradient = rng.standard_normal(q.shape).astype(np.float32)
    out, *gradients = with_gradients([q, k, v], gradient, scale=1.0)
    scores = np.einsum("bthd,bshd->hts", q, k.repeat(2, 2))
    assert np.abs(scores).max() > 1e4
    assert relative_error(out, reference_attention(*(a.astype(np.float64) for a in (q, k, v)), scale=1.0)) < 2e-7
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.unit
def test_not_a_number_is_not_hidden(tier: str) -> None:
    q, k, v = qkv((1, 9, 2, 1, 20))(np.random.default_rng(6))
    q[0, 4, 1, 3] = np.nan
    out = attention(q, k, v).numpy()
    assert np.isnan(out[0, 4, 1]).all()
    assert np.isnan(out).sum() == 20
    q[0, 4, 1, 3] = 0
    k[0, 0, 0, 0] = np.nan
    assert np.isnan(attention(q, k, v).numpy()).all()


@pytest.mark.gradient
def test_one_tensor_may_play_all_three_roles() -> None:
    rng = np.random.default_rng(7)
    x, gradient = (rng.standard_normal((2, 70, 3, 8)).astype(np.float32) for _ in range(2))
    tensor = Tensor(x, requires_grad=True)
    attention(tensor, tensor, tensor).backward(Tensor(gradient))
    _, dq, dk, dv = with_gradients([x, x, x], gradient)
    np.testing.assert_allclose(tensor.grad.numpy(), dq + dk + dv, rtol=1e-5, atol=1e-6)


@pytest.mark.gradient
@pytest.mark.parametrize("trained", ["q", "k", "v"])
def test_only_what_is_wanted_gets_a_gradient_and_gradients_add_up(trained: str) -> None:
    rng = np.random.default_rng(8)
    arrays = qkv((1, 300, 4, 1, 12))(rng)
    gradient = rng.standard_normal(arrays[0].shape).astype(np.float32)
    expected = dict(zip("qkv", with_gradients(arrays, gradient)[1:], strict=True))[trained]
    tensors = {name: Tensor(a, requires_grad=name == trained) for name, a in zip("qkv", arrays, strict=True)}
    for _ in range(2):
        attention(*tensors.values()).backward(Tensor(gradient))
    np.testing.assert_allclose(tensors[trained].grad.numpy(), 2 * expected, rtol=1e-5, atol=1e-5)
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [trained]


@pytest.mark.memory
def test_memory_grows_with_the_length_not_with_its_square() -> None:
    cpu.release_scratch()
    for length in (512, 2048):
        tensors = [Tensor(a, requires_grad=True) for a in qkv((1, length, 2, 1, 16))(np.random.default_rng(9))]
        out = attention(*tensors)
        # q, k, v, the output, and two floats a row
        assert out.grad_fn.saved_bytes == 4 * length * (2 * 2 * 16 + 2 * 16 + 2 * 2)
        out.backward(Tensor(np.ones(out.shape)))
        assert cpu.scratch_bytes() < 4 * length * 2 * 2048  # one head's probabilities would be 4 * length**2


@pytest.mark.unit
@pytest.mark.parametrize(
    "shapes",
    [((0, 4, 2, 8), (0, 4, 1, 8)), ((2, 0, 2, 8), (2, 0, 1, 8)), ((1, 0, 2, 8), (1, 3, 1, 8))],
    ids=str,
)
def test_nothing_in_nothing_out(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    q, k, v = (np.ones(shape, np.float32) for shape in (shapes[0], shapes[1], shapes[1]))
    out, dq, dk, dv = with_gradients([q, k, v], np.ones(shapes[0], np.float32))
    assert out.shape == dq.shape == shapes[0]
    assert not dk.any()
    assert not dv.any()


@pytest.mark.unit
def test_queries_without_keys_give_zeros() -> None:
    q, k = np.ones((1, 3, 2, 8), np.float32), np.ones((1, 0, 1, 8), np.float32)
    out, dq, _, _ = with_gradients([q, k, k], q, causal=False)
    assert not out.any()
    assert not dq.any()


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ones(2, 3, 4), ones(2, 3, 4), ones(2, 3, 4)), {}, ShapeError, "four axes"),
        ((ones(1, 3, 4, 8), ones(1, 3, 3, 8), ones(1, 3, 3, 8)), {}, ShapeError, "4 heads of q .* multiple of the 3"),
        ((ones(1, 3, 4, 8), ones(1, 3, 0, 8), ones(1, 3, 0, 8)), {}, ShapeError, "multiple of the 0"),
        ((ones(1, 3, 4, 8), ones(1, 3, 4, 8), ones(1, 4, 4, 8)), {}, ShapeError, "must agree"),
        ((ones(1, 3, 4, 8), ones(2, 3, 4, 8), ones(2, 3, 4, 8)), {}, ShapeError, "batch and head size"),
        ((ones(1, 3, 4, 8), ones(1, 3, 4, 6), ones(1, 3, 4, 6)), {}, ShapeError, "batch and head size"),
        ((ones(1, 3, 4, 8), ones(1, 2, 4, 8), ones(1, 2, 4, 8)), {}, ShapeError, "2 keys for 3 queries"),
        ((ones(1, 3, 4, 8),) * 3, {"cu_seqlens": [0, 2]}, ShapeError, "from 0 to 2, expected from 0 to the 3"),
        ((ones(1, 3, 4, 8),) * 3, {"cu_seqlens": [1, 3]}, ShapeError, "from 1 to 3"),
        ((ones(1, 3, 4, 8),) * 3, {"cu_seqlens": [0, 2, 1, 3]}, ShapeError, "found 1 after 2 at position 2"),
        ((ones(1, 3, 4, 8),) * 3, {"cu_seqlens": [0.0, 3.0]}, ShapeError, "vector of integers"),
        ((ones(1, 2, 4, 8), ones(1, 3, 4, 8), ones(1, 3, 4, 8)), {"cu_seqlens": [0, 2]}, ShapeError, "as many keys"),
        ((ones(1, 3, 4, 8),) * 3, {"scale": float("nan")}, ConfigError, "finite"),
        ((ones(1, 3, 4, 8),) * 3, {"window": 0}, ConfigError, "window must be at least 1 key"),
        ((ones(1, 3, 4, 8),) * 3, {"window": 1.5}, ConfigError, "window must be an integer"),
        ((ones(1, 3, 4, 8),) * 3, {"window": 2, "causal": False}, ConfigError, "a window needs causal=True"),
        ((ones(1, 3, 4, 8),) * 3, {"softcap": 0.0}, ConfigError, "softcap must be a positive finite number"),
        ((Tensor(np.ones((1, 3, 4, 8)), dtype="bfloat16"),) * 3, {}, ConfigError, "bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[Tensor, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attention(*arguments, **options)


@pytest.mark.unit
def test_new_tokens_are_written_into_a_cache_where_it_says_and_nowhere_else() -> None:
    expected = np.full((2, 5, 3, 4), -1, np.float32)
    cache, x = Tensor(expected), np.random.default_rng(0).standard_normal((2, 2, 3, 4), np.float32)
    for start in (3, 0):
        write_cache(cache, start, x)
        expected[:, start : start + 2] = x
        np.testing.assert_array_equal(cache.numpy(), expected)


@pytest.mark.unit
@pytest.mark.parametrize("start", [-1, 4, 2**62])
def test_tokens_that_do_not_fit_a_cache_are_refused(start: int) -> None:
    with pytest.raises(ShapeError, match=f"does not fit a cache .* from position {start} on"):
        write_cache(Tensor(np.zeros((2, 5, 3, 4))), start, Tensor(np.zeros((2, 2, 3, 4))))
    for shape in ((1, 2, 3, 4), (2, 2, 1, 4), (2, 2, 3, 8), (2, 2, 12)):
        with pytest.raises(ShapeError, match="write_cache"):
            write_cache(Tensor(np.zeros((2, 5, 3, 4))), 0, Tensor(np.zeros(shape)))


@pytest.mark.unit
def test_a_cache_takes_nothing_whose_gradient_would_be_lost() -> None:
    x = Tensor(np.zeros((1, 1, 1, 2), np.float32), requires_grad=True)
    with pytest.raises(GraphError, match="no_grad"):
        write_cache(Tensor(np.zeros((1, 2, 1, 2))), 0, x)
    with no_grad():
        write_cache(Tensor(np.zeros((1, 2, 1, 2))), 0, x)


@pytest.mark.unit
def test_cached_attention_refuses_a_wrong_length_and_a_lost_gradient() -> None:
    q, cache = ones(1, 2, 4, 8), ones(1, 5, 2, 8)
    for length in (1, 6, -1):
        with pytest.raises(ShapeError, match=f"length {length} must lie between the 2 queries and .* capacity of 5"):
            cached_attention(q, cache, cache, length)
    q.requires_grad = True
    with pytest.raises(GraphError, match="no backward"):
        cached_attention(q, cache, cache, 5)
    with no_grad():
        assert cached_attention(q, cache, cache, 5).shape == (1, 2, 4, 8)


@pytest.mark.unit
def test_rows_of_a_batch_use_slots_of_a_cache_each_to_a_length_of_its_own() -> None:
    random = np.random.default_rng(0)
    slots, lengths = [2, 0], [5, 1]
    keys, values = (random.standard_normal((3, 6, 2, 8), np.float32) for _ in range(2))
    q, k = random.standard_normal((2, 1, 4, 8), np.float32), random.standard_normal((2, 1, 2, 8), np.float32)
    cache = Tensor(keys)
    write_cache(cache, CacheRows(slots, np.array(lengths) - 1), k)
    expected = keys.copy()
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        expected[slot, length - 1] = k[row, 0]
    np.testing.assert_array_equal(cache.numpy(), expected)
    out = cached_attention(q, cache, values, CacheRows(slots, lengths), window=3).numpy()
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        alone = cached_attention(q[row : row + 1], cache[slot : slot + 1], values[slot : slot + 1], length, window=3)
        np.testing.assert_array_equal(out[row], alone.numpy()[0])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("slots", "positions", "message"),
    [
        ([3, 0], [1, 1], "slot 3 is not in a cache of 3"),
        ([-1, 0], [1, 1], "slot -1 is not in a cache of 3"),
        ([0, 1], [0, 1], "position 0 in slot 0, expected 1 to 6"),
        ([0, 1], [1, 7], "position 7 in slot 1, expected 1 to 6"),
        ([0], [1], "1 rows of the cache for a batch of 2"),
        ([0], [1, 1], "1 slots and 2 positions"),
        ([0, 1], 1, "positions must be a vector of integers"),
        ([0.0, 1.0], [1, 1], "slots must be a vector of integers"),
        (np.array([2**63, 0], np.uint64), [1, 1], "slot -9223372036854775808 is not"),
    ],
)
def test_slots_that_a_cache_lacks_are_refused(slots: object, positions: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        cached_attention(ones(2, 1, 4, 8), ones(3, 6, 2, 8), ones(3, 6, 2, 8), CacheRows(slots, positions))


@pytest.mark.unit
@pytest.mark.parametrize("positions", [[-1, 0], [0, 5]])
def test_a_slot_takes_only_what_it_has_room_for(positions: list[int]) -> None:
    with pytest.raises(ShapeError, match=r"write_cache: position (-1|5) in slot \d, expected 0 to 4"):
        write_cache(ones(3, 6, 2, 8), CacheRows([0, 1], positions), ones(2, 2, 2, 8))

"""Tensor: what it copies and what it shares, its Python protocols and operators, its gradient, and its errors."""

from __future__ import annotations

import copy
import operator
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, add, backward, relu, sum
from entrenar.errors import ConfigError, EntrenarError, GraphError, MemoryBudgetError, ShapeError


def counted(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(np.arange(np.prod(shape, dtype=int)).reshape(shape), requires_grad=requires_grad)


# ---------------------------------------------------------------------------------- the documented example
@pytest.mark.unit
@pytest.mark.gradient
def test_the_example_of_the_documentation() -> None:
    a = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    b = Tensor([4.0, 5.0, 6.0], requires_grad=True)
    loss = sum(relu(add(a, b)))
    backward(loss)
    assert loss.item() == 21.0
    assert a.grad.tolist() == [1.0, 1.0, 1.0]
    assert b.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.unit
@pytest.mark.gradient
def test_operators_and_the_backward_method_do_the_same() -> None:
    a = Tensor([1.0, -2.0, 3.0], requires_grad=True)
    b = Tensor([4.0, -5.0, 6.0], requires_grad=True)
    loss = (relu(a + b) * b).sum()
    loss.backward()
    assert loss.item() == 5 * 4 + 9 * 6
    assert a.grad.tolist() == [4.0, 0.0, 6.0]
    assert b.grad.tolist() == [9.0, 0.0, 15.0]


# ---------------------------------------------------------------------------------- construction
@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint32", "bool", ">f4", ">i2"])
def test_constructor_copies_any_array_to_float32(dtype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    tensor = Tensor(array)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("float32", (2, 3), 24)
    assert tensor.numpy().dtype == np.float32
    array[:] = 0
    assert tensor.tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.unit
def test_constructor_copies_a_float32_array_and_a_tensor_too() -> None:
    array = np.ones(3, np.float32)
    tensor = Tensor(array)
    twin = Tensor(tensor)
    array[:] = 5
    tensor.numpy()[:] = 7
    assert twin.tolist() == [1, 1, 1]


@pytest.mark.unit
@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1], np.s_[:, 1], np.s_[..., ::-3]])
def test_constructor_reads_any_strides(view: Any) -> None:
    array = np.arange(42, dtype=np.float32).reshape(6, 7)
    assert np.array_equal(Tensor(array[view]).numpy(), array[view])
    assert np.array_equal(Tensor(array.T).numpy(), array.T)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("data", "shape"),
    [(2.5, ()), (3, ()), (True, ()), ([], (0,)), ([[]], (1, 0)), ([[1, 2]], (1, 2)), (range(4), (4,))],
)
def test_constructor_takes_numbers_and_lists(data: Any, shape: tuple[int, ...]) -> None:
    tensor = Tensor(data)
    assert (tensor.shape, tensor.ndim, tensor.size) == (shape, len(shape), int(np.prod(shape)))
    assert tensor.tolist() == np.asarray(data, dtype=np.float64).tolist()


@pytest.mark.unit
@pytest.mark.parametrize("theirs", [ml_dtypes.bfloat16, np.float16])
def test_16_bits_are_rounded_to_nearest_even_and_take_two_bytes(theirs: Any) -> None:
    values, dtype = np.random.default_rng(0).standard_normal(1000).astype(np.float32), np.dtype(theirs).name
    tensor = Tensor(values, dtype=dtype)
    assert (tensor.dtype, tensor.nbytes) == (dtype, 2000)
    assert tensor.numpy().tobytes() == values.astype(theirs).tobytes()
    assert np.array_equal(Tensor(tensor).numpy(), values.astype(theirs).astype(np.float32))
    assert memoryview(tensor).format == {"bfloat16": "H", "float16": "e"}[dtype]
    assert f"dtype={dtype}" in repr(tensor)
    with pytest.raises(ConfigError, match=f"A {dtype} tensor is storage of a frozen weight and has no gradient"):
        tensor.requires_grad = True
    with pytest.raises(ConfigError, match=f"add: the first operand is {dtype}, which is a storage type of frozen"):
        tensor + 1.0


@pytest.mark.unit
@pytest.mark.memory
def test_own_memory_is_aligned_to_cache_lines() -> None:
    for size in (1, 3, 17, 1000, 300_001):
        assert Tensor(np.zeros(size)).numpy().ctypes.data % 64 == 0


@pytest.mark.unit
def test_data_that_are_no_array_of_numbers_are_refused_in_one_sentence() -> None:
    for data in ([[1], [2, 3]], "abc", None, [None], 1j, [{}], object()):
        with pytest.raises(ShapeError, match=r"^A tensor needs a rectangular array of numbers: [^\n]*\.$"):
            Tensor(data)
    with pytest.raises(ConfigError, match=r"'float32', 'bfloat16' or 'float16', not 'int8'"):
        Tensor([1], dtype="int8")
    with pytest.raises(ShapeError, match="at most 8 axes, not 9"):
        Tensor(np.zeros((1,) * 9))


# ---------------------------------------------------------------------------------- memory shared with others
@pytest.mark.unit
@pytest.mark.memory
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_from_numpy_aliases(dtype: Any) -> None:
    array = np.zeros((2, 3), dtype)
    tensor = Tensor.from_numpy(array)
    array[1, 2] = 4
    assert tensor.tolist() == [[0, 0, 0], [0, 0, 4]]
    tensor.numpy()[0, 0] = 2
    assert array[0, 0] == 2
    assert np.shares_memory(tensor.numpy(), array)


@pytest.mark.unit
@pytest.mark.memory
def test_shared_memory_outlives_either_side() -> None:
    array = np.full(100_000, 3, np.float32)
    tensor = Tensor.from_numpy(array)
    del array
    assert tensor.sum().item() == 300_000
    view = tensor.reshape(100, 1000).numpy()
    del tensor
    others = [Tensor(np.zeros(100_000)) for _ in range(5)]
    assert (view == 3).all()
    assert len(others) == 5
    view = Tensor(np.full(100_000, 4)).numpy()
    assert [float(Tensor(np.zeros(100_000)).sum()) for _ in range(5)] == [0.0] * 5
    assert (view == 4).all()


@pytest.mark.unit
def test_what_cannot_be_aliased_is_refused_and_says_how_to_copy() -> None:
    square = np.zeros((3, 4), np.float32)
    unaligned = np.zeros(13, np.uint8)[1:].view(np.float32)
    for array, error, words in (
        (np.zeros(3), ConfigError, "not float64"),
        (np.zeros(3, ">f4"), ConfigError, "not >f4"),
        ([1.0], ConfigError, "not list"),
        (square.T, ShapeError, r"shape \(4, 3\) has strides \(4, 16\)"),
        (square[:, ::2], ShapeError, r"shape \(3, 2\) has strides \(16, 8\)"),
        (unaligned, ShapeError, "aligned"),
    ):
        with pytest.raises(error, match=words) as caught:
            Tensor.from_numpy(array)
        assert "use Tensor(array) to copy" in str(caught.value)


@pytest.mark.unit
@pytest.mark.memory
def test_read_only_memory_stays_read_only() -> None:
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = False
    tensor = Tensor.from_numpy(array)
    view = tensor.numpy()
    assert np.shares_memory(view, array)
    assert not view.flags.writeable
    assert not tensor.reshape(2, 3).numpy().flags.writeable
    assert memoryview(tensor).readonly
    assert (tensor * 2.0).numpy().flags.writeable
    assert Tensor(tensor).numpy().flags.writeable


@pytest.mark.unit
@pytest.mark.memory
def test_buffer_protocol_shows_the_memory_itself() -> None:
    tensor = counted(2, 3, 4)
    view = memoryview(tensor)
    assert (view.format, view.itemsize, view.shape, view.strides) == ("f", 4, (2, 3, 4), (48, 16, 4))
    assert (view.c_contiguous, view.readonly, view.nbytes) == (True, False, 96)
    view[1, 2, 3] = 99
    assert tensor.tolist()[1][2][3] == 99
    assert np.shares_memory(np.asarray(tensor), tensor.numpy())
    assert bytes(counted(2)) == np.arange(2, dtype=np.float32).tobytes()
    half = memoryview(Tensor([1.0], dtype="bfloat16"))
    assert (half.format, half.itemsize, half[0]) == ("H", 2, 0x3F80)


@pytest.mark.unit
@pytest.mark.memory
def test_a_buffer_keeps_its_tensor_alive() -> None:
    view = memoryview(counted(50_000))
    assert [counted(50_000).size for _ in range(3)] == [50_000] * 3
    assert view[49_999] == 49_999


@pytest.mark.unit
@pytest.mark.memory
def test_dlpack_shares_memory_with_numpy_both_ways() -> None:
    tensor = counted(2, 3)
    assert tensor.__dlpack_device__() == (1, 0)
    theirs = np.from_dlpack(tensor)
    assert np.shares_memory(theirs, tensor.numpy())
    array = np.ones((2, 3), np.float32)
    ours = Tensor.from_dlpack(array)
    array[0, 1] = 8
    assert ours.tolist() == [[1, 8, 1], [1, 1, 1]]
    with pytest.raises(ConfigError, match="not float64"):
        Tensor.from_dlpack(np.zeros(3))


@pytest.mark.peers
@pytest.mark.memory
def test_dlpack_shares_memory_with_torch_both_ways() -> None:
    torch = pytest.importorskip("torch")
    tensor = counted(2, 3)
    theirs = torch.from_dlpack(tensor)
    theirs[1, 2] = -7
    assert tensor.tolist() == [[0, 1, 2], [3, 4, -7]]
    assert theirs.data_ptr() == tensor.numpy().ctypes.data
    ours = Tensor.from_dlpack(theirs.reshape(3, 2))
    ours.numpy()[0, 0] = 11
    assert theirs[0, 0] == 11
    del tensor, ours
    assert theirs.tolist() == [[11, 1, 2], [3, 4, -7]]
    with pytest.raises(ShapeError, match="C-contiguous"):
        Tensor.from_dlpack(theirs.T)


@pytest.mark.unit
@pytest.mark.memory
def test_reshape_and_detach_alias_where_transpose_and_slice_copy() -> None:
    x = counted(2, 6)
    for alias in (x.reshape(3, 4), x.reshape((12,)), x.reshape(-1), x.detach()):
        assert np.shares_memory(alias.numpy(), x.numpy())
    for fresh in (x.T, x.transpose(1, 0), x[:], x[0], x[..., ::2], autograd.concatenate([x]), -x):
        assert not np.shares_memory(fresh.numpy(), x.numpy())
    assert x.transpose(1, 0).tolist() == x.transpose((1, 0)).tolist() == x.T.tolist() == x.numpy().T.tolist()


@pytest.mark.unit
def test_detach_is_a_leaf_outside_the_graph() -> None:
    x = counted(3, requires_grad=True)
    y = (x * 2.0).detach()
    assert (y.is_leaf, y.requires_grad, y.grad_fn) == (True, False, None)
    (y * x).sum().backward()
    assert x.grad.tolist() == [0, 2, 4]


@pytest.mark.unit
def test_empty_has_the_shape_asked_for() -> None:
    assert Tensor.empty(2, 0, 3).shape == (2, 0, 3)
    assert Tensor.empty().shape == ()
    for shape in ((-1,), (2.0,), (1,) * 9, ("3",)):
        with pytest.raises(ShapeError, match="at most 8 non-negative integers"):
            Tensor.empty(*shape)


@pytest.mark.unit
@pytest.mark.memory
def test_sizes_beyond_the_machine_are_refused_and_never_wrap_around() -> None:
    with pytest.raises(MemoryBudgetError, match=r"3,814,697,265\.0 MiB could not be allocated"):
        Tensor.empty(10**12, 10**3)
    for shape in ((2**62, 8), (2**31, 2**31, 2**31), (2**62, 4)):  # the last two are 0 modulo 2^64
        with pytest.raises(ShapeError, match=re.escape(str(shape))):
            Tensor.empty(*shape)
        with pytest.raises(ShapeError):
            Tensor.empty(0).reshape(shape)
    with pytest.raises(ShapeError):
        Tensor.empty(0, 2**62, 4).sum(0)


# ---------------------------------------------------------------------------------- Python protocols
@pytest.mark.unit
def test_item_and_tolist_give_python_numbers() -> None:
    assert isinstance(Tensor(2.5).item(), float)
    assert [Tensor(x).item() for x in (2.5, [2.5], [[2.5]])] == [2.5] * 3
    assert Tensor(0.1).item() == float(np.float32(0.1))
    assert Tensor(7.0).tolist() == 7.0
    nested = counted(2, 2).tolist()
    assert nested == [[0.0, 1.0], [2.0, 3.0]]
    assert type(nested[0][0]) is float
    assert Tensor([1.5], dtype="bfloat16").item() == 1.5
    with pytest.raises(ShapeError, match=r"one element; this one has shape \(2,\)"):
        counted(2).item()


@pytest.mark.unit
def test_length_truth_and_float() -> None:
    assert len(counted(4, 2)) == 4
    with pytest.raises(TypeError, match="no length"):
        len(Tensor(1.0))
    assert float(Tensor([[2.0]])) == 2.0
    assert bool(Tensor(2.0))
    assert not Tensor([0.0])
    with pytest.raises(ShapeError, match=r"truth of a tensor of shape \(2,\)"):
        bool(counted(2))
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        float(counted(2))


@pytest.mark.unit
def test_representation_shows_values_gradient_and_origin() -> None:
    x = Tensor([1.0, 2.5], requires_grad=True)
    assert repr(x) == "Tensor([1. , 2.5], requires_grad=True)"
    assert repr(x * 2.0) == "Tensor([2., 5.], grad_fn=BinaryNode)"
    assert repr(Tensor([1.0], dtype="bfloat16")) == "Tensor([1], dtype=bfloat16)"
    assert len(repr(counted(1000, 1000))) < 2000


@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pickle_and_copy_keep_values_dtype_and_flag(dtype: str) -> None:
    x = Tensor([[1.0, -2.0]], requires_grad=dtype == "float32", dtype=dtype)
    for twin in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert (twin.tolist(), twin.dtype, twin.requires_grad) == (x.tolist(), dtype, x.requires_grad)
        assert not np.shares_memory(twin.numpy(), x.numpy())


# ---------------------------------------------------------------------------------- operators
# the operator, its derivative with respect to the left operand, and to the right one
OPERATORS: dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any], Callable[..., Any]]] = {
    "+": (operator.add, lambda a, b: 1, lambda a, b: 1),
    "-": (operator.sub, lambda a, b: 1, lambda a, b: -1),
    "*": (operator.mul, lambda a, b: b, lambda a, b: a),
    "/": (operator.truediv, lambda a, b: 1 / b, lambda a, b: -a / b**2),
}
OTHERS = [3, 2.5, True, np.float32(1.5), np.float64(1.5), np.int64(3), [1.0, 2.0, 4.0], np.array([1.0, 2.0, 4.0])]


@pytest.mark.unit
@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize("other", OTHERS, ids=repr)
def test_operators_take_numbers_and_arrays_on_either_side(sign: str, other: Any) -> None:
    """NumPy's own operators must hand over: an array that swallowed the tensor would lose the graph."""
    op, slope_left, slope_right = OPERATORS[sign]
    x = Tensor([0.5, -1.0, 4.0], requires_grad=True)
    values, array = x.numpy().astype(np.float64), np.asarray(other, dtype=np.float64)
    for ours, expected, slope in (
        (op(x, other), op(values, array), slope_left(values, array)),
        (op(other, x), op(array, values), slope_right(array, values)),
    ):
        assert isinstance(ours, Tensor)
        assert np.array_equal(ours.numpy(), expected.astype(np.float32))
        x.zero_grad()
        ours.sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(slope, (3,)), rtol=1e-6)


@pytest.mark.unit
def test_other_operators() -> None:
    x = counted(2, 3, requires_grad=True)
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert isinstance(matrix.T @ x.T, Tensor)
    assert np.array_equal((x @ matrix).numpy(), x.numpy() @ matrix)
    assert np.array_equal((matrix.T @ x.T).numpy(), matrix.T @ x.numpy().T)
    assert np.array_equal((matrix.T.tolist() @ x.T).numpy(), matrix.T @ x.numpy().T)
    assert np.array_equal((-x).numpy(), -x.numpy())
    assert np.array_equal((x**2).numpy(), x.numpy() ** 2)
    assert np.array_equal(x[1, ::2].numpy(), x.numpy()[1, ::2])
    assert [method() for method in (x.sum().item, x.mean().item, x.max().item)] == [15, 2.5, 5]
    assert x.sum(0, keepdims=True).shape == (1, 3)
    with pytest.raises(ConfigError, match="exponent must be a number, not Tensor"):
        x**x


@pytest.mark.unit
def test_in_place_operators_make_a_new_tensor() -> None:
    x = counted(3, requires_grad=True)
    before = x
    x += 1.0
    x *= 2.0
    assert before.tolist() == [0, 1, 2]
    assert x.tolist() == [2, 4, 6]
    x.sum().backward()
    assert before.grad.tolist() == [2, 2, 2]


# every message is one sentence that names the operation and both shapes
MISFITS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "add": (lambda: counted(2, 3) + counted(4), ("add", "(2, 3)", "(4,)")),
    "sub": (lambda: [1.0, 2.0] - counted(2, 3), ("sub", "(2,)", "(2, 3)")),
    "mul": (lambda: counted(2, 3) * counted(3, 2), ("mul", "(2, 3)", "(3, 2)")),
    "div": (lambda: counted(2, 3) / counted(2), ("div", "(2, 3)", "(2,)")),
    "matmul": (lambda: counted(2, 3) @ counted(2, 3), ("matmul", "(2, 3)", "(2, 3)")),
    "matmul vectors": (lambda: counted(3) @ counted(4), ("matmul", "(3,)", "(4,)")),
    "matmul stacks": (lambda: counted(2, 3, 4) @ counted(3, 4, 5), ("matmul", "(2, 3, 4)", "(3, 4, 5)")),
    "matmul scalar": (lambda: Tensor(1.0) @ counted(4), ("matmul", "()", "(4,)")),
    "linear": (lambda: autograd.linear(counted(2, 3), counted(5, 4)), ("linear", "(2, 3)", "(5, 4)")),
    "linear bias": (lambda: autograd.linear(counted(2, 3), counted(5, 3), counted(3)), ("linear", "(3,)", "(5,)")),
    "lora": (
        lambda: autograd.lora_linear(counted(2, 3), counted(5, 3), counted(2, 4), counted(5, 2), 1.0),
        ("lora_linear", "(2, 4)", "(5, 2)", "(5, 3)"),
    ),
    "reshape": (lambda: counted(2, 3).reshape(4, 2), ("reshape", "(2, 3)", "(4, 2)")),
    "concatenate": (lambda: autograd.concatenate([counted(2, 3), counted(2, 2)]), ("concatenate", "(2, 3)", "(2, 2)")),
    "swiglu": (lambda: autograd.swiglu(counted(2, 3), counted(3)), ("swiglu", "(2, 3)", "(3,)")),
    "rms_norm": (lambda: autograd.rms_norm(counted(2, 3), counted(2)), ("rms_norm", "(2,)", "(3,)", "(2, 3)")),
    "layer_norm": (lambda: autograd.layer_norm(counted(2, 3), counted(2)), ("layer_norm", "(2,)", "(3,)", "(2, 3)")),
    "cross_entropy": (
        lambda: autograd.cross_entropy(counted(2, 3), np.zeros(3, int)),
        ("cross_entropy", "(3,)", "(2,)", "(2, 3)"),
    ),
    "linear_cross_entropy": (
        lambda: autograd.linear_cross_entropy(counted(2, 3), counted(5, 3), np.zeros(3, int)),
        ("linear_cross_entropy", "(3,)", "(2,)", "(2, 3)"),
    ),
    "attention": (
        lambda: autograd.attention(counted(1, 2, 3, 4), counted(1, 2, 3, 5), counted(1, 2, 3, 5)),
        ("attention", "(1, 2, 3, 4)", "(1, 2, 3, 5)"),
    ),
    "attention heads": (
        lambda: autograd.attention(counted(1, 2, 3, 4), counted(1, 2, 2, 4), counted(1, 2, 2, 4)),
        ("attention", "3 heads", "2 of k"),
    ),
    "rope": (
        lambda: autograd.rope(counted(1, 2, 1, 4), counted(9, 3), counted(9, 3)),
        ("rope", "(9, 3)", "(1, 2, 1, 4)"),
    ),
    "gradient": (lambda: setattr(counted(2, 3), "grad", [1.0]), ("gradient", "(1,)", "(2, 3)")),
    "backward": (
        lambda: (counted(2, 3, requires_grad=True) * 1.0).backward(counted(3, 2)),
        ("backward", "(3, 2)", "(2, 3)"),
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", MISFITS.values(), ids=MISFITS.keys())
def test_shapes_that_do_not_fit_are_one_sentence_naming_both(case: tuple[Callable[[], Any], tuple[str, ...]]) -> None:
    call, words = case
    with pytest.raises(ShapeError) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.unit
def test_bfloat16_is_refused_by_every_operation_that_computes_with_it() -> None:
    half, x = Tensor(np.ones((2, 2)), dtype="bfloat16"), counted(2, 2)
    unary = "relu gelu silu sigmoid tanh exp log sqrt neg sum mean max softmax log_softmax transpose dropout"
    calls: dict[str, Callable[[], Any]] = {name: partial(getattr(autograd, name), half) for name in unary.split()}
    calls |= {name: partial(getattr(autograd, name), x, half) for name in ("add", "mul", "matmul", "swiglu")}
    calls |= {"slice": lambda: half[0], "pow": lambda: half**2, "concatenate": lambda: autograd.concatenate([x, half])}
    calls |= {"linear": lambda: autograd.linear(half, x), "cross_entropy": lambda: autograd.cross_entropy(half, [0, 1])}
    for name, call in calls.items():
        with pytest.raises(ConfigError, match=rf"^{name}: .* bfloat16, which is a storage type of frozen weights only"):
            call()


# ---------------------------------------------------------------------------------- requires_grad and grad
@pytest.mark.unit
def test_requires_grad_spreads_through_operations_and_is_off_by_default() -> None:
    x, y = counted(3), counted(3, requires_grad=True)
    assert (x.requires_grad, y.requires_grad, x.is_leaf) == (False, True, True)
    assert not (x * 2.0).requires_grad
    z = x * y
    assert (z.requires_grad, z.is_leaf, type(z.grad_fn).__name__) == (True, False, "BinaryNode")
    x.requires_grad = True
    assert (x * 2.0).requires_grad


@pytest.mark.unit
def test_requires_grad_of_a_computed_tensor_cannot_be_set() -> None:
    y = counted(3, requires_grad=True) * 2.0
    for value in (True, False):
        with pytest.raises(GraphError, match=r"leaves only.*detach\(\)"):
            y.requires_grad = value


@pytest.mark.unit
def test_bfloat16_storage_has_no_gradient() -> None:
    with pytest.raises(ConfigError, match="bfloat16 tensor is storage of a frozen weight"):
        Tensor([1.0], requires_grad=True, dtype="bfloat16")
    half = Tensor([1.0], dtype="bfloat16")
    with pytest.raises(ConfigError, match="storage of a frozen weight"):
        half.requires_grad = True
    x = counted(1, requires_grad=True)
    with pytest.raises(ConfigError, match="the gradient is bfloat16"):
        x.grad = half
    with pytest.raises(ConfigError, match="gradient is bfloat16"):
        (x * 1.0).backward(half)


@pytest.mark.gradient
def test_gradients_of_two_backwards_add_up_until_zeroed() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert x.grad is None
    (x * 3.0).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0]
    x.zero_grad()
    assert x.grad is None
    (x * 3.0).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.gradient
def test_a_gradient_that_was_set_is_added_to_and_its_source_left_alone() -> None:
    x = counted(3, requires_grad=True)
    mine = np.ones(3, np.float32)
    x.grad = Tensor.from_numpy(mine)
    (x * 2.0).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]
    assert mine.tolist() == [1, 1, 1]
    x.grad = [4, 5, 6]
    assert x.grad.tolist() == [4, 5, 6]
    x.grad = None
    assert x.grad is None


@pytest.mark.gradient
def test_a_gradient_is_a_plain_tensor_of_the_same_shape() -> None:
    x = counted(2, 1, 3, requires_grad=True)
    (x * counted(4, 1)).sum().backward()
    assert (x.grad.shape, x.grad.requires_grad, x.grad.is_leaf) == ((2, 1, 3), False, True)
    assert x.grad.tolist() == [[[6, 6, 6]], [[6, 6, 6]]]


@pytest.mark.gradient
def test_a_frozen_tensor_gets_no_gradient() -> None:
    x, frozen = counted(3, requires_grad=True), counted(3)
    (x * frozen + frozen).sum().backward()
    assert frozen.grad is None
    assert x.grad.tolist() == [0, 1, 2]


@pytest.mark.gradient
def test_backward_of_a_leaf_is_its_own_gradient() -> None:
    x = Tensor(3.0, requires_grad=True)
    x.backward()
    x.backward(2.0)
    assert x.grad.item() == 3.0


@pytest.mark.unit
def test_every_error_is_an_entrenar_error_and_a_builtin_one() -> None:
    with pytest.raises(ValueError):
        counted(2) + counted(3)
    with pytest.raises(EntrenarError):
        counted(2) + counted(3)
    with pytest.raises(IndexError):
        counted(2)[2]
    with pytest.raises(RuntimeError):
        counted(2).backward([1.0, 1.0])
    with pytest.raises(MemoryError):
        Tensor.empty(10**12, 10**3)

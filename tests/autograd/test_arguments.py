"""Wrong arguments: every public function of autograd and optim works or raises an EntrenarError, and never crashes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrenar
from entrenar import autograd, optim
from entrenar.autograd import LowRankUpdate, QuantizedTensor, Tensor, random, rope_table
from entrenar.errors import EntrenarError

WRONG: list[Any] = [
    None,
    "a",
    b"a",
    "",
    True,
    -1,
    0,
    2**31,
    2**32,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    0.5,
    -2.0,
    1e300,
    math.inf,
    math.nan,
    1j,
    [],
    [1, [2, 3]],
    [None],
    ["a"],
    [[1, 2], [3, 4]],
    (),
    {},
    {"a": 1},
    set(),
    object(),
    type,
    len,
    np.float32(0.5),
    np.int64(3),
    np.bool_(True),
    np.array("a"),
    np.array([1, 2]),
    np.zeros((0, 3)),
    np.zeros((2, 2), complex),
    np.array([None]),
    np.array(["2020-01-01"], "datetime64[D]"),
    np.zeros((1,) * 9),
    slice(None),
    ...,
    NotImplemented,
]


def tensors() -> dict[str, Any]:
    """New arguments for every call: a call may change what it is given."""

    def t(*shape: int) -> Tensor:
        return Tensor(np.full(shape, 0.5), requires_grad=True)

    cos, sin = rope_table(8, [1.0, 0.5])
    ids = np.array([[0, 1]])
    x, heads, loss = t(2, 3), t(1, 2, 2, 4), t(2, 4)
    w, a, b, bias = t(4, 3), t(1, 3), t(4, 1), t(4)
    unary = dict.fromkeys(["relu", "silu", "swish", "sigmoid", "tanh", "exp", "log", "sqrt", "neg"], (x,))
    return unary | {
        "LowRankUpdate": (a, b, 0.5, 0.1),
        "add": (x, x),
        "sub": (x, x),
        "mul": (x, x),
        "div": (x, x),
        "swiglu": (x, x),
        "geglu": (x, x),
        "softcap": (x, 2.0),
        "pow": (x, 2.0),
        "gelu": (x, "none"),
        "attention": (heads, heads, heads, np.array([0, 1, 2]), 1.0, True, np.array([0, 1, 2]), 1, 2.0),
        "cached_attention": (heads.detach(), heads.detach(), heads.detach(), 2, 1.0, 1, 2.0),
        "concatenate": ([x, x], 0),
        "cross_entropy": (loss, ids[0], -100, "mean"),
        "dropout": (x, 0.5, True),
        "embedding": (ids, w, None),
        "grouped_linear": (x, [w, w], [bias, None], [None, LowRankUpdate(a, b, 1.0)]),
        "layer_norm": (x, t(3), t(3), 1e-5),
        "linear": (x, w, bias),
        "log_softmax": (x, -1),
        "softmax": (x, -1),
        "linear_cross_entropy": (x, w, ids[0], -100, "mean", 2.0, 3.0),
        "lora_linear": (x, w, a, b, 0.5, 0.1, bias),
        "matmul": (x, t(3, 2)),
        "max": (x, 0, False),
        "mean": (x, 0, False),
        "sum": (x, 0, False),
        "reshape": (x, (3, 2)),
        "rms_norm": (x, t(3), 1e-5),
        "rope": (heads, cos, sin, ids),
        "rope_table": (8, [1.0, 0.5]),
        "slice": (x, 0),
        "transpose": (x, (1, 0)),
    }


def methods() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """What is no operation: (function, good arguments) by name."""
    x, y = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), Tensor([[0.5, 0.5], [0.5, 0.5]], requires_grad=True)
    product = (x * y).sum()
    sgd = optim.SGD([x], lr=0.1)
    x.grad = Tensor(np.ones((2, 2)))
    set_attribute = {
        f"Tensor.{name}=": (lambda v, n=name: setattr(Tensor([1.0]), n, v), (False,))
        for name in ("requires_grad", "grad")
    }
    quantized = QuantizedTensor.quantize(np.ones((2, 64), np.float32), "nf4")
    return set_attribute | {
        "Tensor": (Tensor, ([1.0], False, "float32")),
        "Tensor.from_numpy": (Tensor.from_numpy, (np.ones(3, np.float32), False)),
        "Tensor.from_dlpack": (Tensor.from_dlpack, (np.ones(3, np.float32),)),
        "Tensor.empty": (Tensor.empty, (2, 3)),
        "Tensor.backward": (product.backward, (1.0,)),
        "Tensor.reshape": (x.reshape, (4, 1)),
        "Tensor.transpose": (x.transpose, (1, 0)),
        "Tensor.sum": (x.sum, (0, False)),
        "Tensor.mean": (x.mean, (0, False)),
        "Tensor.max": (x.max, (0, False)),
        "Tensor.__getitem__": (x.__getitem__, (0,)),
        **{
            f"Tensor.{op}": (getattr(x, op), (y,))
            for op in ("__add__", "__sub__", "__mul__", "__truediv__", "__matmul__")
        },
        **{f"Tensor.{op}": (getattr(x, op), (y,)) for op in ("__radd__", "__rsub__", "__rmul__", "__rtruediv__")},
        "Tensor.__pow__": (lambda e: x**e, (2.0,)),
        "backward": (autograd.backward, ((x * 2.0).sum(), None)),
        "checkpoint": (lambda f: autograd.checkpoint(f, x), (lambda t: t * 2.0,)),
        "manual_seed": (autograd.manual_seed, (0,)),
        "set_step": (random.set_step, (0,)),
        "set_state": (random.set_state, (random.get_state(),)),
        "philox": (random.philox, ((0, 0, 0, 0), (0, 0))),
        "linear with a quantized weight": (autograd.linear, (Tensor(np.ones((1, 64))), quantized)),
        "set_matmul_precision": (entrenar.set_matmul_precision, ("highest",)),
        "SGD": (lambda *a: optim.SGD(*a), ([x], 0.1)),
        "Adam": (lambda *a: optim.Adam(*a), ([x], 0.1)),
        "AdamW": (lambda *a: optim.AdamW(*a), ([x], 0.1)),
        "AdamWScheduleFree": (lambda *a: optim.AdamWScheduleFree(*a), ([x], 0.1)),
        "Muon": (lambda *a: optim.Muon(*a), ([x], 0.1)),
        "step": (sgd.step, (1.0,)),
        "lr": (lambda v: setattr(sgd, "lr", v), (0.1,)),
        "load_state_dict": (sgd.load_state_dict, (sgd.state_dict(),)),
        "ConstantLR": (optim.ConstantLR, (sgd, 1)),
        "CosineAnnealingLR": (optim.CosineAnnealingLR, (sgd, 10, 0.0)),
        "ExponentialLR": (optim.ExponentialLR, (sgd, 0.9)),
        "LinearLR": (optim.LinearLR, (sgd, 1, 10, 0.0)),
        "StepLR": (optim.StepLR, (sgd, 2, 0.5)),
        "WarmupCosineLR": (optim.WarmupCosineLR, (sgd, 1, 10, 0.0)),
        "WSDLR": (optim.WSDLR, (sgd, 1, 10, 2, "cosine", 0.0)),
        "clip_factor": (optim.clip_factor, (1.0, 1.0)),
        "clip_grad_norm": (optim.clip_grad_norm, ([x], 1.0)),
        "clip_grad_value": (optim.clip_grad_value, ([x], 1.0)),
        "grad_norm": (optim.grad_norm, ([x],)),
    }


OPERATIONS = sorted(tensors())
METHODS = sorted(methods())


@pytest.fixture(autouse=True)
def settings() -> Any:
    state, precision = random.get_state(), entrenar.get_matmul_precision()
    yield
    random.set_state(state)
    entrenar.set_matmul_precision(precision)


def call(function: Callable[..., Any], arguments: tuple[Any, ...], what: str) -> str | None:
    """Nothing where the call works or is refused in words, else what happened instead."""
    try:
        with np.errstate(all="ignore"):
            result = function(*arguments)
            for item in result if isinstance(result, list) else [result]:
                if isinstance(item, Tensor) and item.requires_grad and not item.is_leaf:
                    item.backward(np.ones(item.shape))
    except EntrenarError as error:
        return None if len(str(error)) > 10 else f"{what}: refused without a word"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return None


def refused_or_right(make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]], name: str) -> list[str]:
    _, good = make()
    found = []
    for i in range(len(good)):
        for wrong in WRONG:
            function, arguments = make()
            what = f"{name}, argument {i} {wrong!r:.40}"
            found.append(call(function, (*arguments[:i], wrong, *arguments[i + 1 :]), what))
    return [line for line in found if line is not None]


@pytest.mark.unit
def test_every_public_name_is_swept() -> None:
    named = {name for name in autograd.__all__ if callable(getattr(autograd, name))} | set(optim.__all__)
    swept = set(OPERATIONS) | set(METHODS)
    neither = {
        "Optimizer",
        "Schedule",
        "QuantizedTensor",
        "enable_grad",
        "no_grad",
        "grad_enabled",
    }  # take nothing of these
    missing = named - swept - neither - {"empty_cache", "memory_stats", "reset_peak_memory"}
    assert not missing, f"names without arguments in tensors() or methods(): {sorted(missing)}"


@pytest.mark.property
@pytest.mark.parametrize("name", OPERATIONS)
def test_wrong_arguments_of_an_operation_are_refused_in_words(name: str) -> None:
    assert refused_or_right(lambda: (getattr(autograd, name), tensors()[name]), name) == []


@pytest.mark.property
@pytest.mark.parametrize("name", METHODS)
def test_wrong_arguments_of_a_method_are_refused_in_words(name: str) -> None:
    assert refused_or_right(lambda: methods()[name], name) == []

"""Muon against torch.optim.Muon, in its bfloat16 and in float32; AdamW for the rest, state, threads, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.autograd.precision import matmul_precision
from entrenar.errors import ConfigError
from entrenar.optim import AdamW, Muon
from entrenar.optim.muon import orthogonalized

from . import reference

SHAPES = ((37, 19), (24, 24), (8, 65), (1, 7))
STEPS, LR = 12, 0.02
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "original": {"adjust_lr_fn": "original"},
    "plain momentum": {"nesterov": False, "momentum": 0.8},
    "no momentum": {"momentum": 0.0},
    "weight decay": {"weight_decay": 0.5},
    "three steps": {"ns_steps": 3},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def train(tensors: list[Tensor], optimizer: Any, steps: range, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
    for step in steps:
        for tensor, gradient in zip(tensors, reference.gradients(step, shapes), strict=True):
            tensor.grad = gradient
        optimizer.step()


def of_torch(torch: Any, options: dict[str, Any]) -> list[np.ndarray]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in reference.starting_point(SHAPES)]
    optimizer = torch.optim.Muon(tensors, lr=LR, **({"adjust_lr_fn": "match_rms_adamw"} | options))
    for step in range(STEPS):
        for tensor, gradient in zip(tensors, reference.gradients(step, SHAPES), strict=True):
            tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
    torch.set_num_threads(threads)
    return [tensor.detach().numpy() for tensor in tensors]


def of_ours(options: dict[str, Any]) -> list[np.ndarray]:
    tensors = [Tensor(p, requires_grad=True) for p in reference.starting_point(SHAPES)]
    train(tensors, Muon(tensors, lr=LR, **options), range(STEPS))
    return [tensor.numpy().copy() for tensor in tensors]


# ---------------------------------------------------------------------- values
@pytest.mark.peers
@every_option
def test_tracks_torch_computed_in_float32(options: dict[str, Any], tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # where it would round to 8 bits
    with matmul_precision("highest"):
        reference.assert_close(of_ours(options), of_torch(torch, options), 1e-5)


@pytest.mark.peers
@every_option
def test_moves_as_torch_does(options: dict[str, Any]) -> None:
    """What is left is torch's bfloat16, by which its updates are off."""
    torch = pytest.importorskip("torch")
    start = reference.starting_point(SHAPES)
    moved = [end - begin for end, begin in zip(of_ours(options), start, strict=True)]
    others = [end - begin for end, begin in zip(of_torch(torch, options), start, strict=True)]
    reference.assert_close(moved, others, 0.03)


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_singular_values_come_near_one(shape: tuple[int, int], precision: str) -> None:
    matrix = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    with matmul_precision(precision):
        found = np.linalg.svd(orthogonalized(matrix, 5).astype(np.float64), compute_uv=False)
    assert found.min() > 0.5 or shape == (64, 64)  # a square one has a value near zero
    assert found.max() < 1.3


@pytest.mark.unit
def test_a_gradient_of_zeros_moves_nothing_but_by_decay() -> None:
    tensor = Tensor(np.ones((3, 4), np.float32), requires_grad=True)
    optimizer = Muon([tensor], lr=0.5, weight_decay=0.5)
    tensor.grad = np.zeros((3, 4))
    optimizer.step()
    assert (tensor.numpy() == 0.75).all()


@pytest.mark.unit
def test_the_other_groups_are_adamw_to_the_bit() -> None:
    values = reference.starting_point(SHAPES)
    mixed = [Tensor(p, requires_grad=True) for p in values]
    plain = [Tensor(p, requires_grad=True) for p in values]
    rest = {"params": mixed[2:], "use_muon": False}
    optimizer = Muon([{"params": mixed[:2]}, rest], lr=LR, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    train(mixed, optimizer, range(5))
    train(plain, AdamW(plain, lr=LR, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1), range(5))
    for i, (one, two) in enumerate(zip(mixed, plain, strict=True)):
        assert (one.numpy().tobytes() == two.numpy().tobytes()) == (i >= 2)


# ---------------------------------------------------------------------- bits
@pytest.mark.unit
def test_any_number_of_threads_gives_the_same_bits(threads: None) -> None:
    from entrenar._kernels import cpu

    shapes = ((200, 300), (300, 160))

    def ended(count: int) -> list[bytes]:
        cpu.set_num_threads(count)
        tensors = [Tensor(p, requires_grad=True) for p in reference.starting_point(shapes)]
        train(tensors, Muon(tensors, lr=LR), range(3), shapes)
        return [tensor.numpy().tobytes() for tensor in tensors]

    assert ended(1) == ended(2) == ended(3)


@pytest.mark.unit
def test_a_resumed_run_has_the_same_bits() -> None:
    def made(values: list[np.ndarray]) -> tuple[list[Tensor], Muon]:
        tensors = [Tensor(p, requires_grad=True) for p in values]
        named = [(f"layer {i}", tensor) for i, tensor in enumerate(tensors)]
        return tensors, Muon([{"params": named[:3]}, {"params": named[3:], "use_muon": False}], lr=LR)

    tensors, optimizer = made(reference.starting_point(SHAPES))
    train(tensors, optimizer, range(4))
    state = optimizer.state_dict()
    plain = {i: {k: v for k, v in e.items() if not isinstance(v, np.ndarray)} for i, e in state["state"].items()}
    loaded = json.loads(json.dumps({"param_groups": state["param_groups"], "state": plain}))
    for i, entry in state["state"].items():
        loaded["state"][str(i)] |= {k: v.copy() for k, v in entry.items() if isinstance(v, np.ndarray)}
    again, other = made([tensor.numpy().copy() for tensor in tensors])
    other.load_state_dict(loaded)
    train(tensors, optimizer, range(4, 8))
    train(again, other, range(4, 8))
    for one, two in zip(tensors, again, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    loaded["state"]["3"] = loaded["state"]["0"]
    with pytest.raises(ConfigError, match=r"parameter 3 has \['momentum_buffer'\], expected \['exp_avg'"):
        other.load_state_dict(loaded)


# ---------------------------------------------------------------------- what is refused
@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum must be"),
        ({"ns_steps": 0}, "ns_steps is 0, expected a whole number from 1 to 99"),
        ({"ns_steps": 2.5}, "ns_steps"),
        ({"adjust_lr_fn": None}, "adjust_lr_fn is None, expected one of match_rms_adamw, original"),
        ({"betas": (2, 0)}, "betas"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Muon([Tensor(np.ones((2, 2), np.float32), requires_grad=True)], **options)


@pytest.mark.unit
def test_what_is_no_matrix_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"norm has shape \(3,\), expected a matrix; put it into a group with use_muon"
    ):
        Muon([("norm", Tensor([1.0, 2.0, 3.0], requires_grad=True))])

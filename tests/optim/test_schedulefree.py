"""Schedule-free AdamW against package schedulefree and its definition; the average, state, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import AdamWScheduleFree, ConstantLR

from . import reference

STEPS, WARMUP, LR = 50, 10, 0.01
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "betas": {"betas": (0.95, 0.99)},
    "weight decay": {"weight_decay": 0.1},
    "eps": {"eps": 1e-4},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def train(tensors: list[Tensor], optimizer: AdamWScheduleFree, schedule: ConstantLR, steps: range) -> None:
    for step in steps:
        for tensor, gradient in zip(tensors, reference.gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()
        schedule.step()


def made(values: list[np.ndarray], **options: Any) -> tuple[list[Tensor], AdamWScheduleFree, ConstantLR]:
    tensors = [Tensor(p, requires_grad=True) for p in values]
    optimizer = AdamWScheduleFree([(f"layer {i}", t) for i, t in enumerate(tensors)], lr=LR, **options)
    return tensors, optimizer, ConstantLR(optimizer, WARMUP)


def arrays(tensors: list[Tensor]) -> list[np.ndarray]:
    return [tensor.numpy().copy() for tensor in tensors]


@pytest.mark.peers
@every_option
def test_weights_of_training_and_average_are_those_of_the_package(options: dict[str, Any], tier: str) -> None:
    torch, package = pytest.importorskip("torch"), pytest.importorskip("schedulefree")
    tensors, optimizer, schedule = made(reference.starting_point(), **options)
    train(tensors, optimizer, schedule, range(STEPS))
    y = arrays(tensors)
    optimizer.eval()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in reference.starting_point()]
    other = package.AdamWScheduleFree(theirs, lr=LR, warmup_steps=WARMUP, **options)
    other.train()
    for step in range(STEPS):
        for tensor, gradient in zip(theirs, reference.gradients(step), strict=True):
            tensor.grad = torch.from_numpy(gradient.copy())  # which its step changes
        other.step()
    reference.assert_close(y, [tensor.detach().numpy().copy() for tensor in theirs], 1e-6)
    other.eval()
    torch.set_num_threads(before)
    reference.assert_close(arrays(tensors), [tensor.detach().numpy() for tensor in theirs], 1e-6)


@pytest.mark.unit
def test_follows_its_definition(tier: str) -> None:
    """Algorithm 1 with an explicit x, in float64."""
    beta1, beta2, decay = 0.9, 0.999, 0.05
    tensors, optimizer, schedule = made(reference.starting_point(), weight_decay=decay)
    train(tensors, optimizer, schedule, range(STEPS))
    optimizer.eval()
    expected = []
    for i, start in enumerate(reference.starting_point()):
        x = z = start.astype(np.float64)
        squares, total = np.zeros_like(x), 0.0
        for t in range(1, STEPS + 1):
            rate = LR * min(1, t / WARMUP)
            y = (1 - beta1) * z + beta1 * x
            g = reference.gradients(t - 1)[i].astype(np.float64)
            squares = beta2 * squares + (1 - beta2) * g * g
            z = z - rate * (g / (np.sqrt(squares / (1 - beta2**t)) + 1e-8) + decay * y)
            total += rate**2
            x = (1 - rate**2 / total) * x + rate**2 / total * z
        expected.append(x)
    reference.assert_close(arrays(tensors), expected, 3e-6)


@pytest.mark.unit
def test_the_average_is_taken_and_given_back_to_the_same_bits() -> None:
    tensors, optimizer, schedule = made(reference.starting_point())
    train(tensors, optimizer, schedule, range(5))
    y = arrays(tensors)
    with optimizer.evaluating():
        optimizer.eval()  # once more is as good as once
        assert all((now != then).any() for now, then in zip(arrays(tensors), y, strict=True))
        x = arrays(tensors)
        for tensor, then in zip(tensors, y, strict=True):
            assert (optimizer.trained(tensor) == then).all()
        with pytest.raises(ConfigError, match=r"hold the average; call train\(\)"):
            train(tensors, optimizer, schedule, range(5, 6))
    for now, then in zip(arrays(tensors), y, strict=True):
        assert now.tobytes() == then.tobytes()
    found = optimizer.results({f"layer {i}": array for i, array in enumerate(y)}, optimizer.state_dict())
    for one, two in zip(found.values(), x, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.unit
def test_who_evaluates_already_goes_on_doing_so() -> None:
    tensors, optimizer, schedule = made(reference.starting_point())
    train(tensors, optimizer, schedule, range(3))
    assert not optimizer.evaluates
    optimizer.eval()
    x = arrays(tensors)
    with optimizer.evaluating():
        pass
    assert optimizer.evaluates
    assert all((one == two).all() for one, two in zip(arrays(tensors), x, strict=True))


@pytest.mark.unit
def test_before_the_first_step_there_is_no_other_average() -> None:
    tensors, optimizer, _ = made(reference.starting_point())
    with optimizer.evaluating():
        for tensor, start in zip(tensors, reference.starting_point(), strict=True):
            assert (tensor.numpy() == start).all()


@pytest.mark.unit
@pytest.mark.parametrize("averaged", [False, True], ids=["while it trains", "while it evaluates"])
def test_a_resumed_run_has_the_same_bits(averaged: bool) -> None:
    tensors, optimizer, schedule = made(reference.starting_point(), weight_decay=0.1)
    train(tensors, optimizer, schedule, range(6))
    if averaged:
        optimizer.eval()
    state = optimizer.state_dict()
    plain = {i: {k: v for k, v in e.items() if not isinstance(v, np.ndarray)} for i, e in state["state"].items()}
    loaded = json.loads(json.dumps({"param_groups": state["param_groups"], "state": plain}))
    for i, entry in state["state"].items():
        loaded["state"][str(i)] |= {k: v.copy() for k, v in entry.items() if isinstance(v, np.ndarray)}
    again, other, its_schedule = made([optimizer.trained(tensor).copy() for tensor in tensors], weight_decay=0.1)
    other.load_state_dict(loaded)
    its_schedule.load_state_dict(schedule.state_dict())
    optimizer.train()
    train(tensors, optimizer, schedule, range(6, 14))
    train(again, other, its_schedule, range(6, 14))
    for one, two in zip(tensors, again, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    for entry, copied in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert (entry["weight_sum"], entry["lr_max"], entry["step"]) == (
            copied["weight_sum"],
            copied["lr_max"],
            copied["step"],
        )


@pytest.mark.unit
def test_what_could_not_be_averaged_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"betas\[0\] must be above 0"):
        AdamWScheduleFree([Tensor([1.0], requires_grad=True)], betas=(0.0, 0.9))
    tensors, optimizer, schedule = made(reference.starting_point())
    train(tensors, optimizer, schedule, range(2))
    state = optimizer.state_dict()
    state["state"][0]["weight_sum"] = "much"
    with pytest.raises(ConfigError, match="weight_sum of layer 0 must be a number, not 'much'"):
        optimizer.load_state_dict(state)


@pytest.mark.unit
def test_a_rate_of_nothing_moves_nothing() -> None:
    tensor = Tensor([1.0, -2.0], requires_grad=True)
    optimizer = AdamWScheduleFree([tensor], lr=0.0)
    tensor.grad = [1.0, 1.0]
    optimizer.step()
    optimizer.eval()
    assert tensor.numpy().tolist() == [1.0, -2.0]

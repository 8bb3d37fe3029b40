"""Schedules against torch.optim.lr_scheduler and their formulas; state, several groups, bad arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import (
    SGD,
    WSDLR,
    AdamW,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    Optimizer,
    Schedule,
    StepLR,
    WarmupCosineLR,
)

STEPS = 60
LRS = [0.3, 0.02]  # of two groups


def optimizer() -> Optimizer:
    return SGD([{"params": [Tensor([1.0], requires_grad=True)], "lr": lr} for lr in LRS])


def rates(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    """The rates of both groups at steps 0, 1, ..., read where the optimizer reads them."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        assert schedule.get_last_lr() == found[-1]
        schedule.step()
    return np.array(found)


def half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


Make = Callable[[Any], Schedule]
# name -> our schedule, and the rate at a step of a group that began with `base`
FORMULAS: dict[str, tuple[Make, Callable[[int, float], float]]] = {
    "constant": (ConstantLR, lambda t, base: base),
    "warmup": (lambda o: ConstantLR(o, warmup_steps=8), lambda t, base: base * min(1, (t + 1) / 8)),
    "step": (lambda o: StepLR(o, step_size=7, gamma=0.3), lambda t, base: base * 0.3 ** (t // 7)),
    "step, default gamma": (lambda o: StepLR(o, 25), lambda t, base: base * 0.1 ** (t // 25)),
    "exponential": (lambda o: ExponentialLR(o, 0.93), lambda t, base: base * 0.93**t),
    "growing": (lambda o: ExponentialLR(o, gamma=1.1), lambda t, base: base * 1.1**t),
    "cosine": (lambda o: CosineAnnealingLR(o, T_max=59), lambda t, base: base * half_cosine(t / 59)),
    "cosine, back up": (
        lambda o: CosineAnnealingLR(o, T_max=20, eta_min=0.01),
        lambda t, base: 0.01 + (base - 0.01) * half_cosine(t / 20),
    ),
    "warmup cosine": (
        lambda o: WarmupCosineLR(o, warmup_steps=10, total_steps=40),
        lambda t, base: base * (t + 1) / 10 if t < 10 else base * half_cosine(min(1, (t - 10) / 30)),
    ),
    "warmup cosine, floor": (
        lambda o: WarmupCosineLR(o, 5, 50, min_lr=0.004),
        lambda t, base: base * (t + 1) / 5 if t < 5 else 0.004 + (base - 0.004) * half_cosine(min(1, (t - 5) / 45)),
    ),
    "no warmup": (lambda o: WarmupCosineLR(o, 0, 30), lambda t, base: base * half_cosine(min(1, t / 30))),
    "only warmup": (
        lambda o: WarmupCosineLR(o, 30, 30),
        lambda t, base: base * (t + 1) / 30 if t < 30 else base * (t == 30),
    ),
    "linear": (
        lambda o: LinearLR(o, 10, 40),
        lambda t, base: base * min((t + 1) / 10, max(0, 1 - max(0, t - 10) / 30)),
    ),
    "linear, floor": (
        lambda o: LinearLR(o, 0, 40, min_lr=0.004),
        lambda t, base: 0.004 + (base - 0.004) * max(0, 1 - t / 40),
    ),
    "wsd": (
        lambda o: WSDLR(o, 10, 50, 20),
        lambda t, base: base * ((t + 1) / 10 if t < 10 else half_cosine(min(1, max(0, (t - 30) / 20)))),
    ),
    "wsd, no decay": (lambda o: WSDLR(o, 0, 50, 0, min_lr=0.001), lambda t, base: base if t < 50 else 0.001),
}
every_schedule = pytest.mark.parametrize("name", FORMULAS)


@pytest.mark.unit
@every_schedule
def test_rates_follow_the_formula(name: str) -> None:
    make, formula = FORMULAS[name]
    expected = np.array([[formula(t, base) for base in LRS] for t in range(STEPS)])
    np.testing.assert_allclose(rates(make(optimizer())), expected, rtol=1e-12, atol=1e-17)


@pytest.mark.unit
def test_the_published_landmarks() -> None:
    cosine = rates(CosineAnnealingLR(optimizer(), T_max=20, eta_min=0.01))[:, 0]
    assert cosine[[0, 10, 20, 40]] == pytest.approx([0.3, (0.3 + 0.01) / 2, 0.01, 0.3])
    warm = rates(WarmupCosineLR(optimizer(), 10, 40, min_lr=0.003))[:, 0]
    assert warm[[0, 5, 10, 25, 40, 59]] == pytest.approx([0.03, 0.18, 0.3, (0.3 + 0.003) / 2, 0.003, 0.003])
    assert all(np.diff(warm[:10]) > 0)
    assert all(np.diff(warm[10:41]) < 0)
    step = rates(StepLR(optimizer(), 30))[:, 0]
    assert step[[0, 29, 30, 59]] == pytest.approx([0.3, 0.3, 0.03, 0.03])


TORCH: dict[str, Callable[[Any, Any], Any]] = {
    "step": lambda s, o: s.StepLR(o, step_size=7, gamma=0.3),
    "step, default gamma": lambda s, o: s.StepLR(o, 25),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.93),
    "growing": lambda s, o: s.ExponentialLR(o, gamma=1.1),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=59),
    "cosine, back up": lambda s, o: s.CosineAnnealingLR(o, T_max=20, eta_min=0.01),
    # transformers' get_cosine_schedule_with_warmup is this LambdaLR
    "no warmup": lambda s, o: s.LambdaLR(o, lambda t: half_cosine(min(1.0, t / 30))),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", TORCH)
def test_rates_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in LRS]
    theirs = torch.optim.SGD(groups)
    schedule = TORCH[name](torch.optim.lr_scheduler, theirs)
    expected = []
    for _ in range(STEPS):
        expected.append([group["lr"] for group in theirs.param_groups])
        theirs.step()
        schedule.step()
    np.testing.assert_allclose(rates(FORMULAS[name][0](optimizer())), np.array(expected), rtol=1e-9, atol=1e-15)


def wsd(shape: str) -> tuple[Make, Callable[[Any, Any], Any]]:
    return (
        lambda o: WSDLR(o, 8, 40, 12, shape),
        lambda s, o: s.get_wsd_schedule(o, 8, 12, num_stable_steps=20, decay_type=shape),
    )


TRANSFORMERS: dict[str, tuple[Make, Callable[[Any, Any], Any]]] = {
    "cosine": (lambda o: WarmupCosineLR(o, 8, 40), lambda s, o: s.get_cosine_schedule_with_warmup(o, 8, 40)),
    "linear": (lambda o: LinearLR(o, 8, 40), lambda s, o: s.get_linear_schedule_with_warmup(o, 8, 40)),
    "constant": (lambda o: ConstantLR(o, 8), lambda s, o: s.get_constant_schedule_with_warmup(o, 8)),
    **{f"wsd, {shape}": wsd(shape) for shape in ("cosine", "linear", "1-sqrt")},
}


@pytest.mark.peers
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_rates_are_those_of_transformers_but_for_the_first_step_of_a_warmup(name: str) -> None:
    """A step of ours in the warmup has the rate that theirs has one step later; all others are the same."""
    torch = pytest.importorskip("torch")
    schedules = pytest.importorskip("transformers.optimization")
    ours, theirs_of = TRANSFORMERS[name]
    theirs = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in LRS])
    schedule = theirs_of(schedules, theirs)
    expected = []
    for _ in range(41):  # their cosine goes up again after the last step
        expected.append([group["lr"] for group in theirs.param_groups])
        theirs.step()
        schedule.step()
    assert expected[0] == [0, 0]
    found = rates(ours(optimizer()), 41)
    np.testing.assert_allclose(found, np.array(expected[1:9] + expected[8:]), rtol=1e-12, atol=1e-17)
    assert (found[:8] > 0).all()


@pytest.mark.unit
def test_a_decay_that_no_one_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="WSDLR: decay is 'log', expected one of cosine, linear, 1-sqrt"):
        WSDLR(optimizer(), 0, 10, 5, "log")
    with pytest.raises(ConfigError, match="WSDLR: decay_steps is 9, expected a whole number from 0 to 6"):
        WSDLR(optimizer(), 4, 10, 9)


@pytest.mark.unit
def test_the_optimizer_steps_with_the_scheduled_rate() -> None:
    x = Tensor([0.0], requires_grad=True)
    sgd = SGD([x], lr=1.0)
    schedule = StepLR(sgd, step_size=2, gamma=0.5)
    seen = []
    for _ in range(5):
        before = x.item()
        x.grad = [1.0]
        sgd.step()
        schedule.step()
        seen.append(before - x.item())
    assert seen == [1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.unit
@every_schedule
@pytest.mark.parametrize("order", ["optimizer first", "schedule first"])
def test_a_resumed_schedule_goes_on_with_the_same_rates(name: str, order: str) -> None:
    """Whether the optimizer's state is loaded before the schedule is made or after."""
    make = FORMULAS[name][0]
    schedule = make(optimizer())
    rates(schedule, 13)
    saved = json.loads(json.dumps([schedule.optimizer.state_dict(), schedule.state_dict()]))
    expected = rates(schedule, 30)
    other = optimizer()
    if order == "optimizer first":
        other.load_state_dict(saved[0])
        resumed = make(other)
    else:
        resumed = make(other)
        other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.last_step == 13
    assert np.array_equal(rates(resumed, 30), expected)


@pytest.mark.unit
def test_a_second_schedule_starts_from_the_first_rate() -> None:
    sgd = optimizer()
    rates(ExponentialLR(sgd, 0.5), 3)
    assert ConstantLR(sgd).get_last_lr() == LRS


@pytest.mark.unit
def test_the_state_of_another_schedule_is_refused() -> None:
    schedule = StepLR(optimizer(), 3)
    for state in ({}, {"last_step": 3}, {"last_step": 3, "base_lrs": [0.1]}, {**schedule.state_dict(), "gamma": 1}):
        with pytest.raises(ConfigError, match="does not belong to this optimizer"):
            schedule.load_state_dict(state)
    assert schedule.state_dict() == {"last_step": 0, "base_lrs": LRS}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: StepLR(o, 0), "StepLR: step_size is 0, expected a whole number of at least 1"),
        (lambda o: StepLR(o, -3), "step_size is -3"),
        (lambda o: StepLR(o, 2.5), r"step_size is 2\.5"),
        (lambda o: StepLR(o, "3"), "step_size is '3'"),
        (lambda o: StepLR(o, 3, gamma=0), "StepLR: gamma is 0, expected a positive number"),
        (lambda o: StepLR(o, 3, gamma=math.nan), "gamma is nan"),
        (lambda o: ExponentialLR(o, -0.1), r"ExponentialLR: gamma is -0\.1"),
        (lambda o: ExponentialLR(o, math.inf), "gamma is inf"),
        (lambda o: ExponentialLR(o, None), "gamma is None"),
        (lambda o: CosineAnnealingLR(o, 0), "CosineAnnealingLR: T_max is 0"),
        (
            lambda o: CosineAnnealingLR(o, 10, eta_min=-1),
            "CosineAnnealingLR: eta_min must be a number at least 0",
        ),
        (
            lambda o: WarmupCosineLR(o, -1, 10),
            "WarmupCosineLR: warmup_steps is -1, expected a whole number from 0",
        ),
        (lambda o: WarmupCosineLR(o, 11, 10), "warmup_steps is 11"),
        (lambda o: WarmupCosineLR(o, 0, 0), "WarmupCosineLR: total_steps is 0"),
        (lambda o: WarmupCosineLR(o, 0, True), "total_steps is True"),
        (lambda o: WarmupCosineLR(o, 0, 10, min_lr=math.nan), "WarmupCosineLR: min_lr must be"),
        (lambda o: ConstantLR(o, warmup_steps=-1), "ConstantLR: warmup_steps is -1"),
    ],
)
def test_bad_arguments_are_refused_and_leave_the_rates_alone(make: Make, message: str) -> None:
    adam = AdamW([Tensor([1.0], requires_grad=True)], lr=0.25)
    with pytest.raises(ConfigError, match=message):
        make(adam)
    assert adam.lr == 0.25

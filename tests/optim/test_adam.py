"""Adam and AdamW against their definition in float64 and against torch.optim; groups, state, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import SGD, Adam, AdamW

from . import reference

OPTIONS = {
    "defaults": {},
    "betas": {"betas": (0.8, 0.95)},
    "first moment off": {"betas": (0.0, 0.99)},
    "eps": {"eps": 1e-4},
    "weight decay": {"weight_decay": 0.1},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
both = pytest.mark.parametrize("kind", [Adam, AdamW])


def in_float64(kind, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=None):
    """Adam as Kingma and Ba's algorithm 1 has it; AdamW as Loshchilov and Hutter's algorithm 2."""
    weight_decay = (0.01 if kind is AdamW else 0.0) if weight_decay is None else weight_decay
    params = [p.astype(np.float64) for p in reference.starting_point()]
    m, v = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    for t in range(1, reference.STEPS + 1):
        for i, gradient in enumerate(reference.gradients(t - 1)):
            g = gradient.astype(np.float64)
            if kind is Adam:
                g = g + weight_decay * params[i]
            else:
                params[i] = params[i] - lr * weight_decay * params[i]
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            params[i] = params[i] - lr * (m[i] / (1 - betas[0] ** t)) / (np.sqrt(v[i] / (1 - betas[1] ** t)) + eps)
    return params


@pytest.mark.unit
@both
@every_option
def test_follows_its_definition(kind, options, tier) -> None:
    ours = reference.run(lambda params: kind(params, lr=0.01, **options))
    reference.assert_close(ours, in_float64(kind, 0.01, **options), 3e-6)


@pytest.mark.peers
@both
@every_option
def test_tracks_torch(kind, options, tier) -> None:
    torch = pytest.importorskip("torch")
    ours = reference.run(lambda params: kind(params, lr=0.01, **options))
    theirs = reference.run_torch(lambda params: getattr(torch.optim, kind.__name__)(params, lr=0.01, **options))
    reference.assert_close(ours, theirs, 1e-5)


@pytest.mark.unit
def test_groups_have_their_own_options_and_lr_sets_all() -> None:
    a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    optimizer = AdamW([{"params": [("a", a)], "weight_decay": 0.0}, {"params": [("b", b)], "lr": 0.5}], lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]
    a.grad = b.grad = [2.0]
    optimizer.step()
    assert a.item() == pytest.approx(1 - 0.1, rel=1e-6)  # the first step of Adam is lr * sign(gradient)
    assert b.item() == pytest.approx((1 - 0.5 * 0.01) - 0.5, rel=1e-6)
    optimizer.lr = 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert optimizer.lr == 0.25


@pytest.mark.unit
def test_tied_parameter_is_taken_once_and_missing_gradient_skipped() -> None:
    tied, idle = Tensor([1.0], requires_grad=True), Tensor([3.0], requires_grad=True)
    optimizer = SGD([("embed", tied), ("head", tied), ("idle", idle)], lr=1.0)
    assert optimizer.param_groups[0]["names"] == ["embed", "idle"]
    tied.grad = [0.25]
    optimizer.step()
    assert (tied.item(), idle.item()) == (0.75, 3.0)
    optimizer.zero_grad()
    assert tied.grad is None


@pytest.mark.unit
@pytest.mark.parametrize("make", [AdamW, lambda params: SGD(params, lr=0.01, momentum=0.9)], ids=["AdamW", "SGD"])
def test_resumed_run_has_the_same_bits(make) -> None:
    def tensors(values):
        return [(f"layer {i}", Tensor(p, requires_grad=True)) for i, p in enumerate(values)]

    def train(params, optimizer, steps):
        for step in steps:
            for (_, tensor), gradient in zip(params, reference.gradients(step), strict=True):
                tensor.grad = gradient
            optimizer.step()

    params = tensors(reference.starting_point())
    optimizer = make(params)
    train(params, optimizer, range(5))
    saved = optimizer.state_dict()
    arrays = {(i, k): v.copy() for i, e in saved["state"].items() for k, v in e.items() if isinstance(v, np.ndarray)}
    plain = {i: {k: v for k, v in e.items() if not isinstance(v, np.ndarray)} for i, e in saved["state"].items()}
    text = json.dumps({"param_groups": saved["param_groups"], "state": plain})  # everything else is JSON
    again = tensors([t.numpy().copy() for _, t in params])
    train(params, optimizer, range(5, 9))

    loaded = json.loads(text)
    for (i, key), array in arrays.items():
        loaded["state"][str(i)][key] = array
    other = make(again)
    other.load_state_dict(loaded)
    train(again, other, range(5, 9))
    for (_, one), (_, two) in zip(params, again, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.unit
def test_frozen_and_foreign_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.weight is frozen"):
        AdamW([("layers.0.weight", Tensor([1.0]))])
    with pytest.raises(ConfigError, match="parameter 1 is ndarray"):
        AdamW([Tensor([1.0], requires_grad=True), np.zeros(3)])
    with pytest.raises(ConfigError, match="no parameters"):
        AdamW([])
    with pytest.raises(ConfigError, match=r"unknown options \['learning_rate'\]"):
        AdamW([{"params": [Tensor([1.0], requires_grad=True)], "learning_rate": 1}])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr must be"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]"),
        ({"betas": 0.9}, "two numbers"),
        ({"eps": -1}, "eps"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Adam([Tensor([1.0], requires_grad=True)], **options)


@pytest.mark.unit
def test_state_of_another_model_is_refused() -> None:
    def optimizer(name, shape):
        tensor = Tensor(np.ones(shape), requires_grad=True)
        tensor.grad = np.ones(shape)
        made = AdamW([(name, tensor)])
        made.step()
        return made

    mine = optimizer("q", (2, 3))
    with pytest.raises(ConfigError, match="'k' where 'q' was expected"):
        mine.load_state_dict(optimizer("k", (2, 3)).state_dict())
    with pytest.raises(ConfigError, match=r"exp_avg of q has shape \(3, 2\) in the state, expected \(2, 3\)"):
        mine.load_state_dict(optimizer("q", (3, 2)).state_dict())
    with pytest.raises(ConfigError, match="'param_groups' and 'state'"):
        mine.load_state_dict({})
    assert mine.state[0]["step"] == 1

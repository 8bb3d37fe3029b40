"""What all optimizers share: groups, missing gradients, tied and frozen weights, NaN, state, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, NumericsError, ShapeError
from entrenar.optim import SGD, Adam, AdamW, Optimizer, clip_factor, clip_grad_norm, grad_norm

from . import reference

KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {}),
    "SGD, momentum": (SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "SGD, dampening": (SGD, {"momentum": 0.8, "dampening": 0.3}),
    "SGD, Nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": (Adam, {"weight_decay": 0.05}),
    "AdamW": (AdamW, {"betas": (0.8, 0.95)}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, params: Any, lr: float = 0.01) -> Optimizer:
    optimizer, options = KINDS[kind]
    return optimizer(params, lr=lr, **options)


def leaves(values: list[np.ndarray] | None = None) -> list[Tensor]:
    return [Tensor(p, requires_grad=True) for p in (reference.starting_point() if values is None else values)]


def train(optimizer: Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for tensor, gradient in zip(params, reference.gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tensors]


# ---------------------------------------------------------------------------------- groups and missing gradients
def groups_of(params: list[Any], kind: str) -> list[dict[str, Any]]:
    """Three groups: the first with the defaults, the others with options of their own; parameter 1 and 4 share one."""
    own: dict[str, Any] = {"weight_decay": 0.2, "lr": 0.003}
    own |= {"betas": (0.7, 0.9), "eps": 1e-6} if "Adam" in kind else {"momentum": 0.5}
    return [
        {"params": [params[0], params[2]]},
        {"params": [params[1], params[4]], **own},
        {"params": [params[3]], "weight_decay": 0.0},
    ]


def run_groups(params: list[Any], optimizer: Any, give: Callable[[Any, np.ndarray | None], None]) -> None:
    """100 steps; each parameter misses the gradient of some, parameter 2 of all; the rate falls after 50."""
    for step in range(reference.STEPS):
        for i, (tensor, gradient) in enumerate(zip(params, reference.gradients(step), strict=True)):
            give(tensor, None if i == 2 or (step + i) % 3 == 0 else gradient)
        optimizer.step()
        if step == 50:
            for group in optimizer.param_groups:
                group["lr"] *= 0.25


def give(tensor: Tensor, gradient: np.ndarray | None) -> None:
    tensor.grad = gradient


@pytest.mark.peers
@every_kind
def test_groups_with_missing_gradients_track_torch(kind: str, tier: str) -> None:
    torch = pytest.importorskip("torch")
    ours = leaves()
    run_groups(ours, build(kind, groups_of(ours, kind)), give)

    def give_torch(parameter: Any, gradient: np.ndarray | None) -> None:
        parameter.grad = None if gradient is None else torch.from_numpy(gradient)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in reference.starting_point()]
    name, options = KINDS[kind]
    made = getattr(torch.optim, name.__name__)(groups_of(theirs, kind), lr=0.01, **options)
    run_groups(theirs, made, give_torch)
    torch.set_num_threads(before)
    reference.assert_close([t.numpy() for t in ours], [t.detach().numpy() for t in theirs], 1e-5)


@pytest.mark.unit
@every_kind
def test_a_parameter_without_a_gradient_keeps_its_bits_and_has_no_state(kind: str) -> None:
    params = leaves()
    start = bits(params)
    optimizer = build(kind, params)
    for step in range(3):
        for i, gradient in enumerate(reference.gradients(step)):
            params[i].grad = gradient if i != 2 else None
        optimizer.step()
    assert params[2].numpy().tobytes() == start[2]
    assert 2 not in optimizer.state
    assert [now != then for now, then in zip(bits(params), start, strict=True)] == [True, True, False, True, True]


@pytest.mark.unit
@every_kind
def test_a_step_leaves_gradients_alone_and_zero_grad_forgets_them(kind: str) -> None:
    params = leaves()
    optimizer = build(kind, params)
    train(optimizer, params, range(2))
    for tensor, gradient in zip(params, reference.gradients(1), strict=True):
        assert np.array_equal(tensor.grad.numpy(), gradient)
    optimizer.zero_grad()
    assert [tensor.grad for tensor in params] == [None] * len(params)
    before = bits(params)
    optimizer.step()
    assert bits(params) == before


@pytest.mark.unit
@every_kind
def test_a_step_with_a_factor_is_the_step_of_clipped_gradients(kind: str, tier: str) -> None:
    clipped, scaled = leaves(), leaves()
    for params in (clipped, scaled):
        optimizer = build(kind, params)
        for at in range(3):
            for tensor, gradient in zip(params, reference.gradients(at), strict=True):
                tensor.grad = gradient
            if params is clipped:
                clip_grad_norm(params, 0.5)
                optimizer.step()
            else:
                factor = clip_factor(grad_norm(params), 0.5)
                assert factor < 1
                optimizer.step(factor)
                assert np.array_equal(params[0].grad.numpy(), reference.gradients(at)[0])
    for one, other in zip(clipped, scaled, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-6, atol=1e-7)


# ---------------------------------------------------------------------------------- tied and frozen weights
def tied_loss(table: Tensor) -> Tensor:
    tokens = np.array([1, 4, 1, 0, 2, 4])
    return autograd.linear_cross_entropy(autograd.embedding(tokens, table), table, np.roll(tokens, -1))


@pytest.mark.unit
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "two groups"])
def test_a_tied_weight_takes_one_step_with_the_sum_of_both_gradients(grouped: bool) -> None:
    start = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    # the gradients of the two uses, each by itself
    embed, head = Tensor(start, requires_grad=True), Tensor(start, requires_grad=True)
    tokens = np.array([1, 4, 1, 0, 2, 4])
    autograd.linear_cross_entropy(autograd.embedding(tokens, embed), head, np.roll(tokens, -1)).backward()
    both = embed.grad.numpy().astype(np.float64) + head.grad.numpy()

    for make, moved in (
        (lambda params: SGD(params, lr=0.5), 0.5 * both),
        (lambda params: AdamW(params, lr=0.5, weight_decay=0.1), 0.5 * (0.1 * start + both / (np.abs(both) + 1e-8))),
    ):
        table = Tensor(start, requires_grad=True)
        pairs = [("embed_tokens", table), ("lm_head", table)]
        optimizer = make([{"params": [pair]} for pair in pairs] if grouped else pairs)
        tied_loss(table).backward()
        optimizer.step()
        np.testing.assert_allclose(table.numpy(), start - moved, rtol=1e-5, atol=1e-6)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
        assert [entry.get("step", 1) for entry in optimizer.state.values()] in ([1], [])


@pytest.mark.unit
@every_kind
def test_a_frozen_weight_never_changes(kind: str) -> None:
    """Neither one that takes part in the graph, nor one that is frozen while it still has a gradient and momentum."""
    rng = np.random.default_rng(1)
    frozen = Tensor(rng.standard_normal((6, 8)))
    first, second = (Tensor(rng.standard_normal((8, 8)), requires_grad=True) for _ in range(2))
    x = rng.standard_normal((4, 8))
    optimizer = build(kind, [first, second], lr=0.1)

    def step() -> None:
        hidden = autograd.linear(autograd.linear(x, first), second)
        autograd.linear(hidden, frozen).sum().backward()
        optimizer.step()

    start = bits([frozen, first, second])
    step()
    assert [now == then for now, then in zip(bits([frozen, first, second]), start, strict=True)] == [True, False, False]
    second.requires_grad = False
    kept = bits([frozen, second])
    for _ in range(5):
        before = bits([first])
        step()
        assert bits([first]) != before
    assert bits([frozen, second]) == kept
    assert frozen.grad is None
    assert second.grad is not None  # the stale one that must not be used
    second.requires_grad = True
    step()
    assert bits([second]) != kept[1:]


@pytest.mark.unit
def test_memory_that_cannot_be_written_is_refused_at_once() -> None:
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    with pytest.raises(ConfigError, match=r"AdamW: norm\.weight shares read-only memory"):
        AdamW([("norm.weight", Tensor.from_numpy(array, requires_grad=True))])


# ---------------------------------------------------------------------------------- NaN and infinity
@pytest.mark.unit
@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_stays_visible_and_where_it_is(kind: str, value: float, tier: str) -> None:
    """The element is lost for good, as in torch; no other one notices, and nothing is hidden."""
    bad, good = leaves(), leaves()
    spoilt, clean = build(kind, bad), build(kind, good)
    for step in range(3):
        for i, gradient in enumerate(reference.gradients(step)):
            good[i].grad = gradient
            gradient = gradient.copy()
            if step == 1 and gradient.ndim == 2:
                gradient[3, 4] = value
            bad[i].grad = gradient
        spoilt.step()
        clean.step()
    assert not np.isfinite(bad[0].numpy()[3, 4])
    mended = bad[0].numpy().copy()
    mended[3, 4] = good[0].numpy()[3, 4]
    assert mended.tobytes() == good[0].numpy().tobytes()
    assert bits(bad[1:]) == bits(good[1:])


@pytest.mark.unit
def test_clipping_stops_a_nan_before_it_reaches_a_weight() -> None:
    params = leaves()
    before = bits(params)
    optimizer = AdamW([(f"layer {i}", p) for i, p in enumerate(params)])
    for tensor, gradient in zip(params, reference.gradients(0), strict=True):
        tensor.grad = gradient
    params[1].grad = np.array([0, 1, np.nan, 0, 0])
    with pytest.raises(NumericsError, match="gradient of layer 1"):
        clip_grad_norm(params_named(optimizer), 1.0)
    assert bits(params) == before


def params_named(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


# ---------------------------------------------------------------------------------- state
@pytest.mark.unit
@every_kind
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "three groups"])
def test_a_loaded_state_goes_on_with_the_same_bits(kind: str, grouped: bool) -> None:
    params = leaves()
    optimizer = build(kind, groups_of(params, kind) if grouped else params)
    train(optimizer, params, range(5))
    optimizer.param_groups[0]["lr"] = 0.004
    twins = leaves([p.numpy() for p in params])
    other = build(kind, groups_of(twins, kind) if grouped else twins, lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.004
    train(optimizer, params, range(5, 12))  # the loaded state is a copy: this must not reach it
    train(other, twins, range(5, 12))
    assert bits(params) == bits(twins)
    assert [sorted(entry) for entry in optimizer.state.values()] == [sorted(entry) for entry in other.state.values()]


@pytest.mark.unit
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    params = leaves()
    optimizer = AdamW(groups_of(params, "AdamW"))
    train(optimizer, params, range(2))
    state = optimizer.state_dict()
    before = {key: entry["exp_avg"].numpy().tobytes() for key, entry in optimizer.state.items()}
    two = {"param_groups": state["param_groups"][:2], "state": {}}
    far = {"param_groups": state["param_groups"], "state": {9: state["state"][0]}}
    rate = {"param_groups": [{**g, "lr": -1.0} for g in state["param_groups"]], "state": {}}
    option = {"param_groups": [{**g, "momentum": 0.9} for g in state["param_groups"]], "state": {}}
    for broken, message in (
        (two, "has 2 parameter groups, expected 3"),
        (far, "has parameter 9, but there are 5 parameters"),
        (rate, "lr must be a number at least 0"),
        (option, r"group 0 of the state has the keys .*momentum"),
        ({"state": {}}, "the keys 'param_groups' and 'state'"),
    ):
        with pytest.raises(ConfigError, match=message):
            optimizer.load_state_dict(broken)
    assert {key: entry["exp_avg"].numpy().tobytes() for key, entry in optimizer.state.items()} == before
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.003, 1e-3]


@pytest.mark.unit
@every_kind
def test_same_bits_for_any_thread_count(kind: str, tier: str, threads: None) -> None:
    shapes = ((0,), (100_003,), (16_384,), (0, 3), (70_001,), (7,))  # enough for three threads, and nothing at all
    results = []
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        params = leaves(reference.starting_point(shapes))
        optimizer = build(kind, params)
        for step in range(3):
            for tensor, gradient in zip(params, reference.gradients(step, shapes), strict=True):
                tensor.grad = gradient
            optimizer.step(clip_factor(grad_norm(params), 1.0))
        results.append(bits(params))
    assert results[0] == results[1] == results[2]
    one = Tensor(reference.starting_point(shapes)[4], requires_grad=True)  # together or alone
    alone = build(kind, [one])
    for step in range(3):
        gradients = reference.gradients(step, shapes)
        one.grad = gradients[4]
        norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients))
        alone.step(clip_factor(norm, 1.0))
    np.testing.assert_allclose(one.numpy(), params[4].numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.unit
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "SGD"])  # which keeps no state
def test_a_refused_step_changes_nothing_and_can_be_repeated(kind: str) -> None:
    params = leaves()
    optimizer = build(kind, params)
    train(optimizer, params, range(2))
    before, counts = bits(params), [entry.get("step") for entry in optimizer.state.values()]
    good = {key: dict(entry) for key, entry in optimizer.state.items()}
    name = "exp_avg" if "Adam" in kind else "momentum_buffer"
    optimizer.state[4][name] = Tensor(np.zeros(3))
    with pytest.raises(ShapeError):
        optimizer.step()
    assert bits(params) == before
    assert [entry.get("step") for entry in optimizer.state.values()] == counts
    optimizer.state.update(good)
    optimizer.step()
    assert bits(params) != before


@pytest.mark.unit
def test_groups_are_dicts_with_params() -> None:
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(ConfigError, match="a parameter group is a dict with the key 'params'"):
        SGD([{"params": [x]}, x])
    with pytest.raises(ConfigError, match="a parameter group is a dict with the key 'params'"):
        SGD([{"lr": 0.1}])
    assert SGD(x, lr=1.0).param_groups[0]["params"] == [x]
    optimizer = SGD([x])
    for rate in (-1.0, float("nan"), "fast", True):
        with pytest.raises(ConfigError, match="SGD: lr must be a number at least 0"):
            optimizer.lr = rate

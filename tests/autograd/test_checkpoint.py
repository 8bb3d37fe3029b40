"""checkpoint: the same bits from a function that runs again, and what the second run leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import (
    Tensor,
    checkpoint,
    dropout,
    grad_enabled,
    manual_seed,
    no_grad,
    random,
)
from entrenar.errors import ConfigError, GraphError


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    before = random.get_state()
    manual_seed(42)
    yield
    random.set_state(before)


def normal(*shape: int, seed: int = 0, requires_grad: bool = True) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=requires_grad)


def leaf(*values: float) -> Tensor:
    return Tensor(list(values), requires_grad=True)


def network(parameters: list[Tensor], run: Callable[..., Tensor]) -> Tensor:
    """Four decoder layers with dropout, each through `run`."""
    x = parameters[0]
    for w in parameters[1:]:
        block = run(lambda h, w=w: dropout(autograd.gelu(autograd.linear(h, w)), 0.2) + dropout(h, 0.1) * h, x)
        x = x + block
    return x


def gradients_of(run: Callable[..., Tensor]) -> list[bytes]:
    manual_seed(11)
    parameters = [normal(6, 10)] + [normal(10, 10, seed=i) for i in range(1, 5)]
    out = network(parameters, run)
    after = dropout(out, 0.5)  # the random state goes on as if nothing were special
    (after * after).sum().backward()
    return [out.numpy().tobytes(), after.numpy().tobytes(), *(p.grad.numpy().tobytes() for p in parameters)]


@pytest.mark.gradient
def test_checkpoint_gives_the_same_bits_with_dropout_and_closed_over_parameters() -> None:
    assert gradients_of(checkpoint) == gradients_of(lambda block, x: block(x))


@pytest.mark.gradient
def test_nested_checkpoints_give_the_same_bits() -> None:
    def nested(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        def middle(h: Tensor) -> Tensor:
            return dropout(checkpoint(lambda t: dropout(checkpoint(block, t), 0.3) * t, h), 0.2)

        return checkpoint(middle, x)

    def plain(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return dropout(dropout(block(x), 0.3) * x, 0.2)

    assert gradients_of(nested) == gradients_of(plain)


@pytest.mark.gradient
def test_checkpoint_takes_several_arguments_of_any_kind() -> None:
    def block(a: Tensor, factor: float, b: Tensor, frozen: Tensor, options: dict[str, Any]) -> Tensor:
        return (a * factor + a * b * frozen) ** options["power"]

    results = []
    for run in (checkpoint, lambda function, *args: function(*args)):
        a, b, frozen = normal(5), normal(5, seed=1), normal(5, seed=2, requires_grad=False)
        shared = a * 2.0
        out = run(block, shared, 3.0, b, frozen, {"power": 2}) + shared
        out.backward(np.ones(5))
        assert frozen.grad is None
        results.append([t.numpy().tobytes() for t in (out, a.grad, b.grad)])
    assert results[0] == results[1]


@pytest.mark.gradient
def test_checkpoint_of_one_tensor_in_two_roles_adds_both_gradients() -> None:
    x = leaf(3.0)
    checkpoint(lambda a, b: a * b, x, x).backward()
    assert x.grad.tolist() == [6.0]
    y = leaf(3.0)
    checkpoint(lambda t: t, y * 2.0).backward()  # a block that returns its argument
    assert y.grad.tolist() == [2.0]
    z = leaf(3.0)
    checkpoint(lambda t: z, y).backward()  # or a parameter
    assert z.grad.tolist() == [1.0]


@pytest.mark.unit
def test_checkpoint_records_nothing_where_nothing_is_recorded() -> None:
    calls = []

    def block(t: Tensor) -> Tensor:
        calls.append(grad_enabled())
        return t * 2.0

    with no_grad():
        assert not checkpoint(block, leaf(1.0)).requires_grad
    x = leaf(1.0)
    checkpoint(block, x).backward()
    assert calls == [False, False, True]
    assert x.grad.tolist() == [2.0]


@pytest.mark.unit
def test_checkpoint_refuses_computed_tensors_that_are_no_arguments() -> None:
    """Their part of the graph would be walked twice, or out of order: wrong sums, silently."""
    x, y = leaf(2.0), leaf(3.0)
    hidden = x * 2.0
    out = checkpoint(lambda t: t * hidden, y) + hidden * 3.0
    with pytest.raises(GraphError, match=r"computed outside of it; pass it as an argument, or detach\(\) it"):
        out.backward()
    hidden = x * 2.0
    (checkpoint(lambda t, h: t * h, y, hidden) + hidden * 3.0).backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([2 * 3 + 6.0], [4.0])
    y.zero_grad()
    checkpoint(lambda t: t * hidden.detach(), y).backward()
    assert y.grad.tolist() == [4.0]


@pytest.mark.unit
def test_checkpoint_says_what_is_wrong_with_its_function() -> None:
    with pytest.raises(GraphError, match="must return one Tensor, not tuple"):
        checkpoint(lambda t: (t, t), leaf(1.0))
    lengths = iter([2, 3])
    out = checkpoint(lambda t: autograd.concatenate([t] * next(lengths)), leaf(1.0))
    with pytest.raises(GraphError, match=r"gave shape \(3,\) when run again, and \(2,\) before"):
        out.sum().backward()


@pytest.mark.unit
def test_a_block_that_fails_when_run_again_leaves_the_random_state_alone() -> None:
    fail = []

    def block(t: Tensor) -> Tensor:
        out = dropout(t, 0.5)
        if fail:
            raise ConfigError("broken block")
        return out

    out = checkpoint(block, leaf(*range(8)))
    dropout(out, 0.5)
    state = random.get_state()
    fail.append(True)
    with pytest.raises(ConfigError, match="broken block"):
        out.sum().backward()
    assert random.get_state() == state


WEIGHT = np.full((3, 3), 0.5)


def products_of_runs(block: Callable[[Tensor, list[Tensor]], Tensor]) -> tuple[list[list[float]], bool]:
    """The last product of each of a checkpointed block's runs, and whether its gradients are those without checkpoint.

    `block` appends its last product to the list; what is appended is read after backward.
    """
    found: list[Tensor] = []
    x, plain = leaf(1.0, -2.0, 3.0), leaf(1.0, -2.0, 3.0)
    y = checkpoint(lambda t: block(t, found), x)
    (y * y).sum().backward()
    expected = block(plain, [])
    (expected * expected).sum().backward()
    assert y.numpy().tobytes() == expected.numpy().tobytes()
    return [product.tolist() for product in found], x.grad.numpy().tobytes() == plain.grad.numpy().tobytes()


def recorded(product: Tensor, found: list[Tensor]) -> Tensor:
    found.append(product)
    return product


@pytest.mark.gradient
@pytest.mark.parametrize(
    "block",
    [
        lambda t, found: recorded(autograd.linear(t * t, Tensor(WEIGHT)), found),
        lambda t, found: t + recorded(autograd.linear(t * t, Tensor(WEIGHT)), found),
        lambda t, found: t - recorded(autograd.linear(autograd.linear(t, Tensor(WEIGHT)) * t, Tensor(WEIGHT)), found),
        lambda t, found: (recorded(autograd.linear(t, Tensor(WEIGHT)), found).reshape(3, 1) + 1.0).reshape(3),
        lambda t, found: recorded(
            autograd.linear(autograd.silu(autograd.linear(t, Tensor(WEIGHT))), Tensor(WEIGHT)), found
        ),
    ],
    ids=["product", "residual", "difference", "reshaped", "two products"],
)
def test_recomputation_leaves_out_the_last_product_where_nothing_reads_it(block: Any) -> None:
    (first, second), same = products_of_runs(block)
    assert any(first)
    assert second == [0.0, 0.0, 0.0]
    assert same


def read_by_numpy(t: Tensor, found: list[Tensor]) -> Tensor:
    y = recorded(autograd.linear(t * t, Tensor(WEIGHT)), found)
    return y + t if y.numpy().max() > 3 else y


def read_by_a_nested_checkpoint(t: Tensor, found: list[Tensor]) -> Tensor:
    y = recorded(autograd.linear(t * t, Tensor(WEIGHT)), found)
    return y + checkpoint(lambda u: u * u, y)


@pytest.mark.gradient
@pytest.mark.parametrize(
    "block",
    [
        lambda t, found: autograd.silu(recorded(autograd.linear(t, Tensor(WEIGHT)), found)),
        lambda t, found: t * recorded(autograd.linear(t, Tensor(WEIGHT)), found),
        lambda t, found: autograd.silu(t + recorded(autograd.linear(t, Tensor(WEIGHT)), found)),
        lambda t, found: autograd.silu(recorded(autograd.linear(t, Tensor(WEIGHT)), found).reshape(3, 1)).reshape(3),
        lambda t, found: autograd.linear(t, recorded(autograd.linear(Tensor(WEIGHT), t.reshape(1, 3)), found) + WEIGHT),
        lambda t, found: recorded(autograd.linear(t, Tensor(WEIGHT)), found).detach() * t,
        read_by_numpy,
        read_by_a_nested_checkpoint,
    ],
    ids=["activation", "factor", "sum", "reshaped", "weight", "detached", "numpy", "nested"],
)
def test_recomputation_computes_a_product_that_something_reads(block: Any) -> None:
    (first, second, *_), same = products_of_runs(block)
    assert any(np.ravel(first))
    assert first == second
    assert same


@pytest.mark.unit
def test_a_function_that_is_another_when_run_again_is_refused() -> None:
    weight, again = Tensor(WEIGHT), []

    def block(t: Tensor) -> Tensor:
        y = autograd.linear(t, weight)
        return autograd.silu(y) if again else y

    out = checkpoint(block, leaf(1.0, 2.0, 3.0))
    again.append(True)
    with pytest.raises(GraphError, match="the function made other operations when run again"):
        out.sum().backward()

"""Dropout and its random state: published Philox vectors, statistics, the same mask in backward and after a resume."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, checkpoint, random
from entrenar.errors import ConfigError

# Random123 1.14, tests/kat_vectors, philox4x32 10: counter, key, words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(autouse=True)
def seeded():
    before = random.get_state()
    random.manual_seed(42)
    yield
    random.set_state(before)


def ones(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(np.ones(shape), requires_grad=requires_grad)


def mask(n: int, p: float = 0.5) -> np.ndarray:
    return autograd.dropout(ones(n), p).numpy() != 0


@pytest.mark.unit
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words, tier) -> None:
    assert random.philox(counter, key) == words


@pytest.mark.unit
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_keep_rate_and_scale(p) -> None:
    n = 1_000_000
    y = autograd.dropout(ones(n), p).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - np.float64(np.float32(p))))}
    kept = np.count_nonzero(y) / n
    assert abs(kept - (1 - p)) < 5 * np.sqrt(p * (1 - p) / n)


@pytest.mark.unit
def test_masks_are_independent() -> None:
    """Neighbours, elements 16 and 64 apart, operations, steps and seeds are uncorrelated."""
    n = 400_000
    first = mask(n)
    others = [mask(n)]
    random.next_step()
    others.append(mask(n))
    random.manual_seed(43)
    others.append(mask(n))
    pairs = [(first, other) for other in others] + [(first[:-lag], first[lag:]) for lag in (1, 2, 4, 16, 64, 1024)]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.unit
def test_bytes_of_the_mask_are_uniform() -> None:
    """Chi-squared of the 256 patterns of eight neighbouring elements, 255 degrees of freedom."""
    patterns = np.packbits(mask(8 * 200_000))
    counts = np.bincount(patterns, minlength=256)
    expected = patterns.size / 256
    assert 150 < float(np.sum((counts - expected) ** 2) / expected) < 380


@pytest.mark.gradient
def test_backward_draws_the_mask_of_forward(tier) -> None:
    x = ones(37, 19, requires_grad=True)
    first, second = autograd.dropout(x, 0.3), autograd.dropout(x, 0.3)
    assert not np.array_equal(first.numpy(), second.numpy())
    expected = first.numpy() + 2.0 * second.numpy()
    (first + second * 2.0).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


@pytest.mark.memory
def test_no_mask_is_kept() -> None:
    out = autograd.dropout(ones(1000, requires_grad=True), 0.5)
    assert out.grad_fn.saved_bytes == 0


@pytest.mark.gradient
def test_checkpoint_draws_the_same_masks() -> None:
    def block(x):
        return autograd.dropout(autograd.dropout(x, 0.5) * x, 0.25)

    gradients = []
    for run in (block, lambda x: checkpoint(block, x)):
        random.manual_seed(7)
        x = Tensor(np.random.default_rng(0).standard_normal((9, 30)), requires_grad=True)
        y = run(x)
        z = autograd.dropout(y, 0.5)  # the counter goes on behind the block
        z.sum().backward()
        gradients.append((z.numpy().tobytes(), x.grad.numpy().tobytes(), random.get_state()))
    assert gradients[0] == gradients[1]


@pytest.mark.unit
def test_state_resumes_through_json() -> None:
    random.next_step()
    mask(10)
    state = json.loads(json.dumps(random.get_state()))
    expected = mask(1000)
    random.manual_seed(0)
    random.set_state(state)
    assert np.array_equal(mask(1000), expected)


@pytest.mark.unit
def test_a_step_does_not_depend_on_what_ran_before() -> None:
    random.set_step(5)
    expected = mask(1000)
    random.set_step(4)
    mask(3)
    mask(3)
    random.next_step()
    assert np.array_equal(mask(1000), expected)


@pytest.mark.unit
def test_identity_outside_training() -> None:
    x = ones(5)
    state = random.get_state()
    assert autograd.dropout(x, 0.9, training=False) is x
    assert autograd.dropout(x, 0.0) is x
    assert random.get_state() == state


@pytest.mark.unit
def test_bad_arguments_are_refused() -> None:
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="dropout: p must lie between 0 and 1"):
            autograd.dropout(ones(3), p)
    for seed in (-1, 2**64, 1.0, True):
        with pytest.raises(ConfigError, match="random seed"):
            random.manual_seed(seed)
    before = random.get_state()
    for state in ({}, {"seed": 1, "step": 2**32, "operation": 0}, {"seed": 1, "step": 1, "operation": 0, "x": 1}):
        with pytest.raises(ConfigError):
            random.set_state(state)
    assert random.get_state() == before

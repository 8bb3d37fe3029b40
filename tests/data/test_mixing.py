"""Files with weights: their shares, each file whole before it is drawn again, and a resume at any point."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.data import DataLoader, Mix, MixedLoader, Sample
from entrenar.errors import ConfigError

MARKS = np.array([False, True])


def make_samples(count: int) -> list[Sample]:
    """Of two tokens, of which the second is its number."""
    return [Sample(np.array([1000, number], np.int32), MARKS) for number in range(count)]


def loader(mix: Mix, batch_size: int = 1, **options: Any) -> MixedLoader:
    return MixedLoader(make_samples(sum(mix.counts)), mix, batch_size, 2, **({"seed": 3} | options))


def numbers(source: DataLoader, batches: int) -> list[int]:
    return [number for _ in range(batches) for number in source.next_batch().tokens[:, 1].tolist()]


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    parts=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    seed=st.integers(0, 2**40),
)
def test_shares_follow_the_weights_over_all_epochs(counts: list[int], parts: list[float], seed: int) -> None:
    mix, epochs = Mix(tuple(counts), tuple(parts[: len(counts)])), 5
    for number, weight in enumerate(mix.weights):
        drawn = np.concatenate([mix.drawn(number, epoch, seed) for epoch in range(epochs)])
        wanted = weight / sum(mix.weights) * sum(counts) * epochs
        assert abs(len(drawn) - wanted) <= 0.5 + 1e-6
        own = range(sum(counts[:number]), sum(counts[: number + 1]))
        for start in range(0, len(drawn), len(own)):  # a file is gone through before it comes again
            part = drawn[start : start + len(own)].tolist()
            assert len(set(part)) == len(part) and set(part) <= set(own)


@pytest.mark.unit
def test_a_small_file_is_shuffled_anew_each_time() -> None:
    drawn = Mix((8, 40), (0.5, 0.5)).drawn(0, 0, 3)
    assert len(drawn) == 24
    passes = [tuple(drawn[start : start + 8].tolist()) for start in (0, 8, 16)]
    assert len(set(passes)) == 3 and all(sorted(one) == list(range(8)) for one in passes)


@pytest.mark.unit
def test_an_epoch_has_its_share_of_each_file_and_says_its_tokens() -> None:
    source = loader(Mix((10, 30), (3.0, 1.0)))
    assert (source.batches_per_epoch, source.tokens, source.trained_tokens) == (40, 80, 40)
    counts = Counter(number < 10 for number in numbers(source, 40))
    assert counts == {True: 30, False: 10}
    assert numbers(loader(Mix((10, 30), (3.0, 1.0))), 40) == numbers(loader(Mix((10, 30), (0.75, 0.25))), 40)
    assert numbers(loader(Mix((10, 30), (3.0, 1.0)), seed=4), 40) != numbers(loader(Mix((10, 30), (3.0, 1.0))), 40)


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(before=st.integers(0, 60), packing=st.booleans(), batch_size=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_a_resumed_mix_goes_on_as_one_that_never_stopped(
    before: int, packing: bool, batch_size: int, seed: int
) -> None:
    whole, resumed = (loader(Mix((5, 17), (0.7, 0.3)), batch_size, packing=packing, seed=seed) for _ in range(2))
    numbers(whole, before)
    state = json.loads(json.dumps(whole.state_dict()))
    numbers(resumed, 3)
    resumed.load_state_dict(state)
    assert numbers(resumed, 30) == numbers(whole, 30)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.unit
def test_a_state_of_other_weights_is_refused() -> None:
    state = loader(Mix((5, 17), (0.7, 0.3))).state_dict()
    for other in (Mix((5, 17), (0.6, 0.4)), Mix((6, 16), (0.7, 0.3))):
        with pytest.raises(ConfigError, match=r"The checkpoint drew from files of \[5, 17\] samples with the weights"):
            loader(other).load_state_dict(state)
    with pytest.raises(ConfigError, match="The checkpoint drew from files of None samples"):
        loader(Mix((5, 17), (0.7, 0.3))).load_state_dict(DataLoader(make_samples(22), 1, 2).state_dict())


@pytest.mark.unit
def test_iteration_is_of_one_epoch() -> None:
    source = loader(Mix((5, 17), (0.7, 0.3)))
    assert len(list(source)) == len(source) == 22
    assert len(list(islice(source, 50))) == source.batches_per_epoch

"""The loader: the same batches for the same seed, every sample once an epoch, and a resume at any point."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.data import Batch, DataLoader, Sample, evaluation_batches, pack
from entrenar.errors import ConfigError

ROW = 12


def make_samples(count: int = 17, seed: int = 0) -> list[Sample]:
    """Samples of which no two share a token."""
    rng = np.random.default_rng(seed)
    samples, token = [], 1
    for _ in range(count):
        length = int(rng.integers(2, 9))
        trained = rng.random(length) < 0.6
        trained[-1] = True
        samples.append(Sample(np.arange(token, token + length, dtype=np.int32), trained))
        token += length
    return samples


SAMPLES = make_samples()


def loader(batch_size: int = 2, **options: Any) -> DataLoader:
    return DataLoader(SAMPLES, batch_size, ROW, **({"seed": 3} | options))


def content(batch: Batch) -> tuple[bytes, ...]:
    arrays = (batch.tokens, batch.targets, batch.positions, batch.cu_seqlens)
    return (*(array.tobytes() for array in arrays), str(batch.trained_tokens).encode())


def take(source: DataLoader, count: int) -> list[tuple[bytes, ...]]:
    return [content(source.next_batch()) for _ in range(count)]


def tokens_of_rows(source: DataLoader, rows: int) -> list[int]:
    """The tokens of the next rows, padding left out."""
    assert source.batch_size == 1
    found: list[int] = []
    for _ in range(rows):
        batch = source.next_batch()
        found += batch.tokens[batch.tokens != 0].tolist()
    return found


@pytest.mark.unit
@pytest.mark.parametrize("packing", [True, False])
def test_the_order_follows_from_the_seed(packing: bool) -> None:
    first = take(loader(packing=packing), 30)
    assert take(loader(packing=packing), 30) == first
    assert take(loader(packing=packing, seed=4), 30) != first
    assert len(set(first)) > 20  # and changes from epoch to epoch


@pytest.mark.unit
def test_global_random_state_has_no_say() -> None:
    expected = take(loader(), 8)
    np.random.seed(7)
    np.random.random(100)
    assert take(loader(), 8) == expected


@pytest.mark.unit
@pytest.mark.parametrize("packing", [True, False])
def test_every_token_comes_once_an_epoch(packing: bool) -> None:
    source = loader(1, packing=packing)
    everything = Counter(token for sample in SAMPLES for token in sample.tokens.tolist())
    orders = []
    for epoch in range(3):
        assert source.epoch == epoch
        found = tokens_of_rows(source, source.batches_per_epoch)
        assert Counter(found) == everything
        orders.append(tuple(found))
        source.next_batch()  # the next epoch begins where its first row is asked for
        assert source.epoch == epoch + 1
        state = source.state_dict() | {"position": 0}
        source.load_state_dict(state)
    assert len(set(orders)) == 3


@pytest.mark.unit
def test_which_samples_share_a_row_changes_too() -> None:
    samples = [Sample(np.array([2 * i, 2 * i + 1], np.int32) + 1, np.array([False, True])) for i in range(20)]
    source = DataLoader(samples, 1, 4)
    partners = []
    for _ in range(2):
        rows = [source.next_batch().tokens.reshape(-1).tolist() for _ in range(10)]
        partners.append({frozenset(row) for row in rows})
    assert partners[0] != partners[1]


@pytest.mark.unit
def test_epochs_follow_each_other_without_a_gap() -> None:
    source = loader(4)
    rows = len(pack([len(sample) for sample in SAMPLES], ROW))
    assert source.batches_per_epoch == -(-rows // 4)
    assert rows % 4, "the last batch of an epoch shall take rows of the next"
    batches = [source.next_batch() for _ in range(rows)]  # 4 epochs
    assert {batch.tokens.shape for batch in batches} == {(4, ROW)}
    counts = Counter(token for batch in batches for token in batch.tokens.reshape(-1).tolist() if token)
    assert set(counts.values()) == {4}
    assert (source.epoch, source.position) == (3, rows)


@pytest.mark.unit
def test_without_packing_a_batch_has_samples_of_like_length_and_ends_with_the_longest() -> None:
    rng = np.random.default_rng(3)
    made = [Sample(np.full(n, i, np.int32), np.ones(n, bool)) for i, n in enumerate(rng.integers(4, 400, 1003), 1)]
    source = DataLoader(made, 8, 256, packing=False, seed=5)
    batches = [source.next_batch() for _ in range(2 * 1003 // 8 + 1)]  # two epochs, which no batch divides
    for batch in batches:
        longest = max(len(made[i - 1]) for i in batch.tokens[:, 0])
        assert batch.tokens.shape == (8, min(256, longest))
    counts = Counter(i for batch in batches[: 1003 // 8] for i in batch.tokens[:, 0].tolist())
    assert set(counts.values()) == {1} and len(counts) == 1000
    for half in (batches[:125], batches[127:]):
        padding = 1 - sum(int((batch.tokens != 0).sum()) for batch in half) / sum(batch.tokens.size for batch in half)
        assert padding < 0.03  # a tenth of what a random order has
    lengths = [batch.tokens.shape[1] for batch in batches[:50]]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    again = DataLoader(made, 8, 256, packing=False, seed=6).next_batch()
    assert again.tokens[:, 0].tolist() != batches[0].tokens[:, 0].tolist()


@pytest.mark.unit
def test_a_batch_larger_than_an_epoch_takes_several() -> None:
    source = DataLoader(SAMPLES[:2], 7, ROW, packing=False)
    counts = Counter(source.next_batch().tokens[:, 0].tolist())
    assert sorted(counts.values()) == [3, 4]


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 25),
    packing=st.booleans(),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_a_resumed_loader_goes_on_as_one_that_never_stopped(
    before: int, packing: bool, batch_size: int, seed: int
) -> None:
    whole = loader(batch_size, packing=packing, seed=seed)
    take(whole, before)
    state = json.loads(json.dumps(whole.state_dict()))  # as a checkpoint keeps it
    resumed = loader(batch_size, packing=packing, seed=seed)
    take(resumed, 2)  # wherever it stood
    resumed.load_state_dict(state)
    assert take(resumed, 12) == take(whole, 12)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.unit
def test_a_state_of_other_data_is_refused_and_changes_nothing() -> None:
    source = loader()
    take(source, 5)
    state, expected = source.state_dict(), take(loader(), 9)[5:]
    with pytest.raises(
        ConfigError,
        match=r"read 17 examples with seed 9, this run has 17 with seed 3; resume with the same",
    ):
        source.load_state_dict(state | {"seed": 9})
    with pytest.raises(ConfigError, match=r"read 16 examples with seed 3, this run has 17"):
        source.load_state_dict(state | {"samples": 16})
    for position in (-1, 1000):
        with pytest.raises(ConfigError, match=rf"stands at row {position} of \d+; the data has changed"):
            source.load_state_dict(state | {"epoch": 2, "position": position})
    assert source.state_dict() == state
    assert take(source, 4) == expected


@pytest.mark.unit
def test_what_is_trained_and_cut_is_counted() -> None:
    samples = [
        Sample(np.arange(10, dtype=np.int32), np.array([False] * 4 + [True] * 6)),
        Sample(np.arange(4, dtype=np.int32), np.array([True, False, True, True])),
    ]
    source = DataLoader(samples, 1, 8)
    assert source.truncated == 1
    assert source.trained_fraction == (4 + 2) / (8 + 4)  # a first token is never a target
    assert DataLoader(samples, 1, 16).truncated == 0
    trained = sum(batch.trained_tokens for batch in evaluation_batches(samples, 1, 8))
    assert trained == 6


@pytest.mark.unit
def test_evaluation_reads_every_sample_once_in_a_fixed_order() -> None:
    batches = list(evaluation_batches(SAMPLES, 3, ROW))
    found = Counter(token for batch in batches for token in batch.tokens.reshape(-1).tolist() if token)
    assert found == Counter(token for sample in SAMPLES for token in sample.tokens.tolist())
    assert [content(batch) for batch in batches] == [content(batch) for batch in evaluation_batches(SAMPLES, 3, ROW)]
    assert [len(batch.tokens) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert 1 <= len(batches[-1].tokens) <= 3
    alone = list(evaluation_batches(SAMPLES, 3, ROW, packing=False))
    assert [batch.tokens[0, 0] for batch in alone] == [sample.tokens[0] for sample in SAMPLES[::3]]
    assert list(evaluation_batches([], 3, ROW)) == []


@pytest.mark.unit
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_ranks_share_out_the_batches_of_one_loader(size: int) -> None:
    rng = np.random.default_rng(0)
    made = [Sample(rng.integers(0, 9, n).astype(np.int32), np.ones(n, bool)) for n in rng.integers(2, 9, 30)]
    alone, *ranks = (DataLoader(made, 2, 8, seed=1) for _ in range(1 + size))
    for _ in range(6):  # more than an epoch
        expected = [alone.next_batch() for _ in range(4)]
        for rank, loader in enumerate(ranks):
            found = loader.next_batches(4, rank, size)
            assert [b.tokens.tobytes() for b in found] == [b.tokens.tobytes() for b in expected[rank::size]]
            assert loader.state_dict() == alone.state_dict()

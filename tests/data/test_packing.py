"""Packing: whole samples side by side in a row, each with its own positions and targets, none seeing another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.data import IGNORE, Batch, Sample, collate, evaluation_batches, pack

from ..models.builders import random_model, relative_error

PAD = 66


def sample(*tokens: int, trained: list[bool] | None = None) -> Sample:
    return Sample(
        np.array(tokens, np.int32), np.array([False] + [True] * (len(tokens) - 1) if trained is None else trained)
    )


# ---------------------------------------------------------------------- bins
def in_lists(lengths: list[int], row: int) -> list[list[int]]:
    """What `pack` makes, one list a bin."""
    sizes = [min(length, row) for length in lengths]
    bins: list[list[int]] = []
    rooms: dict[int, list[int]] = {}
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        room = min((room for room, open_bins in rooms.items() if open_bins and room >= sizes[index]), default=row)
        if room == row:
            bins.append([])
        chosen = rooms[room].pop() if room < row else len(bins) - 1
        bins[chosen].append(index)
        rooms.setdefault(room - sizes[index], []).append(chosen)
    return bins


@pytest.mark.unit
def test_bins_are_filled_best_fit_longest_first() -> None:
    assert list(pack([3, 9, 5, 2, 4, 10], 10)) == [[5], [1], [2, 4], [0, 3]]
    assert list(pack([], 10)) == []
    assert list(pack([10, 10], 10)) == [[0], [1]]
    assert list(pack([1] * 5, 2)) == [[0, 1], [2, 3], [4]]
    assert list(pack([25, 1], 10)) == [[0], [1]]  # a longer one fills its row alone


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=60), row=st.integers(1, 32))
def test_every_sample_is_in_one_row_and_every_row_fits(lengths: list[int], row: int) -> None:
    bins = list(pack(lengths, row))
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    sums = [sum(min(lengths[i], row) for i in each) for each in bins]
    assert all(0 < total <= row for total in sums)
    half_empty = sum(2 * total <= row for total in sums)
    assert half_empty <= 1  # two such rows would have been one
    assert bins == list(pack(lengths, row)) == in_lists(lengths, row)


@pytest.mark.unit
def test_documentation_like_lengths_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 2000).astype(int).clip(20, 500).tolist()
    assert len(pack(lengths, 512)) < 1.02 * sum(lengths) / 512 + 1


# ---------------------------------------------------------------------- rows
@pytest.mark.unit
def test_a_row_holds_its_samples_with_their_own_positions_and_shifted_targets() -> None:
    rows = [
        [sample(11, 12, 13), sample(21, 22, trained=[True, True])],
        [sample(31, 32, 33, trained=[False, False, True])],
    ]
    batch = collate(rows, 7, PAD)
    assert batch.tokens.tolist() == [[11, 12, 13, 21, 22, PAD, PAD], [31, 32, 33, PAD, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [
        [12, 13, IGNORE, 22, IGNORE, IGNORE, IGNORE],
        [IGNORE, 33, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7, 10, 14]
    assert batch.trained_tokens == 4
    assert {array.dtype for array in (batch.tokens, batch.targets, batch.positions, batch.cu_seqlens)} == {
        np.dtype(np.int64)
    }


@pytest.mark.unit
def test_a_full_row_has_no_padding_and_a_long_sample_is_cut() -> None:
    batch = collate([[sample(1, 2), sample(3, 4)], [sample(5, 6, 7, 8, 9)]], 4, PAD)
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batch.targets.tolist() == [[2, IGNORE, 4, IGNORE], [6, 7, 8, IGNORE]]
    assert batch.cu_seqlens.tolist() == [0, 2, 4, 8]
    assert IGNORE == -100


@st.composite
def sample_lists(draw: st.DrawFn) -> tuple[list[Sample], int]:
    row = draw(st.integers(2, 16))
    samples, token = [], 0
    for length in draw(st.lists(st.integers(1, 20), min_size=1, max_size=25)):
        trained = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        samples.append(Sample(np.arange(token, token + length, dtype=np.int32), np.array(trained)))
        token += length  # every token of the data is another
    return samples, row


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(made=sample_lists(), packing=st.booleans(), batch_size=st.integers(1, 4))
def test_every_token_is_there_once_and_every_target_follows_its_token_within_its_sample(
    made: tuple[list[Sample], int], packing: bool, batch_size: int
) -> None:
    samples, row = made
    batches = list(evaluation_batches(samples, batch_size, row, packing, pad_id=-7))
    seen, trained = [], 0
    for batch in batches:
        width = batch.tokens.shape[1]
        assert width == row if packing else width == min(row, max(2, int((batch.tokens != -7).sum(-1).max())))
        assert batch.tokens.shape[0] <= batch_size
        seen += batch.tokens[batch.tokens != -7].tolist()
        trained += batch.trained_tokens
        check_segments(batch, samples, row)
    assert sorted(seen) == sorted(index for each in samples for index in each.tokens[:row].tolist())
    assert trained == sum(int(each.trained[1:row].sum()) for each in samples)


def check_segments(batch: Batch, samples: list[Sample], row: int) -> None:
    """Each segment between two bounds is one whole (or cut) sample, or padding, inside one row."""
    starts, width = {int(each.tokens[0]): each for each in samples}, batch.tokens.shape[1]
    tokens, targets, positions = (array.reshape(-1) for array in (batch.tokens, batch.targets, batch.positions))
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == tokens.size
    for start, stop in itertools.pairwise(bounds):
        assert start < stop
        assert start // width == (stop - 1) // width  # no segment runs over the end of a row
        assert positions[start:stop].tolist() == list(range(stop - start))
        if tokens[start] == -7:
            assert (tokens[start:stop] == -7).all()
            assert (targets[start:stop] == IGNORE).all()
            continue
        source = starts[int(tokens[start])]
        size = min(len(source), row)
        assert tokens[start:stop].tolist() == source.tokens[:size].tolist()
        expected = np.where(source.trained[1:size], source.tokens[1:size], IGNORE).tolist()
        assert targets[start:stop].tolist() == [*expected, IGNORE]


# ---------------------------------------------------------------------- what the model makes of it
@pytest.mark.unit
def test_a_packed_row_gives_each_sample_the_loss_and_gradient_it_has_alone() -> None:
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 60, n).astype(np.int32), rng.random(n) < 0.7) for n in (9, 5, 12, 3, 7)]
    results = []
    for packing in (True, False):
        model = random_model()
        loss = 0.0
        for batch in evaluation_batches(samples, 2, 16, packing, PAD):
            part = model.loss(batch.tokens, batch.targets, batch.positions, batch.cu_seqlens, reduction="sum")
            part.backward()
            loss += part.item()
        results.append((loss, {name: weight.grad.numpy().copy() for name, weight in model.trainable_parameters()}))
    (packed, packed_gradients), (alone, gradients) = results
    assert len(pack([len(each) for each in samples], 16)) == 3
    assert packed == pytest.approx(alone, rel=1e-5)
    for name, gradient in gradients.items():
        assert relative_error(packed_gradients[name], gradient) < 1e-5, name


@pytest.mark.unit
def test_a_sample_does_not_see_its_neighbour_or_the_padding() -> None:
    model = random_model()
    rng = np.random.default_rng(1)
    first, second, other = (sample(*rng.integers(0, 60, n).tolist()) for n in (6, 5, 6))
    rows = [[[first, second]], [[other, second]], [[second]]]
    logits = []
    for row in rows:
        batch = collate(row, 16, PAD)
        start = int(batch.cu_seqlens[1]) if len(row[0]) == 2 else 0
        logits.append(model(batch.tokens, batch.positions, batch.cu_seqlens).numpy()[0, start : start + 5].copy())
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_allclose(logits[0], logits[2], rtol=0, atol=1e-5)
    repadded = collate([[first, second]], 16, 3)
    again = model(repadded.tokens, repadded.positions, repadded.cu_seqlens).numpy()[0, 6:11]
    np.testing.assert_array_equal(again, logits[0])

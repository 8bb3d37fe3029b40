"""Which examples are held out: the same as ever where chance leaves some on both sides, else at least one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.data import Example, ExampleFile, Subset, digests, documentation_examples, split_held_out, split_indices
from entrenar.data.places import BLOCK
from entrenar.data.split import among


def numbered(count: int, start: int = 0) -> list[Example]:
    return [Example([{"role": "user", "content": f"question {start + n}"}]) for n in range(count)]


@pytest.mark.unit
@pytest.mark.parametrize("count", [2, 3, 20, 50])
def test_few_examples_leave_some_on_both_sides(count: int) -> None:
    by_chance = []
    for start in range(0, 2000, 50):
        examples = numbered(count, start)
        hashes = digests(examples)
        training, held_out = split_held_out(examples)
        assert len(training) + len(held_out) == count and training and held_out
        below = int((hashes < np.uint64(int(0.02 * 2**64))).sum())
        by_chance.append(0 < below < count)
        if not by_chance[-1]:
            assert len(held_out) == max(1, int(0.02 * count))
            assert digests(held_out).max() < digests(training).min()
    assert not all(by_chance)


@pytest.mark.unit
def test_where_chance_leaves_some_on_both_sides_it_decides() -> None:
    examples = numbered(1000)
    hashes = digests(examples)
    training, held_out = split_indices(hashes, 0.1)
    assert (hashes[held_out] < np.uint64(int(0.1 * 2**64))).all()
    assert (hashes[training] >= np.uint64(int(0.1 * 2**64))).all()
    assert sorted([*training, *held_out]) == list(range(1000))


@pytest.mark.unit
def test_a_large_share_of_few_examples_leaves_one_to_train_on() -> None:
    for start in range(0, 100, 5):
        training, held_out = split_held_out(numbered(3, start), 0.99)
        assert (len(training), len(held_out)) == (1, 2)


@pytest.mark.unit
def test_a_share_below_the_count_is_rounded_down_and_one_at_least() -> None:
    hashes = np.arange(2**63, 2**63 + 300, dtype=np.uint64)  # chance would hold out none
    assert [len(split_indices(hashes[:n], 0.02)[1]) for n in (2, 49, 50, 99, 100, 299)] == [1, 1, 1, 1, 2, 5]
    assert [len(split_indices(hashes[:n], 0.02, 2)[1]) for n in (2, 3, 99, 299)] == [1, 2, 2, 5]
    by_chance = np.concatenate([hashes, np.zeros(2, np.uint64)])  # one text that stands there twice
    assert [len(split_indices(by_chance, 0.001, least)[1]) for least in (1, 2)] == [2, 3]


@pytest.mark.unit
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.98])
def test_equal_texts_are_never_on_both_sides(fraction: float) -> None:
    for start in range(0, 60, 3):
        examples = numbered(3, start) * 7
        training, held_out = split_held_out(examples, fraction)
        assert training and held_out
        assert not {example.text for example in training} & {example.text for example in held_out}
    same = numbered(1) * 9
    assert split_held_out(same, fraction) in ((same, []), ([], same))


@pytest.mark.unit
def test_a_fraction_of_zero_holds_out_nothing() -> None:
    assert split_held_out(numbered(5), 0.0) == (numbered(5), [])
    assert split_held_out([], 0.02) == ([], [])


@pytest.mark.unit
def test_the_documentations_split_is_that_of_the_hashes_alone() -> None:
    examples = documentation_examples()
    below = digests(examples) < np.uint64(int(0.02 * 2**64))
    assert split_held_out(examples)[1] == [example for example, chosen in zip(examples, below, strict=True) if chosen]


@pytest.mark.unit
def test_a_subset_reads_the_chosen_examples_in_order(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "question {n}", "completion": "{n}"}}\n' for n in range(5)))
    file = ExampleFile(path)
    for examples in (file, list(file)):
        subset = Subset(examples, np.array([1, 3, 4]))
        assert [example.messages[1]["content"] for example in subset] == ["1", "3", "4"]
        assert subset[0].where == f"{path}, line 2" and subset[1:] == [file[3], file[4]] and len(subset) == 3


@pytest.mark.unit
@pytest.mark.parametrize("count", [0, 1, 300])
def test_hashes_among_others_are_found_in_every_block(count: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 2 * BLOCK + 5, np.uint64)
    others = np.concatenate([hashes[rng.integers(0, len(hashes), count)], rng.integers(0, 2**64, count, np.uint64)])
    np.testing.assert_array_equal(among(hashes, others), np.isin(hashes, others))

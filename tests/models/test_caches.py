"""Sequences that run together in slots: each gets the bits that it gets alone."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.adapters.prefix import PrefixConfig
from entrenar.autograd import no_grad
from entrenar.errors import ConfigError, ShapeError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.models.caches import Slots, longest_alike

from .builders import random_model, random_tokens, small_config


def alone(model: LLaMAModel, tokens: np.ndarray) -> np.ndarray:
    with no_grad():
        return model.hidden_states(tokens[None]).numpy()[0]


@pytest.mark.unit
@pytest.mark.parametrize("changes", [{}, {"family": "mistral", "sliding_window": 5}], ids=["llama", "windows"])
def test_sequences_that_come_and_go_run_together_as_alone(changes: dict) -> None:
    model = random_model(small_config(**changes))
    slots = Slots(model, 3, 20)
    texts = random_tokens(model.config, 4, 20)
    lengths, rows = (7, 4, 11), []
    for text, length in zip(texts, lengths, strict=False):
        rows.append(slots.open(model, [])[0])
        first = slots.run(model, rows[-1:], text[None, :length]).numpy()
        np.testing.assert_allclose(first[0, 0], alone(model, text[:length])[-1], rtol=1e-5, atol=1e-5)
    order = [2, 0, 1]  # of the rows of a batch
    for step in range(3):
        new = np.array([[texts[i, lengths[i] + step]] for i in order])
        found = slots.run(model, [rows[i] for i in order], new).numpy()
        for row, i in enumerate(order):
            expected = alone(model, texts[i, : lengths[i] + step + 1])[-1]
            np.testing.assert_allclose(found[row, 0], expected, rtol=1e-5, atol=1e-5)
    slots.close(rows[1], [])
    assert slots.free == 1
    again, _ = slots.open(model, [])  # which holds what the sequence before left
    whole = slots.run(model, [again], texts[3][None, :9], last_only=False).numpy()
    np.testing.assert_allclose(whole[0], alone(model, texts[3, :9]), rtol=1e-5, atol=1e-5)


@pytest.mark.unit
def test_a_sequence_goes_on_from_the_slot_that_holds_most_of_it() -> None:
    model, other = random_model(), random_model()
    slots = Slots(model, 3, 20)
    text = random_tokens(model.config, 1, 20)[0]
    for length, expected in ((5, 0), (9, 5)):  # two sequences that begin alike
        row, held = slots.open(model, text[:length].tolist())
        assert held == expected
        slots.run(model, [row], text[None, held:length])
        slots.close(row, text[:length].tolist())
    row, held = slots.open(model, text[:12].tolist())
    assert held == 9
    found = slots.run(model, [row], text[None, 9:12], last_only=False).numpy()[0]
    np.testing.assert_allclose(found, alone(model, text[:12])[9:], rtol=1e-5, atol=1e-5)
    slots.close(row, text[:12].tolist())
    assert slots.open(model, text[:12].tolist()) == (row, 11)  # the last token's logits are asked for
    changed = [*text[:4].tolist(), (text[4] + 1) % model.config.vocab_size]
    assert slots.open(model, [*changed, 1])[1] == 0  # who holds these four has no room for another sequence
    slots.close(row, text[:12].tolist())
    assert slots.open(other, text[:12].tolist())[1] == 0


@pytest.mark.unit
def test_a_sequence_that_begins_like_none_takes_the_slot_that_was_given_back_first() -> None:
    model = random_model()
    slots = Slots(model, 3, 8)
    rows = [slots.open(model, [])[0] for _ in range(3)]
    for row in (rows[1], rows[2], rows[0]):
        slots.close(row, [1, 2, 3])
    assert [slots.open(model, [5, 6])[0] for _ in range(3)] == [rows[1], rows[2], rows[0]]


@pytest.mark.unit
@pytest.mark.parametrize("prefix", [False, True])
def test_a_sequence_that_parts_from_one_leaves_it_its_slot_and_has_what_they_share(prefix: bool) -> None:
    model = random_model()
    if prefix:
        PrefixConfig(num_virtual_tokens=3).apply(model)
    slots = Slots(model, 3, 20)
    first, second = (text.tolist() for text in random_tokens(model.config, 2, 14))
    second[:4] = first[:4]
    second[4] = (first[4] + 1) % model.config.vocab_size

    def ran(prompt: list[int], tokens: list[int]) -> tuple[int, int]:
        row, held = slots.open(model, prompt)
        found = slots.run(model, [row], np.array([tokens[held:]]), last_only=False).numpy()[0]
        np.testing.assert_allclose(found, alone(model, np.array(tokens))[held:], rtol=1e-5, atol=1e-5)
        slots.close(row, tokens)
        return row, held

    begun = ran(first[:6], first[:9])
    assert begun == (0, 0)
    parted = ran(second[:6], second[:9])
    assert parted == (1, 4)  # in a slot of its own
    assert ran(first[:12], first[:12]) == (0, 9) and ran(second[:12], second[:12]) == (1, 9)
    assert ran(first[:12], first[:12]) == (0, 11)  # asked again
    assert ran(second[:5], second[:6]) == (2, 4)  # a beginning of another's prompt
    assert ran(second[:13], second[:13]) == (1, 12)


@pytest.mark.unit
def test_a_full_slot_takes_no_token() -> None:
    model = random_model()
    slots = Slots(model, 1, 4)
    row, _ = slots.open(model, [])
    slots.run(model, [row], np.ones((1, 4), np.int64))
    with pytest.raises(ShapeError, match="position 4 in slot 0, expected 0 to 3"):
        slots.run(model, [row], np.ones((1, 1), np.int64))


@pytest.mark.unit
def test_where_scaling_follows_the_length_sequences_end_where_it_begins() -> None:
    def config(scaling: dict | None) -> LLaMAConfig:
        return small_config(rope_scaling=scaling)

    assert longest_alike(config(None)) == 64
    dynamic = config({"rope_type": "dynamic", "factor": 4.0})
    assert longest_alike(dynamic) == 64 < dynamic.context
    with pytest.raises(ConfigError, match="at most 64 that run together"):
        Slots(random_model(dynamic), 2, 65)

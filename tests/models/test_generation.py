"""What generation_config.json asks for: end tokens, changes to logits, what is refused and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.generation import Generation

from .builders import hf_table, random_arrays, random_model, small_config, write_hf

pytestmark = pytest.mark.unit
PROMPT = [3, 9, 4]


def directory(folder: Path, generation: dict[str, Any] | None = None, **config: Any) -> Path:
    shape = small_config()
    write_hf(folder, shape, random_arrays(shape, std=0.3))
    (folder / "config.json").write_text(json.dumps(hf_table(shape) | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def greedy(folder: Path, **options: Any) -> list[int]:
    return LLaMAModel.from_pretrained(folder).generate(PROMPT, max_new_tokens=10, **options)


def test_generation_ends_at_every_end_token_of_the_file_that_counts(tmp_path: Path) -> None:
    plain = greedy(directory(tmp_path / "none"))
    assert len(plain) == 10
    first, later = plain[2], next(token for token in plain[3:] if token not in plain[:3])
    until = plain.index(first)
    assert greedy(directory(tmp_path / "config", eos_token_id=[65, first])) == plain[:until]
    both = directory(tmp_path / "both", {"eos_token_id": [66, later]}, eos_token_id=first)
    assert greedy(both) == plain[: plain.index(later)]  # generation_config.json alone, as transformers
    assert greedy(both, stop=()) == plain
    assert greedy(both, stop=[plain[0]]) == []
    assert greedy(directory(tmp_path / "silent", {}, eos_token_id=first)) == plain


def test_a_model_of_its_own_ends_at_the_tokens_of_its_configuration() -> None:
    model = random_model(small_config(eos_token_id=[5, 7]))
    assert model.generation == Generation((5, 7))
    assert random_model().generation.end_tokens == ()


def test_logits_are_changed_as_the_settings_say() -> None:
    logits = np.array([2.0, -1.0, 3.0, 0.5], np.float32)
    settings = Generation((3,), repetition_penalty=2.0, min_new_tokens=2, suppress_tokens=(2, 99))
    np.testing.assert_array_equal(settings.process(logits, [0, 1], 2), [1.0, -2.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(settings.process(logits, [0, 1, 0, 0], 2), [1.0, -2.0, -np.inf, 0.5])
    begin = Generation(begin_suppress_tokens=(0,))
    np.testing.assert_array_equal(begin.process(logits, [1], 1), [-np.inf, -1.0, 3.0, 0.5])
    np.testing.assert_array_equal(begin.process(logits, [1, 2], 1), logits)
    pairs = Generation(no_repeat_ngram_size=2)
    np.testing.assert_array_equal(pairs.process(logits, [1, 0, 1, 2, 1], 1), [-np.inf, -1.0, -np.inf, 0.5])
    assert settings.plain().process(logits, [0, 1], 2) is logits


def test_what_is_not_supported_is_refused_where_it_is_asked_for_and_said_where_it_is_not(tmp_path: Path) -> None:
    folder = directory(tmp_path, {"eos_token_id": 2, "num_beams": 4, "repetition_penalty": 1.1, "temperature": 0.6})
    with pytest.raises(
        ConfigError, match=r"asks for num_beams = 4, which is not supported; take it out of the file, or"
    ):
        greedy(folder)
    assert len(greedy(folder, generation=Generation())) == 10
    assert [remark.split(": ", 1)[1] for remark in Checkpoint.open(folder).remarks] == [
        "samples during training are greedy and go without num_beams = 4.",
        "samples during training are greedy and go without repetition_penalty = 1.1.",
    ]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id is '2', expected a token id or a list of them"),
        ({"eos_token_id": [2, True]}, "eos_token_id is"),
        ({"eos_token_id": []}, r"eos_token_id is \[\], expected a token id"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a positive number"),
        ({"repetition_penalty": "x" * 10_000}, "repetition_penalty is 'xxx"),
        ({"min_length": 1.5}, "min_length is 1.5, expected a number that is not negative"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"suppress_tokens": [[1]]}, r"suppress_tokens is \[\[1\]\]"),
    ],
)
def test_a_wrong_type_is_named_with_the_file(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"generation_config\.json: {message}") as error:
        greedy(directory(tmp_path, table))
    assert len(str(error.value)) < 600

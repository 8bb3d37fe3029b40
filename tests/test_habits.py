"""What people who know torch and transformers write."""

from __future__ import annotations

import numpy as np
import pytest

import entrenar
from entrenar.adapters.base import adapter_layers
from entrenar.data import DataLoader
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.optim import AdamW
from tests.train.builders import DROPOUT, LENGTH, SHAPE, samples


@pytest.mark.unit
def test_models_tokenizers_and_loaders() -> None:
    model = LLaMAModel(SHAPE).to_lora(DROPOUT)
    assert [id(t) for t in model.parameters()] == [id(t) for _, t in model.trainable_parameters()]
    states = [[layer.training for _, layer in adapter_layers(m)] for m in (model.eval(), model.train(), model.eval())]
    assert len(set(states[0])) == 1 and states[0] == states[2] == [False] * len(states[0])
    tokens = np.arange(12)[None]
    assert np.array_equal(model(tokens).numpy(), model(tokens).numpy())
    model.train()
    AdamW(model.parameters(), lr=1e-3)
    tokenizer = Tokenizer.train(["a b c"] * 9, 262)
    one = tokenizer("a b")
    assert one["input_ids"][-2:] == tokenizer.encode("a b")[-2:] and set(one["attention_mask"]) == {1}
    assert tokenizer(["a b", "c"])["input_ids"][0] == one["input_ids"]
    loader = DataLoader(samples(), 2, LENGTH)
    first = [batch.tokens.tolist() for batch in loader]
    other = DataLoader(samples(), 2, LENGTH)
    assert len(first) == len(loader) and first == [other.next_batch().tokens.tolist() for _ in first]
    assert [batch.tokens.tolist() for batch in loader] != first  # the next epoch


@pytest.mark.unit
def test_the_version_is_an_attribute() -> None:
    assert entrenar.__version__ == entrenar._version(entrenar.Path(entrenar.__path__[0]))

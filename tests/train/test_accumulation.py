"""One batch of 32 rows and 32 batches of one row take the same step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.data import DataLoader
from entrenar.llama import LLaMAModel
from entrenar.train import Trainer
from tests.train.builders import LENGTH, SHAPE, run_config, samples


@pytest.mark.unit
def test_thirty_two_rows_at_once_and_one_after_the_other_take_the_same_steps(tmp_path: Path) -> None:
    """Losses, gradient norms and weights to 1e-5, whatever tokens a row trains; SGD shows the gradient itself."""
    trainers = []
    for batch_size, accumulation in ((32, 1), (1, 32)):
        config = run_config(
            tmp_path / str(batch_size),
            steps=3,
            batch_size=batch_size,
            gradient_accumulation=accumulation,
            optimizer="sgd",
            learning_rate=0.05,
            precision="highest",
        )
        loader = DataLoader(samples(80), batch_size, LENGTH, seed=3)
        trainer = Trainer(LLaMAModel(SHAPE, seed=7), config, loader)
        trainer.run()
        trainers.append(trainer)
    whole, parts = trainers
    for a, b in zip(whole.reports, parts.reports, strict=True):
        assert (a.tokens, a.trained_tokens) == (b.tokens, b.trained_tokens)
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
    begun = dict(LLaMAModel(SHAPE, seed=7).named_parameters())
    for (name, a), (_, b) in zip(whole.parameters, parts.parameters, strict=True):
        moved = np.linalg.norm(a.numpy() - begun[name].numpy())
        assert moved > 0
        assert np.linalg.norm(a.numpy() - b.numpy()) <= 1e-5 * np.linalg.norm(a.numpy()), name

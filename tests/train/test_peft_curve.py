"""Twenty steps of a fine-tuning have the losses of PEFT over the same samples, schedule and AdamW."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.builders import ROOT, write_examples, write_model

STEPS, LENGTH = 20, 96


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, which runs 300 steps of this on the default model."""
    for name in ("torch", "transformers", "peft"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import curve

    yield curve
    for name in ("curve", "harness", "instructions", "models", "timing"):
        sys.modules.pop(name, None)


@pytest.mark.peers
def test_the_losses_of_a_run_follow_those_of_peft(curve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several samples beside each sample for itself; another decay of AdamW's mean is noticed."""
    model, data = str(write_model(tmp_path / "model")), str(write_examples(tmp_path / "examples.jsonl"))
    start, seen = str(tmp_path / "start"), str(tmp_path / "seen.json")
    curve.Peer(model).save(start)
    options = {"model": model, "data": data, "start": start, "steps": STEPS, "length": LENGTH, "seen": seen}
    ours = curve.Ours().train(mode="lora", precision="highest", **options)
    theirs = curve.Peer(model, start).train(seen, STEPS)
    assert len(ours) == STEPS and ours[-1] < 0.9 * ours[0]
    assert curve.furthest(ours, theirs).difference < 1e-4
    monkeypatch.setattr(curve, "BETAS", (0.8, 0.999))
    assert curve.furthest(ours, curve.Peer(model, start).train(seen, STEPS)).difference > curve.LIMIT


@pytest.mark.unit
def test_the_step_that_is_furthest_apart_is_found(curve: Any) -> None:
    far = curve.furthest([1.0, 2.1, 3.0], [1.0, 2.0, 3.0])
    assert (far.step, far.difference) == (2, pytest.approx(0.05))
    assert curve.furthest([1.0, float("nan")], [1.0, 2.0]).difference == float("inf")

"""lm-eval's local-completions against the server gives the scores that it gives over transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server

pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")
TASK = """task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: {kind}
test_split: test
{fields}
"""
KINDS = {
    "multiple_choice": (
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        ("acc,none", "acc_norm,none"),
    ),
    "loglikelihood_rolling": (
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: byte_perplexity\n  - metric: bits_per_byte\n",
        ("byte_perplexity,none", "bits_per_byte,none"),
    ),
}


def task(kind: str, folder: Path) -> Any:
    """A task over sums, whose file is made here."""
    from lm_eval.tasks import TaskManager

    rows = [
        {
            "question": f"What is {a} plus {b}?",
            "choices": [f" {a} plus {b} is {a + b + wrong}" for wrong in (0, 1, 2)],
            "answer": 0,
            "text": f"What is {a} plus {b}? {a} plus {b} is {a + b}, and that is all.",
        }
        for a in range(2, 6)
        for b in range(3, 6)
    ]
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.format(file=file, kind=kind, fields=KINDS[kind][0]))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(
    kind: str, server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache" / "datasets"))
    tasks, common = task(kind, tmp_path), {"tasks": ["sums"], "bootstrap_iters": 0}
    ours = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{server.url}/completions",
            "tokenizer": str(model),
            "tokenized_requests": True,
            "num_concurrent": 2,
            "max_length": 128,
        },
        task_manager=tasks,
        **common,
    )
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32", "max_length": 128},
        device="cpu",
        task_manager=tasks,
        **common,
    )
    for name in KINDS[kind][1]:
        assert ours["results"]["sums"][name] == pytest.approx(theirs["results"]["sums"][name], abs=1e-3), name

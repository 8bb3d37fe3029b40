"""Preference tuning: TRL's records, its losses and gradients, and runs of DPO, ORPO and KTO from files to files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.data import DataReport, Example, Sample, SideReport
from entrenar.data.preferences import PreferenceFile
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.train import TrainConfig
from entrenar.train.config import Checkpointing, Data, Preferences, Training
from entrenar.train.preference import PreferenceData, PreferenceLoader, PreferenceObjective, dpo, kto, orpo
from entrenar.train.preference_data import PreferenceSides
from tests.train.builders import ADDITIONS, SHAPE, SMALL, config_for, quiet, write_model

METHODS = ("dpo", "orpo", "kto")


def write_preferences(path: Path, method: str) -> Path:
    """Right and wrong answers to additions, as TRL's records."""
    with path.open("w") as file:
        for a, b in ADDITIONS[:24]:
            prompt, right, wrong = f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", f"{a + b} is what."
            if method == "kto":
                for completion, label in ((right, True), (wrong, False)):
                    file.write(json.dumps({"prompt": prompt, "completion": completion, "label": label}) + "\n")
            else:
                file.write(json.dumps({"prompt": prompt, "chosen": right, "rejected": wrong}) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


# ---------------------------------------------------------------------- records
def read(tmp_path: Path, *records: Any, labelled: bool = False) -> list[list[tuple[list[str], list[int]]]]:
    """(role: content of each message, indices that are not trained) of the answers of each record."""
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [
        [
            ([f"{message['role']}: {message['content']}" for message in answer.messages], sorted(answer.left_out))
            for answer in preference.answers
        ]
        for preference in PreferenceFile(path, labelled=labelled)
    ]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.unit
def test_prompts_are_texts_or_messages_and_may_be_implicit(tmp_path: Path) -> None:
    earlier = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    expected = [[(["user: Two words", "assistant: yes"], []), (["user: Two words", "assistant: no"], [])]]
    assert read(tmp_path, {"prompt": "Two words", "chosen": "yes", "rejected": "no"}) == expected
    assert [
        [answer[0][1] for answer in pair] for pair in read(tmp_path, {"chosen": "A b yes", "rejected": "A b no"})
    ] == [["assistant: yes", "assistant: no"]]
    chats = [[*earlier, turn("assistant", "d")], [*earlier, turn("assistant", "e")]]
    whole = read(tmp_path, {"chosen": chats[0], "rejected": chats[1]})
    apart = read(tmp_path, {"prompt": earlier, "chosen": chats[0][-1:], "rejected": chats[1][-1:]})
    same = ["user: a", "assistant: b", "user: c"]
    assert whole == apart == [[([*same, "assistant: d"], [1]), ([*same, "assistant: e"], [1])]]
    assert read(tmp_path, {"prompt": "p", "completion": "c", "label": False}, labelled=True) == [
        [(["user: p", "assistant: c"], [])]
    ]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("record", "labelled", "message"),
    [
        ({"text": "a"}, False, "has no chosen and no rejected, expected an object with prompt"),
        ({"chosen": "a", "rejected": ""}, False, "rejected is .., expected non-empty text or messages"),
        ({"chosen": "a", "rejected": ["b"]}, False, "of different kinds"),
        ({"chosen": "a", "rejected": "b"}, False, "begin with no prompt that they share"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, False, "the user's part is no text"),
        ({"prompt": "p", "completion": "c"}, True, "label is None, expected true or false"),
        ({"prompt": "p", "completion": "c", "label": 1}, True, "label is 1, expected true or false"),
        ({"prompt": "p", "label": True}, True, "has no prompt or no completion"),
        ({"prompt": "p", "chosen": [turn("user", "x")], "rejected": "b"}, False, "the last message is the user's"),
    ],
)
def test_a_record_that_is_none_is_named(record: Any, labelled: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"preferences\.jsonl.*line 1.*{message}"):
        read(tmp_path, record, labelled=labelled)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("preference", "training", "message"),
    [
        ({"method": "kto"}, {"batch_size": 1}, "training.batch_size is 1, expected at least 2 for kto"),
        ({"method": "orpo", "label_smoothing": 0.1}, {}, "label_smoothing is 0.1, which orpo does not use"),
        ({"method": "none", "beta": 0.5}, {}, "beta is 0.5, which none does not use"),
    ],
)
def test_settings_without_effect_are_refused(preference: Any, training: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config_for(Path("x"), Path("y")), preference=Preferences(**preference), training=Training(**training))
    with pytest.raises(ConfigError, match="name a file of preferences"):
        TrainConfig(preference=Preferences("dpo"))


# ---------------------------------------------------------------------- the losses
LOSSES: dict[str, Callable[[np.ndarray], tuple[float, np.ndarray]]] = {
    "dpo": lambda x: dpo(x, 0.3, 0.0),
    "dpo, smoothed": lambda x: dpo(x, 0.3, 0.2),
    "orpo": lambda x: orpo(-np.abs(x), 0.4),
    "kto": lambda x: kto(x, np.array([True, False, False, True]), 0.7, 0.3, (1.0, 1.5)),
}


@pytest.mark.gradient
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    loss, x = LOSSES[name], np.array([-0.4, -2.0, -3.0, -1.1])
    slopes = loss(x)[1]
    for i in range(len(x)):
        up, down = x.copy(), x.copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        assert slopes[i] == pytest.approx((loss(up)[0] - loss(down)[0]) / 2e-6, rel=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("name", LOSSES)
def test_far_values_are_finite(name: str) -> None:
    for x in ([-1e4, -1e-30, -1e-30, -1e4], [0.0, 0.0, 0.0, 0.0]):
        value, slopes = LOSSES[name](np.array(x))
        assert math.isfinite(value) and np.isfinite(slopes).all()


def answers(method: str, seed: int = 0) -> PreferenceData:
    """Eight answers of random tokens to four prompts."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(4):
        prompt = rng.integers(1, SHAPE.vocab_size, rng.integers(2, 5))
        for _ in range(2):
            tokens = np.concatenate([prompt, rng.integers(1, SHAPE.vocab_size, rng.integers(3, 9))]).astype(np.int32)
            samples.append(Sample(tokens, np.arange(len(tokens)) >= len(prompt)))
    return PreferenceData(samples, [True, False] * 4, 1 if method == "kto" else 2, shifts=method == "kto")


SETTINGS = {
    "dpo": Preferences("dpo", beta=0.3),
    "dpo, smoothed": Preferences("dpo", beta=0.3, label_smoothing=0.2),
    "orpo": Preferences("orpo", beta=0.2),
    "kto": Preferences("kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7),
}


def ours(name: str) -> tuple[float, dict[str, np.ndarray], LLaMAModel, LLaMAModel, PreferenceData]:
    """Loss and gradients of one batch of all answers, the model and the reference."""
    settings = SETTINGS[name]
    reference, model = LLaMAModel(SHAPE, seed=7), LLaMAModel(SHAPE, seed=7)
    rng = np.random.default_rng(9)
    for _, tensor in model.named_parameters():
        tensor.numpy()[...] += rng.normal(0, 0.03, tensor.shape).astype(np.float32)
    data = answers(settings.method)
    data.compute_reference(reference, 64, 0)
    batch = data.batch(range(8), 64, 0)
    objective = PreferenceObjective(settings, 8 // data.group)
    assert settings.method != "kto" or objective._divergence(model, batch) > 0.1  # nothing is compared with what is 0
    loss = objective.loss(model, batch, objective.weight(batch))
    loss.backward()
    found = {name: t.grad.numpy().copy() for name, t in model.named_parameters() if t.grad is not None}
    return loss.item(), found, model, reference, data


@pytest.mark.peers
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_those_of_trl(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    settings = SETTINGS[name]
    loss, gradients, model, reference, data = ours(name)
    model.save_pretrained(tmp_path / "model")
    reference.save_pretrained(tmp_path / "reference")
    policy, base = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / which, dtype=torch.float32)
        for which in ("model", "reference")
    )
    theirs = trl_loss(settings, policy, base, data, write_model(tmp_path / "tokenizer"), tmp_path)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-4)
    expected = {key: p.grad.numpy() for key, p in policy.named_parameters() if p.grad is not None}
    assert len(expected) == len(gradients)
    for key, gradient in gradients.items():
        error = np.linalg.norm(gradient - expected[key]) / np.linalg.norm(expected[key])
        assert error < 1e-4, key


def padded(samples: Any) -> dict[str, Any]:
    """The samples as TRL batches them."""
    import torch

    width = max(len(s) for s in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    there, trained = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, s in enumerate(samples):
        ids[i, : len(s)] = torch.from_numpy(s.tokens.astype(np.int64))
        there[i, : len(s)], trained[i, : len(s)] = 1, torch.from_numpy(s.trained.astype(np.int64))
    return {"input_ids": ids, "attention_mask": there, "completion_mask": trained}


def trl_loss(settings: Preferences, policy: Any, base: Any, data: PreferenceData, tokenizer: Path, folder: Path) -> Any:
    """What TRL's own trainer computes for one batch of all answers."""
    import datasets
    import torch
    import transformers

    processing = transformers.AutoTokenizer.from_pretrained(tokenizer)
    processing.pad_token = processing.pad_token or processing.eos_token or processing.convert_ids_to_tokens(0)
    common = {"output_dir": str(folder / "trl"), "use_cpu": True, "report_to": [], "per_device_train_batch_size": 8}
    common |= {"beta": settings.beta, "bf16": False, "fp16": False}
    pairs = datasets.Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}] * 2)

    chosen, rejected = data.samples[::2], data.samples[1::2]
    if settings.method == "dpo":
        from trl import DPOConfig, DPOTrainer

        arguments = DPOConfig(**common)
        trainer = DPOTrainer(policy, base, args=arguments, train_dataset=pairs, processing_class=processing)
        found = trainer.compute_loss(trainer.model, padded([*chosen, *rejected]))
        if smoothing := settings.label_smoothing:  # each pair the wrong way round with this probability
            flipped = trainer.compute_loss(trainer.model, padded([*rejected, *chosen]))
            found = (1 - smoothing) * found + smoothing * flipped
    elif settings.method == "kto":
        from trl import KTOConfig, KTOTrainer

        weights = {key: getattr(settings, key) for key in ("desirable_weight", "undesirable_weight")}
        labelled = datasets.Dataset.from_list(
            [
                {"prompt": "a b", "completion": " c", "label": True},
                {"prompt": "a b", "completion": " d", "label": False},
            ]
        )
        arguments = KTOConfig(**common, **weights)
        trainer = KTOTrainer(policy, base, args=arguments, train_dataset=labelled, processing_class=processing)
        batch = padded(data.samples) | {f"KL_{key}": value for key, value in padded(data.shifted).items()}
        batch["label"] = torch.tensor(data.labels)
        found = trainer.compute_loss(trainer.model, batch)
    else:
        from types import SimpleNamespace

        from trl.experimental.orpo.orpo_trainer import ORPOTrainer

        self = SimpleNamespace(beta=settings.beta, accelerator=SimpleNamespace(device="cpu"))
        logs, nll = [], None
        for samples in (chosen, rejected):
            batch = padded(samples)
            logits = policy(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            logs.append(ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True))
            if nll is None:
                every = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
                nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), every[:, 1:].flatten())
        found = nll - ORPOTrainer.odds_ratio_loss(self, *logs)[0].mean()
    return found


# ---------------------------------------------------------------------- batches and runs
@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_has_every_answer_once_and_pairs_stay_together(method: str) -> None:
    data = answers(method)
    loader = PreferenceLoader(data, 2, 64, seed=1, pad_id=0)
    seen = []
    for _ in range(len(data.samples) // (2 * data.group)):
        batch = loader.next_batch()
        assert len(batch.tokens) == 2 * data.group
        seen += [tuple(row) for row in batch.tokens.tolist()]
        if data.group == 2:
            np.testing.assert_array_equal(batch.labels, [True, False] * 2)  # type: ignore[attr-defined]
    assert len({tuple(t for t in row if t) for row in seen}) == 8 and loader.epoch == 0


@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_pairs_give_the_step_of_one_large_batch(method: str) -> None:
    data = answers(method)
    grads = []
    objective = PreferenceObjective(Preferences(method), 8 // data.group)
    for size in (8, 2) if method != "kto" else (8,):  # KTO's divergence is a micro-batch's, as in TRL
        model = LLaMAModel(SHAPE, seed=7)
        batches = [data.batch(range(start, start + size), 64, 0) for start in range(0, 8, size)]
        weight = sum(map(objective.weight, batches))
        assert size == 8 or len({objective.weight(batch) for batch in batches}) > 1
        for batch in batches:
            objective.loss(model, batch, weight).backward()
        grads.append({name: t.grad.numpy().copy() for name, t in model.named_parameters() if t.grad is not None})
    for name, gradient in grads[-1].items():
        assert np.linalg.norm(gradient - grads[0][name]) <= 1e-5 * np.linalg.norm(gradient)


@pytest.mark.unit
@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_its_preferences_and_resumes_to_the_same_bits(method: str, model: Path, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "preferences.jsonl", method)
    training = replace(SMALL, steps=6, batch_size=4)
    sections = {
        "preference": Preferences(method),
        "adapter": LoRAConfig(rank=4, dropout=0.1, target_modules=["all-linear"]),
    }
    config = config_for(data, tmp_path / "whole", training, **sections)
    whole, said = quiet(model, config)
    assert whole.before is not None and whole.after is not None
    assert "held-out loss before: " in said and "perplexity" not in said and "1 / sqrt" not in said
    assert whole.after.loss < whole.before.loss
    if method == "dpo":
        assert whole.before.loss == pytest.approx(math.log(2), rel=1e-6)  # the model is its own reference
    if method == "kto":
        assert whole.before.loss == pytest.approx(0.5, rel=1e-6)
    for steps, resume in ((3, False), (6, True)):
        part = config_for(data, tmp_path / "parts", replace(training, steps=steps), **sections)
        part.lr_schedule = replace(part.lr_schedule, schedule_steps=6, min_lr=1e-9)
        part.checkpointing = replace(part.checkpointing, resume=resume, minutes=10)
        parts, _ = quiet(model, part)
    config.lr_schedule = replace(config.lr_schedule, min_lr=1e-9)
    config.checkpointing = replace(config.checkpointing, overwrite=True)
    whole, _ = quiet(model, config)
    files = [(result.output / "adapter_model.safetensors").read_bytes() for result in (whole, parts)]
    assert files[0] == files[1]


@pytest.mark.unit
def test_kto_evaluates_on_two_answers_at_least(model: Path, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "preferences.jsonl", "kto")
    config = config_for(data, tmp_path / "run", replace(SMALL, batch_size=4), preference=Preferences("kto"))
    result, _ = quiet(model, replace(config, data=replace(config.data, held_out_fraction=0.001)))
    assert result.before is not None and result.after is not None
    assert result.after.loss != result.before.loss  # alone an answer is compared with itself: 0.5 whatever is learned
    one = tmp_path / "one.jsonl"
    one.write_text(data.read_text().splitlines()[0] + "\n")
    for path, other, said in (
        (data, str(one), "one.jsonl: has one answer to evaluate on, and kto compares an answer with those to other "),
        (one, str(data), "one.jsonl: has one answer to train on, and kto"),
    ):
        changed = replace(config.data, path=str(path), eval_path=other, held_out_fraction=Data.held_out_fraction)
        with pytest.raises(ConfigError, match=said):
            quiet(model, replace(config, data=changed, checkpointing=Checkpointing(str(tmp_path / "other"))))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("wanted", "unwanted", "weights", "said"),
    [
        (4, 4, {"desirable_weight": 3.0}, None),  # as in TRL, which then says nothing
        (4, 3, {}, None),
        (
            8,
            4,
            {},
            "8 answers are wanted and 4 are not: .* ratio is 2.00, .*[.]undesirable_weight = 2 makes",
        ),
        (8, 4, {"undesirable_weight": 2.0}, None),
        (3, 6, {}, r"3 answers are wanted and 6 are not: .* ratio is 0.50, .* preference\.desirable_weight = 2 makes"),
        (5, 0, {}, "All 5 answers that are trained on are wanted: kto learns from unwanted ones too"),
    ],
)
def test_kto_says_where_its_sides_weigh_too_unequally(
    wanted: int, unwanted: int, weights: dict[str, float], said: str | None
) -> None:
    labels = [True] * wanted + [False] * unwanted
    data = PreferenceData([Sample(np.arange(4), np.arange(4) > 1)] * len(labels), labels, 1, shifts=False)
    sides = PreferenceSides(data, data, Example([]), DataReport("a", 8, SideReport(), SideReport()))
    remarks = sides.remarks(Preferences("kto", **weights))
    assert (remarks == []) if said is None else (len(remarks) == 1 and re.match(said, remarks[0]))
    assert sides.remarks(Preferences("dpo")) == []


@pytest.mark.unit
def test_an_answer_that_no_row_holds_is_named(model: Path, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "preferences.jsonl", "dpo")
    config = config_for(data, tmp_path / "run", replace(SMALL, sequence_length=4), preference=Preferences("dpo"))
    with pytest.raises(ConfigError, match=r"preferences\.jsonl.*no token is trained in a row; give a longer"):
        quiet(model, config)

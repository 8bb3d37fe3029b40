"""The estimate of a run's peak memory: near what is used, and a refusal before anything is allocated."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor, empty_cache, memory_stats, reset_peak_memory
from entrenar.data import DataLoader
from entrenar.errors import ConfigError, MemoryBudgetError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import DoRAConfig, IA3Config, LoRAConfig, PrefixConfig
from entrenar.models.storage import Storage, StoragePolicy
from entrenar.optim import AdamW
from entrenar.qlora import QLoRAConfig
from entrenar.train import TrainConfig, dataset, memory, verify
from entrenar.train.config import Data, Preferences, Training
from tests.train.builders import run_config, trainer_of

SHAPE = LLaMAConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
ALL = LoRAConfig(rank=16, target_modules=["all-linear"])
SMOLLM2 = LLaMAConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def measured_peak(shape: LLaMAConfig, lora: LoRAConfig | None, batch: int, length: int, checkpointing: bool) -> int:
    """Tensor memory over the weights at the peak of the second training step."""
    model = LLaMAModel(shape)
    if lora is not None:
        lora.apply(model)
    model.gradient_checkpointing = checkpointing
    optimizer = AdamW(model.trainable_parameters())
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, (batch, length + 1))
    gc.collect()
    empty_cache()
    before = memory_stats()["in_use"]
    reset_peak_memory()
    for _ in range(2):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return memory_stats()["peak"] - before


@pytest.mark.memory
@pytest.mark.parametrize("checkpointing", [0, 1, True], ids=["saved", "one recomputed", "recomputed"])
@pytest.mark.parametrize(
    ("shape", "lora", "batch", "length"),
    [
        (SHAPE, None, 1, 256),
        (replace(SHAPE, tie_word_embeddings=True), None, 3, 128),
        (SHAPE, ALL, 1, 256),
        (SHAPE, replace(ALL, target_modules=["q_proj", "v_proj"]), 2, 128),
        (SHAPE, replace(ALL, target_modules=["down_proj"]), 1, 256),
        (SHAPE, QLoRAConfig(rank=8, target_modules=["all-linear"]), 1, 256),
        (SHAPE, IA3Config(), 2, 128),
        (SHAPE, IA3Config(target_modules=["all-linear"]), 1, 256),
        (SHAPE, DoRAConfig(rank=8, target_modules=["all-linear"]), 1, 256),
        (SHAPE, DoRAConfig(rank=8, dropout=0.2, target_modules=["down_proj", "q_proj"]), 1, 256),
        (SHAPE, PrefixConfig(num_virtual_tokens=8), 1, 256),
        (SHAPE, replace(ALL, modules_to_save=["embed_tokens", "lm_head"]), 1, 256),
        (replace(SHAPE, vocab_size=20000, num_hidden_layers=2), ALL, 2, 256),
        (replace(SHAPE, num_key_value_heads=4, intermediate_size=128), ALL, 1, 256),
        (replace(SHAPE, family="qwen2"), ALL, 1, 256),
        (replace(SHAPE, family="qwen3", head_dim=64), None, 1, 256),
        (replace(SHAPE, family="gemma2", sliding_window=64, final_logit_softcapping=30.0), None, 1, 256),
        (replace(SHAPE, family="gemma3_text", sliding_window=64, head_dim=64), ALL, 1, 256),
        (replace(SHAPE, family="olmo2"), ALL, 1, 256),
        (replace(SHAPE, family="olmo2", tie_word_embeddings=True), None, 2, 128),
    ],
    ids=[
        "full",
        "tied",
        "lora",
        "q and v",
        "down",
        "qlora",
        "ia3",
        "ia3 everywhere",
        "dora",
        "dora with dropout",
        "prefix",
        "both ends",
        "wide head",
        "narrow mlp",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "olmo2",
        "olmo2, full",
    ],
)
def test_the_estimate_is_near_the_measured_peak(
    shape: LLaMAConfig, lora: LoRAConfig | None, batch: int, length: int, checkpointing: bool
) -> None:
    step = memory.StepMemory(shape, adapter=lora, batch_size=batch, sequence_length=length)
    items = step.estimate(checkpointing).items
    estimated = items["gradients"] + items["optimizer"] + items["activations"]
    assert estimated == pytest.approx(measured_peak(shape, lora, batch, length, checkpointing), rel=0.12)


@pytest.mark.memory
@pytest.mark.parametrize(
    ("lora", "dtype", "quantize"),
    [
        (None, "float32", None),
        (ALL, "float32", None),
        (ALL, "bfloat16", None),
        (QLoRAConfig(rank=16, target_modules=["all-linear"]), "float32", "nf4"),
        (QLoRAConfig(rank=16, target_modules=["all-linear"], quantize="int4"), "float32", "int4"),
    ],
)
def test_the_weights_of_the_estimate_are_those_of_the_model(
    lora: LoRAConfig | None, dtype: str, quantize: str | None
) -> None:
    model = LLaMAModel(SHAPE)
    if lora is not None:
        lora.apply(model)
    held = 0
    for _, weight in model.named_parameters():
        half = dtype == "bfloat16" and isinstance(weight, Tensor) and not weight.requires_grad
        held += weight.nbytes // (2 if half else 1)
    storage = StoragePolicy(dtype, quantize).storage(SHAPE.parameter_shapes())
    items = memory.StepMemory(SHAPE, adapter=lora, storage=storage).estimate(False).items
    assert items["weights"] == pytest.approx(held, rel=0.01)


# MiB: `/usr/bin/time -v python examples/llama2_finetune_lora.py --steps 3 --target-modules all-linear` with --dtype and
# --gradient-checkpointing, or the QLoRA example
MEASURED = {
    ("float32", "auto", False): 736,
    ("float32", "auto", True): 397,
    ("float32", None, False): 1149,
    ("float32", None, True): 810,
    ("bfloat16", None, False): 893,
}


@pytest.mark.unit
@pytest.mark.parametrize(("dtype", "quantize", "checkpointing"), MEASURED)
def test_whole_runs_need_what_was_measured(dtype: str, quantize: str | None, checkpointing: bool) -> None:
    stored = {"model.embed_tokens.weight": "Q8_0"}
    storage = StoragePolicy(dtype, quantize).storage(SMOLLM2.parameter_shapes(), stored)
    needed = memory.StepMemory(SMOLLM2, adapter=ALL, storage=storage).estimate(checkpointing)
    assert needed.total / 2**20 == pytest.approx(MEASURED[dtype, quantize, checkpointing], rel=0.1)


# ---------------------------------------------------------------------- the plan
@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what the machine has available."""
    return lambda available: monkeypatch.setattr(memory, "available_memory", lambda: available)


def estimated(checkpointing: bool | int = False) -> memory.MemoryEstimate:
    return memory.StepMemory(SMOLLM2, adapter=ALL).estimate(checkpointing)


def needs(checkpointing: bool | int) -> int:
    return estimated(checkpointing).total


def planned(mode: str | int = "auto", **training: int) -> tuple[int, memory.MemoryEstimate]:
    return memory.plan(SMOLLM2, TrainConfig(training=Training(gradient_checkpointing=mode, **training), adapter=ALL))


@pytest.mark.memory
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "schedulefree_adamw", "muon"])
def test_the_optimizer_of_the_estimate_is_what_it_keeps(optimizer: str, tmp_path: Path) -> None:
    trainer = trainer_of(run_config(tmp_path, steps=1, optimizer=optimizer))
    trainer.run()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    held = sum(value.nbytes for value in states if isinstance(value, Tensor))
    trainer.optimizer.train()
    trainer.optimizer.eval()  # has y aside
    held += sum(y.nbytes for _, y in getattr(trainer.optimizer, "_kept", {}).values())
    estimate = memory.StepMemory(trainer.model.config, adapter=None, optimizer=optimizer).estimate(False)
    assert estimate.items["optimizer"] == held


@pytest.mark.memory
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "schedulefree_adamw"])
def test_what_a_verified_update_keeps_counts(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []  # by each parameter that is copied, in a piece that has all of them

    def copied(*entry: Any) -> Any:
        weights, values = copies(*entry)
        kept.append(weights.nbytes + sum(v.nbytes for v in values.values() if isinstance(v, np.ndarray)))
        return weights, values

    copies = verify._copied
    monkeypatch.setattr(verify, "_copied", copied)
    config = run_config(tmp_path, steps=2, optimizer=optimizer)
    config = replace(config, observe=replace(config.observe, verify_every=2))
    trainer = trainer_of(config)
    trainer.run()
    items = memory.step_memory(trainer.model.config, config).estimate(False).items
    assert sum(kept) == items["verification"]
    plain = replace(config, observe=replace(config.observe, verify_every=0))
    assert "verification" not in memory.step_memory(trainer.model.config, plain).estimate(False).items


@pytest.mark.unit
def test_a_verified_update_keeps_a_piece_of_the_weights_at_most() -> None:
    def kept(**values: Any) -> int:
        return memory.StepMemory(SMOLLM2, verifies=True, **values).estimate(False).items["verification"]

    assert kept(adapter=None) == 3 * 4 * 49152 * 576  # the embedding is more than a piece
    assert kept(adapter=ALL) == 3 * 4 * ALL.num_parameters(SMOLLM2)  # less than a piece
    assert kept(adapter=replace(ALL, rank=128), optimizer="sgd") == 2 * verify.PIECE_BYTES


@pytest.mark.unit
@pytest.mark.parametrize(("method", "rows"), [("none", 1), ("dpo", 2), ("orpo", 2), ("kto", 1)])
def test_the_rows_of_a_pair_count_twice(method: str, rows: int, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.touch()
    data = Data(path=str(path))
    t = Training(batch_size=4, sequence_length=128)
    config = TrainConfig(training=t, adapter=ALL, data=data, preference=Preferences(method=method))
    assert memory.step_memory(SMOLLM2, config).tokens == rows * 4 * 128


@pytest.mark.memory
def test_as_few_layers_are_recomputed_as_let_the_estimate_fit(machine: Callable[[int], None]) -> None:
    assert needs(True) < 0.8 * needs(False)
    machine(needs(False))
    assert planned() == (0, estimated())
    assert [planned(mode)[0] for mode in ("on", "off", 7, 30)] == [30, 0, 7, 30]
    for count in (1, 17, 29):  # with a margin for what the estimate may be off by
        machine(min(int(1.1 * needs(count)) + 1, needs(False) - 1))
        chosen, estimate = planned()
        assert chosen >= count and estimate == estimated(chosen)
        assert 1.1 * needs(chosen) <= min(1.1 * needs(count) + 2, needs(False)) < 1.1 * needs(chosen - 1) + 1
    machine(needs(True))
    assert planned() == (30, estimated(True))


@pytest.mark.unit
def test_more_layers_than_the_model_has_are_refused() -> None:
    refusal = r"training\.gradient_checkpointing is 31, and the model has 30 layers; give at most 30, on or auto\.$"
    with pytest.raises(ConfigError, match=refusal):
        planned(31)


@pytest.mark.memory
@pytest.mark.parametrize("mode", ["off", "on", "auto"])
def test_what_cannot_fit_is_refused_with_its_largest_parts(mode: str, machine: Callable[[int], None]) -> None:
    machine(needs(mode != "off") - 1)
    with pytest.raises(
        MemoryBudgetError, match=r"needs about \d+\.\d GiB \(.* GiB of .* and .*\) and .* is available; "
    ):
        planned(mode)


@pytest.mark.memory
def test_longer_and_more_rows_need_more(machine: Callable[[int], None]) -> None:
    machine(1 << 50)
    small = planned()[1].items["activations"]
    assert planned(batch_size=2)[1].items["activations"] > 1.8 * small
    assert planned(sequence_length=1024)[1].items["activations"] > 1.8 * small


# ---------------------------------------------------------------------- the data
@pytest.mark.memory
def test_the_examples_of_a_file_count_and_need_no_more_than_is_estimated(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [
        {"prompt": f"What is {n}?", "completion": f"Number {n} is answered with words of every length here. " * 10}
        for n in range(2000)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    size = path.stat().st_size
    config = TrainConfig(data=Data(path=str(path), held_out_fraction=0.0), adapter=ALL)
    needed = memory.plan(SHAPE, config)[1]
    assert needed.items["data"] == memory.data_bytes(config) == int(memory.DATA_SHARE * size)
    tokenizer = Tokenizer.train([record["completion"] for record in records[:50]], 300)
    tokenizer.apply_chat_template([{"role": "user", "content": "What?"}])  # imports what templates need
    np.random.default_rng(0)  # imported when first used
    tracemalloc.start()
    try:
        data = dataset.encode(config, tokenizer, 300)
        loader = DataLoader(data.training, 1, 512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loader.tokens > size / 5
    assert 0.5 * needed.items["data"] < peak < 1.1 * needed.items["data"]


@pytest.mark.unit
def test_what_the_allocator_keeps_of_freed_activations_counts_beside_all_gradients() -> None:
    def parts(checkpointing: bool, **options: Any) -> dict[str, int]:
        return memory.StepMemory(SMOLLM2, adapter=None, **options).estimate(checkpointing).items

    whole, again = parts(False, sequence_length=256), parts(True, sequence_length=256)
    assert 150 << 20 < whole["cache"] < 200 << 20 and again["cache"] < whole["cache"] / 5
    long = parts(False, sequence_length=8192)
    held = sum(long[name] for name in ("weights", "gradients", "optimizer"))
    assert long["activations"] > held and long["cache"] <= held // 4 + (64 << 20)


@pytest.mark.unit
def test_the_data_of_no_file_or_few_examples_count_little(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(bytes(10**6))
    sizes = [
        memory.data_bytes(TrainConfig(data=Data(path=name, max_examples=most)))
        for name, most in ((None, 0), (str(tmp_path / "none"), 0), (str(path), 0), (str(path), 3))
    ]
    assert sizes == [0, 0, int(memory.DATA_SHARE * 10**6), 3 * (512 * 5 + 50)]


# ---------------------------------------------------------------------- what would make it fit
def settings_that_fit(available: int, storage: Storage | None = None, **values: Any) -> list[dict[str, Any]]:
    sections = {"adapter": ALL} | values
    found = memory.remedies(SMOLLM2, TrainConfig(**sections), storage, available)
    for remedy in found:  # each is one of a run that fits
        assert remedy.total <= available
    return [remedy.settings for remedy in found]


@pytest.mark.unit
def test_each_setting_that_makes_a_run_fit_is_named() -> None:
    of = partial(Training, gradient_checkpointing="off", batch_size=4, sequence_length=1024)
    base = StoragePolicy("float32").storage(SMOLLM2.parameter_shapes())
    found = settings_that_fit(2500 << 20, base, training=of())
    assert {"training.gradient_checkpointing": "auto"} in found
    assert {"training.batch_size": 2, "training.gradient_accumulation": 2} in found
    assert any(list(settings) == ["training.sequence_length"] for settings in found)
    assert settings_that_fit(1 << 20, base, training=of()) == []
    (together,) = settings_that_fit(620 << 20, base, training=of())
    assert list(together)[:2] == ["training.gradient_checkpointing", "model.dtype"] and len(together) > 2
    assert "model.quantize" in together


@pytest.mark.unit
def test_a_base_in_four_bits_is_advised_under_each_kind() -> None:
    base = StoragePolicy("float32").storage(SMOLLM2.parameter_shapes())
    short = Training(sequence_length=64)
    either = [{"model.dtype": "bfloat16"}, {"model.quantize": "nf4"}]
    assert settings_that_fit(620 << 20, base, training=short) == either
    assert settings_that_fit(620 << 20, base, training=short, adapter=None) == [{"model.adapter": "qlora"}]
    wide = QLoRAConfig(quantize_4bit=False, target_modules=["all-linear"])
    assert settings_that_fit(620 << 20, base, training=short, adapter=wide) == [
        either[0],
        {"qlora.quantize_4bit": "true"},
    ]
    assert settings_that_fit(1 << 30, None, training=short, adapter=None) == []  # from scratch there is no base


@pytest.mark.unit
def test_where_the_data_are_what_is_too_large_fewer_are_advised(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    found = settings_that_fit(16 << 30, data=Data(path=str(path)))
    assert found == [{"data.max_examples": 100_000}]

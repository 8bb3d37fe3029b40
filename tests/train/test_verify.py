"""A bit that is flipped where an operation computes it is caught, located and ascribed; a clean run stays as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar._kernels import cpu
from entrenar.adapters.base import AdapterConfig
from entrenar.autograd import Tensor, bits
from entrenar.distributed import LocalCommunicator
from entrenar.errors import ConfigError, CorruptionError, NumericsError
from entrenar.lora import LoRAConfig
from entrenar.models import decoder
from entrenar.qlora import QLoRAConfig
from entrenar.train import Trainer, verify
from entrenar.train.config import Observe, TrainConfig, Training
from entrenar.train.placement import orders
from entrenar.train.run import summary_rows
from tests.train.builders import (
    DROPOUT,
    losses,
    run_config,
    trainer_of,
    weights_hash,
    write_examples,
    write_model,
)

pytestmark = pytest.mark.unit

QLORA = QLoRAConfig(rank=4, alpha=8.0, target_modules=["all-linear"])
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1},
    "accumulation": {"gradient_accumulation": 3},
    "lora dropout": {"adapter": DROPOUT},
    "lora dropout checkpointing": {"adapter": DROPOUT, "gradient_checkpointing": "on"},
    "full checkpointing": {"gradient_checkpointing": "on"},
    "qlora": {"adapter": QLORA},
}
Plant = Callable[[verify.Recording, verify.Place, Tensor], None]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = cpu.get_num_threads()
    cpu.set_num_threads(request.param)
    yield request.param
    cpu.set_num_threads(before)


def verified(directory: Path, period: int, adapter: AdapterConfig | None = None, **options: Any) -> Trainer:
    config = run_config(directory, adapter=adapter, **options)
    config.observe = Observe(verify_every=period)
    return trainer_of(config)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Inside, `plant` may change a result before it is hashed and used: as the kernel that computed it would."""
    add = verify.Recording.add

    def changed(self: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        plant(self, place, tensor)
        add(self, place, tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify.Recording, "add", changed)
        yield


def recorded(directory: Path, step: int, **options: Any) -> list[tuple[verify.Place, int]]:
    """Place and size of what the forward and backward of a step compute, in order."""
    found: list[tuple[verify.Place, int]] = []
    trainer = verified(directory, step, **options)

    def note(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if trainer.step == step - 1 and recording.turn == 1 and place.direction not in ("gradient", "update"):
            found.append((place, tensor.size))

    with planted(note):
        trainer.run()
    return found


# ---------------------------------------------------------------------- a clean run
@pytest.mark.parametrize("kind", KINDS)
def test_a_verified_run_has_the_bits_of_one_that_is_not(tmp_path: Path, kind: str, threads: int) -> None:
    plain = verified(tmp_path / "a", 0, **KINDS[kind])
    plain.run()
    seen = verified(tmp_path / "b", 2, **KINDS[kind])
    seen.run()
    assert losses(seen) == losses(plain)
    assert weights_hash(seen) == weights_hash(plain)
    assert ["verify" in report.phases for report in seen.reports] == [False, True] * 3
    assert cpu.get_num_threads() == threads


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_integer_products_verify_too(tmp_path: Path, precision: str) -> None:
    from entrenar.autograd.precision import matmul_precision

    with matmul_precision(precision):
        assert len(verified(tmp_path, 1, adapter=QLORA).run()) == 6


def test_two_hundred_clean_steps_raise_nothing(tmp_path: Path) -> None:
    trainer = verified(tmp_path, 1, adapter=DROPOUT, steps=200, learning_rate=1e-3)
    assert len(trainer.run()) == 200
    assert trainer.verifier is not None
    assert trainer.verifier.clean == 200


def test_threads_may_run_where_they_could_before(tmp_path: Path, threads: int) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")

    def affinities() -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(int(path.name))) for path in Path("/proc/self/task").iterdir()}

    before = affinities()
    where: list[set[int]] = []
    trainer = verified(tmp_path, 3)
    with planted(lambda recording, place, tensor: where.append(os.sched_getaffinity(0))):
        trainer.run()
    assert affinities() <= before | {frozenset(os.sched_getaffinity(0))}
    if len(os.sched_getaffinity(0)) > 1:
        assert {len(cpus) for cpus in where} == {1}
        assert len({tuple(cpus) for cpus in where}) > 1  # the second computation is on another core


def test_a_resumed_run_is_verified_and_has_the_same_bits(tmp_path: Path) -> None:
    whole = verified(tmp_path / "whole", 0, adapter=DROPOUT)
    whole.run()
    verified(tmp_path / "parts", 2, adapter=DROPOUT, steps=3, every=3).run()
    rest = verified(tmp_path / "parts", 2, adapter=DROPOUT, every=3, resume=True)  # verified or not is no other run
    rest.run()
    assert losses(rest) == losses(whole)
    assert weights_hash(rest) == weights_hash(whole)


# ---------------------------------------------------------------------- names
def test_results_are_named_by_layer_and_operation(tmp_path: Path) -> None:
    places = [place for place, _ in recorded(tmp_path, 1)]
    forward = [(place.layer, place.operation) for place in places if place.direction == "forward"]
    layer = [
        ("", ".input_layernorm", "rms_norm"),
        *[("", f".self_attn.{name}_proj", "linear") for name in "qkv"],
        ("", ".self_attn", "rope"),
        ("", ".self_attn", "rope"),
        ("", ".self_attn", "attention"),
        ("", ".self_attn.o_proj", "linear"),
        ("", "", "add"),
        ("", ".post_attention_layernorm", "rms_norm"),
        *[("", f".mlp.{name}_proj", "linear") for name in ("gate", "up")],
        ("", ".mlp", "swiglu"),
        ("", ".mlp.down_proj", "linear"),
        ("", "", "add"),
    ]
    expected = [("model.embed_tokens", "embedding")]
    expected += [(f"model.layers.{i}{name}", op) for i in range(2) for _, name, op in layer]
    expected += [("model.norm", "rms_norm"), ("the loss", "linear_cross_entropy")]
    assert forward == expected
    backward = {(place.layer, place.operation) for place in places if place.direction == "backward"}
    assert {pair for pair in expected if pair[1] != "add"} <= backward


# ---------------------------------------------------------------------- faults
@pytest.mark.parametrize("trial", range(20))
def test_a_flipped_bit_is_caught_and_located(tmp_path: Path, trial: int) -> None:
    rng = np.random.default_rng(trial)
    options = KINDS[list(KINDS)[trial % len(KINDS)]]
    step, turn = int(rng.integers(1, 7)), int(rng.integers(1, 3))
    places = recorded(tmp_path / "clean", step, **options)
    at = int(rng.integers(len(places)))
    place, size = places[at]
    element, bit = int(rng.integers(size)), int(rng.integers(32))
    trainer = verified(tmp_path / "planted", step, **options)
    words: list[int] = []

    def flip(recording: verify.Recording, _: verify.Place, tensor: Tensor) -> None:
        if trainer.step == step - 1 and recording.turn == turn and len(recording.results) == at and not words:
            words.append(bits.word(tensor, element))
            bits.flip(tensor, element, bit)

    with planted(flip), pytest.raises(CorruptionError, match=f"Silent data corruption in step {step}: ") as caught:
        trainer.run()
    error = caught.value
    assert (error.step, error.layer, error.operation, error.direction) == (step, *place[:3])
    assert error.wrong == turn
    assert error.element is not None
    assert int(np.ravel_multi_index(error.element, error.shape) if error.shape else 0) == element
    assert error.words[turn - 1] == words[0] ^ 1 << bit
    assert error.words[2 - turn] == error.words[2] == words[0]
    assert (place.layer or place.operation) in str(error)


@pytest.mark.parametrize("part", ["", " of exp_avg", " of exp_avg_sq"])
def test_a_fault_in_the_update_is_located(tmp_path: Path, part: str) -> None:
    trainer = verified(tmp_path, 2)
    name = trainer.parameters[3][0]

    def flip(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if trainer.step == 3 and recording.turn == 1 and place == verify.Place(name, "AdamW", "update", part):
            bits.flip(tensor, 5, 7)

    with planted(flip), pytest.raises(CorruptionError) as caught:
        trainer.run()
    assert (caught.value.layer, caught.value.operation, caught.value.direction) == (name, "AdamW", "update")
    assert caught.value.wrong == 1


def test_a_bit_that_changes_in_memory_between_operations_is_found_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, calls = decoder.attention, 0

    def faulty(*args: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        out = attention(*args, **options)
        if calls == 2:  # the second layer, first computation
            bits.flip(out, 11, 30)
        return out

    monkeypatch.setattr(decoder, "attention", faulty)
    with pytest.raises(CorruptionError) as caught:
        verified(tmp_path, 1).run()
    assert (caught.value.layer, caught.value.operation) == ("model.layers.1.self_attn.o_proj", "linear")
    assert caught.value.element is None  # a whole row of the product


def test_two_elements_that_differ_alike_are_not_said_to_be_one_between_them(tmp_path: Path) -> None:
    def flip(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if place == verify.Place("model.layers.0.mlp.up_proj", "linear", "forward") and recording.turn == 2:
            for element in (10, 20):
                value = tensor.numpy().reshape(-1)
                value[element] = 1.0
                bits.flip(tensor, element, 3)
        elif place == verify.Place("model.layers.0.mlp.up_proj", "linear", "forward"):
            tensor.numpy().reshape(-1)[[10, 20]] = 1.0

    with planted(flip), pytest.raises(CorruptionError) as caught:
        verified(tmp_path, 1).run()
    assert (caught.value.layer, caught.value.operation) == ("model.layers.0.mlp.up_proj", "linear")
    assert (caught.value.element, caught.value.words, caught.value.wrong) == (None, (), 2)


def test_where_all_computations_differ_none_is_blamed(tmp_path: Path) -> None:
    def flip(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if place.operation == "swiglu" and recording.turn in (1, 2):
            bits.flip(tensor, 8, recording.turn)

    with planted(flip), pytest.raises(CorruptionError, match="all three differ") as caught:
        verified(tmp_path, 1).run()
    assert caught.value.wrong is None
    assert len(set(caught.value.words)) == 3


def test_a_flip_to_nan_is_corruption_and_not_a_bad_example(tmp_path: Path) -> None:
    def flip(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if place.operation == "linear_cross_entropy" and place.direction == "forward" and recording.turn == 1:
            tensor.numpy()[...] = np.nan

    with planted(flip), pytest.raises(CorruptionError, match="the loss, linear_cross_entropy, forward"):
        verified(tmp_path, 1).run()


def test_a_loss_that_is_nan_each_time_is_said_as_ever(tmp_path: Path) -> None:
    trainer = verified(tmp_path, 1)
    trainer.parameters[0][1].numpy()[...] = np.nan
    with pytest.raises(NumericsError, match=r"The loss of step 1 is nan: the weight model\.embed_tokens\.weight"):
        trainer.run()


def test_the_last_checkpoint_is_kept_and_continues_to_the_bits_of_a_clean_run(tmp_path: Path) -> None:
    clean = verified(tmp_path / "clean", 0, adapter=DROPOUT)
    clean.run()
    trainer = verified(tmp_path / "run", 2, adapter=DROPOUT, every=1)

    def flip(recording: verify.Recording, place: verify.Place, tensor: Tensor) -> None:
        if trainer.step == 3 and recording.turn == 1 and place.operation == "attention":
            bits.flip(tensor, 0, 0)

    with planted(flip), pytest.raises(CorruptionError, match="step-3 is kept, and the last step verified was 2"):
        trainer.run()
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert "step-3" in kept
    assert "step-4" not in kept
    rest = verified(tmp_path / "run", 2, adapter=DROPOUT, every=1, resume=True)
    rest.run()
    assert weights_hash(rest) == weights_hash(clean)


PLANTED = """
import sys
from entrenar.autograd import bits
from entrenar.train import verify

add = verify.Recording.add
def faulty(self, place, tensor):
    global left
    if place.layer == "model.layers.1.mlp.up_proj" and place.direction == "forward" and self.turn == 1:
        left -= 1
        if left == 0:
            bits.flip(tensor, 100, 12)
    add(self, place, tensor)
left, verify.Recording.add = 2, faulty
sys.argv[0] = "entrenar"
from entrenar.cli.main import main
main()
"""


def test_the_program_says_one_sentence_and_exits_with_one(tmp_path: Path) -> None:
    data, model = write_examples(tmp_path / "data.jsonl"), write_model(tmp_path / "model")
    words = ["finetune", "--model", model, "--data", data, "--steps", "6", "--output", tmp_path / "out"]
    words += ["--checkpoint-every", "3", "--verify-every", "2", "--sequence-length", "64", "--rank", "4"]
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    said = "error: Silent data corruption in step 4: model.layers.1.mlp.up_proj, lora_linear, forward, of shape "
    assert done.stderr.splitlines()[-1].startswith(said), done.stderr
    assert "the first was wrong" in done.stderr
    assert [path.name for path in (tmp_path / "out" / "checkpoint").glob("step-*")] == ["step-3"]
    assert not list((tmp_path / "out").glob("adapter*"))


# ---------------------------------------------------------------------- options and places
def test_a_corrupt_rank_ends_every_rank(tmp_path: Path) -> None:
    trainer = verified(tmp_path, 1)

    class Other(LocalCommunicator):
        def all_reduce(self, array: np.ndarray) -> None:
            if array.dtype == np.int64 and array.shape == (1,):
                array += 1  # the other rank's fault

    trainer.communicator = Other()
    with pytest.raises(CorruptionError, match="in step 1, on another rank"):
        trainer.run()


def test_the_cost_is_said_before_the_first_step(tmp_path: Path) -> None:
    from entrenar.train.memory import MemoryEstimate

    trainer = verified(tmp_path, 4)
    rows = summary_rows(trainer, "all", MemoryEstimate({}))
    assert re.fullmatch(
        r"every 4 steps once more: about 25 % more time, and [\d.e-]+ s of hashes each", rows["verified"]
    )
    assert "verified" not in summary_rows(verified(tmp_path, 0), "all", MemoryEstimate({}))


def test_a_period_beyond_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"observe.verify_every is 7, expected at most training.steps = 6"):
        TrainConfig(training=Training(steps=6), observe=Observe(verify_every=7))
    with pytest.raises(ConfigError, match=r"observe.verify_every"):
        Observe(verify_every=-1)


def test_where_threads_cannot_be_placed_the_step_is_computed_again_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(cpus: object, each: bool) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(cpu, "place_threads", refused)
    trainer = verified(tmp_path, 1)
    trainer.run()
    assert trainer.verifier is not None
    assert trainer.verifier.cost(48).endswith("(Operation not permitted)")


def topology(folder: Path, cores: list[int]) -> Path:
    for number, core in enumerate(cores):
        here = folder / f"cpu{number}" / "topology"
        here.mkdir(parents=True)
        (here / "physical_package_id").write_text("0\n")
        (here / "core_id").write_text(f"{core}\n")
    return folder


@pytest.mark.parametrize("cores", [[0, 1], [0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 0, 1, 2, 3]])
def test_every_thread_of_the_second_computation_has_another_core(tmp_path: Path, cores: list[int]) -> None:
    path = topology(tmp_path, cores)
    count = len(set(cores))
    for threads in range(1, count + 1):
        first, second, third = orders(range(len(cores)), threads, path)
        assert sorted(first) == sorted(second) == sorted(third) == list(range(len(cores)))
        assert len({cores[number] for number in first[:threads]}) == threads
        for a, b in zip(first[:threads], second[:threads], strict=True):
            assert cores[a] != cores[b]
        if count >= 3 * threads:
            assert len({cores[number] for order in (first, second, third) for number in order[:threads]}) == 3 * threads


def test_one_cpu_and_more_threads_than_cpus_have_orders_too(tmp_path: Path) -> None:
    assert orders([5], 3, tmp_path) == [[5]] * 3
    assert [sorted(order) for order in orders([0, 1], 5, tmp_path)] == [[0, 1]] * 3


def test_lora_alone_is_named(tmp_path: Path) -> None:
    adapter = LoRAConfig(rank=2, target_modules=["q_proj"])
    names = {place[:2] for place, _ in recorded(tmp_path, 1, adapter=adapter)}
    assert ("model.layers.0.self_attn.q_proj", "lora_linear") in names
    assert ("model.layers.0.self_attn.k_proj", "linear") in names

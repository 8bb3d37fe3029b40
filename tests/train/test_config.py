"""The sections of a training configuration: every key has an effect, and one that would have none is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.config import default_of
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import IA3Config, LoRAConfig
from entrenar.optim import SGD, Adam, AdamW, AdamWScheduleFree, Muon
from entrenar.qlora import QLoRAConfig
from entrenar.train import TrainConfig
from entrenar.train.config import OPTIMIZER_KEYS, SCHEDULE_KEYS, LRSchedule, Training

from ..adapters.peers import saved
from ..models.builders import random_model, small_config


def parameters() -> list[tuple[str, Tensor]]:
    return [("w", Tensor([1.0], requires_grad=True))]


# ---------------------------------------------------------------------- optimizers
@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "kind", "options"),
    [
        (
            {"optimizer": "adamw", "learning_rate": 0.5, "beta1": 0.8, "beta2": 0.7, "eps": 1e-3, "weight_decay": 0.2},
            AdamW,
            {"lr": 0.5, "betas": (0.8, 0.7), "eps": 1e-3, "weight_decay": 0.2},
        ),
        (
            {"optimizer": "adam", "beta1": 0.6},
            Adam,
            {"lr": 1e-3, "betas": (0.6, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        ),
        (
            {"optimizer": "schedulefree_adamw", "learning_rate": 0.5, "beta1": 0.95, "weight_decay": 0.1},
            AdamWScheduleFree,
            {"lr": 0.5, "betas": (0.95, 0.999), "eps": 1e-8, "weight_decay": 0.1},
        ),
        (
            {"optimizer": "muon", "momentum": 0.8, "beta2": 0.9, "weight_decay": 0.1},
            Muon,
            {"lr": 1e-3, "momentum": 0.8, "betas": (0.9, 0.9), "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"},
        ),
        ({"optimizer": "muon"}, Muon, {"momentum": 0.95, "ns_steps": 5, "nesterov": True}),
        ({"optimizer": "sgd"}, SGD, {"momentum": 0.9}),
        (
            {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1},
            SGD,
            {"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.1},
        ),
    ],
)
def test_the_optimizer_gets_every_key_of_its_own(settings: dict[str, Any], kind: type, options: dict[str, Any]) -> None:
    schedule = LRSchedule(name="constant")
    optimizer = TrainConfig(training=Training(**settings), lr_schedule=schedule).make_optimizer(parameters())
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in options} == options


@pytest.mark.unit
@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [
        ("adamw", "momentum", 0.5),
        ("adam", "momentum", 0.0),
        ("schedulefree_adamw", "momentum", 0.5),
        ("sgd", "beta1", 0.5),
        ("sgd", "beta2", 0.9),
        ("sgd", "eps", 1),
    ],
)
def test_a_key_of_another_optimizer_is_refused(optimizer: str, key: str, value: float) -> None:
    training = Training(optimizer=optimizer, **{key: value})
    with pytest.raises(ConfigError, match=rf"training\.{key} is .*, which {optimizer} does not use; leave it out, or"):
        TrainConfig(training=training)


@pytest.mark.unit
@pytest.mark.parametrize("tied", [False, True])
def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(tied: bool) -> None:
    model = random_model(small_config(tie_word_embeddings=tied, attention_bias=True))
    training = Training(optimizer="muon", weight_decay=0.1)
    made = TrainConfig(training=training).make_optimizer(model.named_parameters())
    matrices, *rest = made.param_groups
    assert matrices["use_muon"] and not any(group["use_muon"] for group in rest)
    kinds = {name.split(".")[-2] for name in matrices["names"]}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    decayed = [name for group in rest for name in group["names"] if group["weight_decay"]]
    assert decayed == ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]


@pytest.mark.unit
def test_muon_is_refused_where_adapters_are_trained() -> None:
    with pytest.raises(ConfigError, match=r"optimizer is muon, .* \[lora\] trains adapters .*; choose adamw, or train"):
        TrainConfig(training=Training(optimizer="muon"), adapter=LoRAConfig())


@pytest.mark.unit
def test_every_key_that_some_optimizer_or_schedule_ignores_is_known_to_be_so() -> None:
    """The tables name existing keys and choices; a new optimizer or schedule has to be added to them."""
    for section, chooser, table in ((Training, "optimizer", OPTIMIZER_KEYS), (LRSchedule, "name", SCHEDULE_KEYS)):
        specs = {spec.name: spec for spec in fields(section)}
        choices = set(specs[chooser].metadata["choices"])
        assert set(table) < set(specs)
        assert all(set(users) < choices for users in table.values())
    for spec in fields(LRSchedule):
        assert spec.name == "name" or spec.name in SCHEDULE_KEYS


# ---------------------------------------------------------------------- schedules
def rates(config: TrainConfig) -> list[float]:
    optimizer = config.make_optimizer(parameters())
    schedule = config.make_schedule(optimizer)
    found = []
    for _ in range(config.training.steps):
        found.append(optimizer.lr)
        schedule.step()
    return found


CHANGES: dict[str, Any] = {
    "warmup_steps": 7,
    "min_lr": 1e-4,
    "step_size": 3,
    "gamma": 0.7,
    "decay_steps": 9,
    "decay_shape": "1-sqrt",
}
CHANGES["schedule_steps"] = 80


@pytest.mark.unit
@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("name", ["constant", "step", "exponential", "cosine", "warmup_cosine", "linear", "wsd"])
def test_a_schedule_key_changes_the_rates_or_is_refused(name: str, key: str) -> None:
    base: dict[str, Any] = {"name": name} | ({"gamma": 0.9} if name == "exponential" else {})
    plain = rates(TrainConfig(lr_schedule=LRSchedule(**base)))
    changed = LRSchedule(**(base | {key: CHANGES[key]}))
    if name in SCHEDULE_KEYS[key]:
        assert rates(TrainConfig(lr_schedule=changed)) != plain
    else:
        with pytest.raises(ConfigError, match=rf"lr_schedule\.{key} is .*, which {name} does not use"):
            TrainConfig(lr_schedule=changed)


@pytest.mark.unit
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (3, 0), (60, 6), (999, 99), (5000, 100)])
def test_an_unset_warmup_follows_the_number_of_steps(steps: int, warmup: int) -> None:
    found = rates(TrainConfig(training=Training(steps=steps)))
    assert found.index(max(found)) == max(0, warmup - 1)
    assert max(found) == 1e-3
    explicit = TrainConfig(training=Training(steps=steps), lr_schedule=LRSchedule(warmup_steps=0))
    assert rates(explicit)[0] == 1e-3


@pytest.mark.unit
@pytest.mark.parametrize(
    ("training", "schedule", "message"),
    [
        ({"steps": 3}, {"warmup_steps": 4}, r"lr_schedule\.warmup_steps is 4, expected at most training\.steps = 3"),
        ({"steps": 9}, {"warmup_steps": 4, "schedule_steps": 3}, r"expected at most lr_schedule\.schedule_steps = 3"),
        ({"steps": 9}, {"name": "wsd", "warmup_steps": 4, "decay_steps": 6}, r"decay_steps is 6, expected at most 5"),
        ({"steps": 9}, {"schedule_steps": 5}, r"the steps after 5 would train at a learning rate of 0"),
        (
            {"decay_norms": True},
            {},
            r"training\.decay_norms is true, which has no effect without training\.weight_decay",
        ),
        ({}, {"name": "exponential"}, r"lr_schedule\.gamma is missing; the exponential schedule needs"),
        (
            {"learning_rate": 1e-4},
            {"min_lr": 1e-3},
            r"lr_schedule\.min_lr is 0\.001, expected at most training\.le",
        ),
    ],
)
def test_sections_that_contradict_each_other_are_refused(
    training: dict[str, Any], schedule: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(training=Training(**training), lr_schedule=LRSchedule(**schedule))


# ---------------------------------------------------------------------- adapters
@pytest.mark.unit
def test_one_kind_of_adapter_at_most(tmp_path: Path) -> None:
    assert TrainConfig().adapter is None
    assert TrainConfig(adapter=LoRAConfig(rank=3)).adapter == LoRAConfig(rank=3)
    assert TrainConfig(adapter=QLoRAConfig(rank=3)).adapter == QLoRAConfig(rank=3)
    path = tmp_path / "run.toml"
    path.write_text("[lora]\nrank = 4\n[qlora]\nrank = 4\n")
    with pytest.raises(ConfigError, match=r"\[lora\] and \[qlora\] are both there; keep one"):
        TrainConfig.from_file(path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantize_4bit": False, "quantize": "nf4"},
            r"qlora\.quantize is nf4, which has no effect without quantize",
        ),
        ({"quantize": "int4", "double_quantization": False}, r"qlora\.double_quantization is false, which has no eff"),
        ({"quantize_4bit": False, "double_quantization": False}, r"qlora\.double_quantization is false, which has no"),
    ],
)
def test_a_key_about_a_format_that_is_not_made_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(adapter=QLoRAConfig(**settings))


@pytest.mark.unit
@pytest.mark.parametrize(
    "settings",
    [{}, {"quantize_4bit": False}, {"quantize": "int4"}, {"quantize": "nf4", "double_quantization": False}],
)
def test_formats_that_are_made_are_accepted(settings: dict[str, Any]) -> None:
    assert TrainConfig(adapter=QLoRAConfig(**settings)).adapter == QLoRAConfig(**settings)


# ---------------------------------------------------------------------- files
@pytest.mark.unit
def test_a_contradiction_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[training]\nmomentum = 0.5\n[qlora]\nquantize = "nf4"\n')
    with pytest.raises(ConfigError, match=r"run\.toml: training\.momentum is 0\.5, which adamw does not use"):
        TrainConfig.from_file(path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("steps", r"steps stands under no \[section\]; put it under \[training\]\."),
        ("rank", r"rank stands under no \[section\]; put it under \[lora\] or \[qlora\] or \[dora\]\."),
        ("hidden_size", r"hidden_size stands under no \[section\]; put it under \[model\]\."),
        ("epochs", r"epochs stands under no \[section\]; put it under \[training\]"),
        ("lr", r"lr stands under no \[section\]; it is called learning_rate here, under \[training\]\.$"),
        ("passes", r"passes stands under no \[section\]; every key stands under the name of one\."),
    ],
)
def test_a_key_outside_of_the_sections_is_told_where_it_belongs(key: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"{key} = 3\n")
    with pytest.raises(ConfigError, match=rf"run\.toml: {message}"):
        TrainConfig.from_file(tmp_path / "run.toml")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora.r", "it is called rank here."),  # PEFT's
        ("qlora.lora_alpha", "it is called alpha here."),
        ("dora.lora_dropout", "it is called dropout here."),
        ("lora.lora_r", "it is called rank here."),  # axolotl's
        ("lora.load_in_4bit", "it is called quantize_4bit here, under [qlora]."),
        ("training.lr", "it is called learning_rate here."),
        ("training.num_train_epochs", "it is called epochs here."),  # of transformers' Trainer
        ("training.iters", "it is called steps here."),  # mlx-lm's
        ("training.max-seq-length", "it is called sequence_length here."),
        ("training.per_device_train_batch_size", "it is called batch_size here."),
        ("training.lr_scheduler_type", "it is called name here, under [lr_schedule]."),
        ("training.warmup_steps", "it stands under [lr_schedule]."),
        ("training.lora_r", "it is called rank here, under [lora] or [qlora] or [dora]."),
        ("training.warmup_ratio", "there is none here: say the number of steps with lr_schedule.warmup_steps."),
        ("training.val_batches", "there is none here: a share of data.path is held out and evaluated before and after: "
         "data.held_out_fraction, training.evaluate_every."),
        ("data.dataset", "it is called path here."),
        ("data.data", "it is called path here."),
        ("data.val_set_size", "it is called held_out_fraction here."),
        ("checkpointing.output_dir", "it is called directory here."),
        ("checkpointing.save_total_limit", "it is called keep here."),
        ("lora.alfa", "did you mean 'alpha'?"),
    ],
)  # fmt: skip
def test_a_key_of_another_program_is_named(key: str, message: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    (tmp_path / "run.toml").write_text(f"[{section}]\n{name} = 3\n")
    with pytest.raises(ConfigError) as raised:
        TrainConfig.from_file(tmp_path / "run.toml")
    assert str(raised.value).removeprefix(f"{tmp_path}/") == f"run.toml: {key} is no known key; {message}"


@pytest.mark.unit
def test_what_a_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[training]\nsteps = 5\n")
    config = TrainConfig.from_file(path)
    assert config == TrainConfig(training=Training(steps=5))
    for spec in fields(Training):
        if spec.name != "steps":
            assert getattr(config.training, spec.name) == default_of(spec)


def llama_with_biases() -> LLaMAModel:
    shape = LLaMAConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LLaMAModel(shape, seed=0)


@pytest.mark.peers
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_what_decays_is_what_the_trainer_of_transformers_lets_decay(optimizer: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = llama_with_biases()
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.config.to_hf()))
    expected = set(transformers.Trainer.get_decay_parameter_names(None, peer))
    config = TrainConfig(training=Training(optimizer=optimizer, weight_decay=0.1))
    made = config.make_optimizer(model.named_parameters())
    decayed = {name for group in made.param_groups if group["weight_decay"] for name in group["names"]}
    assert decayed == expected
    assert sum(len(group["names"]) for group in made.param_groups) == len(list(model.named_parameters()))


@pytest.mark.unit
def test_norms_decay_where_it_is_asked_for_and_a_group_stays_one_where_nothing_differs() -> None:
    model = llama_with_biases()
    for training in (Training(weight_decay=0.1, decay_norms=True), Training()):
        made = TrainConfig(training=training).make_optimizer(model.named_parameters())
        assert [group["weight_decay"] for group in made.param_groups] == [training.weight_decay]
    matrices = [pair for pair in model.named_parameters() if len(pair[1].shape) == 2]
    made = TrainConfig(training=Training(weight_decay=0.1)).make_optimizer(matrices)
    assert [group["weight_decay"] for group in made.param_groups] == [0.1]


@pytest.mark.unit
def test_a_norm_without_gradient_stays_and_a_matrix_decays() -> None:
    model = llama_with_biases()
    made = TrainConfig(training=Training(weight_decay=0.5, learning_rate=0.5)).make_optimizer(model.named_parameters())
    before = {name: tensor.numpy().copy() for name, tensor in model.named_parameters()}
    for _, tensor in model.named_parameters():
        tensor.grad = Tensor(np.zeros(tensor.shape, np.float32))
    made.step()
    for name, tensor in model.named_parameters():
        factor = np.float32(0.75 if len(tensor.shape) == 2 else 1)
        np.testing.assert_array_equal(tensor.numpy(), before[name] * factor, err_msg=name)


@pytest.mark.unit
def test_checkpoints_are_on_unless_they_are_switched_off() -> None:
    made = TrainConfig().checkpointing
    assert (made.minutes, made.keep, made.every, made.overwrite) == (10.0, 2, 0, False)


# ---------------------------------------------------------------------- LoRA+
@pytest.mark.peers
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_groups_of_loraplus_are_pefts(weight_decay: float) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    optimizers = pytest.importorskip("peft.optimizers")
    adapter = LoRAConfig(rank=2, use_dora=True, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = random_model(small_config())
    adapter.apply(model)
    training = Training(
        learning_rate=0.25, weight_decay=weight_decay, loraplus_lr_ratio=16, decay_norms=bool(weight_decay)
    )
    ours = TrainConfig(training=training, adapter=adapter).make_optimizer(model.trainable_parameters())
    shape = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    table = {key: value for key, value in adapter.to_peft().items() if key not in ("peft_type", "inference_mode")}
    theirs = peft.get_peft_model(transformers.LlamaForCausalLM(shape), peft.LoraConfig(**table))
    made = optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=0.25, loraplus_lr_ratio=16, loraplus_weight_decay=weight_decay
    )
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        saved(names[id(parameter)]): (group["lr"], group["weight_decay"])
        for group in made.param_groups
        for parameter in group["params"]
    }
    found = {name: (group["lr"], group["weight_decay"]) for group in ours.param_groups for name in group["names"]}
    assert found == expected
    assert {rate for rate, _ in found.values()} == {0.25, 4.0}


@pytest.mark.unit
def test_vectors_do_not_decay_under_loraplus_either_and_schedules_keep_the_ratio() -> None:
    adapter = LoRAConfig(rank=2, use_dora=True)
    model = random_model(small_config())
    adapter.apply(model)
    training = Training(steps=4, learning_rate=0.5, weight_decay=0.1, loraplus_lr_ratio=8)
    config = TrainConfig(training=training, adapter=adapter, lr_schedule=LRSchedule(name="cosine"))
    optimizer = config.make_optimizer(model.trainable_parameters())
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["names"]}
    assert decayed == {name for name, _ in model.trainable_parameters() if "magnitude" not in name}
    schedule = config.make_schedule(optimizer)
    for _ in range(3):
        schedule.step()
        assert {rate / optimizer.lr for rate in schedule.get_last_lr()} == {1.0, 8.0}


@pytest.mark.unit
def test_loraplus_needs_lora_and_a_ratio_of_at_least_one() -> None:
    for adapter in (None, IA3Config()):
        with pytest.raises(
            ConfigError, match=r"training\.loraplus_lr_ratio is 16\.0, which has no effect without LoRA"
        ):
            TrainConfig(training=Training(loraplus_lr_ratio=16), adapter=adapter)
    with pytest.raises(ConfigError, match=r"training\.loraplus_lr_ratio is 0\.5, expected at least 1\."):
        Training(loraplus_lr_ratio=0.5)


# ---------------------------------------------------------------------- presets
@pytest.mark.unit
def test_a_preset_sets_what_the_section_does_not(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[qlora]\npreset = "mlp"\nalpha = 5\n')
    found = TrainConfig.from_file(path).adapter
    assert found == QLoRAConfig(rank=10, alpha=5, target_modules=["gate_proj", "up_proj", "down_proj"])
    path.write_text('[lora]\npreset = "all-linear"\n')
    assert TrainConfig.from_file(path).adapter == LoRAConfig(16, 16.0, target_modules="all-linear", use_rslora=True)
    path.write_text('[lora]\npreset = "mpl"\n')
    with pytest.raises(ConfigError, match=r"run\.toml: lora\.preset is 'mpl'; did you mean 'mlp'\?"):
        TrainConfig.from_file(path)
    path.write_text('[ia3]\npreset = "mlp"\n')
    with pytest.raises(ConfigError, match=r"run\.toml: ia3\.preset is no known key"):
        TrainConfig.from_file(path)

"""Adapter directories: saved whole or not at all, loaded completely or refused with the model unchanged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entrenar.adapters import peft
from entrenar.adapters.base import adapter_layers
from entrenar.adapters.peft import CONFIG_FILE, WEIGHTS_FILE
from entrenar.data import Batch
from entrenar.errors import ConfigError, FormatError, MemoryBudgetError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, merge, save_adapter, set_training
from entrenar.qlora import QLoRAConfig
from entrenar.train import evaluate

from .reference import IGNORED, base_model, batch, gqa_config, logits_of, lora_model

CONFIG = gqa_config(2)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def small_lora(**lora: object) -> LLaMAModel:
    return lora_model("fp32", CONFIG, **({"target_modules": ["q_proj", "down_proj"]} | lora))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter of rank 4 on q_proj and down_proj."""
    save_adapter(small_lora(), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS_FILE)


def rename(directory: Path, new: Callable[[str], str]) -> None:
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({new(name): value for name, value in tensors.items()}, directory / WEIGHTS_FILE)


# ---------------------------------------------------------------------- dropout where nothing is trained
@pytest.mark.unit
@pytest.mark.parametrize("training", [False, True])
def test_generating_and_evaluating_drop_nothing_out_and_leave_the_switch_as_it_was(training: bool) -> None:
    model = small_lora(dropout=0.9)
    set_training(model, training)
    tokens, targets = batch(CONFIG)
    whole = small_lora(dropout=0.0)
    assert model.generate(tokens[0], max_new_tokens=8) == whole.generate(tokens[0], max_new_tokens=8)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).copy()
    bounds = np.arange(0, tokens.size + 1, tokens.shape[1])
    held_out = [Batch(tokens, targets, positions, bounds, int((targets != IGNORED).sum()))]
    assert evaluate(model, held_out) == evaluate(whole, held_out)
    assert [layer.training for _, layer in adapter_layers(model)] == [training] * len(list(adapter_layers(model)))
    stays = np.array_equal(logits_of(model, tokens), logits_of(model, tokens))
    assert stays is not training


@pytest.mark.unit
def test_the_seed_draws_other_adapters() -> None:
    drawn = [base_model("fp32", CONFIG).to_lora(LoRAConfig(), seed=seed) for seed in (0, 0, 1)]
    first = [dict(model.trainable_parameters()) for model in drawn]
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert first[0][name].numpy().tobytes() == first[1][name].numpy().tobytes()
    assert not np.isclose(first[0][name].numpy(), first[2][name].numpy()).any()


@pytest.mark.unit
def test_each_method_takes_its_own_configuration() -> None:
    with pytest.raises(ConfigError, match="to_qlora: got a LoRAConfig, expected a QLoRAConfig"):
        base_model("fp32", CONFIG).to_qlora(LoRAConfig())
    with pytest.raises(ConfigError, match="to_lora: got a QLoRAConfig, expected a LoRAConfig"):
        base_model("fp32", CONFIG).to_lora(QLoRAConfig())


@pytest.mark.memory
def test_adapters_that_cannot_fit_are_refused_before_the_model_changes() -> None:
    model = base_model("fp32", CONFIG)
    with pytest.raises(
        MemoryBudgetError, match=r"The adapters of rank 1099511627776 need \d+\.\d GiB and \d+\.\d GiB is"
    ):
        model.to_lora(LoRAConfig(rank=2**40))
    assert all(weight.requires_grad for _, weight in model.named_parameters())


# ---------------------------------------------------------------------- files
@pytest.mark.unit
@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4", "q4_1"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_saved_adapter_loads_to_the_same_logits(base: str, use_rslora: bool, tmp_path: Path) -> None:
    model = lora_model(base, CONFIG, use_rslora=use_rslora, dropout=0.1)
    set_training(model, False)
    save_adapter(model, tmp_path / "adapter")
    again = base_model(base, CONFIG)
    load_adapter(again, tmp_path / "adapter")
    assert again.adapter_config == model.adapter_config
    tokens, _ = batch(CONFIG)
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(model, tokens))
    assert [name for name, _ in again.trainable_parameters()] == [name for name, _ in model.trainable_parameters()]


@pytest.mark.unit
def test_a_loaded_adapter_does_not_drop_until_it_is_trained(tmp_path: Path) -> None:
    save_adapter(small_lora(dropout=0.5), tmp_path / "adapter")
    model = base_model(config=CONFIG)
    load_adapter(model, tmp_path / "adapter")
    tokens, _ = batch(CONFIG)
    np.testing.assert_array_equal(logits_of(model, tokens), logits_of(model, tokens))
    set_training(model, True)
    assert (logits_of(model, tokens) != logits_of(model, tokens)).any()


@pytest.mark.unit
def test_the_directory_holds_pefts_two_files_and_names(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    tensors = load_file(saved / WEIGHTS_FILE)
    assert sorted(tensors) == sorted(
        f"base_model.model.model.layers.{i}.{layer}.lora_{side}.weight"
        for i in range(2)
        for layer in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    )
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert tensors[f"{Q0}.lora_A.weight"].shape == (4, 64)
    assert tensors[f"{Q0}.lora_B.weight"].shape == (64, 4)


@pytest.mark.unit
def test_loading_freezes_the_base_and_keeps_stored_values(saved: Path) -> None:
    model = base_model(config=CONFIG)
    load_adapter(model, saved)
    stored = load_file(saved / WEIGHTS_FILE)
    for name, tensor in model.trainable_parameters():
        np.testing.assert_array_equal(tensor.numpy(), stored[f"base_model.model.{name}"])
    assert all(".lora_" in name for name, _ in model.trainable_parameters())


@pytest.mark.unit
def test_half_precision_adapters_load(saved: Path) -> None:
    edit_tensors(saved, lambda t: t.update({name: value.astype(np.float16) for name, value in t.items()}))
    model = base_model(config=CONFIG)
    load_adapter(model, saved)
    stored = load_file(saved / WEIGHTS_FILE)
    for name, tensor in model.trainable_parameters():
        np.testing.assert_array_equal(tensor.numpy(), stored[f"base_model.model.{name}"].astype(np.float32))


@pytest.mark.unit
def test_the_names_that_peft_has_in_memory_load(saved: Path) -> None:
    model, plain = base_model(config=CONFIG), base_model(config=CONFIG)
    load_adapter(plain, saved)
    rename(saved, lambda name: name.replace(".weight", ".default.weight"))
    load_adapter(model, saved)
    tokens, _ = batch(CONFIG)
    np.testing.assert_array_equal(logits_of(model, tokens), logits_of(plain, tokens))


@pytest.mark.unit
def test_ranks_and_strengths_of_single_layers_survive_the_files_and_the_merge(tmp_path: Path) -> None:
    model = small_lora(
        target_modules=["q_proj", "model.layers.1.mlp.up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 7, "q_proj": 2},
        alpha_pattern={r"up_pro.": 3.5, "0.self_attn.q_proj": 16},
        use_rslora=True,
    )
    assert [layer.rank for _, layer in adapter_layers(model)] == [2, 7, 4]
    assert [layer.scaling for _, layer in adapter_layers(model)] == [16 / 2**0.5, 8 / 7**0.5, 3.5 / 2]
    save_adapter(model, tmp_path / "adapter")
    again = base_model(config=CONFIG)
    load_adapter(again, tmp_path / "adapter")
    assert again.adapter_config == model.adapter_config
    assert again.adapter_config is not None
    assert list(again.adapter_config.rank_pattern) == ["layers.1.self_attn.q_proj", "q_proj"]  # the first match decides
    tokens, _ = batch(CONFIG)
    adapted = logits_of(model, tokens)
    np.testing.assert_array_equal(logits_of(again, tokens), adapted)
    merge(again)
    np.testing.assert_allclose(logits_of(again, tokens), adapted, rtol=0, atol=1e-4)


@pytest.mark.unit
def test_an_existing_adapter_is_replaced_and_other_files_stay(saved: Path) -> None:
    (saved / "README.md").write_text("mine")
    save_adapter(small_lora(rank=2), saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]
    assert load_file(saved / WEIGHTS_FILE)[f"{Q0}.lora_A.weight"].shape == (2, 64)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


@pytest.mark.chaos
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_keeps_the_old_adapter(
    error: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {path.name: path.read_bytes() for path in saved.iterdir()}

    def half_written(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(peft, "save_safetensors", half_written)
    for directory in (saved, saved.parent / "new"):
        with pytest.raises(type(error)):
            save_adapter(small_lora(rank=2), directory)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == old
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


@pytest.mark.unit
def test_there_must_be_adapters_to_save_or_merge_and_none_to_attach(tmp_path: Path) -> None:
    plain = base_model(config=CONFIG)
    with pytest.raises(ConfigError, match=r"The model has no adapters to save\."):
        save_adapter(plain, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"The model has no adapters to merge\."):
        merge(plain)
    model = small_lora()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConfigError, match=r"The model already has LoRA adapters; load the base again"):
        model.to_lora(LoRAConfig())
    with pytest.raises(ConfigError, match=r"The model already has LoRA adapters; load the base again"):
        model.to_qlora(QLoRAConfig())
    assert [name for name, _ in model.named_parameters()] == names
    assert {weight.dtype for _, weight in model.named_parameters()} == {"float32"}


@pytest.mark.unit
def test_merging_a_loaded_adapter_and_saving_the_model_gives_the_same_logits(saved: Path, tmp_path: Path) -> None:
    model = base_model(config=CONFIG)
    load_adapter(model, saved)
    tokens, _ = batch(CONFIG)
    adapted = logits_of(model, tokens)
    with pytest.raises(ConfigError, match="still has LoRA adapters"):
        model.save_pretrained(tmp_path / "merged")
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    again = LLaMAModel.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits_of(again, tokens), adapted, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- bad input
def truncate(directory: Path, name: str, size: int) -> None:
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:size])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (
        lambda d: d.rename(d.with_name("elsewhere")),
        r"adapter_config.json: cannot be read \(No such file or directory\); expected a PEFT adapter directory.",
    ),
    "no weights": (lambda d: (d / WEIGHTS_FILE).unlink(), r"adapter_model.safetensors: no such file; expected"),
    "no configuration": (lambda d: (d / CONFIG_FILE).unlink(), r"adapter_config.json: cannot be read"),
    "truncated weights": (
        lambda d: truncate(d, WEIGHTS_FILE, -1),
        r"adapter_model.safetensors: is truncated, damaged",
    ),
    "half of the weights": (
        lambda d: truncate(d, WEIGHTS_FILE, 2000),
        r"adapter_model.safetensors: is truncated, damaged",
    ),
    "no bytes of weights": (
        lambda d: truncate(d, WEIGHTS_FILE, 0),
        r"adapter_model.safetensors: is truncated, damaged",
    ),
    "truncated configuration": (lambda d: truncate(d, CONFIG_FILE, 40), r"adapter_config.json: is not JSON"),
    "configuration of bytes": (
        lambda d: (d / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"),
        r"adapter_config.json: is not UTF-8 text \(byte 0xff at 0\)",
    ),
    "nested configuration": (
        lambda d: (d / CONFIG_FILE).write_text("[" * 100_000),
        r"adapter_config.json: is not JSON",
    ),
    "list": (lambda d: (d / CONFIG_FILE).write_text("[1]"), r"adapter_config.json: holds a list, expected an"),
    "another rank": (
        lambda d: edit_config(d, r=8),
        r"the tensor base_model\.\S+\.0\.self_attn.q_proj.lora_A.weight has shape \(4, 64\), expected \(8, 64\);",
    ),
    "rank 0": (lambda d: edit_config(d, r=0), r"adapter_config.json: r is 0, expected at least 1\."),
    "another target": (
        lambda d: edit_config(d, target_modules=["k_proj", "down_proj"]),
        r"the tensor base_model\.\S+\.0\.self_attn\.k_proj\.lora_A\.weight of shape \(4, 64\) is missing",
    ),
    "fewer targets": (
        lambda d: edit_config(d, target_modules=["down_proj"]),
        r"the tensor base_model\.\S+\.0\.self_attn\.q_proj\.lora_A\.weight belongs to no layer that",
    ),
    "unknown target": (lambda d: edit_config(d, target_modules=["q_porj"]), r"did you mean 'q_proj'\?"),
    "pattern": (
        lambda d: edit_config(d, target_modules=".*proj"),
        r"self_attn.k_proj.lora_A.weight of shape .* missing",
    ),
    "pattern of nothing": (
        lambda d: edit_config(d, target_modules=".*query"),
        r"adapter_config.json: target_modules: the pattern '\.\*query' matches no whole name of a module; they are",
    ),
    "a layer deeper than the model": (
        lambda d: edit_config(d, layers_to_transform=[1, 2]),
        r"adapter_config.json: layers_to_transform has 2, expected less than the model's 2 layers\.",
    ),
    "a folder in the folder": (
        lambda d: shutil.move(shutil.move(d, d.with_name("x")), d / "default"),
        r"adapter_config.json: no such file; the folder default in it has one, give that folder\.",
    ),
    "pickled weights": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "adapter_model.bin"),
        r"adapter_model.safetensors: no such file; adapter_model.bin beside it is pickled and is not read: load it in",
    ),
    "shards": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "adapter_model-00001-of-00002.safetensors"),
        r"no such file; adapter_model-00001-of-00002.safetensors beside it is not what PEFT calls an adapter",
    ),
    "mlx-lm": (
        lambda d: (d / CONFIG_FILE).write_text('{"fine_tune_type": "lora", "num_layers": 2}'),
        r"adapter_config.json: is of an adapter of mlx-lm, expected one of PEFT; merge it with mlx-lm first\.",
    ),
    "names without the prefix": (
        lambda d: rename(d, lambda name: name.removeprefix("base_model.model.")),
        r"is missing; the file's tensors have other names \(as model\.\S+\), under which PEFT",
    ),
    "a weight that is no number": (
        lambda d: edit_tensors(d, lambda t: t[f"{Q0}.lora_B.weight"].fill(np.inf)),
        r"q_proj.lora_B.weight holds values that are NaN, infinite or too large for float32",
    ),
    "integers": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{Q0}.lora_B.weight": np.zeros((64, 4), np.int32)})),
        r"q_proj.lora_B.weight has type I32; expected F32, F16 or BF16 weights\.",
    ),
    "both names of one weight": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{Q0}.lora_A.default.weight": np.zeros((4, 64), np.float32)})),
        r"the tensors \S+ and \S+ are the same weight; expected one of them",
    ),
    "DoRA's magnitudes": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{Q0}.lora_magnitude_vector": np.zeros(64, np.float32)})),
        r"q_proj.lora_magnitude_vector is the magnitudes of DoRA, of which adapter_config.json says nothing; m",
    ),
    "DoRA": (
        lambda d: edit_config(d, use_dora=True),
        r"q_proj\.lora_magnitude_vector of shape \(64,\) is missing; the file is incomplete",
    ),
    "a tensor too many": (
        lambda d: edit_tensors(d, lambda t: t.update({"base_model.model.lm_head.weight": np.zeros((2, 2))})),
        r"the tensor base_model.model.lm_head.weight is the head, saved with the adapter, of which adapter_config",
    ),
    "a tensor too few": (
        lambda d: edit_tensors(d, lambda t: t.pop(f"{Q0}.lora_B.weight")),
        r"q_proj.lora_B.weight of shape \(64, 4\) is missing; the file is incomplete, or its adapter is one over",
    ),
    "a transposed tensor": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((64, 4), np.float32)})),
        r"q_proj.lora_A.weight has shape \(64, 4\), expected \(4, 64\);",
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_one_clear_sentence_and_leaves_the_model_as_it_was(case: str, saved: Path) -> None:
    damage, message = BAD[case]
    damage(saved)
    model = base_model(config=CONFIG)
    tokens, _ = batch(CONFIG)
    before = logits_of(model, tokens)
    with pytest.raises((FormatError, ConfigError), match=message) as caught:
        load_adapter(model, saved)
    text = str(caught.value)
    assert str(saved) in text
    assert "\n" not in text
    assert not list(adapter_layers(model))
    assert model.adapter_config is None
    assert all(weight.requires_grad for _, weight in model.named_parameters())
    np.testing.assert_array_equal(logits_of(model, tokens), before)


@pytest.mark.chaos
def test_a_type_that_cannot_be_read_is_refused_before_anything_changes(saved: Path) -> None:
    """A float8 tensor: its shape fits, so only reading it fails."""
    tensors = load_file(saved / WEIGHTS_FILE)
    header, data = {}, b""
    for name, value in tensors.items():
        header[name] = {"dtype": "F8_E4M3", "shape": value.shape, "data_offsets": [len(data), len(data) + value.size]}
        data += bytes(value.size)
    text = json.dumps(header).encode()
    (saved / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    model = base_model(config=CONFIG)
    with pytest.raises(FormatError, match=re.escape("has type F8_E4M3; expected F32, F16 or BF16 weights.")):
        load_adapter(model, saved)
    assert not list(adapter_layers(model))
    assert all(weight.requires_grad for _, weight in model.named_parameters())

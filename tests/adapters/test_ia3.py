"""IA3 beside PEFT's: logits, gradients, files and merging on every base; its settings; its part of a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers, merge
from entrenar.adapters.ia3 import IA3Config, IA3Linear
from entrenar.adapters.peft import CONFIG_FILE, load_adapter, save_adapter
from entrenar.autograd import Tensor
from entrenar.config import shown
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAModel
from entrenar.nn.layers import Linear

from ..models.builders import gradients_of, random_arrays, relative_error, small_config, weights_of, write_hf
from .reference import BASES, IGNORED, base_model, batch, gqa_config, logits_of

CONFIG = gqa_config(2)
TOKENS, TARGETS = batch(CONFIG)
SETTINGS: dict[str, dict[str, Any]] = {
    "PEFT's for LLaMA": {},
    "all linears": {"target_modules": ["all-linear"]},
    "inputs only": {"target_modules": ["gate_proj", "o_proj"], "feedforward_modules": ["gate_proj", "o_proj"]},
    "outputs only": {"target_modules": ["up_proj", "q_proj", "down_proj"], "feedforward_modules": []},
    "inputs of some that share x": {
        "target_modules": ["q_proj", "k_proj", "up_proj", "gate_proj"],
        "feedforward_modules": ["k_proj", "up_proj"],
    },
    "patterns": {"target_modules": r".*\.(k|down)_proj", "feedforward_modules": r".*\.1\..*"},
    "some layers": {"target_modules": ["1.mlp.down_proj", "v_proj"], "feedforward_modules": ["1.mlp.down_proj"]},
    "one excluded": {"exclude_modules": ["0.mlp.down_proj", "1.self_attn.v_proj"]},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


def fill(model: LLaMAModel, seed: int = 1) -> LLaMAModel:
    rng = np.random.default_rng(seed)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] = 1 + rng.standard_normal(tensor.shape) * 0.3
    return model


def ia3_model(base: str = "fp32", **settings: Any) -> LLaMAModel:
    """A model with adapters that change its answers."""
    model = base_model(base, CONFIG)
    IA3Config(**settings).apply(model)
    return fill(model)


def peft_model(directory: Path, arrays: dict[str, np.ndarray], adapter: Path | Any) -> Any:
    """A transformers model of these weights with an adapter: one that is stored, or a new one of these settings."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    write_hf(directory, CONFIG, arrays)
    plain = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if isinstance(adapter, Path):
        return peft.PeftModel.from_pretrained(plain, str(adapter), is_trainable=True)
    return peft.get_peft_model(plain, adapter)


def base_arrays(model: LLaMAModel) -> dict[str, np.ndarray]:
    """What the base's weights stand for, in float32."""
    return {name: values for name, values in weights_of(model).items() if name in random_arrays(CONFIG)}


def logits(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


# ---------------------------------------------------------------------- PEFT
@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize(("base", "name"), [*((b, "all linears") for b in BASES), *(("fp32", n) for n in SETTINGS)])
def test_logits_and_gradients_are_those_of_peft(base: str, name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = ia3_model(base, **SETTINGS[name])
    save_adapter(model, tmp_path / "adapter")
    theirs = peft_model(tmp_path / "base", base_arrays(model), tmp_path / "adapter")
    plain = logits_of(base_model(base, CONFIG), TOKENS)
    assert relative_error(logits(theirs), plain) > 1e-2  # the adapter is really there
    np.testing.assert_allclose(logits_of(model, TOKENS), logits(theirs), rtol=0, atol=1e-4)

    model.loss(TOKENS, TARGETS).backward()
    theirs_logits = theirs(torch.from_numpy(TOKENS)).logits
    torch.nn.functional.cross_entropy(
        theirs_logits.reshape(-1, CONFIG.vocab_size), torch.from_numpy(TARGETS).reshape(-1), ignore_index=IGNORED
    ).backward()
    expected = {
        key.removeprefix("base_model.model.").removesuffix(".default"): parameter.grad.numpy()
        for key, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    ours = gradients_of(model)
    assert set(ours) == set(expected)
    for key, gradient in expected.items():
        assert ours[key].shape == gradient.shape, key
        assert np.linalg.norm(gradient) > 0, key
        assert relative_error(ours[key], gradient) < 1e-4, key


@pytest.mark.peers
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        {"target_modules": None, "feedforward_modules": None},  # filled in by PEFT
        {"target_modules": "all-linear", "feedforward_modules": r".*\.(up|down)_proj"},
        {"target_modules": ["q_proj"], "feedforward_modules": []},
        {"target_modules": r".*_proj", "feedforward_modules": r".*\.mlp\..*"},
        {"target_modules": r".*_proj", "feedforward_modules": ["0.mlp.up_proj", "proj_x"]},
        {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": ["q_proj"], "init_ia3_weights": False},
        {"target_modules": ["q_proj", "k_proj"], "feedforward_modules": [], "exclude_modules": ["k_proj"]},
    ],
)
def test_an_adapter_of_peft_computes_the_same_here_and_back(settings: dict[str, Any], tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    arrays = random_arrays(CONFIG)
    theirs = peft_model(tmp_path / "base", arrays, peft.IA3Config(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "ia3_l" in key:
                parameter.copy_(1 + torch.randn(parameter.shape, generator=generator) * 0.3)
    theirs.save_pretrained(str(tmp_path / "adapter"))
    expected = logits(theirs)
    model = LLaMAModel.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)
    save_adapter(model, tmp_path / "again")
    np.testing.assert_allclose(logits(peft_model(tmp_path / "b", arrays, tmp_path / "again")), expected, atol=1e-6)
    merge(model)
    np.testing.assert_allclose(logits_of(model, TOKENS), logits(theirs.merge_and_unload()), rtol=0, atol=1e-4)


@pytest.mark.peers
def test_a_file_of_peft_that_peft_refuses_is_refused(tmp_path: Path) -> None:
    """PEFT writes whole names for "all-linear", of which `feedforward_modules` is then no subset."""
    peft = pytest.importorskip("peft")
    settings = peft.IA3Config(target_modules="all-linear", feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    peft_model(tmp_path / "base", random_arrays(CONFIG), settings).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="should be a subset of `target_modules`"):
        peft.IA3Config.from_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ConfigError, match=r"feedforward_modules has 'down_proj', which target_modules has not"):
        load_adapter(base_model(config=CONFIG), tmp_path / "adapter")


@pytest.mark.peers
def test_the_names_that_peft_has_in_memory_load(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = ia3_model()
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    assert tensors["base_model.model.model.layers.0.self_attn.k_proj.ia3_l"].shape == (32, 1)
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.ia3_l"].shape == (1, 128)
    save_file({f"{name}.default": value for name, value in tensors.items()}, path)
    again = base_model(config=CONFIG)
    load_adapter(again, tmp_path)
    np.testing.assert_array_equal(logits_of(again, TOKENS), logits_of(model, TOKENS))
    save_file({name: value.reshape(-1) for name, value in tensors.items()}, path)
    with pytest.raises(FormatError, match=r"k_proj\.ia3_l has shape \(32,\), expected \(32, 1\);"):
        load_adapter(base_model(config=CONFIG), tmp_path)


# ---------------------------------------------------------------------- layers
@pytest.mark.unit
@every_setting
@pytest.mark.parametrize("base", ["fp32", "nf4"])
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same(base: str, name: str) -> None:
    model = base_model(base, CONFIG)
    before = logits_of(model, TOKENS)
    IA3Config(**SETTINGS[name]).apply(model)
    np.testing.assert_array_equal(logits_of(model, TOKENS), before)
    adapted = logits_of(fill(model), TOKENS)
    merge(model)
    np.testing.assert_allclose(logits_of(model, TOKENS), adapted, rtol=0, atol=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize("is_feedforward", [False, True])
def test_the_bias_is_scaled_with_the_output_alone(is_feedforward: bool) -> None:
    rng = np.random.default_rng(0)
    w, bias, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 8), (5,), (3, 8)))
    scales = rng.standard_normal((1, 8) if is_feedforward else (5, 1)).astype(np.float32)
    layer = IA3Linear(Linear(Tensor(w), Tensor(bias)), scales, is_feedforward)
    flat = scales.reshape(-1)
    expected = (x * flat) @ w.T + bias if is_feedforward else flat * (x @ w.T + bias)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.merged()(Tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.unit
def test_recomputing_leaves_out_no_product_that_a_scale_needs() -> None:
    found = []
    for checkpointing in (False, True):
        model = ia3_model("nf4", **SETTINGS["outputs only"])
        model.gradient_checkpointing = checkpointing
        model.loss(TOKENS, TARGETS).backward()
        found.append(gradients_of(model))
    assert any("down_proj" in name for name in found[0])
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(found[1][name], gradient, err_msg=name)


@pytest.mark.unit
def test_the_seed_draws_the_first_weights_where_they_are_not_ones() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = base_model(config=CONFIG)
        IA3Config(init_ia3_weights=False).apply(model, seed)
        drawn.append(np.concatenate([layer.ia3_l.numpy().reshape(-1) for _, layer in adapter_layers(model)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.isclose(drawn[0], drawn[2]).any()
    assert drawn[0].mean() == pytest.approx(0, abs=0.2)
    assert drawn[0].std() == pytest.approx(1, abs=0.2)


# ---------------------------------------------------------------------- settings
SHAPE = small_config()  # 2 layers; k and v 32x64, gate and up 96x64, down 64x96


@pytest.mark.unit
def test_the_defaults_are_pefts_for_llama() -> None:
    config = IA3Config()
    assert config.target_modules == ["k_proj", "v_proj", "down_proj"]
    assert config.feedforward_modules == ["down_proj"]
    assert config.layers(SHAPE)["model.layers.1.mlp.down_proj"] is True
    assert config.num_parameters(SHAPE) == 2 * (32 + 32 + 96)
    assert config.activation_floats(SHAPE) == 32 + 32 + 96
    assert IA3Config(target_modules=["k_proj"]).feedforward_modules == []
    assert IA3Config(target_modules="1.mlp.down_proj, k_proj").feedforward_modules == ["1.mlp.down_proj"]
    assert IA3Config(target_modules=["all-linear"], feedforward_modules="up_proj,gate_proj").num_parameters(SHAPE)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["k_prj"]}, "ia3.target_modules: 'k_prj' is no linear of a decoder layer; did you mean"),
        ({"feedforward_modules": ["up_proj"]}, "ia3.feedforward_modules has 'up_proj', which target_modules has not;"),
        ({"feedforward_modules": "(up"}, "ia3.feedforward_modules: '(up' is no regular expression"),
        ({"feedforward_modules": 3}, "ia3.feedforward_modules is 3, expected"),
        ({"init_ia3_weights": 1}, "ia3.init_ia3_weights is 1, expected true or false."),
        ({"exclude_modules": "(x"}, "ia3.exclude_modules: '(x' is no regular expression"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        IA3Config(**settings)


PEFT_TABLE = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "a.json: peft_type is 'LORA', expected 'IA3'."),
        ({"fan_in_fan_out": True}, "a.json: fan_in_fan_out is true, which is not supported (expected false or null)"),
        ({"modules_to_save": ["lm_head"]}, "a.json: modules_to_save is ['lm_head'], which is not supported"),
        ({"task_type": "SEQ_CLS"}, "a.json: task_type is 'SEQ_CLS', which is not supported"),
        ({"target_modules": None}, "a.json: target_modules is null, expected the names of its layers."),
        ({"feedforward_modules": None}, "a.json: feedforward_modules is null, expected those whose input is scaled."),
        ({"feedforward_modules": "k_proj"}, "a.json: feedforward_modules is the text 'k_proj', which PEFT takes for a"),
        ({"feedforward_modules": [3]}, "a.json: feedforward_modules is [3], expected a list of layer names."),
        ({"feedforward_modules": ["up_proj"]}, "a.json: feedforward_modules has 'up_proj', which target_modules has"),
        ({"exclude_modules": "k_proj"}, "a.json: exclude_modules is the text 'k_proj', which PEFT takes for a"),
        ({"init_ia3_weights": None}, "a.json: init_ia3_weights is null, expected true or false."),
        ({"r": 4}, "a.json: r is 4, and it is not known whether that changes the result"),
    ],
)
def test_a_file_that_says_what_is_not_computed_is_refused(change: dict[str, Any], message: str) -> None:
    IA3Config.from_peft(PEFT_TABLE, "a.json")
    with pytest.raises(ConfigError, match=re.escape(message)):
        IA3Config.from_peft(PEFT_TABLE | change, "a.json")
    for key, off in IA3Config.peft.unsupported.items():
        assert all(IA3Config.from_peft(PEFT_TABLE | {key: value}) for value in off)


@pytest.mark.unit
def test_a_folder_of_another_layer_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    save_adapter(ia3_model(target_modules=["k_proj"]), tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["v_proj"]}))
    model = base_model(config=CONFIG)
    with pytest.raises(
        FormatError, match=r"v_proj\.ia3_l of shape \(32, 1\) is missing; the file's tensors have other"
    ):
        load_adapter(model, tmp_path)
    assert model.adapter_config is None
    assert all(weight.requires_grad for _, weight in model.named_parameters())
    assert shown(replace(IA3Config(), target_modules=["q_proj"], feedforward_modules=None).feedforward_modules) == "[]"

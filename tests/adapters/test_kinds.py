"""Every registered kind of adapter: found, applied, trained, planned, saved, loaded, merged, read by PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters import registry
from entrenar.adapters.base import Adapter, AdapterConfig, adapter_layers, merge, set_training
from entrenar.adapters.linears import LinearAdapterConfig
from entrenar.adapters.peft import load_adapter, read_adapter_config, save_adapter
from entrenar.adapters.targets import LINEARS
from entrenar.autograd import Tensor
from entrenar.config import ADAPTER_SECTIONS, default_of
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.nn.layers import Linear
from entrenar.nn.module import Module
from entrenar.nn.quantize import quantize_linears
from entrenar.optim import AdamW
from entrenar.train import TrainConfig, memory

from ..models.builders import random_arrays, weights_of, write_hf
from .reference import base_model, batch, gqa_config, logits_of

CONFIG = gqa_config(2)
TOKENS, TARGETS = batch(CONFIG)
every_kind = pytest.mark.parametrize("section", registry.KINDS)


on_linears = pytest.mark.parametrize("section", [name for name in registry.KINDS if name != "prefix"])


def config_of(section: str, **settings: Any) -> AdapterConfig:
    kind = registry.KINDS[section]
    if issubclass(kind, LinearAdapterConfig):
        settings = {"target_modules": ["all-linear"]} | settings
    return kind(**settings)


def adapted(section: str, base: str = "fp32") -> LLaMAModel:
    """A model whose adapters change its answers."""
    model = base_model(base, CONFIG)
    config_of(section).apply(model)
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * 0.1
    return model


@pytest.mark.unit
@every_kind
def test_a_kind_is_found_by_its_section_and_its_peft_type(section: str, tmp_path: Path) -> None:
    kind = registry.KINDS[section]
    assert kind.section == section
    assert not issubclass(kind, LinearAdapterConfig) or issubclass(kind.layer, Adapter)
    assert issubclass(registry.PEFT_TYPES[kind.peft.peft_type], AdapterConfig)
    path = tmp_path / "run.toml"
    settings = {"target_modules": ["up_proj"]} if issubclass(kind, LinearAdapterConfig) else {}
    path.write_text(f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    assert TrainConfig.from_file(path).adapter == config_of(section, **settings)


@pytest.mark.unit
def test_the_registry_has_the_sections_of_configuration_files() -> None:
    assert tuple(registry.KINDS) == ADAPTER_SECTIONS
    assert {"lora", "qlora"} <= set(registry.KINDS)
    with pytest.raises(ConfigError, match="peft_type is 'NEW', expected 'LORA'"):
        registry.from_peft({"peft_type": "NEW"}, "a.json")


@pytest.mark.unit
def test_the_linears_that_can_be_targets_are_those_of_a_decoder_layer() -> None:
    layer = base_model("fp32", CONFIG).model.layers[0]
    assert [name.split(".")[-1] for name, module in layer.named_modules() if isinstance(module, Linear)] == [*LINEARS]


@pytest.mark.unit
@every_kind
def test_one_step_trains_the_adapters_and_nothing_else(section: str) -> None:
    model = adapted(section)
    frozen = {name: w for name, w in model.named_parameters() if not w.requires_grad}
    before = {name: values.copy() for name, values in weights_of(model).items()}
    trained = dict(model.trainable_parameters())
    assert set(frozen) == set(CONFIG.parameter_shapes())
    optimizer = AdamW(model.trainable_parameters(), lr=1e-2)
    loss = model.loss(TOKENS, TARGETS)
    loss.backward()
    optimizer.step()
    assert model.loss(TOKENS, TARGETS).item() < loss.item()
    for name, values in weights_of(model).items():
        assert (values == before[name]).all() == (name in frozen), name
    assert {name: tensor.shape for name, tensor in trained.items()} == model.adapter_config.adapter_shapes(CONFIG)


@pytest.mark.unit
@every_kind
def test_recomputed_layers_give_the_same_gradients(section: str) -> None:
    model = adapted(section)
    found = []
    for checkpointing in (False, 1, True):
        model.gradient_checkpointing = checkpointing
        model.loss(TOKENS, TARGETS).backward()
        found.append({name: tensor.grad.numpy().copy() for name, tensor in model.trainable_parameters()})
        for _, tensor in model.trainable_parameters():
            tensor.grad = None
    for name, gradient in found[0].items():
        assert np.abs(gradient).max() > 0, name
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], gradient, err_msg=name)


@pytest.mark.unit
@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4", "q4_1"])
@every_kind
def test_a_saved_adapter_loads_and_merges_to_the_same_logits_on_any_base(
    section: str, base: str, tmp_path: Path
) -> None:
    model = adapted(section, base)
    set_training(model, False)
    expected = logits_of(model, TOKENS)
    save_adapter(model, tmp_path / "adapter")
    again = base_model(base, CONFIG)
    if config_of(section).storage_options():  # its base was quantized
        quantize_linears(again, "nf4", True)
    load_adapter(again, tmp_path / "adapter")
    assert read_adapter_config(tmp_path / "adapter").num_parameters(CONFIG) == sum(
        tensor.size for _, tensor in model.trainable_parameters()
    )
    np.testing.assert_array_equal(logits_of(again, TOKENS), expected)
    if section == "prefix":
        with pytest.raises(ConfigError, match="A prefix is no change of weights and cannot be merged"):
            merge(again)
        return
    merge(again)
    assert not list(adapter_layers(again))
    assert again.adapter_config is None
    np.testing.assert_allclose(logits_of(again, TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.unit
@every_kind
def test_what_a_plan_counts_is_what_there_is(section: str) -> None:
    model, config = adapted(section), config_of(section)
    count = sum(tensor.size for _, tensor in model.trainable_parameters())
    assert config.num_parameters(CONFIG) == config.num_parameters(base_model("fp32", CONFIG)) == count
    items = memory.StepMemory(CONFIG, adapter=config).estimate(False).items
    assert items["gradients"] == 4 * count
    assert config.activation_floats(CONFIG) > 0


@pytest.mark.unit
@on_linears
def test_an_adapter_needs_no_model_of_ours(section: str) -> None:
    """Any module tree with linears of these names takes adapters."""

    class Tree(Module):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.q_proj = Linear(Tensor(rng.standard_normal((32, 64)).astype(np.float32)), Tensor(np.ones(32)))
            self.down_proj = Linear(Tensor(rng.standard_normal((64, 32)).astype(np.float32)))

        def __call__(self, x: Tensor) -> Tensor:
            return self.down_proj(self.q_proj(x))

    tree, x = Tree(), Tensor(np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32))
    names = [name for name, _ in tree.named_parameters()]
    before = tree(x).numpy().copy()
    config_of(section, target_modules=["q_proj", "down_proj"]).apply(tree)
    np.testing.assert_array_equal(tree(x).numpy(), before)
    for _, tensor in tree.trainable_parameters():
        tensor.numpy()[...] += 0.25
    changed = tree(x).numpy().copy()
    assert np.abs(changed - before).max() > 1e-2
    merge(tree)
    assert [name for name, _ in tree.named_parameters()] == names
    np.testing.assert_allclose(tree(x).numpy(), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
@every_kind
def test_the_model_says_which_kind_it_has(section: str, tmp_path: Path) -> None:
    model, title = adapted(section), registry.KINDS[section].title
    with pytest.raises(ConfigError, match=f"The model already has {title} adapters; load the base again"):
        config_of("lora").apply(model)
    with pytest.raises(ConfigError, match=rf"still has {title} adapters \(model\.layers\.0\."):
        model.save_pretrained(tmp_path / "model")


# ---------------------------------------------------------------------- PEFT
def peft_class(section: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[registry.KINDS[section].peft.peft_type]


@pytest.mark.peers
@every_kind
def test_every_key_of_peft_is_a_setting_refused_or_without_effect(section: str) -> None:
    table, keys = registry.KINDS[section].peft, {field.name for field in dataclasses.fields(peft_class(section))}
    assert keys - set(table.known) == set()
    groups = [set(table.settings), set(table.unsupported), set(table.without_effect)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    ours = {spec.name for spec in dataclasses.fields(registry.PEFT_TYPES[table.peft_type])}
    of_training = {"init_lora_weights", "loftq_iter"} if table.peft_type == "LORA" else set()
    assert set(table.settings.values()) == ours - of_training
    written = config_of(section).to_peft("base")
    assert set(written) <= keys
    for key, off in table.unsupported.items():
        if key in written:
            assert written[key] in off, key


@pytest.mark.peers
@every_kind
def test_peft_reads_our_files_and_computes_the_same(section: str, tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = adapted(section)
    set_training(model, False)
    save_adapter(model, tmp_path / "adapter")
    arrays = {name: values for name, values in weights_of(model).items() if name in random_arrays(CONFIG)}
    write_hf(tmp_path / "base", CONFIG, arrays)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)
    stored = peft.load_peft_weights(str(tmp_path / "adapter"))
    assert set(stored) == set(peft.get_peft_model_state_dict(theirs))


@pytest.mark.unit
@every_kind
def test_the_defaults_are_a_configuration(section: str) -> None:
    kind = registry.KINDS[section]
    assert kind() == kind(**{spec.name: default_of(spec) for spec in dataclasses.fields(kind)})

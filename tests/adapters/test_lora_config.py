"""LoRAConfig: ranges, target names, and PEFT's adapter_config.json in and out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from entrenar.adapters import targets
from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.lora import LoRAConfig

from ..models.builders import small_config

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEFT_TABLE: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"]}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "lora.rank is 0, expected at least 1."),
        ({"rank": -3}, "lora.rank is -3, expected at least 1."),
        ({"rank": 2.5}, "lora.rank is 2.5, expected an integer."),
        ({"rank": True}, "lora.rank is true, expected an integer."),
        ({"rank": "16"}, "lora.rank is '16', expected an integer."),
        ({"alpha": 0.0}, "lora.alpha is 0.0, expected more than 0."),
        ({"alpha": float("nan")}, "lora.alpha is nan, expected a finite number."),
        ({"alpha": float("inf")}, "lora.alpha is inf, expected a finite number."),
        ({"dropout": 1.0}, "lora.dropout is 1.0, expected less than 1."),
        ({"dropout": -0.1}, "lora.dropout is -0.1, expected at least 0."),
        ({"use_rslora": "yes"}, "lora.use_rslora is 'yes', expected true or false."),
        ({"target_modules": []}, "lora.target_modules is empty, expected at least one linear layer."),
        ({"target_modules": [3]}, "lora.target_modules is 3, expected text."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(**values)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("q_prj", "q_proj"),
        ("qproj", "q_proj"),
        ("down", "down_proj"),
        ("all_linear", "all-linear"),
        ("Gate_proj", "gate_proj"),
    ],
)
def test_an_unknown_target_module_names_the_nearest(wrong: str, near: str) -> None:
    message = f"lora.target_modules: '{wrong}' is no linear of a decoder layer; did you mean '{near}'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(target_modules=["v_proj", wrong])


@pytest.mark.unit
@pytest.mark.parametrize("wrong", ["lm_head", "xyzzy", "", "self_attn", "model.layers.0"])
def test_what_is_no_decoder_linear_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"is no linear of a decoder layer; (did you mean|expected one of)"):
        LoRAConfig(target_modules=[wrong])


@pytest.mark.unit
def test_targets_come_in_model_order_once_and_all_linear_means_all() -> None:
    assert LoRAConfig(target_modules=["down_proj", "q_proj", "q_proj"]).target_modules == ["q_proj", "down_proj"]
    assert LoRAConfig(target_modules=["all-linear"]).target_modules == LINEARS
    assert LoRAConfig(target_modules="all-linear").target_modules == LINEARS
    assert LoRAConfig(target_modules="o_proj").target_modules == ["o_proj"]
    assert LoRAConfig(target_modules="o_proj, q_proj").target_modules == ["q_proj", "o_proj"]  # as a flag has it
    assert LoRAConfig().target_modules == ["q_proj", "v_proj"]


@pytest.mark.unit
def test_defaults_of_two_configurations_are_not_shared() -> None:
    first, second = LoRAConfig(), LoRAConfig()
    assert isinstance(first.target_modules, list)
    first.target_modules.append("k_proj")
    assert second.target_modules == ["q_proj", "v_proj"]


@pytest.mark.unit
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_configuration_survives_adapter_config_json(use_rslora: bool) -> None:
    config = LoRAConfig(rank=3, alpha=7.5, dropout=0.25, target_modules=["up_proj", "k_proj"], use_rslora=use_rslora)
    table = json.loads(json.dumps(config.to_peft("some/base")))
    assert LoRAConfig.from_peft(table) == config
    assert table["base_model_name_or_path"] == "some/base"


@pytest.mark.peers
def test_peft_reads_our_configuration() -> None:
    peft = pytest.importorskip("peft")
    table = LoRAConfig(rank=3, alpha=7.5, dropout=0.25, target_modules=["k_proj"], use_rslora=True).to_peft("base")
    theirs = peft.LoraConfig(**{key: value for key, value in table.items() if key != "peft_type"})
    assert (theirs.r, theirs.lora_alpha, theirs.lora_dropout) == (3, 7.5, 0.25)
    assert (theirs.use_rslora, theirs.target_modules, theirs.bias) == (True, {"k_proj"}, "none")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["w"]),
        ("lora_bias", True),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("use_bdlora", {"x": 1}),
        ("task_type", "SEQ_CLS"),
        ("velora_config", {"num_groups": 8}),
        ("megatron_config", {"x": 1}),
    ],
)
def test_a_setting_that_changes_the_result_and_is_not_computed_is_refused(setting: str, value: Any) -> None:
    message = f"a.json: {setting} is {shown(value)}, which is not supported (expected "
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig.from_peft(PEFT_TABLE | {setting: value}, "a.json")
    for off in LoRAConfig.peft.unsupported[setting]:
        LoRAConfig.from_peft(PEFT_TABLE | {setting: off})


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "a.json: peft_type is 'IA3', expected 'LORA'."),
        ({"peft_type": None}, "a.json: peft_type is null, expected 'LORA'."),
        ({"target_modules": "q_proj"}, "a.json: target_modules is the text 'q_proj', which PEFT takes for a pattern"),
        ({"target_modules": "(q"}, "a.json: target_modules: '(q' is no regular expression"),
        ({"target_modules": ["all-linear"]}, "a.json: target_modules has 'all-linear' in a list"),
        ({"target_modules": None}, "a.json: target_modules is null, expected the names of its layers."),
        ({"target_modules": 5}, "a.json: target_modules is 5, expected a list of layer names."),
        ({"target_modules": [5]}, "a.json: target_modules is [5], expected a list of layer names."),
        ({"target_modules": {"q_proj": 1}}, "a.json: target_modules is {'q_proj': 1}, expected a list"),
        ({"target_modules": ["q_prj"]}, "a.json: target_modules: 'q_prj' is no linear of a decoder layer; did you"),
        ({"r": 0}, "a.json: r is 0, expected at least 1."),
        ({"r": "4"}, "a.json: r is '4', expected an integer."),
        ({"r": None}, "a.json: r is null, expected an integer."),
        ({"lora_alpha": [1]}, "a.json: lora_alpha is [1], expected a number."),
        ({"lora_dropout": 1.5}, "a.json: lora_dropout is 1.5, expected less than 1."),
        ({"lora_dropout": None}, "a.json: lora_dropout is null, expected a number."),
        (
            {"lora_aplha": 8},
            "a.json: lora_aplha is 8, and it is not known whether that changes the result; did you mean",
        ),
        ({"rank_pattern": {"q_proj": 0}}, "a.json: rank_pattern: 'q_proj' is 0, expected an integer of at least"),
        ({"rank_pattern": {"q_proj": 2.5}}, "a.json: rank_pattern: 'q_proj' is 2.5, expected an integer of at l"),
        ({"rank_pattern": {"(": 2}}, "a.json: rank_pattern: "),
        ({"rank_pattern": [["q_proj", 2]]}, "a.json: rank_pattern is [['q_proj', 2]], expected an object."),
        ({"alpha_pattern": {"q_proj": "2"}}, "a.json: alpha_pattern: 'q_proj' is '2', expected a number above 0."),
        ({"layers_to_transform": True}, "a.json: layers_to_transform is true, expected an integer."),
        ({"layers_to_transform": [-1]}, "a.json: layers_to_transform has -1, expected numbers of layers."),
        ({"layers_to_transform": ["0"]}, "a.json: layers_to_transform is '0', expected an integer."),
        ({"layers_pattern": "layers"}, "a.json: layers_pattern has no meaning without layers_to_transform"),
        ({"exclude_modules": "v_proj"}, "a.json: exclude_modules is the text 'v_proj', which PEFT takes for a pattern"),
        ({"eva_config": "x"}, "a.json: eva_config is 'x', expected an object."),
        (
            {"target_modules": r".*\.q_proj", "layers_to_transform": 0},
            "a.json: layers_to_transform is 0, and target_modules is no list.",
        ),
        ({"use_rslora": "false"}, "a.json: use_rslora is 'false', expected true or false."),
    ],
)
def test_a_damaged_adapter_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig.from_peft(PEFT_TABLE | change, "a.json")


@pytest.mark.unit
def test_peft_defaults_and_spellings_are_understood() -> None:
    assert (
        LoRAConfig.from_peft({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}).alpha == 8
    )  # PEFT's default
    config = LoRAConfig.from_peft(
        PEFT_TABLE | {"target_modules": "all-linear", "use_rslora": None, "exclude_modules": None}
    )
    assert (config.target_modules, config.use_rslora, config.exclude_modules) == (LINEARS, False, [])
    dotted = LoRAConfig.from_peft(PEFT_TABLE | {"target_modules": ["self_attn.q_proj", "mlp.up_proj"]})
    assert dotted.target_modules == ["mlp.up_proj", "self_attn.q_proj"]
    pattern = LoRAConfig.from_peft(PEFT_TABLE | {"target_modules": r".*\.layers\.1\..*q_proj"})
    assert pattern.target_modules == r".*\.layers\.1\..*q_proj"
    with pytest.raises(ConfigError, match=r"adapter_config\.json: r is missing, expected the rank of the adapter"):
        LoRAConfig.from_peft({"peft_type": "LORA", "target_modules": ["q_proj"]})


# ---------------------------------------------------------------------- which layers, of which rank
SHAPE = small_config()  # 2 layers; q and o 64x64, k and v 32x64, gate and up 96x64, down 64x96


def layers_of(**settings: Any) -> dict[str, tuple[int, float]]:
    layers = LoRAConfig(**({"rank": 4, "alpha": 8} | settings)).layers(SHAPE)
    return {name.removeprefix("model.layers."): value for name, value in layers.items()}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"target_modules": ["q_proj"]}, ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        ({"target_modules": ["model.layers.1.self_attn.q_proj"]}, ["1.self_attn.q_proj"]),
        ({"target_modules": ["layers.1.mlp.up_proj"]}, ["1.mlp.up_proj"]),
        (
            {"target_modules": ["o_proj", "0.mlp.up_proj"]},
            ["0.self_attn.o_proj", "0.mlp.up_proj", "1.self_attn.o_proj"],
        ),
        ({"target_modules": r".*\.1\..*\.(k|v)_proj"}, ["1.self_attn.k_proj", "1.self_attn.v_proj"]),
        ({"target_modules": ["k_proj"], "layers_to_transform": [1]}, ["1.self_attn.k_proj"]),
        (
            {"target_modules": ["model.layers.0.mlp.up_proj", "k_proj"], "layers_to_transform": [1]},
            ["0.mlp.up_proj", "1.self_attn.k_proj"],  # a whole name is meant wherever it is
        ),
        (
            {"target_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": "(h|layers)"},
            ["1.self_attn.k_proj"],
        ),
        (  # PEFT puts the pattern between others without a group
            {
                "target_modules": ["model.layers.0.mlp.up_proj", "k_proj"],
                "layers_to_transform": [1],
                "layers_pattern": "h|layers",
            },
            ["0.mlp.up_proj"],
        ),
        (
            {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj", "0.self_attn.q_proj"]},
            ["1.self_attn.q_proj"],
        ),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}, ["0.self_attn.q_proj"]),
    ],
)
def test_names_patterns_and_layers_choose_the_layers(settings: dict[str, Any], names: list[str]) -> None:
    assert list(layers_of(**settings)) == names


@pytest.mark.unit
def test_the_first_pattern_that_matches_decides_rank_and_alpha() -> None:
    found = layers_of(
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"0.self_attn.q_proj": 2, "q_proj": 3, r"layers\.1\.self_attn\.[qv]_proj": 5},
        alpha_pattern={"^model.layers.1.self_attn.q_proj": 1.5},
    )
    assert found == {
        "0.self_attn.q_proj": (2, 8.0),
        "0.self_attn.v_proj": (4, 8.0),
        "1.self_attn.q_proj": (3, 1.5),
        "1.self_attn.v_proj": (5, 8.0),
    }
    config = LoRAConfig(rank=4, target_modules=["q_proj", "v_proj"], rank_pattern={"1.self_attn.v_proj": 5})
    assert config.num_parameters(SHAPE) == 4 * (128 + 96 + 128) + 5 * 96
    assert config.activation_floats(SHAPE) == 9


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["layers.2.mlp.up_proj"]}, "lora.target_modules: 'layers.2.mlp.up_proj' matches no module"),
        ({"target_modules": r".*\.query"}, r"lora.target_modules: the pattern '.*\\.query' matches no whole name"),
        (
            {"target_modules": ".*0.*"},
            "matches model.layers.0, which is no linear of a decoder layer and gets no adapter",
        ),
        ({"target_modules": ".*head|.*q_proj"}, "matches lm_head, which is no linear of a decoder layer and gets no"),
        ({"target_modules": "(((.*)*)*)*x"}, "takes more than 1 seconds to match the model's names"),
        ({"exclude_modules": ["w_proj"]}, "lora.exclude_modules: 'w_proj' matches no module of the model."),
        (
            {"exclude_modules": ["q_proj", "v_proj"]},
            "No layer of the model matches target_modules ['q_proj', 'v_proj'].",
        ),
        ({"layers_to_transform": [0, 2]}, "lora.layers_to_transform has 2, expected less than the model's 2 layers."),
        ({"rank_pattern": {"k_proj": 2}}, "lora.rank_pattern: 'k_proj' matches none of the layers that get adapters."),
        (
            {"alpha_pattern": {"k_proj": 2}},
            "lora.alpha_pattern: 'k_proj' matches none of the layers that get adapters.",
        ),
    ],
)
def test_what_means_no_layer_is_named(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "SECONDS", 1)
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(**settings).layers(SHAPE)


@pytest.mark.unit
def test_the_counts_are_the_rank_times_both_sides_of_every_target() -> None:
    assert LoRAConfig(rank=3, target_modules=["k_proj"]).num_parameters(SHAPE) == 2 * 3 * (32 + 64)
    every = LoRAConfig(rank=3, target_modules=["all-linear"]).num_parameters(SHAPE)
    assert every == 2 * 3 * (2 * 128 + 2 * 96 + 3 * 160)

"""QLoRAConfig: LoRA's settings and the 4-bit base's, under its own name in messages."""

from __future__ import annotations

import re
from typing import Any

import pytest

from entrenar.errors import ConfigError
from entrenar.lora import LoRAConfig
from entrenar.qlora import QLoRAConfig


@pytest.mark.unit
def test_the_defaults_are_those_of_lora_over_nf4_with_double_quantization() -> None:
    config = QLoRAConfig(rank=16, alpha=32.0, quantize_4bit=True)
    assert (config.rank, config.alpha, config.dropout, config.target_modules) == (16, 32.0, 0.0, ["q_proj", "v_proj"])
    assert (config.quantize_4bit, config.quantize, config.double_quantization) == (True, "auto", True)
    assert config == QLoRAConfig()
    assert config.scaling == 2.0


@pytest.mark.unit
def test_the_adapters_alone_are_a_lora_config() -> None:
    config = QLoRAConfig(rank=3, alpha=5.0, dropout=0.1, target_modules=["all-linear"], use_rslora=True)
    assert config.lora == LoRAConfig(3, 5.0, 0.1, ["all-linear"], True)
    assert type(config.lora) is LoRAConfig
    assert isinstance(config.lora.target_modules, list)
    config.lora.target_modules.clear()
    assert len(config.target_modules) == 7


@pytest.mark.unit
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "qlora.rank is 0, expected at least 1."),
        ({"alpha": -1.0}, "qlora.alpha is -1.0, expected more than 0."),
        (
            {"target_modules": ["v_prj"]},
            "qlora.target_modules: 'v_prj' is no linear of a decoder layer; did you mean 'v_",
        ),
        ({"target_modules": []}, "qlora.target_modules is empty"),
        ({"quantize": "nf5"}, "qlora.quantize is 'nf5'; did you mean 'nf4'?"),
        ({"quantize": "fp4"}, "qlora.quantize is 'fp4'; did you mean 'nf4'?"),
        ({"quantize": 4}, "qlora.quantize is 4, expected text."),
        ({"quantize_4bit": 1}, "qlora.quantize_4bit is 1, expected true or false."),
        ({"double_quantization": "no"}, "qlora.double_quantization is 'no', expected true or false."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QLoRAConfig(**values)

"""QLoRA: quantize the block linears of a model that are not 4-bit yet, then put LoRA adapters on them.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023 (arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from entrenar.adapters.adapter import check_no_adapters
from entrenar.adapters.qlora import QLoRAConfig
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import BLOCK_SIZE, FOUR_BIT, QuantizedTensor
from entrenar.errors import QuantizationError
from entrenar.models.decoder import LLaMAModel
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight


def is_4bit(weight: Weight) -> bool:
    """Whether the weight is in codes of 4 bits already."""
    return isinstance(weight, QuantizedTensor) and weight.kind in FOUR_BIT


def _rows_of(weight: Tensor) -> Callable[[int, int], np.ndarray]:
    array = weight.numpy()
    return lambda start, stop: array[start:stop]


def quantize_linears(model: LLaMAModel, kind: str, double_quantization: bool) -> dict[str, str]:
    """Make every block linear 4-bit, one at a time, in place; returns those that stayed as they were, and why."""
    kept = {}
    for name, module in model.named_modules():
        if not isinstance(module, Linear) or ".layers." not in name or is_4bit(module.weight):
            continue
        if module.in_features % BLOCK_SIZE[kind]:
            kept[f"{name}.weight"] = f"its {module.in_features} columns are no multiple of {BLOCK_SIZE[kind]}"
            continue
        weight = module.weight
        rows = weight.dequantize_rows if isinstance(weight, QuantizedTensor) else _rows_of(weight)
        try:
            module.weight = QuantizedTensor.quantize_streaming(
                rows, weight.shape, kind, double_quantization=double_quantization
            )
        except QuantizationError as error:
            raise QuantizationError(f"{name}.weight cannot become {kind}: {error}") from error
    return kept


def convert(model: LLaMAModel, config: QLoRAConfig, seed: int = 0) -> None:
    """`to_qlora`: a 4-bit base under LoRA adapters, in place. A base that is already 4-bit keeps its codes."""
    check_no_adapters(model)
    if config.quantize_4bit:
        kind = "nf4" if config.quantize == "auto" else config.quantize
        model.unquantized |= quantize_linears(model, kind, config.double_quantization)
    config.lora.apply(model, seed)

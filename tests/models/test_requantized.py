"""Matrices that are quantized again: how many, and by how much that changes the values, is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from entrenar.autograd import QuantizedTensor
from entrenar.errors import FormatError
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint

from .builders import random_arrays, relative_error, small_config, write_gguf

CONFIG = small_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.unit
def test_what_requantizing_costs_is_measured_and_said(tmp_path: Path) -> None:
    def weight_type(name: str) -> str:
        return "IQ3_S" if "mlp" in name else "Q4_0" if "self_attn" in name else "F16"

    meant = write_gguf(tmp_path / "m.gguf", CONFIG, random_arrays(CONFIG), weight_type)
    checkpoint = Checkpoint.open(tmp_path / "m.gguf")
    model = LLaMAModel.from_pretrained(checkpoint, quantize="auto")
    (remark,) = checkpoint.remarks
    found = re.search(
        r"^3 matrices of type IQ3_S \(blk\.\*\.ffn_gate\.weight, .* and blk\.\*\.ffn_down\.weight\) are requantized to "
        r"NF4, which changes their values by ([\d.]+) % .*--no-quantize-4bit",
        remark,
    )
    assert found
    parameters = dict(model.named_parameters())
    changed, meant_values = [], []
    for name in meant:
        if "mlp" in name:
            weight = parameters[name]
            assert isinstance(weight, QuantizedTensor)
            changed.append(weight.dequantize())
            meant_values.append(meant[name])
    assert float(found[1]) == pytest.approx(100 * relative_error(np.stack(changed), np.stack(meant_values)), rel=0.05)
    said = (
        "the tensor of type IQ3_S (token_embd.weight), which no kernel reads, is dequantized to float32, in more memory"
    )
    write_gguf(tmp_path / "e.gguf", CONFIG, random_arrays(CONFIG), lambda name: "IQ3_S" if "embed" in name else "Q4_0")
    (remark,) = LLaMAModel.from_pretrained(tmp_path / "e.gguf", quantize="auto").remarks
    assert remark.startswith(said)
    (remark,) = LLaMAModel.from_pretrained(tmp_path / "e.gguf", quantize="auto", dtype="int16").remarks
    assert "is dequantized to int16 and rounded" in remark
    again = Checkpoint.open(tmp_path / "m.gguf")
    LLaMAModel.from_pretrained(again)
    assert again.remarks == []


@pytest.mark.unit
def test_full_precision_that_becomes_4_bit_is_what_was_asked_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, random_arrays(CONFIG), "F16")
    checkpoint = Checkpoint.open(tmp_path / "m.gguf")
    LLaMAModel.from_pretrained(checkpoint, quantize="nf4")
    assert checkpoint.remarks == []


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("weight_type", "value"), [("F32", np.nan), ("F16", np.inf), ("BF16", np.nan), ("Q8_0", np.nan)]
)
def test_weights_that_are_no_numbers_are_named_with_their_type(weight_type: str, value: float, tmp_path: Path) -> None:
    arrays = random_arrays(CONFIG)
    arrays["model.layers.0.mlp.up_proj.weight"][3, 32] = value
    with np.errstate(all="ignore"):
        write_gguf(tmp_path / "m.gguf", CONFIG, arrays, lambda name: weight_type if "up_proj" in name else "F32")
    at = rf"m\.gguf: the tensor blk\.0\.ffn_up\.weight of type {weight_type}"
    with pytest.raises(FormatError, match=rf"{at} is -?(nan|inf) at \[3, \d+\], expected finite weights"):
        LLaMAModel.from_pretrained(tmp_path / "m.gguf")
    if weight_type in ("F16", "BF16"):  # mapped as it is stored
        with pytest.raises(FormatError, match=rf"{at} is (nan|inf) at \[3, 32\], expected finite weights"):
            LLaMAModel.from_pretrained(tmp_path / "m.gguf", dtype="auto")
    with pytest.raises(FormatError, match=rf"{at} cannot become nf4: .*(nan|inf)"):
        LLaMAModel.from_pretrained(tmp_path / "m.gguf", quantize="nf4")


@pytest.mark.unit
@pytest.mark.parametrize("type_name", ["IQ1_S", "IQ2_XXS", "IQ3_XXS", "TQ1_0", "TQ2_0", "MXFP4"])
def test_a_type_that_no_kernel_reads_is_said_with_its_tensors(type_name: str, tmp_path: Path) -> None:
    with np.errstate(all="ignore"):
        write_gguf(tmp_path / "m.gguf", CONFIG, random_arrays(CONFIG), type_name)
    model = LLaMAModel.from_pretrained(tmp_path / "m.gguf", quantize="auto")
    linears, others = model.remarks
    assert linears.startswith(f"7 matrices of type {type_name} (blk.*.attn_q.weight, blk.*.attn_k.weight, ")
    assert "are requantized to NF4" in linears
    said = (
        f"2 tensors of type {type_name} (token_embd.weight and output.weight), which no kernel reads, are dequantized "
    )
    assert others == said + "to float32, in more memory than in the file."
    assert {weight.dtype for _, weight in model.named_parameters()} == {"nf4", "float32"}

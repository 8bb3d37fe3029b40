"""StoragePolicy: options -> tensor name -> weight type, as the loader then makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entrenar.autograd import QuantizedTensor
from entrenar.autograd.weight_types import weight_type
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.storage import EMBEDDING, HEAD, Storage, StoragePolicy
from entrenar.models.weights import storage_of

from .builders import random_arrays, small_config, write_gguf, write_hf

DOWN = "model.layers.0.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
SHAPES = {EMBEDDING: (30, 64), Q: (64, 64), DOWN: (64, 96), "model.norm.weight": (64,), HEAD: (30, 64)}
STORED = {
    EMBEDDING: "Q8_0",
    "q_proj": "Q4_1",
    "k_proj": "Q4_0",
    "v_proj": "Q6_K",
    "o_proj": "Q8_0",
    "gate_proj": "F16",
    "up_proj": "BF16",
    "down_proj": "F32",
    HEAD: "BF16",
}


def types(storage: Storage) -> list[str]:
    return [weight.weight_type for weight in storage.weights.values()]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "stored", "expected"),
    [
        ({}, None, ["float32"] * 5),
        ({"dtype": "auto"}, None, ["float32"] * 5),
        ({"dtype": "auto"}, "F16", ["float16", "float16", "float16", "float32", "float16"]),
        ({"dtype": "float16"}, "BF16", ["float16", "float16", "float16", "float32", "float16"]),
        ({"dtype": "int16"}, "F16", ["float16", "int16", "float32", "float32", "int16"]),
        ({"quantize": "auto"}, "F16", ["float16", "nf4", "float16", "float32", "float16"]),
        ({"dtype": "auto"}, "BF16", ["bfloat16", "bfloat16", "bfloat16", "float32", "bfloat16"]),
        ({"dtype": "bfloat16"}, "Q8_0", ["bfloat16", "bfloat16", "bfloat16", "float32", "bfloat16"]),
        ({"dtype": "int16"}, "BF16", ["bfloat16", "int16", "float32", "float32", "int16"]),
        ({"dtype": "int16"}, "F32", ["int16", "int16", "float32", "float32", "int16"]),
        ({"quantize": "nf4"}, "F32", ["float32", "nf4", "float32", "float32", "float32"]),
        ({"quantize": "nf4", "dtype": "auto"}, "BF16", ["bfloat16", "nf4", "bfloat16", "float32", "bfloat16"]),
        ({"quantize": "int4"}, "Q4_0", ["float32", "int4", "int4", "float32", "float32"]),
        ({"quantize": "auto"}, "Q4_0", ["q4_0", "q4_0", "q4_0", "float32", "q4_0"]),
        ({"quantize": "auto"}, "Q5_1", ["q5_1", "q5_1", "q5_1", "float32", "q5_1"]),
        ({"quantize": "auto"}, "BF16", ["bfloat16", "nf4", "bfloat16", "float32", "bfloat16"]),
        ({"quantize": "auto"}, "Q8_0", ["q8_0", "q8_0", "q8_0", "float32", "q8_0"]),
        ({"quantize": "nf4"}, "Q8_0", ["float32", "nf4", "float32", "float32", "float32"]),
        ({"quantize": "auto", "dtype": "bfloat16"}, "IQ3_S", ["bfloat16", "nf4", "bfloat16", "float32", "bfloat16"]),
        ({"quantize": "auto"}, None, ["float32", "int4", "int4", "float32", "float32"]),
    ],
)
def test_every_tensor_has_the_type_that_the_options_say(
    options: dict[str, Any], stored: str | None, expected: list[str]
) -> None:
    assert (
        types(StoragePolicy(**options).storage(SHAPES, dict.fromkeys(SHAPES, stored) if stored else None)) == expected
    )


@pytest.mark.unit
def test_a_tied_embedding_is_a_head_too_and_a_product_reads_it() -> None:
    tied = {name: shape for name, shape in SHAPES.items() if name != HEAD}
    storage = StoragePolicy("int16").storage(tied, dict.fromkeys(tied, "BF16"))
    assert storage.weights[EMBEDDING].weight_type == "int16"


@pytest.mark.unit
def test_what_stays_in_full_precision_has_a_reason_and_what_is_requantized_is_known() -> None:
    stored = {EMBEDDING: "F32", Q: "Q6_K", DOWN: "Q4_0", "model.norm.weight": "F32", HEAD: "F32"}
    storage = StoragePolicy(quantize="nf4").storage(SHAPES, stored)
    reasons = {name: weight.unquantized for name, weight in storage.weights.items() if weight.unquantized}
    assert reasons == {DOWN: "its 96 columns are no multiple of 64"}
    assert [name for name, weight in storage.weights.items() if weight.requantized] == [Q]
    assert not any(weight.requantized for weight in StoragePolicy(quantize="auto").storage(SHAPES).weights.values())
    bf16 = StoragePolicy("auto", "nf4").storage(SHAPES, dict.fromkeys(SHAPES, "BF16")).weights
    assert (bf16[DOWN].as_stored, bf16[DOWN].unquantized) == (True, "its 96 columns are no multiple of 64")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "nf5"}, r"quantize='nf5' is unknown; choose None, 'auto', 'nf4' or 'int4'\."),
        ({"quantize": ["nf4"]}, r"quantize=\['nf4'\] is unknown"),
        ({"dtype": "float64"}, r"dtype='float64' is unknown; choose one of auto, float32, float16, bfloat16, int16\."),
        ({"double_quantization": "no"}, r"double_quantization='no' is unknown; choose True or False\."),
    ],
)
def test_an_unknown_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StoragePolicy(**options)
    with pytest.raises(ConfigError, match=message):
        LLaMAModel.from_pretrained("nowhere", **options)


@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16", "int16"])
@pytest.mark.parametrize("quantize", [None, "auto", "nf4", "int4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("file", ["hf", "gguf"])
def test_the_model_that_is_loaded_is_the_one_that_was_planned(
    dtype: str, quantize: str | None, double: bool, file: str, tmp_path: Path
) -> None:
    config = small_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    arrays = random_arrays(config)
    if file == "hf":
        write_hf(tmp_path / file, config, arrays, "bfloat16")
    else:
        write_gguf(tmp_path / file, config, arrays, lambda name: STORED.get(name) or STORED[name.split(".")[-2]])
    policy = StoragePolicy(dtype, quantize, double)
    storage = storage_of(Checkpoint.open(tmp_path / file), policy)
    model = LLaMAModel.from_pretrained(tmp_path / file, dtype=dtype, quantize=quantize, double_quantization=double)
    found = {name: w.weight_type if isinstance(w, QuantizedTensor) else w.dtype for name, w in model.named_parameters()}
    expected = {name: weight_type(weight.weight_type).name for name, weight in storage.weights.items()}
    assert found == expected
    assert {name: weight.shape for name, weight in storage.weights.items()} == config.parameter_shapes()
    maps = 4 * 256 * sum(name == "nf4" and double for name in found.values())  # QuantizedTensor counts its table
    nbytes = sum(weight.nbytes for _, weight in model.named_parameters())
    assert storage.nbytes == pytest.approx(nbytes, abs=maps), (storage.nbytes, nbytes)

"""Fuzz target: adapter configurations. One gives exact counts and a PEFT file that reads back, or a ConfigError.

python fuzz/lora_config.py -runs=1000000
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["entrenar"]):
    import harness
    import numpy as np

    from entrenar.adapters.lora import LoRAConfig
    from entrenar.adapters.qlora import QLoRAConfig
    from entrenar.adapters.targets import LINEARS
    from entrenar.autograd import QuantizedTensor, Tensor, lora_linear
    from entrenar.errors import ConfigError
    from entrenar.llama import LLaMAConfig, LLaMAModel

Choose = Callable[[int], int]

WHOLE_NAME = "model.layers.0.self_attn.q_proj"
NAMES = ["all-linear", *LINEARS, "lm_head", "q_prj", "", WHOLE_NAME]
RANKS: list[object] = [8, 1, 2, 3, 16, 64, 0, -4, 1.5, True, "8", None, 2**64]
ALPHAS: list[object] = [32.0, 1, 16, 0.5, 0, -1.0, math.nan, math.inf, "32", False]
DROPOUTS: list[object] = [0.0, 0, 0.05, 0.5, 1.0, -0.1, 2, "0.1", None, math.nan]
FLAGS: list[object] = [False, True, 1, None, "yes"]
FORMATS: list[object] = ["auto", "nf4", "int4", "nf5", 4, None]
ANYTHING: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    8,
    1.5,
    math.nan,
    "",
    "q_proj",
    "LORA",
    [],
    ["q_proj"],
    [3],
    {},
    [[]],
]
COMPUTE_ONE_IN, ATTACH_ONE_IN = 64, 512
TINY = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


# ---------------------------------------------------------------------- what must be accepted
def is_number(value: object, low: float, high: float) -> bool:
    """Whether value is a number in [low, high)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high


def fits(kind: type[LoRAConfig], given: dict[str, object]) -> bool:
    """The rules of an adapter's settings, written down again."""
    names = [given["target_modules"]] if isinstance(given["target_modules"], str) else given["target_modules"]
    # "all-linear" stands for every layer, whatever else is named
    named = "all-linear" in names or (bool(names) and all(name in (*LINEARS, WHOLE_NAME) for name in names))
    numbers = isinstance(given["rank"], int) and is_number(given["rank"], 1, 2**63)
    numbers = numbers and is_number(given["alpha"], 5e-324, math.inf) and is_number(given["dropout"], 0, 1)
    flags = [given["use_rslora"], given.get("quantize_4bit", True), given.get("double_quantization", True)]
    return (
        named
        and numbers
        and all(isinstance(flag, bool) for flag in flags)
        and given.get("quantize", "auto")
        in (
            "auto",
            "nf4",
            "int4",
        )
    )


def target(data: bytes) -> None:
    choose = harness.chooser(data)
    kind, given = (
        LoRAConfig,
        {
            "rank": RANKS[choose(len(RANKS))],
            "alpha": ALPHAS[choose(len(ALPHAS))],
            "dropout": DROPOUTS[choose(len(DROPOUTS))],
            "target_modules": [NAMES[choose(len(NAMES))] for _ in range(choose(5))] or NAMES[choose(len(NAMES))],
            "use_rslora": FLAGS[choose(2) if choose(8) != 1 else choose(len(FLAGS))],
        },
    )
    if choose(2):
        kind = QLoRAConfig
        given["quantize"] = FORMATS[choose(3) if choose(8) != 1 else choose(len(FORMATS))]
        given["quantize_4bit"] = FLAGS[choose(2) if choose(8) != 1 else choose(len(FLAGS))]
        given["double_quantization"] = FLAGS[choose(2) if choose(8) != 1 else choose(len(FLAGS))]
    try:
        config = kind(**given)
    except ConfigError as error:
        assert not fits(kind, given), f"refused: {given} ({error})"
        assert str(error).startswith(f"{kind.section}."), f"{error} names no key"
        return
    assert fits(kind, given), f"accepted: {given}"
    assert config.scaling == config.alpha / (math.sqrt(config.rank) if given["use_rslora"] else config.rank)
    check_peft(choose, config)
    if harness.one_in(COMPUTE_ONE_IN, data):
        compute(choose, config)
    if harness.one_in(ATTACH_ONE_IN, data):
        attach(config)


# ---------------------------------------------------------------------- PEFT's file
def check_peft(choose: Choose, config: LoRAConfig) -> None:
    """adapter_config.json reads back; what it may not hold is refused, and whatever it holds is no other error."""
    table = json.loads(json.dumps(config.to_peft("base")))
    again = LoRAConfig.from_peft(table)
    for name in ("rank", "alpha", "dropout", "use_rslora", "target_modules"):
        assert getattr(again, name) == getattr(config, name), f"{name}: {getattr(again, name)} came back"
    how = choose(3)
    if how == 0:  # a setting that changes the result and is not computed
        key = list(LoRAConfig.peft.unsupported)[choose(len(LoRAConfig.peft.unsupported))]
        try:
            LoRAConfig.from_peft(table | {key: ["something"]})
        except ConfigError as error:
            assert key in str(error)
        else:
            raise AssertionError(f"{key} was accepted")
    elif how == 1:
        keys = ["r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "peft_type"]
        try:
            LoRAConfig.from_peft(table | {keys[choose(len(keys))]: ANYTHING[choose(len(ANYTHING))]})
        except ConfigError as error:
            assert "adapter_config.json" in str(error), f"{error} does not name the file"


# ---------------------------------------------------------------------- layers and models
def storage(choose: Choose, w: np.ndarray) -> tuple[Tensor | QuantizedTensor, np.ndarray]:
    """The weight as something that lora_linear takes, and the numbers it then stands for."""
    kinds = ["float32", "bfloat16"] + ["nf4", "int16"] * (w.shape[1] % 64 == 0)
    kinds += ["int4", "q4_0", "q8_0"] * (w.shape[1] % 32 == 0)
    kind = kinds[choose(len(kinds))]
    if kind in ("float32", "bfloat16"):
        tensor = Tensor(w, requires_grad=kind == "float32", dtype=kind)
        return tensor, tensor.numpy().astype(np.float64)
    quantized = QuantizedTensor.quantize(w, kind)
    return quantized, quantized.dequantize().astype(np.float64)


def compute(choose: Choose, config: LoRAConfig) -> None:
    """The layer of this rank and scaling, forward and backward, against float64."""
    rng = np.random.default_rng(choose(1 << 16))
    m, k, n = 1 + choose(20), [64, 32, 1 + choose(200)][choose(3)], 1 + choose(40)
    x, w, a, b, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((m, k), (n, k), (config.rank, k), (n, config.rank), (m, n))
    )
    weight, w64 = storage(choose, w)
    tx, ta, tb = (Tensor(array, requires_grad=True) for array in (x, a, b))
    out = lora_linear(tx, weight, ta, tb, config.scaling)
    out.backward(Tensor(g))
    arrays = [array.astype(np.float64) for array in (x, a, b, g)] + [w64]
    wanted, sizes = products(config.scaling, *arrays), products(config.scaling, *map(np.abs, arrays))
    found = {"output": out, "gradient of x": tx.grad, "gradient of A": ta.grad, "gradient of B": tb.grad}
    if isinstance(weight, Tensor) and weight.requires_grad:
        found["gradient of W"] = weight.grad
    for what, actual in found.items():
        # against the size of the terms: their sum may be as close to zero as it likes
        error = np.linalg.norm(actual.numpy() - wanted[what]) / (np.linalg.norm(sizes[what]) + 1e-30)
        assert error < 1e-6, f"{what} of shape {wanted[what].shape}: error {error:.2e} of the terms"


def products(
    scaling: float, x: np.ndarray, a: np.ndarray, b: np.ndarray, g: np.ndarray, w: np.ndarray
) -> dict[str, np.ndarray]:
    """The layer's output and gradients, in the precision of the arrays."""
    scaled, inner = scaling * (x @ a.T), scaling * (g @ b)
    return {
        "output": x @ w.T + scaled @ b.T,
        "gradient of x": g @ w + inner @ a,
        "gradient of A": inner.T @ x,
        "gradient of B": g.T @ scaled,
        "gradient of W": g.T @ x,
    }


def attach(config: LoRAConfig) -> None:
    """On a model: as many trainable weights as counted, the same logits (B starts at 0), the rest frozen."""
    shape = LLaMAConfig(**TINY)
    model, tokens = LLaMAModel(shape), np.arange(6)[None]
    before = model(tokens).numpy()
    model.to_qlora(config) if isinstance(config, QLoRAConfig) else model.to_lora(config)
    weights = [tensor for _, tensor in model.named_parameters()]
    trainable = sum(tensor.size for tensor in weights if tensor.requires_grad)
    assert trainable == config.num_parameters(shape)
    quantized = isinstance(config, QLoRAConfig) and config.quantize_4bit
    assert any(isinstance(tensor, QuantizedTensor) for tensor in weights) == quantized
    after = model(tokens).numpy()
    assert np.isfinite(after).all()
    assert quantized or np.abs(after - before).max() < 1e-5, "fresh adapters change the logits"


if __name__ == "__main__":
    harness.fuzz("lora_config", target)

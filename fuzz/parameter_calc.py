"""Fuzz target: model shapes. A configuration gives exact counts or a ConfigError; a small model bears the counts out.

python fuzz/parameter_calc.py -runs=1000000
"""

from __future__ import annotations

import math
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["entrenar.config", "entrenar.llama.config", "entrenar.llama.budget"]):
    import harness
    import numpy as np

    import entrenar.llama.budget as budget
    from entrenar.errors import ConfigError
    from entrenar.llama.config import LINEAR_LAYERS, LLaMAConfig
    from entrenar.llama.model import LLaMAModel

SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 128, 4096, 0, -1, 10**6]
MOST_WEIGHTS = 20_000  # of a model that is built and run
BUILD_ONE_IN = 64


def shape(choose: Callable[[int], int]) -> dict[str, object]:
    """Keys of a [model] section, mostly plausible."""
    table: dict[str, object] = {
        "vocab_size": SIZES[choose(len(SIZES))],
        "hidden_size": SIZES[choose(len(SIZES))],
        "intermediate_size": SIZES[choose(len(SIZES))],
        "num_hidden_layers": 1 + choose(4) if choose(8) else SIZES[choose(len(SIZES))] % 200,
        "num_attention_heads": SIZES[choose(len(SIZES))],
        "tie_word_embeddings": bool(choose(2)),
    }
    if choose(2):
        table["num_key_value_heads"] = SIZES[choose(len(SIZES))]
    if choose(3) == 0:
        table["head_dim"] = SIZES[choose(len(SIZES))]
    if choose(16) == 0:
        table[["rope_theta", "rms_norm_eps", "hidden_size", "vocab_size"][choose(4)]] = [0, -1.0, "8", None, math.nan][
            choose(5)
        ]
    return table


def expected(c: LLaMAConfig) -> int:
    """The count, written down again from the architecture."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    block = 2 * c.hidden_size + 2 * c.hidden_size * (q + kv) + 3 * c.hidden_size * c.intermediate_size
    heads = 1 if c.tie_word_embeddings else 2
    return heads * c.vocab_size * c.hidden_size + c.num_hidden_layers * block + c.hidden_size


def target(data: bytes) -> None:
    choose = harness.chooser(data)
    table = shape(choose)
    try:
        config = LLaMAConfig(**table)
    except ConfigError:
        return
    count = config.num_parameters()
    assert count == expected(config), f"{table}: {count} parameters, expected {expected(config)}"
    assert (
        config.hidden_size > 0
        and config.head_dim % 2 == 0
        and config.num_attention_heads % config.num_key_value_heads == 0
    )
    rank = 1 + choose(64)
    targets = [name for name in LINEAR_LAYERS if choose(2)]
    adapters = config.num_lora_parameters(rank, targets)
    shapes = config.parameter_shapes()
    assert adapters == sum(rank * sum(s) for n, s in shapes.items() if n.split(".")[-2] in targets)
    assert budget.weight_bytes(config) == 4 * count
    assert budget.weight_bytes(config, quantize="nf4") <= 4 * count
    if count <= MOST_WEIGHTS and choose(BUILD_ONE_IN) == 0:
        build(config, count)


def build(config: LLaMAConfig, count: int) -> None:
    """The model has exactly these weights, and its loss at random weights is near ln(vocabulary)."""
    model = LLaMAModel(config)
    assert sum(weight.size for _, weight in model.named_parameters()) == count
    tokens = np.arange(8)[None] % config.vocab_size
    loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    # logits are sums of hidden_size products of two values of standard deviation initializer_range and 1
    slack = 8 * config.initializer_range * math.sqrt(config.hidden_size) + 1e-4
    assert abs(loss - math.log(config.vocab_size)) < slack, f"loss {loss} of a vocabulary of {config.vocab_size}"


if __name__ == "__main__":
    harness.fuzz("parameter_calc", target)

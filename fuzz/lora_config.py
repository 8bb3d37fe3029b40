"""Fuzz target: adapter configurations. One gives exact counts and a PEFT file that reads back, or a ConfigError.

python fuzz/lora_config.py -runs=1000000
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["entrenar.config", "entrenar.lora.config", "entrenar.qlora.config"]):
    import harness
    import numpy as np

    from entrenar.autograd import Tensor, lora_linear
    from entrenar.errors import ConfigError
    from entrenar.llama.config import LINEAR_LAYERS
    from entrenar.lora.config import UNSUPPORTED, LoRAConfig
    from entrenar.qlora.config import QLoRAConfig

NAMES = [*LINEAR_LAYERS, "all-linear", "lm_head", "q_prj", "", "model.layers.0.self_attn.q_proj"]
RANKS: list[object] = [1, 2, 8, 16, 64, 0, -4, 1.5, True, "8", None]
ALPHAS: list[object] = [1, 16, 32.0, 0.5, 0, -1.0, math.nan, math.inf, "32"]
DROPOUTS: list[object] = [0, 0.0, 0.05, 0.5, 1.0, -0.1, 2, "0.1"]
COMPUTE_ONE_IN = 64


def valid_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def target(data: bytes) -> None:
    choose = harness.chooser(data)
    rank, alpha, dropout = RANKS[choose(len(RANKS))], ALPHAS[choose(len(ALPHAS))], DROPOUTS[choose(len(DROPOUTS))]
    names = [NAMES[choose(len(NAMES))] for _ in range(choose(5))]
    rslora = bool(choose(2))
    kind = QLoRAConfig if choose(2) else LoRAConfig
    # "all-linear" stands for every layer, whatever else is named
    named = "all-linear" in names or (bool(names) and all(name in LINEAR_LAYERS for name in names))
    should_fit = named and numbers_fit(rank, alpha, dropout)
    try:
        config = kind(rank=rank, alpha=alpha, dropout=dropout, target_modules=names, use_rslora=rslora)
    except ConfigError:
        assert not should_fit, f"refused: {rank!r} {alpha!r} {dropout!r} {names}"
        return
    assert should_fit, f"accepted: {rank!r} {alpha!r} {dropout!r} {names}"
    scaling = config.alpha / (math.sqrt(config.rank) if rslora else config.rank)
    assert config.scaling == scaling
    table = json.loads(json.dumps(config.to_peft("base")))
    again = LoRAConfig.from_peft(table)
    assert (again.rank, again.alpha, again.dropout, again.use_rslora) == (
        config.rank,
        config.alpha,
        config.dropout,
        rslora,
    )
    assert again.target_modules == config.target_modules
    spoil(choose, table)
    if choose(COMPUTE_ONE_IN) == 0:
        compute(choose, config)


def numbers_fit(rank: object, alpha: object, dropout: object) -> bool:
    fits = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    return fits and valid_number(alpha, 0, math.inf) and (valid_number(dropout, 0, 1) or dropout == 0)


def spoil(choose: Callable[[int], int], table: dict[str, object]) -> None:
    """A setting that changes the result and is not computed must be refused."""
    key = list(UNSUPPORTED)[choose(len(UNSUPPORTED))]
    try:
        LoRAConfig.from_peft(table | {key: ["something"]})
    except ConfigError as error:
        assert key in str(error)
    else:
        raise AssertionError(f"{key} was accepted")


def compute(choose: Callable[[int], int], config: LoRAConfig) -> None:
    """The layer of this rank and scaling against float64."""
    rng = np.random.default_rng(choose(1 << 16))
    m, k, n = 1 + choose(9), 1 + choose(40), 1 + choose(40)
    x, w = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    a, b = rng.standard_normal((config.rank, k)), rng.standard_normal((n, config.rank))
    x, w, a, b = (array.astype(np.float32).astype(np.float64) for array in (x, w, a, b))
    expected = x @ w.T + config.scaling * (x @ a.T) @ b.T
    actual = lora_linear(Tensor(x), Tensor(w), Tensor(a), Tensor(b), config.scaling).numpy()
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-5, f"rank {config.rank}, scaling {config.scaling}, {m}x{k}x{n}: {error:.2e}"


if __name__ == "__main__":
    harness.fuzz("lora_config", target)

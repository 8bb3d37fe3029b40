"""Fuzz target: model shapes. A configuration gives exact counts or a ConfigError; a small model bears the counts out.

python fuzz/parameter_calc.py -runs=1000000
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction

import atheris

with atheris.instrument_imports(include=["entrenar"]):
    import harness
    import numpy as np

    from entrenar.adapters.lora import LoRAConfig
    from entrenar.adapters.targets import LINEARS
    from entrenar.config import dump_toml, from_table, tomllib
    from entrenar.errors import ConfigError
    from entrenar.models.api import LLaMAModel
    from entrenar.models.config import LLaMAConfig
    from entrenar.models.storage import StoragePolicy

Choose = Callable[[int], int]

SIZES = [64, 1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 128, 4096, 0, -1, 10**6]
ODD: list[object] = [0, -1.0, 2, 0.5, "8", None, math.nan, math.inf, True, [], {}, 2**63, -(2**70)]
MOST_LAYERS = 10_000
MOST_WEIGHTS = 20_000  # of a model that is built and run
BUILD_ONE_IN = 256
SIZE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
POSITIVE_KEYS = ("rope_theta", "rms_norm_eps", "initializer_range")
LEAST = dict.fromkeys((*SIZE_KEYS, "num_key_value_heads", "max_position_embeddings"), 1)
LEAST |= {"head_dim": 2, "bos_token_id": 0, "eos_token_id": 0}
OPTIONAL = ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "rope_scaling")
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# ---------------------------------------------------------------------- what may come in
def table_of(choose: Choose) -> dict[str, object]:
    """Keys of a [model] section, mostly plausible."""
    table: dict[str, object] = {key: SIZES[choose(len(SIZES))] for key in SIZE_KEYS}
    table["num_hidden_layers"] = 1 + choose(4) if choose(8) != 1 else [80, 0, -1, 10_001][choose(4)]
    if choose(4) != 1:  # heads that fit
        heads, groups, size = 1 + choose(4), 1 + choose(3), 2 * (1 + choose(4))
        table |= {"num_attention_heads": heads * groups, "num_key_value_heads": heads, "head_dim": size}
        if choose(2):
            del table["head_dim"]
            table["hidden_size"] = heads * groups * size
    elif choose(2):
        table["num_key_value_heads"] = SIZES[choose(len(SIZES))]
    table["tie_word_embeddings"] = bool(choose(2))
    if choose(4) == 1:
        table["rope_scaling"] = scaling(choose)
    if choose(8) == 1:
        keys = [*LEAST, *POSITIVE_KEYS, "tie_word_embeddings", "rope_scaling"]
        table[keys[choose(len(keys))]] = ODD[choose(len(ODD))]
    return table


def scaling(choose: Choose) -> dict[str, object]:
    kind = ["llama3", "linear", "default", "dynamic", None][choose(5)]
    values: list[object] = [8.0, 1, 4, 32, 8192, 0, -1.0, math.nan, True, "4", None]
    return {"rope_type" if choose(2) else "type": kind} | {key: values[choose(len(values))] for key in LLAMA3}


# ---------------------------------------------------------------------- what must come out
def is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value < (2**63 if type(value) is int else math.inf)
    )


def fits(table: dict[str, object]) -> bool:
    """The rules of a model's shape, written down again."""
    given = {key: value for key, value in table.items() if not (value is None and key in OPTIONAL)}
    if not all(is_integer(given[key], least) for key, least in LEAST.items() if key in given):
        return False
    if not all(is_positive(given[key]) for key in POSITIVE_KEYS if key in given):
        return False
    heads = given["num_attention_heads"]
    size = given.get("head_dim", Fraction(given["hidden_size"], heads))
    if given["num_hidden_layers"] > MOST_LAYERS or heads % given.get("num_key_value_heads", heads) or size % 2:
        return False
    return isinstance(given["tie_word_embeddings"], bool) and scaling_fits(given.get("rope_scaling"))


def scaling_fits(table: object) -> bool:
    if table is None or not isinstance(table, dict):
        return table is None
    kind = table.get("rope_type", table.get("type"))
    if kind in (None, "default"):
        return True
    needed = {"linear": LLAMA3[:1], "llama3": LLAMA3}.get(kind)
    if needed is None or not all(is_positive(table.get(key)) for key in needed):
        return False
    return kind == "linear" or table["high_freq_factor"] > table["low_freq_factor"]


def expected(c: LLaMAConfig) -> tuple[int, int]:
    """The weights of the decoder linears and of everything, from the architecture."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    linears = c.num_hidden_layers * c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)
    norms = (2 * c.num_hidden_layers + 1) * c.hidden_size
    return linears, linears + norms + (1 if c.tie_word_embeddings else 2) * c.vocab_size * c.hidden_size


def target(data: bytes) -> None:
    choose = harness.chooser(data)
    table = table_of(choose)
    try:
        config = LLaMAConfig(**table)
    except ConfigError as error:
        assert not fits(table), f"refused: {table} ({error})"
        assert "model." in str(error), f"{error} names no key"
        return
    assert fits(table), f"accepted: {table}"
    linears, count = expected(config)
    assert config.num_decoder_linear_parameters() == linears
    assert config.num_parameters() == count, f"{table}: {config.num_parameters()} parameters, expected {count}"
    check_adapters(choose, config)
    check_bytes(choose, config, count)
    if choose(2):  # a second configuration doubles the time
        check_files(choose, config)
    if count <= MOST_WEIGHTS and harness.one_in(BUILD_ONE_IN, data):
        build(config, count)


def check_adapters(choose: Choose, c: LLaMAConfig) -> None:
    rank, chosen = 1 + choose(64), [name for name in LINEARS if choose(2)]
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    ends = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": q} | dict.fromkeys(LINEARS[4:], c.intermediate_size)
    weights = c.num_hidden_layers * rank * sum(c.hidden_size + ends[name] for name in chosen)
    if chosen:
        assert LoRAConfig(rank=rank, target_modules=chosen).num_parameters(c) == weights


def check_bytes(choose: Choose, c: LLaMAConfig, count: int) -> None:
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    rows_of = {c.hidden_size: 0, q: 0, c.intermediate_size: 0}  # rows of a layer's matrices by their columns
    rows_of[c.hidden_size] += q + 2 * kv + 2 * c.intermediate_size
    rows_of[q] += c.hidden_size
    rows_of[c.intermediate_size] += c.hidden_size

    def four_bit(block: int) -> int:
        fitting = (rows * columns for columns, rows in rows_of.items() if columns % block == 0)
        return c.num_hidden_layers * sum(fitting)

    nf4 = Fraction(1, 2) + Fraction(1, 64) + Fraction(4, 64 * 256)  # values, 8-bit scales, scales of scales
    norms = (2 * c.num_hidden_layers + 1) * c.hidden_size  # stay float32
    dtype, quantize, wanted = (
        ("float32", None, 4 * count),
        ("bfloat16", None, 2 * (count + norms)),
        ("bfloat16", "nf4", four_bit(64) * nf4 + 2 * (count + norms - four_bit(64))),
        ("auto", "auto", four_bit(32) * Fraction(5, 8) + 4 * (count - four_bit(32))),
    )[choose(4)]
    stored, stored_bytes = (("Q8_0", Fraction(34, 32)), ("BF16", Fraction(2)))[choose(2)]
    types = {"model.embed_tokens.weight": stored} if choose(2) else {}
    stays = types and (quantize == "auto" if stored == "Q8_0" else dtype != "float32")
    each = 2 if dtype == "bfloat16" else 4
    wanted = int(wanted - stays * c.vocab_size * c.hidden_size * (each - stored_bytes))
    found = StoragePolicy(dtype, quantize).storage(c.parameter_shapes(), types).nbytes
    assert found == wanted, f"{found} bytes of {quantize or dtype} weights, expected {wanted}"


def check_files(choose: Choose, config: LLaMAConfig) -> None:
    """TOML, config.json and GGUF metadata give the same configuration back, and an unknown key is refused by name."""
    how = choose(4)
    if how == 0:
        again = from_table(LLaMAConfig, tomllib.loads(dump_toml(config, "model"))["model"], "model")
    elif how == 1:
        again = LLaMAConfig.from_hf(json.loads(json.dumps(config.to_hf())))
    elif how == 2 and fits_gguf(config):
        again = LLaMAConfig.from_gguf(metadata(config), tie_word_embeddings=config.tie_word_embeddings)
        again.initializer_range, again.rope_scaling = config.initializer_range, config.rope_scaling
    else:
        key = [*LEAST][choose(len(LEAST))]
        wrong = key[:-1] if choose(2) else key + "s"
        try:
            again = from_table(LLaMAConfig, asdict(config) | {wrong: 1}, "model")
        except ConfigError as error:
            assert wrong in str(error), f"{error} does not name {wrong}"
            assert f"'{key}'" in str(error), f"{error} does not offer {key}"
            return
        raise AssertionError(f"{wrong} was accepted")
    assert stated(again) == stated(config), f"{again} came back for {config}"


def stated(config: LLaMAConfig) -> str:
    """What a configuration says, as text: a NaN in a key that is not used equals itself; TOML has no null."""
    said = asdict(config)
    if config.rope_scaling is not None:
        said["rope_scaling"] = {key: value for key, value in config.rope_scaling.items() if value is not None}
    return repr(said)


def fits_gguf(c: LLaMAConfig) -> bool:
    """Whether GGUF metadata can say it: counts of 31 bits, floats, tokens of the vocabulary, linear scaling."""
    counts = (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.head_size)
    ids = (c.bos_token_id, c.eos_token_id)
    return (
        max(*counts, c.max_position_embeddings) < 2**31
        and all(float(value) == value for value in (c.rope_theta, c.rms_norm_eps))
        and all(index is None or index < c.vocab_size for index in ids)
        and (c.rope_scaling is None or c.rope_scaling.get("rope_type") == "linear")
    )


def metadata(c: LLaMAConfig) -> dict[str, object]:
    values = {
        "general.architecture": "llama",
        "llama.embedding_length": c.hidden_size,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.block_count": c.num_hidden_layers,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.attention.key_length": c.head_dim,
        "llama.attention.value_length": c.head_dim,
        "llama.context_length": c.max_position_embeddings,
        "llama.attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "llama.rope.freq_base": float(c.rope_theta),
        "llama.vocab_size": c.vocab_size,
        "tokenizer.ggml.bos_token_id": c.bos_token_id,
        "tokenizer.ggml.eos_token_id": c.eos_token_id,
    }
    if c.rope_scaling is not None:
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(c.rope_scaling["factor"])}
    return values


def build(config: LLaMAConfig, count: int) -> None:
    """The model has exactly these weights, and its loss at random weights is near ln(vocabulary)."""
    model = LLaMAModel(config)
    assert sum(weight.size for _, weight in model.named_parameters()) == count
    length = min(8, config.max_position_embeddings)
    tokens = np.arange(length + 1)[None] % config.vocab_size
    loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    # logits are sums of hidden_size products of two values of standard deviation initializer_range and 1
    slack = 8 * config.initializer_range * math.sqrt(config.hidden_size) + 1e-4
    assert abs(loss - math.log(config.vocab_size)) < slack, f"loss {loss} of a vocabulary of {config.vocab_size}"


if __name__ == "__main__":
    harness.fuzz("parameter_calc", target)

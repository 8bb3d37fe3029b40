"""Families x checks: small random models of every family against transformers, PEFT and llama.cpp.

`CASES` has a model for each row of the table, `CHECKS` a function for each column: it returns the figure that the table
prints and raises AssertionError where that is too large. Every row of FAMILIES has a case or `test_family_table` fails.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.autograd import no_grad
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, load_gguf_adapter, merge, save_adapter, save_gguf_adapter
from entrenar.models.decoder import linear_shapes
from entrenar.models.families import FAMILIES

from ..edges.llama_cpp import LlamaCpp, log_softmax
from .builders import gradients_of, random_tokens, relative_error

AGREES, GREEDY, NEAR_TIE = 1e-4, 64, 1e-3  # relative error; tokens; logit gap of the first token that differs
VOCABULARY = 101
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 52,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [chr(0x100 + index) for index in range(VOCABULARY)],
    "tokenizer.ggml.token_type": [1] * VOCABULARY,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.add_bos_token": False,
}


@dataclass(frozen=True)
class Case:
    """A small model: its model_type, and the keys of config.json that differ from BASE."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    length: int = 41  # of the sequences that are compared
    context: int = 256  # that llama.cpp is opened with, by which it chooses longrope's divisors
    not_in_gguf: str = ""  # why no GGUF file holds such a model


def rope(kind: str, theta: float = 1e4, **more: Any) -> dict[str, Any]:
    """rope_parameters of this type."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def longrope(pairs: int, original: int, **more: Any) -> dict[str, Any]:
    """Longrope with divisors for this many pairs and this original context."""
    factors = {"short_factor": [1 + 0.03 * i for i in range(pairs)], "long_factor": [1 + 0.4 * i for i in range(pairs)]}
    return rope("longrope", original_max_position_embeddings=original, **factors, **more)


NO_WINDOWS = "llama.cpp has no windows here"
LOCAL_GLOBAL = ["sliding_attention", "full_attention"]
PHI4: dict[str, Any] = {"tie_word_embeddings": True, "partial_rotary_factor": 0.72}  # 18 of 26
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.11,
    "logits_scaling": 0.5,
}
GEMMA: dict[str, Any] = {"head_dim": 22, "query_pre_attn_scalar": 22, "sliding_window": 11}
LLAMA3 = rope("llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
MINISTRAL3 = rope(
    "yarn",
    1e6,
    factor=16.0,
    original_max_position_embeddings=8,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)
CASES: dict[str, Case] = {
    "llama": Case("llama"),
    "llama, tied, llama3": Case("llama", {"tie_word_embeddings": True, **LLAMA3}),
    "llama, biases": Case("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, linear": Case("llama", rope("linear", factor=4.0)),
    "llama, dynamic": Case("llama", rope("dynamic", factor=4.0), not_in_gguf="llama.cpp has no dynamic scaling"),
    "llama, dynamic beyond": Case(
        "llama",
        {"max_position_embeddings": 23, **rope("dynamic", factor=4.0)},
        not_in_gguf="llama.cpp has no dynamic scaling",
    ),
    "llama, yarn beyond": Case("llama", rope("yarn", factor=8.0, original_max_position_embeddings=16)),
    "qwen2, yarn, exact bounds": Case(
        "qwen2",
        rope(
            "yarn",
            1e6,
            factor=4.0,
            original_max_position_embeddings=32,
            beta_fast=16.0,
            beta_slow=0.5,
            truncate=False,
            mscale=1.0,
            mscale_all_dim=0.7,
        ),
        not_in_gguf="llama.cpp reads neither bounds nor truncate",
    ),
    "qwen3, yarn": Case(
        "qwen3",
        {"head_dim": 24, **rope("yarn", 1e6, factor=2.5, attention_factor=1.3, original_max_position_embeddings=50)},
    ),
    "llama, longrope": Case("llama", {"max_position_embeddings": 512, **longrope(13, 256)}),
    "llama, longrope beyond": Case("llama", {"max_position_embeddings": 512, **longrope(13, 29)}),
    "llama, longrope at its bound": Case(
        "llama", longrope(13, 41, factor=4.0), not_in_gguf="llama.cpp takes one rotation for all lengths"
    ),
    "mistral": Case("mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral, window": Case("mistral", {"sliding_window": 9, "head_dim": 24}, not_in_gguf=NO_WINDOWS),
    "ministral": Case(
        "ministral", {"head_dim": 24, "sliding_window": 13, "layer_types": LOCAL_GLOBAL}, not_in_gguf=NO_WINDOWS
    ),
    "ministral, tied, beyond": Case("ministral", {"head_dim": 26, "sliding_window": 128, "tie_word_embeddings": True}),
    "ministral3": Case("ministral3", {"head_dim": 24, **MINISTRAL3}),
    "ministral3, tied, other numbers": Case(
        "ministral3",
        {"head_dim": 26, "tie_word_embeddings": True}
        | rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            beta_fast=2.5,
            beta_slow=0.5,
            mscale=1.0,
            mscale_all_dim=0.5,
            llama_4_scaling_beta=0.3,
        ),
    ),
    "qwen2": Case("qwen2"),
    "qwen2, window": Case(
        "qwen2", {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}, not_in_gguf=NO_WINDOWS
    ),
    "qwen2, tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen3": Case("qwen3", {"head_dim": 22}),
    "qwen3, tied": Case("qwen3", {"head_dim": 40, "tie_word_embeddings": True}),
    "qwen3, window": Case(
        "qwen3", {"use_sliding_window": True, "sliding_window": 7, "layer_types": LOCAL_GLOBAL}, not_in_gguf=NO_WINDOWS
    ),
    "gemma2": Case("gemma2", GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma2, untied, no caps": Case(
        "gemma2",
        GEMMA
        | {
            "tie_word_embeddings": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 31,
        },
        not_in_gguf="llama.cpp has a tied head and both caps",
    ),
    "gemma3": Case("gemma3_text", GEMMA | {"num_hidden_layers": 7}),
    "gemma3, untied, final cap, linear": Case(
        "gemma3_text",
        GEMMA
        | {
            "tie_word_embeddings": False,
            "final_logit_softcapping": 2.5,
            "layer_types": LOCAL_GLOBAL,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "smollm3": Case("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": False}),
    "smollm3, tied, yarn": Case(
        "smollm3",
        {"num_hidden_layers": 4, "tie_word_embeddings": True}
        | rope("yarn", 2e6, factor=4.0, original_max_position_embeddings=20),
    ),
    "smollm3, biases": Case(
        "smollm3", {"attention_bias": True, "mlp_bias": True}, not_in_gguf="llama.cpp has no biases here"
    ),
    "smollm3, every other layer": Case(
        "smollm3",
        {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "head_dim": 14},
        not_in_gguf="llama.cpp has every fourth layer without rope",
    ),
    "phi3": Case("phi3"),
    "phi3, window": Case("phi3", {"sliding_window": 13}, not_in_gguf=NO_WINDOWS),
    "phi3, tied, partial, longrope": Case(
        "phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": 256, **PHI4} | longrope(9, 256)
    ),
    "phi3, partial, longrope beyond": Case(
        "phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": 29, **PHI4} | longrope(9, 29)
    ),
    "granite": Case("granite", GRANITE),
    "granite, tied, llama3, heads of their own size": Case(
        "granite", GRANITE | {"tie_word_embeddings": True, "head_dim": 22, "num_key_value_heads": 2, **LLAMA3}
    ),
    "granite, biases, longrope beyond": Case(
        "granite",
        GRANITE | {"attention_bias": True, "mlp_bias": True} | {"max_position_embeddings": 512} | longrope(13, 29),
    ),
    "olmo2": Case("olmo2"),
    "olmo2, tied, equal heads": Case("olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
}


def random_peer(case: Case, seed: int = 0, std: float = 0.15) -> Any:
    """The transformers model of a case in float64, every weight random, norms and biases too."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(case.model_type, **(BASE | case.changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return model.eval()


class Bench:
    """The same weights in transformers (float64) and here (float32), and the tokens that both are asked about."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.peer = random_peer(case)
        self.peer.save_pretrained(self.folder / "hf")
        self.peer = self.peer.double()
        self.model = LLaMAModel.from_pretrained(self.folder / "hf")
        assert self.model.config.family == case.model_type and self.model.remarks == [], self.model.remarks
        assert self.model.config.num_parameters() == self.peer.num_parameters()
        self.tokens = random_tokens(self.model.config, 2, case.length)
        self.targets = random_tokens(self.model.config, 2, case.length, seed=1)

    def peer_logits(self, tokens: np.ndarray, peer: Any = None) -> np.ndarray:
        """Of transformers, without a cache."""
        import torch

        peer = forget_lengths(self.peer if peer is None else peer)
        with torch.no_grad():
            logits = peer(torch.from_numpy(tokens), use_cache=False).logits
        return np.asarray(logits.double().numpy())

    def logits(self, tokens: np.ndarray, model: LLaMAModel | None = None, **options: Any) -> np.ndarray:
        """Of this model, or another one here."""
        with no_grad():
            return np.asarray((model or self.model)(tokens, **options).numpy())

    @functools.cached_property
    def peer_gradients(self) -> dict[str, np.ndarray]:
        """Of the loss of `tokens` and `targets`, by name."""
        loss_of_peer(self.peer, self.tokens, self.targets).backward()
        return {name: parameter.grad.numpy() for name, parameter in self.peer.named_parameters()}

    @functools.cached_property
    def gguf(self) -> Path:
        """The model as a GGUF file in F32."""
        path = self.folder / "model.gguf"
        self.model.save_gguf(path, tokenizer=TOKENIZER)
        return path


@functools.lru_cache(maxsize=2)
def bench_of(name: str) -> Bench:
    """The bench of a case; the tests of a case follow each other."""
    return Bench(CASES[name])


def forget_lengths(peer: Any) -> Any:
    """The model, whose dynamic rotation is that of the next sequence alone: transformers keeps the longest one's."""
    for module in peer.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)
    return peer


def loss_of_peer(peer: Any, tokens: np.ndarray, targets: np.ndarray) -> Any:
    """The mean cross-entropy of a transformers or PEFT model."""
    import torch

    logits = peer(torch.from_numpy(tokens), use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())


def figure(error: float, limit: float = AGREES) -> str:
    """The error as the table has it; AssertionError where it is not below the limit."""
    assert error < limit, f"{error:.2e}, expected below {limit:.0e}"
    return f"{error:.0e}"


def largest(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative error of the gradients; those that are zero but for rounding count as equal."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    zero = 1e-7 * max(np.abs(gradient).max() for gradient in expected.values())
    errors = {
        name: relative_error(gradient, expected[name])
        for name, gradient in found.items()
        if np.abs(expected[name]).max() > zero or np.abs(gradient).max() > 10 * zero
    }
    return max(errors.values())


# ---------------------------------------------------------------------- the checks
def logits(bench: Bench) -> str:
    """Logits of a batch."""
    expected = bench.peer_logits(bench.tokens)
    assert np.abs(expected).max() > 0.05
    return figure(relative_error(bench.logits(bench.tokens), expected))


def _gradients(bench: Bench, checkpointing: bool) -> str:
    model = bench.model
    for _, weight in model.trainable_parameters():
        weight.grad = None
    model.gradient_checkpointing = checkpointing
    model.loss(bench.tokens, bench.targets).backward()
    model.gradient_checkpointing = False
    return figure(largest(gradients_of(model), bench.peer_gradients))


def gradients(bench: Bench) -> str:
    """The gradient of every weight."""
    return _gradients(bench, False)


def checkpointing(bench: Bench) -> str:
    """The same with every layer computed again."""
    return _gradients(bench, True)


def packed(bench: Bench) -> str:
    """Two samples in a row see what each sees alone; the longer one gives the rotation its length."""
    first = bench.case.length
    rows = np.concatenate([bench.tokens[:1], bench.tokens[1:, : first - 4]], axis=1)
    positions = np.concatenate([np.arange(first), np.arange(first - 4)])[None]
    found = bench.logits(rows, positions=positions, cu_seqlens=np.array([0, first, rows.shape[1]], np.int32))
    both = bench.peer_logits(bench.tokens)
    return figure(relative_error(found, np.concatenate([both[:1], both[1:, : first - 4]], axis=1)))


def cache(bench: Bench) -> str:
    """Greedy generation with a cache gives the tokens of transformers without one, or a near tie."""
    prompt, tokens = bench.tokens[0, : bench.case.length - 6].tolist(), []
    found = bench.model.generate(prompt, max_new_tokens=12, temperature=0.0, stop=())
    for token in found:
        expected = bench.peer_logits(np.array([prompt + tokens]))[0, -1]
        gap = float(expected.max() - expected[token])
        assert gap < NEAR_TIE, f"token {len(tokens)} is {token}, {gap:.1e} below the best"
        tokens.append(token)
    return f"{len(found)} tokens"


def lora(bench: Bench) -> str:
    """LoRA on all-linear: every linear of the layers, loss gradients as PEFT's, merged logits."""
    import peft
    import torch
    import transformers

    model = LLaMAModel.from_pretrained(bench.folder / "hf")
    LoRAConfig(rank=3, target_modules="all-linear").apply(model)
    adapted = {name.rsplit(".lora_", 1)[0] for name, _ in model.trainable_parameters()}
    assert adapted == set(linear_shapes(model.config))
    rng = np.random.default_rng(3)
    for _, weight in model.trainable_parameters():
        weight.numpy()[...] += rng.standard_normal(weight.shape) * 0.05
    save_adapter(model, bench.folder / "adapter")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        bench.folder / "hf", dtype=torch.float64, attn_implementation="eager"
    )
    peer = peft.PeftModel.from_pretrained(peer, bench.folder / "adapter", is_trainable=True).double().eval()
    loss_of_peer(peer, bench.tokens, bench.targets).backward()
    expected = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
    model.loss(bench.tokens, bench.targets).backward()
    found = {
        f"base_model.model.{name.removesuffix('.weight')}.default.weight": g for name, g in gradients_of(model).items()
    }
    error = largest(found, expected)
    wanted = bench.peer_logits(bench.tokens, peer)
    again = LLaMAModel.from_pretrained(bench.folder / "hf")
    load_adapter(again, bench.folder / "adapter")
    merge(model)
    for other in (again, model):
        error = max(error, relative_error(bench.logits(bench.tokens, other), wanted))
    return figure(error)


def saved(bench: Bench) -> str:
    """What save_pretrained writes is the same model in transformers, and here to the bit."""
    import torch
    import transformers

    bench.model.save_pretrained(bench.folder / "saved")
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        bench.folder / "saved", dtype=torch.float64, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    again = LLaMAModel.from_pretrained(bench.folder / "saved")
    assert again.config == bench.model.config and again.remarks == [], again.remarks
    np.testing.assert_array_equal(bench.logits(bench.tokens, again), bench.logits(bench.tokens))
    return figure(relative_error(bench.peer_logits(bench.tokens, peer.eval()), bench.peer_logits(bench.tokens)))


def llama_cpp(bench: Bench) -> str:
    """The F32 file gives the same 64 greedy tokens in llama.cpp, or the first that differs is a near tie there."""
    prompt = bench.tokens[0, : bench.case.length].tolist()
    found = bench.model.generate(prompt, max_new_tokens=GREEDY, temperature=0.0, stop=())
    with LlamaCpp(bench.gguf, context=bench.case.context) as peer:
        for index, token in enumerate(found):
            scores = peer.log_probabilities(prompt + found[:index], VOCABULARY)
            if int(np.argmax(scores)) != token:
                gap = float(scores.max() - scores[token])
                assert gap < NEAR_TIE, f"token {index} is {token}, {gap:.1e} below llama.cpp's best"
                return f"{index} tokens, tie {gap:.0e}"
    return f"{len(found)} tokens"


def round_trip(bench: Bench) -> str:
    """The F32 file gives the same logits to the bit here."""
    again = LLaMAModel.from_pretrained(bench.gguf)
    np.testing.assert_array_equal(bench.logits(bench.tokens, again), bench.logits(bench.tokens))
    return "equal"


def gguf_adapter(bench: Bench) -> str:
    """A GGUF adapter of every linear, with two ranks, gives llama.cpp our probabilities over the untouched F32 file."""
    model = LLaMAModel.from_pretrained(bench.gguf)
    LoRAConfig(rank=3, alpha=5.0, target_modules="all-linear", rank_pattern={"o_proj": 2}).apply(model)
    rng = np.random.default_rng(4)
    for name, weight in model.trainable_parameters():
        if "lora_B" in name:
            weight.numpy()[...] = rng.standard_normal(weight.shape) * 0.03
    save_gguf_adapter(model, bench.folder / "adapter.gguf")
    again, error = LLaMAModel.from_pretrained(bench.gguf), 0.0
    load_gguf_adapter(again, bench.folder / "adapter.gguf")
    with LlamaCpp(bench.gguf, context=256, adapter=bench.folder / "adapter.gguf") as peer:
        for length in (1, bench.case.length):
            tokens = bench.tokens[:1, :length]
            expected = log_softmax(bench.logits(tokens, model)[0, -1])
            np.testing.assert_array_equal(bench.logits(tokens, again), bench.logits(tokens, model))
            assert np.abs(log_softmax(bench.logits(tokens)[0, -1]) - expected).max() > 0.1
            error = max(error, np.abs(peer.log_probabilities(tokens[0], VOCABULARY) - expected).max())
    gelu = FAMILIES[model.config.family].activation != "silu"  # llama.cpp has it from a table: 6e-3 without an adapter
    return figure(error, 2e-2 if gelu else AGREES)


CHECKS: dict[str, Callable[[Bench], str]] = {
    "logits": logits,
    "gradients": gradients,
    "packed": packed,
    "cache": cache,
    "checkpointing": checkpointing,
    "LoRA all-linear": lora,
    "saved -> transformers": saved,
    "GGUF in llama.cpp": llama_cpp,
    "GGUF round trip": round_trip,
    "GGUF adapter": gguf_adapter,
}
IN_GGUF = ("GGUF in llama.cpp", "GGUF round trip", "GGUF adapter")


def run(case: str, check: str) -> str:
    """The figure of a cell; AssertionError where the check fails."""
    if check in IN_GGUF and CASES[case].not_in_gguf:
        return f"none: {CASES[case].not_in_gguf}"
    return CHECKS[check](bench_of(case))


def table() -> tuple[str, int]:
    """The table as text, and the number of cells that fail."""
    rows, failures = [["family", *CHECKS]], []
    for case in CASES:
        cells = [case]
        for check in CHECKS:
            try:
                cells.append(run(case, check))
            except Exception as error:
                cells.append("FAILS")
                failures.append(f"{case}: {check}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        rows.append(cells)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *failures]), len(failures)


def main() -> int:
    """Print the table; 1 where a cell fails."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    text, failures = table()
    print(text)
    return min(failures, 1)

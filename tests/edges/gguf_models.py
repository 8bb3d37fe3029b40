"""A small sound GGUF model, changed in one place, read by entrenar and by llama.cpp (or by transformers)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.autograd import no_grad
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint

from ..models.builders import Arrays, random_arrays, small_config, write_gguf
from .harness import Verdict, judge
from .llama_cpp import LlamaCpp, log_softmax

VOCABULARY = 67
TOKENS = [chr(33 + index) for index in range(VOCABULARY - 3)] + ["<s>", "</s>", "<|pad|>"]
BOS, EOS = VOCABULARY - 3, VOCABULARY - 2
PROMPTS = ([5], [1, 5, 9, 33, 2, 44, 61, 7, 7, 12, 30], [(7 * i * i + 3) % 60 for i in range(40)])
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * (VOCABULARY - 3) + [3] * 3,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": BOS,
    "tokenizer.ggml.eos_token_id": EOS,
    "tokenizer.ggml.add_bos_token": True,
}
CONFIG = small_config(vocab_size=VOCABULARY)
FLOAT32 = 2e-5  # of a log-probability; the two agree to 1e-6, and another rotary base is off by 1


@functools.cache
def arrays() -> Arrays:
    """The weights of the sound model, large enough for every part to show in the logits."""
    return random_arrays(CONFIG, std=0.15)


def write_model(path: Path, metadata: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """The sound model with these keys set (or None: left out); `options` as of `builders.write_gguf`."""
    write_gguf(path, options.pop("config", CONFIG), options.pop("weights", arrays()),
               metadata=TOKENIZER | dict(metadata or {}), **options)  # fmt: skip
    return path


def our_log_probabilities(path: Path) -> np.ndarray:
    """log p(next token) after each of PROMPTS: (prompts, vocabulary)."""
    checkpoint = Checkpoint.open(path)
    checkpoint.check()
    model = LLaMAModel.from_pretrained(checkpoint)
    with no_grad():
        return np.stack([log_softmax(model(np.array([prompt])).numpy()[0, -1]) for prompt in PROMPTS])


def peers_log_probabilities(path: Path) -> np.ndarray:
    """The same by llama.cpp."""
    with LlamaCpp(path) as peer:
        return np.stack([peer.log_probabilities(prompt, VOCABULARY) for prompt in PROMPTS])


def transformers_log_probabilities(path: Path) -> np.ndarray:
    """The same by transformers' gguf reader, in float32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1].float().numpy() for prompt in PROMPTS]
    return np.stack([log_softmax(row) for row in logits])


def within(tolerance: float) -> Callable[[np.ndarray, np.ndarray], str | None]:
    """A comparison of log-probabilities: the largest difference."""

    def compare(found: np.ndarray, expected: np.ndarray) -> str | None:
        error = float(np.abs(found - expected).max())
        return None if error <= tolerance else f"log-probabilities differ by {error:.2e}, allowed {tolerance:.0e}"

    return compare


def compare_model(
    path: Path,
    names: list[str],
    *,
    tolerance: float = FLOAT32,
    peer: Callable[[Path], np.ndarray] = peers_log_probabilities,
    file: str | None = None,
) -> Verdict:
    """Equal next-token distributions, or a refusal that contains `names` and the name of `file` (else of `path`)."""
    return judge(
        lambda: our_log_probabilities(path),
        lambda: peer(path),
        names=[file or path.name, *names],
        folder=path.parent,
        difference=within(tolerance),
        compared=f"log-probabilities within {tolerance:.0e}",
    )

"""A LLaMA with LoRA written out in PyTorch float64, and the bases that the tests put under adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from entrenar.adapters.base import adapter_layers
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig

from ..models.builders import random_arrays, random_tokens, small_config, weights_of

BASES = ("fp32", "bf16", "int16", "nf4", "nf4 single", "q4_0", "q4_1")
IGNORED = -100


def gqa_config(layers: int = 4) -> LLaMAConfig:
    """Four decoder layers with grouped queries, whose linears can all become 4-bit."""
    return small_config(hidden_size=64, intermediate_size=128, num_hidden_layers=layers, vocab_size=97)


def base_weight(name: str, values: np.ndarray, base: str) -> Tensor | QuantizedTensor:
    """A matrix of a decoder layer in the format `base`, everything else in float32."""
    if base == "fp32" or ".layers." not in name or values.ndim == 1:
        return Tensor(values, requires_grad=True)
    if base == "bf16":
        return Tensor(values, dtype="bfloat16")
    weight_type, _, single = base.partition(" ")
    return QuantizedTensor.quantize(values, weight_type, double_quantization=not single)


def base_model(base: str = "fp32", config: LLaMAConfig | None = None, seed: int = 0) -> LLaMAModel:
    """A random model on this base."""
    config = config or gqa_config()
    arrays = random_arrays(config, seed)
    return LLaMAModel(config, weights=lambda name, shape: base_weight(name, arrays[name].reshape(shape), base))


def fill_adapters(model: LLaMAModel, seed: int = 1, scale: float = 0.05) -> None:
    """Give every B random values: a new one is zero and would hide the half of every mistake."""
    rng = np.random.default_rng(seed)
    for _, layer in adapter_layers(model):
        layer.lora_B.numpy()[...] = rng.standard_normal(layer.lora_B.shape) * scale


def lora_model(base: str = "fp32", config: LLaMAConfig | None = None, **lora: Any) -> LLaMAModel:
    """A model with adapters that change its answers."""
    model = base_model(base, config)
    model.to_lora(LoRAConfig(**({"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]} | lora)))
    fill_adapters(model)
    return model


def batch(config: LLaMAConfig, rows: int = 2, length: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and targets of which some are ignored."""
    tokens = random_tokens(config, rows, length, seed=3)
    targets = random_tokens(config, rows, length, seed=4)
    targets[0, :4] = IGNORED
    return tokens, targets


def logits_of(model: LLaMAModel, tokens: np.ndarray) -> np.ndarray:
    return model(tokens).numpy().copy()


class TorchLLaMA:
    """The same model in float64: weights are constants, adapters take gradients."""

    def __init__(self, model: LLaMAModel) -> None:
        import torch

        self.config = model.config
        arrays = weights_of(model)
        self.weights = {name: torch.from_numpy(a.astype(np.float64)) for name, a in arrays.items()}
        for name, weight in self.weights.items():
            weight.requires_grad_(".lora_" in name)
        assert model.adapter_config is not None
        lora = model.adapter_config
        self.scaling = lora.alpha / (lora.rank**0.5 if lora.use_rslora else lora.rank)

    def linear(self, x: Any, name: str) -> Any:
        y = x @ self.weights[f"{name}.weight"].T
        if f"{name}.lora_A.weight" not in self.weights:
            return y
        a, b = self.weights[f"{name}.lora_A.weight"], self.weights[f"{name}.lora_B.weight"]
        return y + self.scaling * ((x @ a.T) @ b.T)

    def norm(self, x: Any, name: str) -> Any:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.weights[f"{name}.weight"]

    def rotate(self, x: Any) -> Any:
        """Half-split rotary embedding of (batch, heads, length, head size)."""
        import torch

        half = x.shape[-1] // 2
        frequencies = self.config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attention(self, x: Any, prefix: str) -> Any:
        import torch

        batch, length, _ = x.shape
        heads, kv_heads = self.config.num_attention_heads, self.config.kv_heads

        def split(name: str, count: int) -> Any:
            return self.linear(x, f"{prefix}.{name}").reshape(batch, length, count, -1).transpose(1, 2)

        q, k = self.rotate(split("q_proj", heads)), self.rotate(split("k_proj", kv_heads))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, split("v_proj", kv_heads)))
        scores = q @ k.transpose(-1, -2) / self.config.head_size**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.linear(out.transpose(1, 2).reshape(batch, length, -1), f"{prefix}.o_proj")

    def logits(self, tokens: np.ndarray) -> Any:
        import torch

        x = self.weights["model.embed_tokens.weight"][torch.from_numpy(tokens)]
        for i in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{i}"
            x = x + self.attention(self.norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn")
            h = self.norm(x, f"{prefix}.post_attention_layernorm")
            gate, up = self.linear(h, f"{prefix}.mlp.gate_proj"), self.linear(h, f"{prefix}.mlp.up_proj")
            x = x + self.linear(torch.nn.functional.silu(gate) * up, f"{prefix}.mlp.down_proj")
        head = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self.norm(x, "model.norm") @ self.weights[head].T

    def gradients(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, Mapping[str, np.ndarray]]:
        """The mean loss, and the gradient of every adapter matrix."""
        import torch

        logits = self.logits(tokens).reshape(-1, self.config.vocab_size)
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(targets).reshape(-1), ignore_index=IGNORED, reduction="mean"
        )
        loss.backward()
        return loss.item(), {name: w.grad.numpy() for name, w in self.weights.items() if w.grad is not None}

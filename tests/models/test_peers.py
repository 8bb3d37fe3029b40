"""The model against transformers on the same random weights: logits, every gradient, files both ways, generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from entrenar.llama import LLaMAModel
from entrenar.models.generate import sample

from .builders import gradients_of, random_tokens, relative_error, weights_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

BASE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "head size 48": {"hidden_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
    "head size 10": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3},
    "head size 6, nine heads": {"hidden_size": 54, "num_attention_heads": 9, "num_key_value_heads": 3},
    "head size of its own": {"head_dim": 40, "num_key_value_heads": 1},
    "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "odd sizes": {"vocab_size": 7, "hidden_size": 34, "intermediate_size": 5, "num_attention_heads": 17,
                  "num_key_value_heads": 17},
    "coarse eps": {"rms_norm_eps": 0.1},
    "large theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "llama3 scaling": {"rope_parameters": LLAMA3, "head_dim": 32},
    "mistral": {"type": "mistral", "sliding_window": None, "head_dim": 24},
}  # fmt: skip


def peer_model(seed: int = 0, std: float = 0.15, **changes: Any) -> Any:
    """A transformers model whose weights, norms included, are random."""
    options = BASE | changes
    if options.pop("type", "llama") == "mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**options))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim == 2 else 1 + noise)
    return model.eval()


def peer_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def loaded(model: Any, directory: Path, **options: Any) -> LLaMAModel:
    model.save_pretrained(directory, **options)
    return LLaMAModel.from_pretrained(directory)


# ---------------------------------------------------------------------- logits
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_logits_agree_with_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    peer = peer_model(**changes)
    ours = loaded(peer, tmp_path)
    assert ours.config.num_parameters() == peer.num_parameters()
    tokens = random_tokens(ours.config, 2, 70)
    expected = peer_logits(peer, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours(tokens).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_mean_the_same_here(dtype: str, tmp_path: Path) -> None:
    ours = loaded(peer_model().to(getattr(torch, dtype)), tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    assert {str(array.dtype) for array in stored.values()} == {dtype}
    tokens = random_tokens(ours.config, 1, 40)
    np.testing.assert_allclose(ours(tokens).numpy(), peer_logits(peer, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_that_transformers_wrote_load(tied: bool, tmp_path: Path) -> None:
    peer = peer_model(tie_word_embeddings=tied)
    ours = loaded(peer, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    tokens = random_tokens(ours.config, 1, 40)
    np.testing.assert_allclose(ours(tokens).numpy(), peer_logits(peer, tokens), rtol=0, atol=1e-4)


def test_positions_and_packing_agree_with_transformers(tmp_path: Path) -> None:
    peer = peer_model()
    ours = loaded(peer, tmp_path)
    tokens = random_tokens(ours.config, 1, 24)
    positions = np.concatenate([np.arange(9), np.arange(15)])[None]
    parts = [peer_logits(peer, part) for part in (tokens[:, :9], tokens[:, 9:])]
    packed = ours(tokens, positions=positions, cu_seqlens=np.array([0, 9, 24], np.int32)).numpy()
    np.testing.assert_allclose(packed, np.concatenate(parts, axis=1), rtol=0, atol=1e-4)
    shifted = np.arange(7, 31)[None] * 2
    with torch.no_grad():
        expected = peer(torch.from_numpy(tokens), position_ids=torch.from_numpy(shifted)).logits.numpy()
    np.testing.assert_allclose(ours(tokens, positions=shifted).numpy(), expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- gradients
@pytest.mark.gradient
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "head_dim": 48},
        {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
        {"vocab_size": 9, "pad_token_id": 3},
        {"vocab_size": 9, "pad_token_id": -1, "tie_word_embeddings": True},
    ],
    ids=["grouped", "tied, head size 48", "odd sizes, llama3 scaling", "padding row", "padding row from the end, tied"],
)
def test_every_gradient_of_four_layers_agrees_with_float64(changes: dict[str, Any], tier: str, tmp_path: Path) -> None:
    peer = peer_model(num_hidden_layers=4, attn_implementation="eager", **changes)
    ours = loaded(peer, tmp_path)
    tokens = random_tokens(ours.config, 2, 61)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, :10] = targets[1, 40:] = -100
    exact = peer.double()
    logits = exact(torch.from_numpy(inputs)).logits
    assert logits.dtype == torch.float64
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    our_loss = ours.loss(inputs, targets)
    our_loss.backward()
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: parameter.grad.numpy() for name, parameter in exact.named_parameters()}
    errors = {name: relative_error(gradient, expected[name]) for name, gradient in gradients_of(ours).items()}
    assert errors.keys() == expected.keys()
    worst = max(errors, key=errors.__getitem__)
    print(f"{len(errors)} gradients, worst {errors[worst]:.1e} in {worst}")
    assert errors[worst] < 1e-4, worst


# ---------------------------------------------------------------------- files for transformers
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {"max_shard_bytes": 50_000}),
        ({"head_dim": 40, "rope_parameters": LLAMA3}, {"max_shard_bytes": 50_000}),
        ({"rms_norm_eps": 0.01}, {"dtype": "bfloat16"}),
    ],
    ids=["one file", "tied, sharded", "llama3, sharded", "bfloat16"],
)
def test_transformers_loads_what_we_save(changes: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    ours = loaded(peer_model(**changes), tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", **options)
    back, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(back) is transformers.LlamaForCausalLM
    assert str(back.dtype) == f"torch.{options.get('dtype', 'float32')}"
    tokens = random_tokens(ours.config, 1, 50)
    if "dtype" in options:
        for weight in dict(ours.named_parameters()).values():
            weight.numpy()[...] = weight.numpy().astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(peer_logits(back.float(), tokens), ours(tokens).numpy(), rtol=0, atol=1e-4)


def test_a_four_bit_model_is_saved_as_what_it_computes_with(tmp_path: Path) -> None:
    peer_model().save_pretrained(tmp_path / "theirs")
    ours = LLaMAModel.from_pretrained(tmp_path / "theirs", quantize="int4")
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, parameter in back.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), weights_of(ours)[name])
    tokens = random_tokens(ours.config, 1, 50)
    np.testing.assert_allclose(peer_logits(back, tokens), ours(tokens).numpy(), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- generation
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "head_dim": 48}, {"type": "mistral"}])
def test_greedy_generation_is_that_of_transformers_token_for_token(changes: dict[str, Any], tmp_path: Path) -> None:
    if changes.get("type") == "mistral":
        changes = changes | {"sliding_window": None}
    peer = peer_model(std=0.3, **changes)
    ours = loaded(peer, tmp_path)
    for length in (1, 9):
        prompt = random_tokens(ours.config, 1, length, seed=length)
        with torch.no_grad():
            expected = peer.generate(torch.from_numpy(prompt), do_sample=False, max_new_tokens=40, use_cache=True)
        continued = ours.generate(prompt[0], max_new_tokens=40)
        assert continued == expected[0, length:].tolist()
        assert len(set(continued)) > 5


class Recorder:
    """A random generator that keeps what it is asked to choose from."""

    def choice(self, tokens: np.ndarray, p: np.ndarray) -> int:
        self.tokens, self.p = tokens, p
        return int(tokens[0])


def distribution(logits: np.ndarray, **options: Any) -> np.ndarray:
    """The probabilities from which `sample` draws."""
    recorder: Any = Recorder()
    sample(logits, recorder, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options))
    full = np.zeros(len(logits))
    full[recorder.tokens] = recorder.p
    return full


WARPERS: list[tuple[dict[str, Any], Callable[[], list[Any]]]] = [
    ({"temperature": 0.7}, lambda: [transformers.TemperatureLogitsWarper(0.7)]),
    ({"temperature": 3.0}, lambda: [transformers.TemperatureLogitsWarper(3.0)]),
    ({"top_k": 7}, lambda: [transformers.TopKLogitsWarper(7)]),
    ({"top_p": 0.6}, lambda: [transformers.TopPLogitsWarper(0.6)]),
    ({"top_p": 0.01}, lambda: [transformers.TopPLogitsWarper(0.01)]),
    (
        {"temperature": 1.7, "top_k": 20, "top_p": 0.8},
        lambda: [
            transformers.TemperatureLogitsWarper(1.7),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.8),
        ],
    ),
]


@pytest.mark.parametrize(("options", "warpers"), WARPERS, ids=[str(options) for options, _ in WARPERS])
def test_sampling_draws_from_the_distribution_of_transformers(
    options: dict[str, Any], warpers: Callable[[], list[Any]]
) -> None:
    for seed in range(5):
        logits = (3 * np.random.default_rng(seed).standard_normal(101)).astype(np.float32)
        scores = torch.from_numpy(logits)[None]
        for warper in warpers():
            scores = warper(None, scores)
        expected = torch.softmax(scores.double(), -1)[0].numpy()
        actual = distribution(logits, **options)
        assert ((actual > 0) == (expected > 0)).all()
        np.testing.assert_allclose(actual, expected, atol=1e-6)

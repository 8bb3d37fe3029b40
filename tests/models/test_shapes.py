"""What follows from the module tree: the shapes of weights and linears, what forward saves; nothing is allocated."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from entrenar.autograd import memory_stats, reset_peak_memory
from entrenar.llama import LLaMAConfig
from entrenar.models.decoder import Activations, activations, linear_shapes, weight_shapes

from .builders import random_model, small_config

pytestmark = pytest.mark.unit


def test_the_shapes_are_those_of_a_model_of_the_configuration() -> None:
    for changes in ({}, {"tie_word_embeddings": True}, {"head_dim": 24}, {"family": "qwen2"}, {"family": "qwen3"}):
        model = random_model(small_config(**changes))
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        assert list(weight_shapes(model.config).items()) == list(shapes.items())


def test_the_linears_are_those_of_the_decoder_layers() -> None:
    config = small_config(num_hidden_layers=1, head_dim=24)
    assert linear_shapes(config) == {
        "model.layers.0.self_attn.q_proj": (96, 64),
        "model.layers.0.self_attn.k_proj": (48, 64),
        "model.layers.0.self_attn.v_proj": (48, 64),
        "model.layers.0.self_attn.o_proj": (64, 96),
        "model.layers.0.mlp.gate_proj": (96, 64),
        "model.layers.0.mlp.up_proj": (96, 64),
        "model.layers.0.mlp.down_proj": (64, 96),
    }


def test_a_layer_saves_the_inputs_of_what_backward_reads() -> None:
    """Two residual inputs with the scale of a norm each; q, k, v, the output and a sum a head; gate and up."""
    config = small_config()
    layer = 2 * (64 + 1) + (64 + 32 + 32 + 64 + 4) + 2 * 96
    expected = Activations(hidden=64, layer=layer, backward=3 * 96, widest=96, logits=config.vocab_size)
    assert activations(config) == expected == activations(replace(config, tie_word_embeddings=True))


def test_normalised_heads_save_what_they_were_before() -> None:
    plain = activations(small_config()).layer
    assert activations(small_config(family="qwen3")).layer == plain + 6 * (16 + 1)  # four heads of q and two of k
    assert activations(small_config(family="qwen2")).layer == plain


def test_the_shapes_of_the_largest_model_take_little_memory() -> None:
    config = LLaMAConfig(num_hidden_layers=10_000, hidden_size=8192, num_attention_heads=64)
    tracemalloc.start()
    assert len(weight_shapes(config)) == 90_003
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_a_tree_that_is_asked_for_its_shapes_allocates_no_tensor() -> None:
    config = small_config(head_dim=1 << 20)
    reset_peak_memory()
    before = memory_stats()["peak"]
    assert len(weight_shapes(config)) == len(config.parameter_shapes())
    assert activations(config).layer > 1 << 20
    assert memory_stats()["peak"] == before

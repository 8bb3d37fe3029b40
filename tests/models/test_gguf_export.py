"""Models written as GGUF files: read back by entrenar, by llama.cpp and by the gguf library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.autograd import no_grad
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models.checkpoint import Checkpoint
from tests.edges.gguf_models import PROMPTS, TOKENIZER, VOCABULARY, peers_log_probabilities
from tests.edges.llama_cpp import log_softmax

from .builders import assert_same, random_model, random_tokens, small_config, weights_of, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, odd sizes": {
        "tie_word_embeddings": True,
        "intermediate_size": 99,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 66,
        "head_dim": 10,
    },
    "llama, llama3 scaling": {"rope_scaling": LLAMA3, "head_dim": 32},
    "llama, linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 5e5},
    "mistral": {"family": "mistral", "hidden_size": 60, "head_dim": 16},
    "qwen2, tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "head_dim": 24},
}
every_shape = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())


def config_of(changes: dict[str, Any]) -> LLaMAConfig:
    return small_config(vocab_size=VOCABULARY, **changes)


@pytest.mark.unit
@every_shape
def test_a_model_that_is_loaded_back_has_the_bits_of_its_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(config_of(changes))
    written = model.save_gguf(tmp_path / "x.gguf", tokenizer=TOKENIZER)
    assert set(written.types.values()) == {"F32"}
    back = LLaMAModel.from_pretrained(tmp_path / "x.gguf")
    assert back.remarks == []
    assert_same(weights_of(back), weights_of(model))
    tokens = random_tokens(model.config, 2, 40)
    assert back(tokens).numpy().tobytes() == model(tokens).numpy().tobytes()
    model.save_gguf(tmp_path / "y.gguf", tokenizer=TOKENIZER)
    back.save_gguf(tmp_path / "z.gguf")
    first = (tmp_path / "x.gguf").read_bytes()
    assert first == (tmp_path / "y.gguf").read_bytes() == (tmp_path / "z.gguf").read_bytes()


@pytest.mark.peers
@every_shape
def test_llama_cpp_computes_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = random_model(config_of(changes), std=0.15)
    model.save_gguf(tmp_path / "x.gguf", tokenizer=TOKENIZER)
    with no_grad():
        ours = [log_softmax(model(np.array([prompt])).numpy()[0, -1]) for prompt in PROMPTS]
    np.testing.assert_allclose(ours, peers_log_probabilities(tmp_path / "x.gguf"), rtol=0, atol=2e-5)


@pytest.mark.unit
def test_the_library_reads_names_shapes_and_metadata(tmp_path: Path) -> None:
    model = random_model(config_of({}))
    model.save_gguf(tmp_path / "x.gguf", tokenizer=TOKENIZER)
    write_gguf(tmp_path / "theirs.gguf", model.config, weights_of(model), metadata=TOKENIZER)
    ours, theirs = gguf.GGUFReader(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "theirs.gguf")
    found = {tensor.name: tensor.data for tensor in ours.tensors}
    assert_same(found, {tensor.name: tensor.data for tensor in theirs.tensors})
    assert {tensor.name: [*tensor.shape] for tensor in ours.tensors} == {t.name: [*t.shape] for t in theirs.tensors}
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.fields[name].contents() == field.contents(), name
            assert ours.fields[name].types == field.types, name


@pytest.mark.unit
def test_a_tokenizer_becomes_metadata_and_its_vocabulary_is_filled(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"], vocab_size=265)
    model = random_model(small_config(vocab_size=270))
    assert not [
        remark for remark in model.save_gguf(tmp_path / "x.gguf", tokenizer=tokenizer).remarks if "token" in remark
    ]
    checkpoint = Checkpoint.open(tmp_path / "x.gguf")
    assert checkpoint.metadata is not None
    tokens = checkpoint.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 270 and tokens[-1] == "[PAD269]"
    text = "to be<|im_end|>"
    assert checkpoint.tokenizer().encode(text) == tokenizer.encode(text)
    model.save_pretrained(tmp_path / "hf", tokenizer=tokenizer)
    LLaMAModel.from_pretrained(tmp_path / "hf").save_gguf(tmp_path / "y.gguf")
    again = Checkpoint.open(tmp_path / "y.gguf")
    assert again.metadata is not None
    kept = {key: value for key, value in checkpoint.metadata.items() if key.startswith("tokenizer.")}
    assert {key: value for key, value in again.metadata.items() if key.startswith("tokenizer.")} == kept
    assert again.metadata["general.name"] == "hf"
    with pytest.raises(FormatError, match=r"The tokenizer has \d+ tokens, and the model's embedding 66 rows"):
        random_model(small_config(vocab_size=66)).save_gguf(tmp_path / "z.gguf", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.tokens has 67 entries, and the model's embedding 66 rows;"):
        random_model(small_config(vocab_size=66)).save_gguf(tmp_path / "z.gguf", tokenizer=TOKENIZER)
    assert not (tmp_path / "z.gguf").exists()


@pytest.mark.unit
def test_every_end_token_of_a_directory_ends_a_generation_from_the_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"], vocab_size=265)
    random_model(small_config(vocab_size=270)).save_pretrained(tmp_path / "hf", tokenizer=tokenizer)
    table = {"eos_token_id": [tokenizer.eos_id, tokenizer.id("o"), tokenizer.id("n")]}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(table))
    LLaMAModel.from_pretrained(tmp_path / "hf").save_gguf(tmp_path / "x.gguf")
    ends = Checkpoint.open(tmp_path / "x.gguf").origin.generation.end_tokens
    assert set(table["eos_token_id"]) <= set(ends) and ends[0] == tokenizer.eos_id


@pytest.mark.unit
def test_a_tokenizer_that_no_file_can_hold_is_named_with_its_place(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"], vocab_size=265)
    random_model(small_config(vocab_size=270)).save_pretrained(tmp_path / "hf", tokenizer=tokenizer)
    table = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    table["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(table))
    model = LLaMAModel.from_pretrained(tmp_path / "hf")
    with pytest.raises(FormatError, match=r"hf: A GGUF file cannot hold this tokenizer: it puts a space before"):
        model.save_gguf(tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.unit
def test_without_a_tokenizer_the_file_says_so(tmp_path: Path) -> None:
    (sentence, _) = random_model().save_gguf(tmp_path / "x.gguf").remarks
    assert sentence == "The model comes without a tokenizer, and the file has none: programs cannot give it text."
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["tokenizer.ggml.model"].contents() == "no_vocab"
    LLaMAModel.from_pretrained(tmp_path / "x.gguf")


@pytest.mark.unit
def test_a_place_that_is_gone_is_said(tmp_path: Path) -> None:
    random_model(config_of({})).save_gguf(tmp_path / "x.gguf", tokenizer=TOKENIZER)
    model = LLaMAModel.from_pretrained(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(ConfigError, match=r"x.gguf: is gone, and the model's tokenizer came from it; pass save_gguf"):
        model.save_gguf(tmp_path / "y.gguf")
    model.save_gguf(tmp_path / "y.gguf", tokenizer=TOKENIZER)


@pytest.mark.unit
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = random_model()
    path = tmp_path / "x.gguf"
    with pytest.raises(ConfigError, match="type='F33' is unknown; did you mean 'F32'"):
        model.save_gguf(path, type="F33")
    with pytest.raises(ConfigError, match=r"model.rope_scaling is llama3, and GGUF files of the architecture 'qwen2'"):
        random_model(small_config(family="qwen2", rope_scaling=LLAMA3)).save_gguf(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="folder: is a folder; expected a file to write"):
        model.save_gguf(tmp_path / "folder")
    model.to_lora(LoRAConfig(rank=2))
    with pytest.raises(ConfigError, match=r"has LoRA adapters \(model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight"):
        model.save_gguf(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]

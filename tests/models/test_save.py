"""What a saved directory holds beside the weights: configuration, how the model generates, the tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, merge
from tests.train.builders import write_model

from .builders import hf_table, random_arrays, random_model, random_tokens, small_config, write_gguf, write_hf

MESSAGES = [{"role": "user", "content": "What is 2 plus 3?"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def merged(source: Path, target: Path) -> LLaMAModel:
    """The model of `source` with an adapter of ones merged into it, saved to `target`."""
    model = LLaMAModel.from_pretrained(source)
    model.to_lora(LoRAConfig(rank=2))
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] = 0.01
    merge(model)
    model.save_pretrained(target)
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a tokenizer, a template and a generation_config.json."""
    folder = write_model(tmp_path / "source")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 5], "temperature": 0.6, "do_sample": true}')
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"eos_token_id": [0, 5, 7], "pad_token_id": 3, "mine": 1}))
    return folder


@pytest.mark.unit
def test_a_merged_model_is_whole(source: Path, tmp_path: Path) -> None:
    model = merged(source, tmp_path / "merged")
    tokens = random_tokens(model.config, 1, 12)
    again = LLaMAModel.from_pretrained(tmp_path / "merged")
    np.testing.assert_array_equal(again(tokens).numpy(), model(tokens).numpy())
    ours, theirs = Tokenizer.from_directory(tmp_path / "merged"), Tokenizer.from_directory(source)
    assert ours.apply_chat_template(MESSAGES) == theirs.apply_chat_template(MESSAGES)
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == [0, 5]
    table = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (table["eos_token_id"], table["pad_token_id"], table["mine"]) == ([0, 5, 7], 3, 1)
    assert again.config == model.config


@pytest.mark.unit
def test_end_tokens_of_config_json_alone_are_kept_in_both_files(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").unlink()
    merged(source, tmp_path / "merged")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "merged" / file).read_text())["eos_token_id"] == [0, 5, 7], file
    assert LLaMAModel.from_pretrained(tmp_path / "merged").generation.end_tokens == (0, 5, 7)


@pytest.mark.unit
def test_a_model_saved_over_the_directory_it_came_from_keeps_its_tokenizer(source: Path) -> None:
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    before = {file: (source / file).read_bytes() for file in files}
    LLaMAModel.from_pretrained(source).save_pretrained(source, dtype="bfloat16")
    assert {file: (source / file).read_bytes() for file in files} == before
    assert LLaMAModel.from_pretrained(source).generation.end_tokens == (0, 5)


@pytest.mark.unit
def test_a_model_from_a_gguf_file_brings_the_tokenizer_of_the_file(tmp_path: Path) -> None:
    config = replace(small_config(), vocab_size=6)
    tokens = ["<s>", "</s>", "a", "b", "ab", "Ġ"]
    vocabulary = {
        "llama.vocab_size": 6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    write_gguf(tmp_path / "m.gguf", config, random_arrays(config), metadata=vocabulary)
    model = LLaMAModel.from_pretrained(tmp_path / "m.gguf")
    model.save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_directory(tmp_path / "saved").encode("abba") == [4, 3, 2]
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == 1
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(ConfigError, match=r"m\.gguf: is gone, and the model's tokenizer came from it; pass save_pretr"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    model.save_pretrained(tmp_path / "given", tokenizer=Tokenizer.from_directory(tmp_path / "saved"))
    assert Tokenizer.from_directory(tmp_path / "given").encode("abba") == [4, 3, 2]


@pytest.mark.unit
def test_a_model_from_a_gguf_file_ends_where_llama_cpp_ends_it(tmp_path: Path) -> None:
    """At the end of a turn too, which it knows by its text; the directory that is saved says so to transformers."""
    config = replace(small_config(), vocab_size=6)
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["<|begin_of_text|>", "<|end_of_text|>", "a", "<|eot_id|>", "aa", "<|eom_id|>"],
        "tokenizer.ggml.token_type": [3, 3, 1, 3, 1, 3],
        "tokenizer.ggml.merges": ["a a"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eom_token_id": 5,
    }
    write_gguf(tmp_path / "m.gguf", config, random_arrays(config), metadata=vocabulary)
    model = LLaMAModel.from_pretrained(tmp_path / "m.gguf")
    assert set(model.generation.end_tokens) == {1, 3, 5} and model.generation.end_tokens[0] == 1
    model.save_pretrained(tmp_path / "saved")
    again = LLaMAModel.from_pretrained(tmp_path / "saved")
    assert again.generation.end_tokens == model.generation.end_tokens
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 1
    broken = vocabulary | {"tokenizer.ggml.tokens": ["a"] * 6}  # whoever uses the tokenizer is told
    write_gguf(tmp_path / "m.gguf", config, random_arrays(config), metadata=broken)
    assert LLaMAModel.from_pretrained(tmp_path / "m.gguf").generation.end_tokens == (1,)


@pytest.mark.unit
def test_a_tokenizer_that_is_given_comes_before_the_one_of_the_source(source: Path, tmp_path: Path) -> None:
    given = Tokenizer.train(["aa bb aa bb"], 262)
    LLaMAModel.from_pretrained(source).save_pretrained(tmp_path / "saved", tokenizer=given)
    assert Tokenizer.from_directory(tmp_path / "saved").vocab_size == given.vocab_size
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()


@pytest.mark.unit
def test_a_shape_that_llama_refuses_is_saved_as_a_mistral_without_a_window(tmp_path: Path) -> None:
    config = small_config(num_attention_heads=5, num_key_value_heads=5, head_dim=16)
    table = hf_table(config) | {"model_type": "mistral", "sliding_window": None}
    write_hf(tmp_path / "m", config, random_arrays(config))
    (tmp_path / "m" / "config.json").write_text(json.dumps(table))
    LLaMAModel.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["sliding_window"]) == ("mistral", None)
    assert LLaMAModel.from_pretrained(tmp_path / "saved").config == replace(config, rms_norm_eps=saved["rms_norm_eps"])


@pytest.mark.unit
def test_a_tokenizer_without_tokenizer_json_takes_the_place_of_another(source: Path, tmp_path: Path) -> None:
    model = LLaMAModel.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved")
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").exists()
    assert not (tmp_path / "saved" / "tokenizer.json").exists()


@pytest.mark.peers
def test_a_mistral_stays_one_by_which_transformers_chooses_its_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import tokenizers
    from tokenizers import models, normalizers

    config = small_config()
    write_hf(tmp_path / "m", config, random_arrays(config))
    table = hf_table(config) | {"model_type": "mistral", "sliding_window": None, "attention_dropout": 0.25}
    (tmp_path / "m" / "config.json").write_text(json.dumps(table))
    letters = {letter: i for i, letter in enumerate(("<unk>", "<s>", "</s>", "a", "A", "▁"))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()  # which LlamaTokenizer would leave aside
    backend.save(str(tmp_path / "m" / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizerFast"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(names))
    LLaMAModel.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "saved")
    for folder in ("m", "saved"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert theirs("aA", add_special_tokens=False).input_ids == [3, 3]
        assert Tokenizer.from_directory(tmp_path / folder).encode("aA") == [3, 3]
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["sliding_window"], saved["attention_dropout"]) == ("mistral", None, 0.25)


@pytest.mark.peers
def test_transformers_loads_a_merged_model_its_tokenizer_and_its_template(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = merged(source, tmp_path / "merged")
    shutil.rmtree(source)  # nothing of it is needed
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    ours = Tokenizer.from_directory(tmp_path / "merged")
    assert list(ids) == ours.apply_chat_template(MESSAGES, add_generation_prompt=True)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert peer.generation_config.eos_token_id == [0, 5]
    assert peer.config.eos_token_id == [0, 5, 7]
    tokens = np.array([ids])
    with torch.no_grad():
        logits = peer(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(model(tokens).numpy(), logits, atol=1e-4 * np.abs(logits).max())


@pytest.mark.unit
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_adapters_are_merged_as_the_weights_are_written(dtype: str, source: Path, tmp_path: Path) -> None:
    model = LLaMAModel.from_pretrained(source)
    model.to_lora(LoRAConfig(rank=2, target_modules=["all-linear"]))
    for number, (_, tensor) in enumerate(model.trainable_parameters()):
        tensor.numpy()[...] = 0.05 * np.random.default_rng(number).standard_normal(tensor.shape)
    said = model.save_pretrained(tmp_path / "merging", dtype=dtype, merge=True)
    rounding = [] if dtype == "float32" else [f"16 of 16 matrices are rounded to {dtype}."]
    assert said == [merge(model), *rounding]
    assert said[0] == "14 matrices are merged with their adapters in float32 (14 of float32)."
    assert model.save_pretrained(tmp_path / "merged", dtype=dtype) == rounding
    again = LLaMAModel.from_pretrained(tmp_path / "merged", dtype="auto")
    assert again.save_pretrained(tmp_path / "again", dtype=dtype) == []
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merging", "merged")]
    assert written[0] == written[1]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.unit
def test_a_weight_beyond_float16_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = random_model()
    dict(model.named_parameters())["model.norm.weight"].numpy()[3] = 65520
    message = r"The tensor model.norm.weight is 65520 at \[3\], beyond the largest number of float16; choose float32"
    with pytest.raises(FormatError, match=message):
        model.save_pretrained(tmp_path / "a", dtype="float16")
    assert not list(tmp_path.iterdir())
    dict(model.named_parameters())["model.norm.weight"].numpy()[3] = 65519
    model.save_pretrained(tmp_path / "a", dtype="float16")
    found = LLaMAModel.from_pretrained(tmp_path / "a")
    assert found.model.norm.weight.numpy()[3] == 65504


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_reads_16_bits(dtype: str, source: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    LLaMAModel.from_pretrained(source).save_pretrained(tmp_path / "half", dtype=dtype)
    ours = LLaMAModel.from_pretrained(tmp_path / "half")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert theirs.dtype == getattr(torch, dtype)
    tokens = random_tokens(ours.config, 1, 20)
    with torch.no_grad():
        expected = theirs.float()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours(tokens).numpy(), expected, rtol=0, atol=1e-4)

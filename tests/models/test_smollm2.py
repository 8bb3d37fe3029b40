"""The real SmolLM2-135M-Instruct: logits, loss and tokens of transformers, its own 4-bit values, lean loading."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.autograd import QuantizedTensor, Tensor, no_grad
from entrenar.io.hub import fetch_default_model
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint

pytestmark = pytest.mark.model

SENTENCE = "The capital of France is Paris, which lies on the river Seine. The quick brown fox jumps over the lazy dog."
MEAN_LOSS = 2.29159  # of transformers on SENTENCE


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(fetch_default_model(progress=False))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> LLaMAModel:
    return LLaMAModel.from_pretrained(checkpoint, quantize="auto")


@pytest.fixture(scope="module")
def tokens(checkpoint: Checkpoint) -> np.ndarray:
    return np.array([checkpoint.tokenizer().encode(SENTENCE)])


@pytest.fixture(scope="module")
def reader(checkpoint: Checkpoint) -> gguf.GGUFReader:
    """The file through the gguf library."""
    return gguf.GGUFReader(checkpoint.path)


@pytest.fixture(scope="module")
def parsed_once(reader: gguf.GGUFReader) -> Iterator[None]:
    """transformers parses the file and the table of names again and again: here it gets what was parsed before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda _: reader)
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        yield


@pytest.fixture(scope="module")
def peer(checkpoint: Checkpoint, parsed_once: None) -> Any:
    """transformers' own reading of the file, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(checkpoint.path.parent), gguf_file=checkpoint.path.name, dtype=torch.float32
    )
    return loaded.eval()


def logits_of(model: LLaMAModel, tokens: np.ndarray) -> np.ndarray:
    with no_grad():
        return model(tokens).numpy()


def mean_loss(model: LLaMAModel, tokens: np.ndarray) -> float:
    with no_grad():
        return model.loss(tokens[:, :-1], tokens[:, 1:]).item()


def test_the_shape_is_that_of_the_published_model(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    assert config.num_parameters() == 134_515_008
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (576, 30, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.rope_theta, config.tie_word_embeddings) == (49152, 1e5, True)


def test_the_mean_loss_of_a_sentence_is_the_known_one(model: LLaMAModel, tokens: np.ndarray) -> None:
    assert mean_loss(model, tokens) == pytest.approx(MEAN_LOSS, abs=1e-4)


def test_greedy_continuation_makes_sense(model: LLaMAModel, checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    answer = model.generate(prompt, max_new_tokens=24, stop=(tokenizer.eos_id,))
    assert "Paris" in tokenizer.decode(answer)
    assert len(answer) < 24  # and the model says when it is done


def test_auto_keeps_the_files_own_values(model: LLaMAModel, reader: gguf.GGUFReader) -> None:
    stored = {tensor.name: tensor for tensor in reader.tensors}
    quantized = {n: w for n, w in model.named_parameters() if isinstance(w, QuantizedTensor)}
    embedding = quantized.pop("model.embed_tokens.weight")
    assert embedding.weight_type == "q8_0"
    assert embedding.quantized_values.tobytes() == stored["token_embd.weight"].data.tobytes()
    assert len(quantized) == 210
    assert {weight.weight_type for weight in quantized.values()} == {"q4_1"}
    assert model.unquantized == {}
    for layer in (0, 17, 29):
        for name, gguf_name in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
            held = quantized[f"model.layers.{layer}.{name}.weight"].quantized_values
            assert held.tobytes() == stored[f"blk.{layer}.{gguf_name}.weight"].data.tobytes()
        for name, gguf_name, heads in (("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)):
            rows = stored[f"blk.{layer}.{gguf_name}.weight"].data
            half_split = rows.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(rows.shape)
            held = quantized[f"model.layers.{layer}.self_attn.{name}.weight"].quantized_values
            assert held.tobytes() == half_split.tobytes()


@pytest.mark.peers
def test_logits_and_loss_agree_with_transformers(model: LLaMAModel, peer: Any, tokens: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        output = peer(torch.from_numpy(tokens), labels=torch.from_numpy(tokens))
    expected = output.logits.numpy()
    assert np.abs(expected).max() > 10
    np.testing.assert_allclose(logits_of(model, tokens), expected, rtol=0, atol=2e-3)
    assert mean_loss(model, tokens) == pytest.approx(output.loss.item(), abs=1e-4)
    assert output.loss.item() == pytest.approx(MEAN_LOSS, abs=1e-4)


@pytest.mark.peers
def test_a_full_precision_base_is_the_same_function(checkpoint: Checkpoint, peer: Any, tokens: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    full = LLaMAModel.from_pretrained(checkpoint)
    expected = {name: weight.detach().numpy() for name, weight in peer.named_parameters()}
    weights = dict(full.named_parameters())
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert isinstance(weight, Tensor)
        np.testing.assert_array_equal(weight.numpy(), expected[name], err_msg=name)
    with torch.no_grad():
        logits = peer(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits_of(full, tokens), logits, rtol=0, atol=2e-3)


@pytest.mark.peers
def test_token_ids_are_those_of_transformers(checkpoint: Checkpoint, parsed_once: None) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(checkpoint.path.parent), gguf_file=checkpoint.path.name)
    ours = checkpoint.tokenizer()
    texts = (
        SENTENCE,
        "",
        " ",
        "def f(x):\n    return x ** 2  # 1234567890\n\n\t\ttab",
        "Ünïcödé — 日本語 🎉 don't I'LL",
        "trailing spaces   \n\n\n",
    )
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


MEASURE = """
import json, sys
import gguf, numpy  # what loading imports is no part of what loading keeps
from entrenar.llama import LLaMAModel
from entrenar.models.checkpoint import Checkpoint

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

checkpoint = Checkpoint.open(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
before = status("VmRSS")
model = LLaMAModel.from_pretrained(checkpoint, quantize=sys.argv[2])
weights = sum(weight.nbytes for _, weight in model.named_parameters())
largest = max(4 * int(numpy.prod(shape)) for name, shape in checkpoint.config.parameter_shapes().items()
              if ".layers." in name)
print(json.dumps({"growth": status("VmHWM") - before, "weights": weights, "largest": largest,
                  "file": checkpoint.path.stat().st_size, "full": 4 * checkpoint.config.num_parameters()}))
"""


@pytest.mark.memory
@pytest.mark.parametrize("quantize", ["auto", "nf4"])
def test_loading_keeps_the_four_bit_model_and_at_most_one_tensor(quantize: str, checkpoint: Checkpoint) -> None:
    command = [sys.executable, "-c", MEASURE, str(checkpoint.path), quantize]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes = json.loads(result.stdout)
    slack = 48 << 20  # a piece of a tensor in float32 and what the allocator keeps
    # the file is mapped: its pages are resident while they are read, and the system takes them back when it likes
    bound = sizes["weights"] + sizes["largest"] + slack + (sizes["file"] if quantize == "nf4" else 0)
    assert sizes["growth"] < bound, sizes
    assert bound < 0.75 * sizes["full"]

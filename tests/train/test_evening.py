"""One evening: a model is fine-tuned over its GGUF file, and what comes out is served by llama.cpp and transformers.

Of SmolLM2's own 4-bit file, and of random models in the shape of other families. llama.cpp rounds what it multiplies by
a quantized matrix to 8 bits, so its logits are held against ours over the same values in F32; over the quantized file
its tokens must be ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.gguf import convert_adapter
from entrenar.autograd import no_grad
from entrenar.autograd.precision import matmul_precision
from entrenar.data import Example, encode_example, evaluation_batches
from entrenar.io.tokenizer_metadata import tokenizer_metadata
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, merge
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.families import FAMILIES
from entrenar.models.generation import Generation
from entrenar.models.gguf_layout import GGUFLayout
from entrenar.train.config import Training
from entrenar.train.evaluate import evaluate

from ..edges.llama_cpp import LlamaCpp, log_softmax
from ..smollm2 import checkpoint as smollm2
from .builders import config_for, quiet, write_model

pytestmark = [pytest.mark.model, pytest.mark.peers]
NEW, LENGTH = 64, 128
# Long enough for all tokens that are compared: those of a text that was learned are no near ties.
LEARNED = (
    "Numbers are names of amounts: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, "
    "thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty, and so on without end, since one "
    "can be added."
)
TRAINING = Training(steps=30, sequence_length=LENGTH, learning_rate=1e-3)
LORA = LoRAConfig(rank=8, target_modules=["all-linear"], use_rslora=True, rank_pattern={"k_proj": 4})
QUESTIONS = ("What is 3 plus 4?", "What is 6 plus 2?")
F32, GAP = 1e-3, 1e-2  # of log-probabilities; of logits, where two tokens are as good as equal
TYPES = ("F32", "Q8_0", "Q4_K_M")
MODELS: dict[str, dict[str, Any]] = {  # what the shape of a random model has beside its family's
    "smollm2": {},
    "qwen2": {},
    "gemma3_text": {"num_hidden_layers": 7, "sliding_window": 24, "tie_word_embeddings": True, "rope_theta": 1e6,
                    "rope_local_base_freq": 1e4},
}  # fmt: skip
GELU = 2e-2  # of log-probabilities: llama.cpp has GELU from a table in float16


@dataclass(frozen=True)
class Evening:
    """The base's GGUF file and the folder of the run that was trained over it."""

    base: Path
    folder: Path

    @property
    def quantize(self) -> str | None:
        """A file in F32 is trained over as it is; "auto" would make NF4 of it."""
        return "auto" if self.base == smollm2().path else None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.base)

    @property
    def tolerance(self) -> float:
        """Of log-probabilities in llama.cpp over an F32 file."""
        return GELU if FAMILIES[self.checkpoint.config.family].activation != "silu" else F32

    @property
    def adapter(self) -> Path:
        return self.folder / "run" / "adapter"

    def model(self) -> LLaMAModel:
        """The base in its file's own types, under the adapter."""
        model = self.plain()
        load_adapter(model, self.adapter)
        return model

    def plain(self) -> LLaMAModel:
        return LLaMAModel.from_pretrained(self.checkpoint, quantize=self.quantize)

    def merged(self) -> LLaMAModel:
        model = self.model()
        merge(model)
        return model

    def prompts(self) -> Iterator[list[int]]:
        for question in QUESTIONS:
            asked = [{"role": "user", "content": question}]
            yield self.checkpoint.tokenizer().apply_chat_template(asked, add_generation_prompt=True)

    def held_out_loss(self, model: LLaMAModel) -> float:
        examples = [Example(messages(8, b)) for b in range(4)]
        samples = [encode_example(example, self.checkpoint.tokenizer()) for example in examples]
        return evaluate(model, evaluation_batches(samples, 4, LENGTH)).loss


@pytest.fixture(scope="module", params=[*MODELS])
def evening(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evening:
    """30 steps of LoRA over the base's GGUF file."""
    pytest.importorskip("xllamacpp")
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "smollm2":
        base = smollm2().path
    else:
        directory, base = write_model(folder / "base", request.param, **MODELS[request.param]), folder / "base.gguf"
        model = LLaMAModel.from_pretrained(directory)
        tokenizer = Checkpoint.open(directory).tokenizer()
        model.save_gguf(base, tokenizer=tokenizer_metadata(tokenizer, model.config.vocab_size))
    data = folder / "examples.jsonl"
    data.write_text("".join(json.dumps({"messages": messages(a, b)}) + "\n" for a in range(8) for b in range(8)))
    evening = Evening(base, folder)
    options = {} if evening.quantize is None else {"quantize": evening.quantize}
    result, _ = quiet(base, config_for(data, folder / "run", TRAINING, adapter=LORA), **options)
    assert result.after is not None
    assert result.before is not None
    assert result.after.loss < result.before.loss
    return evening


def messages(a: int, b: int) -> list[dict[str, str]]:
    """A question and its answer."""
    answer = f"{a} plus {b} is {a + b}. {LEARNED}"
    return [{"role": "user", "content": f"What is {a} plus {b}?"}, {"role": "assistant", "content": answer}]


def logits(model: LLaMAModel, tokens: list[int]) -> np.ndarray:
    with no_grad(), matmul_precision("highest"):
        return model(np.array([tokens])).numpy()[0, -1].astype(np.float64)


def first_difference(found: list[int], expected: list[int]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)


def continued(evening: Evening, model: LLaMAModel, prompt: list[int]) -> list[int]:
    """Our own greedy tokens, without those that end a text: random models begin with one."""
    ends = (*evening.checkpoint.origin.generation.end_tokens, *evening.checkpoint.tokenizer().eos_ids)
    with matmul_precision("highest"):
        return model.generate(prompt, max_new_tokens=NEW, generation=Generation(suppress_tokens=ends))


def check_tokens(model: LLaMAModel, prompt: list[int], ours: list[int], theirs: list[int], gap: float) -> None:
    """The tokens are the same, or the logits of the first that differs are nearer than `gap`."""
    assert len(theirs) == len(ours) == NEW
    at = first_difference(theirs, ours)
    if at is None:
        return
    values = logits(model, [*prompt, *ours[:at]])
    found = values[ours[at]] - values[theirs[at]]
    print(f"token {at} of {len(ours)} differs, by a logit gap of {found:.2e} (allowed {gap:.2e})")
    assert found < gap


def test_the_adapter_on_the_base_in_llama_cpp(evening: Evening) -> None:
    """The untouched file under the GGUF adapter continues as we do; the same values in F32 to the last digits."""
    adapter, plain, model = evening.folder / "adapter.gguf", evening.folder / "plain.gguf", evening.model()
    convert_adapter(evening.adapter, GGUFLayout(evening.checkpoint.config), adapter)
    evening.plain().save_gguf(plain)
    rounding, ours = 0.0, {}  # what llama.cpp's own 8 bits change of its logits
    with LlamaCpp(plain, adapter=adapter, context=256) as exact, LlamaCpp(evening.base, adapter=adapter) as served:
        for prompt in evening.prompts():
            expected = log_softmax(logits(model, prompt))
            found = exact.log_probabilities(prompt, len(expected))
            assert np.abs(found - expected).max() < evening.tolerance
            likely = np.argsort(-expected)[:20]
            rounding = max(rounding, np.abs(served.log_probabilities(prompt, len(expected)) - found)[likely].max())
            ours[tuple(prompt)] = continued(evening, model, prompt)
            check_tokens(model, prompt, ours[tuple(prompt)], exact.greedy(prompt, NEW), GAP)
        print(f"\n{evening.base.name}: llama.cpp's rounding moves likely tokens by up to {rounding:.2e}")
        for prompt in evening.prompts():
            check_tokens(model, prompt, ours[tuple(prompt)], served.greedy(prompt, NEW), GAP)
    plain.unlink()


def test_the_merged_model_in_llama_cpp(evening: Evening) -> None:
    """Each type loads in both; the loss of what was not trained on is printed, and F32 gives our own logits."""
    model = evening.merged()
    losses = {"under the adapter": evening.held_out_loss(evening.model())}
    (prompt, *_) = evening.prompts()
    for type_ in TYPES:
        path = evening.folder / f"{type_}.gguf"
        model.save_gguf(path, type=type_)
        quantize = None if type_ == "F32" else "auto"
        losses[type_] = evening.held_out_loss(LLaMAModel.from_pretrained(path, quantize=quantize))
        with LlamaCpp(path, context=256) as peer:
            found = peer.log_probabilities(prompt, model.config.vocab_size)
        assert np.isfinite(found).all()
        if type_ == "F32":
            assert np.abs(found - log_softmax(logits(model, prompt))).max() < evening.tolerance
        path.unlink()
    print(f"\n{evening.base.name}: held-out loss " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    assert abs(losses["F32"] - losses["under the adapter"]) < 1e-3
    assert abs(losses["Q8_0"] - losses["F32"]) < 0.05
    assert losses["Q4_K_M"] < losses["F32"] + 0.5


def test_the_merged_directory_in_transformers(evening: Evening) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    model, directory = evening.merged(), evening.folder / "merged"
    model.save_pretrained(directory)
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for prompt in evening.prompts():
        with torch.no_grad():
            expected = peer(torch.tensor([prompt])).logits[0, -1].double().numpy()
        assert np.abs(logits(model, prompt) - expected).max() < 1e-3
    for path in directory.iterdir():
        path.unlink()

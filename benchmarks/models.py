"""The models of the training and decoding benchmarks, and the two sides that load, train and run them.

Checkpoints are written once, in bfloat16, to the cache folder of the default model; both sides load the same files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from timing import clock, peak_rss_mib

SHAPES: dict[str, dict[str, Any]] = {
    "134m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
    "1.1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
    },
    "228m": {  # rows of whole K-quant blocks, the vocabulary of the real model
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 2816,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
}
REAL = "135m"  # SmolLM2-135M-Instruct, the package's default model
ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 16, 32.0
PROMPT = 16  # tokens before those that decoding is timed on


def folder(model: str) -> Path:
    """Where the Hugging Face directory of a model is, or will be."""
    from entrenar.io.hub import cache_directory

    return cache_directory() / "benchmarks" / model


def gguf_file(model: str, file_type: str) -> Path:
    """Where the GGUF file of a model in this type is, or will be."""
    return folder(model).with_name(f"{model}.{file_type}.gguf")


class Preparation:
    """Writes the checkpoints; runs in a process of its own, so that its memory counts as nobody's."""

    def prepare(self, model: str) -> str:
        """The folder of `model`, written if it is not there."""
        target = folder(model)
        if not target.exists():
            unfinished = target.with_name(f".{model}.{os.getpid()}")
            unfinished.mkdir(parents=True)
            try:
                self._convert(unfinished) if model == REAL else self._draw(unfinished, model)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return str(target)

    def prepare_gguf(self, model: str, file_type: str) -> str:
        """The GGUF file of `model` in this type, with the real model's tokenizer, written if it is not there."""
        target = gguf_file(model, file_type)
        if not target.exists():
            from entrenar.io.hub import fetch_default_model
            from entrenar.llama import LLaMAModel
            from entrenar.models.checkpoint import Checkpoint

            tokenizer = Checkpoint.open(fetch_default_model(progress=False)).tokenizer()
            loaded = LLaMAModel.from_pretrained(self.prepare(model), dtype="bfloat16")
            loaded.save_gguf(target, type=file_type, tokenizer=tokenizer)
        return str(target)

    def _draw(self, target: Path, model: str) -> None:
        """Random weights, a tensor in memory at a time."""
        import json

        import ml_dtypes
        import numpy as np

        from entrenar.io.safetensors import save_sharded
        from entrenar.llama import LLaMAConfig

        config = LLaMAConfig(**SHAPES[model])
        (target / "config.json").write_text(json.dumps(config.to_hf() | {"torch_dtype": "bfloat16"}))
        rng = np.random.default_rng(0)

        def tensors() -> Any:
            for name, shape in config.parameter_shapes().items():
                values = np.ones(shape, np.float32)
                if len(shape) == 2:
                    rng.standard_normal(out=values, dtype=np.float32)
                    values *= np.float32(0.02)
                yield name, values.astype(ml_dtypes.bfloat16)

        save_sharded(target, tensors(), 1 << 30)

    def _convert(self, target: Path) -> None:
        """The real model; bitsandbytes quantizes no GGUF file."""
        from entrenar.io.hub import fetch_default_model
        from entrenar.llama import LLaMAModel

        LLaMAModel.from_pretrained(fetch_default_model(), dtype="bfloat16").save_pretrained(target, dtype="bfloat16")


class Ours:
    """entrenar: load, adapters, AdamW, generation. The real model is its GGUF file, with the file's 4-bit values."""

    def __init__(
        self,
        model: str,
        mode: str,
        targets: list[str],
        checkpointing: bool | int = False,
        dtype: str = "auto",
        quantize: str = "auto",
        file_type: str | None = None,
    ) -> None:
        import numpy as np

        from entrenar.io.hub import fetch_default_model
        from entrenar.llama import LLaMAModel
        from entrenar.lora import LoRAConfig

        started = clock()
        source = fetch_default_model(progress=False) if model == REAL and quantize == "auto" else folder(model)
        source = gguf_file(model, file_type) if file_type else source
        self.model = LLaMAModel.from_pretrained(
            source,
            dtype="float32" if mode == "full" else dtype,
            quantize=quantize if mode in ("qlora", "base") else None,
        )
        self.load_seconds, self.load_peak = clock() - started, peak_rss_mib()
        self.model.gradient_checkpointing = checkpointing
        if mode in ("lora", "qlora"):
            self.model.to_lora(LoRAConfig(rank=RANK, alpha=ALPHA, target_modules=targets))
        self.rng = np.random.default_rng(0)
        self.optimizer: Any = None

    def loaded(self) -> dict[str, float]:
        return {"seconds": self.load_seconds, "peak_mib": self.load_peak}

    def weight_bytes(self) -> int:
        return sum(weight.nbytes for _, weight in self.model.named_parameters())

    def step(self, length: int, precision: str = "highest", threads: int | None = None) -> float:
        """One step of training on one sequence of random tokens; its seconds."""
        import numpy as np

        from entrenar import matmul_precision
        from entrenar._kernels import cpu
        from entrenar.optim import AdamW

        if threads is not None:
            cpu.set_num_threads(threads)
        if self.optimizer is None:
            self.optimizer = AdamW(self.model.trainable_parameters(), lr=1e-4)
        tokens = self.rng.integers(0, self.model.config.vocab_size, (1, length))
        targets = np.concatenate([tokens[:, 1:], [[-100]]], axis=1)
        started = clock()
        with matmul_precision(precision):
            self.model.loss(tokens, targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock() - started

    def prefill(self, prompt: int, precision: str = "highest") -> float:
        """Seconds from `prompt` random tokens to the first new one."""
        return self._generate(prompt, 1, precision)

    def decode(self, new: int, precision: str = "highest", prompt: int = PROMPT) -> float:
        """Seconds for each token after the first."""
        return (self._generate(prompt, new + 1, precision) - self._generate(prompt, 1, precision)) / new

    def _generate(self, prompt: int, new: int, precision: str = "highest") -> float:
        from entrenar import matmul_precision

        tokens = self.rng.integers(0, self.model.config.vocab_size, prompt)
        started = clock()
        with matmul_precision(precision):
            self.model.generate(tokens, max_new_tokens=new)
        return clock() - started


class Peer:
    """PyTorch with PEFT and bitsandbytes: the same model, adapters and optimizer (fused), fp32 throughout."""

    def __init__(
        self, model: str, mode: str, targets: list[str], checkpointing: bool = False, compiled: bool = False
    ) -> None:
        import warnings

        import torch
        import transformers
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        warnings.filterwarnings("ignore")  # of one library about another
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa", "use_cache": False}
        if mode == "qlora":
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
            options["device_map"] = "cpu"
        started = clock()
        loaded: Any = transformers.LlamaForCausalLM.from_pretrained(folder(model), **options)
        self.load_seconds, self.load_peak = clock() - started, peak_rss_mib()
        if mode == "qlora":
            loaded = prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=checkpointing)
        elif checkpointing:
            loaded.gradient_checkpointing_enable()
        if mode != "full":
            adapter = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=targets, task_type="CAUSAL_LM")
            loaded = get_peft_model(loaded, adapter)
        loaded.train()
        self.model, self.vocabulary = loaded, loaded.config.vocab_size
        self.forward = torch.compile(loaded) if compiled else loaded
        self.optimizer: Any = None

    def loaded(self) -> dict[str, float]:
        return {"seconds": self.load_seconds, "peak_mib": self.load_peak}

    def step(self, length: int) -> float:
        import torch

        if self.optimizer is None:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        tokens = torch.randint(0, self.vocabulary, (1, length))
        started = clock()
        self.forward(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return clock() - started

    def decode(self, new: int) -> float:
        return (self._generate(PROMPT, new + 1) - self._generate(PROMPT, 1)) / new

    def _generate(self, prompt: int, new: int) -> float:
        import torch

        self.model.eval()
        self.model.config.use_cache = True
        tokens = torch.randint(0, self.vocabulary, (1, prompt))
        options = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "use_cache": True}
        started = clock()
        with torch.no_grad():
            self.model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), eos_token_id=None, pad_token_id=0, **options
            )
        return clock() - started


class LlamaCpp:
    """llama.cpp over the real model's GGUF file, or over that of another in a type."""

    def __init__(self, threads: int, model: str = REAL, file_type: str | None = None) -> None:
        import random

        import xllamacpp

        from entrenar.io.hub import fetch_default_model

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf_file(model, file_type) if file_type else fetch_default_model(progress=False))
        parameters.n_ctx, parameters.n_parallel, parameters.n_batch, parameters.n_ubatch = 1024, 1, 512, 512
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.verbosity = 0
        self.server, self.random = xllamacpp.Server(parameters), random.Random(0)

    def prefill(self, prompt: int) -> float:
        return self._generate(prompt, 1)

    def decode(self, new: int) -> float:
        return (self._generate(PROMPT, new + 1) - self._generate(PROMPT, 1)) / new

    def _generate(self, prompt: int, new: int) -> float:
        request = {
            "prompt": [self.random.randrange(49_000) for _ in range(prompt)],
            "max_tokens": new,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        started = clock()
        answer = self.server.handle_completions(request)
        seconds = clock() - started
        if answer["usage"]["completion_tokens"] != new:
            raise RuntimeError(f"llama.cpp wrote {answer['usage']} where {new} tokens were asked for.")
        return seconds

"""Loading a GGUF file in a process of its own: nothing that can stay mapped is copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from entrenar.llama import LLaMAConfig

from .builders import gguf_name

pytestmark = pytest.mark.memory

CONFIG = LLaMAConfig(
    vocab_size=16000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
SCALES = {"Q4_K": (0, 2), "Q6_K": (208,), "Q4_0": (0,), "Q8_0": (0,)}  # the bytes at which fp16 scales begin
CHILD = """
import json, sys
from pathlib import Path
from entrenar.llama import LLaMAModel

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

warm = LLaMAModel.from_pretrained(sys.argv[2], quantize="auto")  # imports, threads, scratch
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
model = LLaMAModel.from_pretrained(sys.argv[1], quantize="auto")
peak = resident("VmHWM") - before
norms = sum(weight.nbytes for _, weight in model.named_parameters() if weight.ndim == 1)
types = sorted({weight.dtype for _, weight in model.named_parameters()})
print(json.dumps({"peak": peak, "norms": norms, "types": types, "remarks": model.remarks}))
"""


def quick_file(path: Path, type_name: str, config: LLaMAConfig) -> Path:
    """A model of random blocks; "Q4_K_M" mixes the types as llama-quantize does."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.kv_heads,
        "vocab_size": config.vocab_size,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    rng = np.random.default_rng(0)
    for name, shape in config.parameter_shapes().items():
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), np.ones(shape, np.float32))
            continue
        finer = any(part in name for part in ("embed", "v_proj", "down_proj"))
        chosen = type_name if type_name != "Q4_K_M" else "Q6_K" if finer else "Q4_K"
        type_ = gguf.GGMLQuantizationType[chosen]
        elements, size = gguf.GGML_QUANT_SIZES[type_]
        blocks = rng.integers(0, 256, (shape[0], shape[1] // elements, size), np.uint8)
        for at in SCALES[chosen]:
            blocks[:, :, at + 1] = 0x1C  # fp16 near 0.004
        writer.add_tensor(gguf_name(name), blocks.reshape(shape[0], -1), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q4_0"])
def test_the_peak_is_the_file_and_the_norms(type_name: str, tmp_path: Path) -> None:
    small = LLaMAConfig(**(vars(CONFIG) | {"vocab_size": 256, "num_hidden_layers": 1, "intermediate_size": 256}))
    path = quick_file(tmp_path / "model.gguf", type_name, CONFIG)
    warm = quick_file(tmp_path / "warm.gguf", type_name, small)
    child = subprocess.run([sys.executable, "-c", CHILD, path, warm], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["remarks"] == []
    assert found["types"] == (["float32", "q4_k", "q6_k"] if type_name == "Q4_K_M" else ["float32", "q4_0"])
    size = path.stat().st_size
    assert size < found["peak"] + (2 << 20), "the pages of the file were not counted"
    assert found["peak"] <= 1.1 * size + found["norms"], f"{found['peak'] / size:.3f} of the file"

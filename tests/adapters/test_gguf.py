"""LoRA adapters as GGUF files: what llama.cpp computes with them, what comes back, what they cannot hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.adapters.gguf import Update, convert_adapter, file_alpha
from entrenar.adapters.ia3 import IA3Config
from entrenar.adapters.prefix import PrefixConfig
from entrenar.autograd import no_grad
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig, load_gguf_adapter, merge, save_adapter, save_gguf_adapter
from entrenar.models.gguf_layout import GGUFLayout

from ..edges import gguf_models
from ..edges.llama_cpp import LlamaCpp, log_softmax
from ..models.builders import model_of, permute_rows, random_arrays, random_model, small_config, weights_of, write_hf

pytestmark = pytest.mark.unit

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]},
    "patterns": {
        "rank": 4,
        "alpha": 8.0,
        "target_modules": ["all-linear"],
        "rank_pattern": {"k_proj": 3, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"o_proj": 1.7, "down_proj": 30.0},
    },
    "rslora": {"rank": 5, "alpha": 3.0, "use_rslora": True, "rank_pattern": {"v_proj": 2}},
}


def adapted(config: LLaMAConfig, seed: int = 0, **settings: Any) -> LLaMAModel:
    """A model with an adapter whose B is not zero; large enough to move every logit."""
    model = model_of(config, random_arrays(config, std=0.15)).to_lora(LoRAConfig(**settings), seed=seed)
    rng = np.random.default_rng(seed)
    for name, weight in model.trainable_parameters():
        if "lora_B" in name:
            weight.numpy()[...] = rng.standard_normal(weight.shape) * 0.1
    return model


def logits(model: LLaMAModel, tokens: list[int]) -> np.ndarray:
    with no_grad():
        return model(np.array([tokens])).numpy()[0, -1]


def ours(model: LLaMAModel) -> np.ndarray:
    return np.stack([log_softmax(logits(model, prompt)) for prompt in gguf_models.PROMPTS])


def peers(path: Path, adapter: Path | None) -> np.ndarray:
    with LlamaCpp(path, adapter=adapter) as peer:
        return np.stack([peer.log_probabilities(prompt, gguf_models.VOCABULARY) for prompt in gguf_models.PROMPTS])


@pytest.fixture(scope="module")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[LLaMAConfig], Path]:
    """The GGUF file of a family's base, written by the gguf library."""
    folder, written = tmp_path_factory.mktemp("bases"), dict[str, Path]()

    def base(config: LLaMAConfig) -> Path:
        if config.family not in written:
            path = folder / f"{config.family}.gguf"
            gguf_models.write_model(path, config=config, weights=random_arrays(config, std=0.15))
            written[config.family] = path
        return written[config.family]

    return base


@pytest.mark.peers
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(
    family: str, settings: str, base_files: Callable[[LLaMAConfig], Path], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    config = small_config(vocab_size=gguf_models.VOCABULARY, family=family)
    model = adapted(config, **SETTINGS[settings])
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    found, expected = peers(base_files(config), tmp_path / "adapter.gguf"), ours(model)
    assert np.abs(found - expected).max() < gguf_models.FLOAT32
    assert np.abs(peers(base_files(config), None) - expected).max() > 0.1  # the adapter is what makes them agree


@pytest.mark.peers
def test_llama_cpp_computes_the_same_in_float16(base_files: Callable[[LLaMAConfig], Path], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    config = small_config(vocab_size=gguf_models.VOCABULARY)
    model = adapted(config, **SETTINGS["plain"])
    save_gguf_adapter(model, tmp_path / "half.gguf", type="F16")
    assert {str(t.tensor_type.name) for t in gguf.GGUFReader(tmp_path / "half.gguf").tensors} == {"F16"}
    assert np.abs(peers(base_files(config), tmp_path / "half.gguf") - ours(model)).max() < 5e-3


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_says_the_update_of_every_linear(family: str, settings: str, tmp_path: Path) -> None:
    """(alpha / rank) B A of the file is the update, its rows as in the base's file; computed without our reader."""
    config = small_config(family=family)
    model, path = adapted(config, **SETTINGS[settings]), tmp_path / "adapter.gguf"
    base = random_arrays(config, std=0.15)
    save_gguf_adapter(model, path)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["general.architecture"].contents() == ("llama" if family == "mistral" else family)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {str(tensor.name): np.asarray(tensor.data) for tensor in reader.tensors}
    merge(model)
    layout = GGUFLayout(config)
    updates = {name: weight - base[name] for name, weight in weights_of(model).items() if np.any(weight != base[name])}
    assert len(tensors) == 2 * len(updates)
    for name, update in updates.items():
        a, b = (tensors[f"{layout.name(name)}.{ending}"] for ending in ("lora_a", "lora_b"))
        if family in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
            update = permute_rows(update, config.num_attention_heads if "q_proj" in name else config.kv_heads)
        np.testing.assert_allclose(alpha / len(a) * b @ a, update, atol=2e-7)


def test_the_alpha_of_the_file_is_that_of_the_most_linears() -> None:
    def update(alpha: float, rank: int) -> Update:
        return Update(np.ones((rank, 4), np.float32), np.ones((4, rank), np.float32), alpha / rank)

    updates = {str(number): update(*values) for number, values in enumerate([(3.0, 2), (8.0, 4), (8.0, 2), (5.0, 5)])}
    assert file_alpha(updates) == 8.0
    assert file_alpha({"0": update(0.0, 2)}) == 1.0  # llama.cpp takes 0 for a scaling of 1


def test_one_alpha_leaves_b_as_it_is(tmp_path: Path) -> None:
    """Where every layer has the same alpha, however different the ranks, no value is rounded."""
    model = adapted(small_config(family="qwen2"), rank=4, alpha=7.3, target_modules=["all-linear"],
                    rank_pattern={"k_proj": 3})  # fmt: skip
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    tensors = {str(t.name): np.asarray(t.data) for t in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    for name, weight in model.trainable_parameters():
        if name == "model.layers.1.self_attn.k_proj.lora_B.weight":
            np.testing.assert_array_equal(tensors["blk.1.attn_k.weight.lora_b"], weight.numpy())


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_peft_directory_gives_the_same_file(settings: str, tmp_path: Path) -> None:
    config = small_config()
    model = adapted(config, **SETTINGS[settings])
    save_gguf_adapter(model, tmp_path / "live.gguf")
    save_adapter(model, tmp_path / "peft")
    convert_adapter(tmp_path / "peft", GGUFLayout(config), tmp_path / "converted.gguf")
    assert (tmp_path / "converted.gguf").read_bytes() == (tmp_path / "live.gguf").read_bytes()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_comes_back(family: str, settings: str, tmp_path: Path) -> None:
    config = small_config(family=family)
    model = adapted(config, **SETTINGS[settings])
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    again = model_of(config, random_arrays(config, std=0.15))
    load_gguf_adapter(again, tmp_path / "adapter.gguf")
    np.testing.assert_allclose(logits(again, [1, 2, 3]), logits(model, [1, 2, 3]), rtol=1e-4, atol=1e-5)
    save_gguf_adapter(again, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "adapter.gguf").read_bytes()


# ---------------------------------------------------------------------- what a file cannot hold
def test_another_kind_is_refused(tmp_path: Path) -> None:
    model = random_model()
    IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]).apply(model)
    with pytest.raises(ConfigError, match=r"IA3 has no form in a GGUF adapter.* merge the adapter"):
        save_gguf_adapter(model, tmp_path / "adapter.gguf")
    save_adapter(model, tmp_path / "ia3")
    with pytest.raises(ConfigError, match=r"adapter_config.json: IA3 has no form"):
        convert_adapter(tmp_path / "ia3", model.gguf_layout, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_prefix_is_not_told_to_be_merged(tmp_path: Path) -> None:
    model = random_model()
    PrefixConfig().apply(model)
    with pytest.raises(ConfigError, match=r"prefix has no form in a GGUF adapter.* cannot be merged either: run it in"):
        save_gguf_adapter(model, tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA has no form in a GGUF adapter"),
        (
            {"modules_to_save": ["lm_head"]},
            "lm_head was trained whole, which a GGUF adapter cannot hold; merge",
        ),
        ({"bias": "all"}, r"q_proj.*bias.* (cannot hold|cannot be held by a GGUF adapter); merge"),
    ],
)
def test_what_is_more_than_lora_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = random_model(small_config(family="qwen2")).to_lora(LoRAConfig(rank=2, **settings))
    with pytest.raises(ConfigError, match=message):
        save_gguf_adapter(model, tmp_path / "adapter.gguf")
    save_adapter(model, tmp_path / "peft")
    with pytest.raises(ConfigError, match=message):
        convert_adapter(tmp_path / "peft", model.gguf_layout, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_pissa_is_an_update_of_the_base_itself(tmp_path: Path) -> None:
    """A and B take a part of the base; the file is over the base as it was, at twice the rank."""
    config, tokens = small_config(), [1, 2, 3]
    model = random_model(config).to_lora(LoRAConfig(rank=3, init_lora_weights="pissa"))
    for _, weight in model.trainable_parameters():
        weight.numpy()[...] *= 1.1
    save_gguf_adapter(model, tmp_path / "live.gguf")
    again = random_model(config)
    load_gguf_adapter(again, tmp_path / "live.gguf")
    np.testing.assert_allclose(logits(again, tokens), logits(model, tokens), atol=1e-4)
    save_adapter(model, tmp_path / "peft")
    convert_adapter(tmp_path / "peft", model.gguf_layout, tmp_path / "converted.gguf")
    assert (tmp_path / "converted.gguf").read_bytes() == (tmp_path / "live.gguf").read_bytes()
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(ConfigError, match="the part of the base that PiSSA took"):
        convert_adapter(tmp_path / "peft", model.gguf_layout, tmp_path / "other.gguf")


def test_weights_trained_beside_the_adapter_are_refused(tmp_path: Path) -> None:
    model = adapted(small_config(), **SETTINGS["plain"])
    dict(model.named_parameters())["model.norm.weight"].requires_grad = True  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"model\.norm\.weight was trained too.* merge the adapter"):
        save_gguf_adapter(model, tmp_path / "adapter.gguf")


def test_no_adapter_and_no_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapters to save"):
        save_gguf_adapter(random_model(), tmp_path / "adapter.gguf")
    with pytest.raises(ConfigError, match="type='Q4_0' is unknown; choose 'F32' or 'F16'"):
        save_gguf_adapter(adapted(small_config(), **SETTINGS["plain"]), tmp_path / "adapter.gguf", type="Q4_0")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = adapted(small_config(), **SETTINGS["plain"])
    dict(model.trainable_parameters())["model.layers.0.self_attn.q_proj.lora_A.weight"].numpy()[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"q_proj\.weight: its adapter has values that F16 cannot hold"):
        save_gguf_adapter(model, tmp_path / "adapter.gguf", type="F16")
    assert not list(tmp_path.iterdir())


def test_a_peft_directory_with_an_unsupported_setting_is_refused(tmp_path: Path) -> None:
    model = adapted(small_config(), **SETTINGS["plain"])
    save_adapter(model, tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))
    with pytest.raises(ConfigError, match="fan_in_fan_out"):
        convert_adapter(tmp_path / "peft", model.gguf_layout, tmp_path / "adapter.gguf")


# ---------------------------------------------------------------------- damaged files
def write_file(path: Path, tensors: dict[str, np.ndarray], **metadata: Any) -> Path:
    """A GGUF file with the metadata of a sound adapter, changed."""
    values = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0} | metadata
    writer = gguf.GGUFWriter(path, values.pop("architecture", "llama"))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


A, B = np.ones((3, 64)), np.ones((64, 3))
NAME = "blk.0.attn_q.weight"
DAMAGED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "a model": ({NAME: B}, {"general.type": "model"}, r"general\.type is 'model', expected 'adapter'"),
    "another kind": ({}, {"adapter.type": "control"}, r"adapter\.type is 'control', expected 'lora'"),
    "another family": ({}, {"architecture": "qwen2"}, r"general\.architecture is 'qwen2', expected 'llama'"),
    "no alpha": ({}, {"adapter.lora.alpha": float("nan")}, r"adapter\.lora\.alpha is nan"),
    "an aLoRA": ({}, {"adapter.alora.invocation_tokens": [1, 2]}, r"invocation_tokens is \[1, 2\], which is not supp"),
    "no tensor": ({}, {}, "holds no tensor"),
    "half a pair": ({f"{NAME}.lora_a": A}, {}, r"blk\.0\.attn_q\.weight\.lora_b is missing"),
    "a deeper model": ({"blk.7.attn_q.weight.lora_a": A}, {}, r"blk\.7\.attn_q\.weight\.lora_a belongs to no linear"),
    "a wider model": ({f"{NAME}.lora_a": A[:, :32], f"{NAME}.lora_b": B}, {}, r"have shapes \(3, 32\) and \(64, 3\)"),
    "two ranks": ({f"{NAME}.lora_a": A, f"{NAME}.lora_b": B[:, :2]}, {}, r"expected \(rank, 64\) and \(64, rank\)"),
    "no rank": ({f"{NAME}.lora_a": A[:0], f"{NAME}.lora_b": B[:, :0]}, {}, r"have shapes \(0, 64\) and \(64, 0\)"),
    "not finite": ({f"{NAME}.lora_a": A * np.inf, f"{NAME}.lora_b": B}, {}, "NaN or infinite"),
    "a norm": ({"blk.0.attn_norm.weight": A[0]}, {}, r"attn_norm\.weight belongs to no linear"),
    "a norm's update": ({"blk.0.attn_norm.weight.lora_a": A}, {}, r"attn_norm\.weight\.lora_a belongs to no linear"),
    "an embedding": ({"token_embd.weight.lora_a": A, "token_embd.weight.lora_b": B}, {}, r"expected \(67, rank\)"),
    "the head": ({"output.weight.lora_a": A, "output.weight.lora_b": B}, {}, "of an adapter of the head, which is not"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_wrong_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    tensors, metadata, sentence = DAMAGED[case]
    model = random_model()
    path = write_file(tmp_path / "adapter.gguf", tensors, **metadata)
    with pytest.raises((FormatError, ConfigError), match=sentence):
        load_gguf_adapter(model, path)
    assert model.adapter_config is None


def test_notes_for_people_are_left_alone(tmp_path: Path) -> None:
    model = random_model()
    notes = {"adapter.lora.task_name": "sums", "adapter.lora.prompt_prefix": "Add: "}
    load_gguf_adapter(model, write_file(tmp_path / "a.gguf", {f"{NAME}.lora_a": A, f"{NAME}.lora_b": B}, **notes))
    assert model.adapter_config is not None


def test_an_alpha_of_zero_is_a_scaling_of_one(tmp_path: Path) -> None:
    model = random_model()
    b = np.random.default_rng(0).standard_normal((64, 3))
    load_gguf_adapter(model, write_file(tmp_path / "a.gguf", {f"{NAME}.lora_a": A, f"{NAME}.lora_b": b},
                                        **{"adapter.lora.alpha": 0.0}))  # fmt: skip
    (layer,) = (m for n, m in model.named_modules() if n == "model.layers.0.self_attn.q_proj")
    assert layer.scaling == 1.0  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- embedding and head
@pytest.mark.peers
@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj", "lm_head"], ["lm_head"], ["model.embed_tokens"]])
def test_embedding_and_head_of_a_peft_adapter(
    targets: list[str], base_files: Callable[[LLaMAConfig], Path], tmp_path: Path
) -> None:
    """llama.cpp gives PEFT's own probabilities, with ranks and strengths of each."""
    pytest.importorskip("xllamacpp")
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    config = small_config(vocab_size=gguf_models.VOCABULARY)
    write_hf(tmp_path / "base", config, random_arrays(config, std=0.15))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    end = targets[-1].split(".")[-1]
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, rank_pattern={end: 5},
                               alpha_pattern={end: 2}, init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
    adapted = peft.get_peft_model(base, settings)
    adapted.save_pretrained(tmp_path / "peft")
    convert_adapter(tmp_path / "peft", GGUFLayout(config), tmp_path / "adapter.gguf")
    with torch.no_grad():
        expected = np.stack(
            [log_softmax(adapted(torch.tensor([p])).logits[0, -1].numpy()) for p in gguf_models.PROMPTS]
        )
    assert np.abs(peers(base_files(config), tmp_path / "adapter.gguf") - expected).max() < gguf_models.FLOAT32
    tied = small_config(vocab_size=gguf_models.VOCABULARY, tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="embedding and head are one tensor of this model's GGUF file"):
        convert_adapter(tmp_path / "peft", GGUFLayout(tied), tmp_path / "other.gguf")
    if "lm_head" in targets:
        with pytest.raises(FormatError, match="is of an adapter of the head, which is not supported; merge it with"):
            load_gguf_adapter(random_model(config), tmp_path / "adapter.gguf")
        return
    model = LLaMAModel.from_pretrained(tmp_path / "base")
    load_gguf_adapter(model, tmp_path / "adapter.gguf")
    np.testing.assert_allclose(ours(model), expected, atol=gguf_models.FLOAT32)
    save_gguf_adapter(model, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "adapter.gguf").read_bytes()

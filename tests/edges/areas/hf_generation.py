"""generation_config.json: every field of GenerationConfig set to a value that matters; end tokens of both files.

What is compared is the greedy continuation of one prompt, and the file that a saved copy of the model has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from entrenar.llama import LLaMAModel

from ..harness import Variation, Verdict, Wrong, judge
from ..hf import REMOVED, TOKENS, changed, no_value_chosen, peer_model, shown, sound_table, write_directory

AREA = "generation_config.json"
PROMPT = TOKENS[0, :8]
NEW = 12

# A value of each field, none of them what it has where nothing is said.
FIELDS: dict[str, list[Any]] = {
    "max_length": [10],
    "max_new_tokens": [3],
    "min_length": [14],
    "min_new_tokens": [8],
    "early_stopping": [True],
    "max_time": [100.0],
    "stop_strings": [["a"]],
    "do_sample": [False],
    "num_beams": [3],
    "use_mtp": [True],
    "use_cache": [False],
    "cache_implementation": ["dynamic"],
    "cache_config": [{"nbits": 4}],
    "max_cache_len": [64],
    "temperature": [0.6],
    "top_k": [3],
    "top_p": [0.9],
    "min_p": [0.1],
    "top_h": [0.5],
    "typical_p": [0.9],
    "epsilon_cutoff": [1e-4],
    "eta_cutoff": [1e-4],
    "repetition_penalty": [1.3, 5.0, 0.7, -1.0, "1.3"],
    "encoder_repetition_penalty": [1.0],
    "length_penalty": [2.0],
    "no_repeat_ngram_size": [1, 2, -3],
    "bad_words_ids": [[[3], [4, 5]]],
    "renormalize_logits": [True],
    "forced_bos_token_id": [5],
    "forced_eos_token_id": [5],
    "remove_invalid_values": [True],
    "exponential_decay_length_penalty": [[2, 1.5]],
    "suppress_tokens": ["greedy", ["a"]],
    "begin_suppress_tokens": ["greedy"],
    "sequence_bias": [[[[3], 5.0]]],
    "token_healing": [True],
    "guidance_scale": [1.5],
    "watermarking_config": [{"bias": 2.0}],
    "num_return_sequences": [2],
    "output_attentions": [False],
    "output_hidden_states": [False],
    "output_scores": [False],
    "output_logits": [False],
    "return_dict_in_generate": [False],
    "pad_token_id": [3],
    "bos_token_id": [4],
    "eos_token_id": ["greedy", [60, 61], [], None, -1, "2", [1.5]],
    "encoder_no_repeat_ngram_size": [0],
    "decoder_start_token_id": [4],
    "is_assistant": [True],
    "num_assistant_tokens": [4],
    "num_assistant_tokens_schedule": ["constant"],
    "assistant_confidence_threshold": [0.5],
    "prompt_lookup_num_tokens": [2],
    "max_matching_ngram_size": [2],
    "assistant_early_exit": [1],
    "assistant_lookbehind": [5],
    "target_lookbehind": [5],
    "assistant_ensemble_weight": [0.5],
    "speculation_type": ["x"],
    "compile_config": [{"fullgraph": False}],
    "disable_compile": [True],
    "continuous_batching_config": [{"block_size": 16}],
    "low_memory": [False],
    "penalty_alpha": [0.6],
    "dola_layers": ["low"],
    "diversity_penalty": [0.0],
    "num_beam_groups": [2],
    "constraints": [["x"]],
    "force_words_ids": [[[3]]],
    "prefill_chunk_size": [4],
    "_from_model_config": [True],
    "transformers_version": ["4.31.0"],
    "something_new": [3],
}


def our_ids(folder: Path) -> list[int]:
    """The greedy continuation, without its end token."""
    return LLaMAModel.from_pretrained(folder).generate(PROMPT, max_new_tokens=NEW)


def peer_ids(folder: Path) -> list[int]:
    """The same from `generate` of transformers, which returns the end token too."""
    model = peer_model(folder)
    prompt = torch.from_numpy(PROMPT)[None]
    new = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
    ids = new[0, len(PROMPT) :].tolist()
    ends = model.generation_config.eos_token_id
    if ids and ids[-1] in (ends if isinstance(ends, list) else [ends]):
        return ids[:-1]
    return ids


def same_ids(folder: Path, named: str) -> Verdict:
    """Both sides continue the prompt; a refusal names one of the words of `named`."""
    verdict = judge(
        lambda: our_ids(folder), lambda: peer_ids(folder), names=[], folder=folder, compared="greedy ids equal"
    )
    if verdict.kind == "refused" and not any(name in verdict.note for name in named.split("|")):
        raise Wrong(f"the message names none of {named}: {verdict.note}")
    return verdict


def _greedy(folder: Path) -> list[int]:
    """Three different tokens of the plain continuation, the first among them."""
    plain = write_directory(folder / "plain", changed(sound_table(), {"eos_token_id": None}))
    return list(dict.fromkeys(our_ids(plain)))[:3]


def _field(name: str, value: Any) -> Variation:
    def check(folder: Path) -> Verdict:
        given = value
        if value == "greedy":
            tokens = _greedy(folder)
            given = tokens[:1] if name == "begin_suppress_tokens" else tokens[1:]
        table = {"eos_token_id": 2} | {name: given}
        if name in ("min_length", "min_new_tokens"):
            table["eos_token_id"] = _greedy(folder)[0]
        write_directory(folder / "m", generation=table)
        return same_ids(folder / "m", name)

    return Variation(AREA, f"{name} {shown(value)}", "transformers", check)


def _files(label: str, config: dict[str, Any], generation: Callable[[list[int]], dict[str, Any] | None]) -> Variation:
    """End tokens in one file, in both, in none; `config` may hold "greedy" for one that the continuation reaches."""

    def check(folder: Path) -> Verdict:
        tokens = _greedy(folder)
        table = {key: tokens[1] if value == "greedy" else value for key, value in config.items()}
        write_directory(folder / "m", changed(sound_table(), table), generation=generation(tokens))
        return same_ids(folder / "m", "eos_token_id")

    return Variation(AREA, label, "transformers", check)


def _kept(label: str, config: dict[str, Any], generation: dict[str, Any] | None) -> Variation:
    """What transformers finds in a directory that entrenar has loaded and saved."""

    def settings(folder: Path) -> dict[str, Any]:
        found = peer_model(folder)
        table = found.generation_config.to_dict() | {"of config.json": found.config.eos_token_id}
        return {key: value for key, value in table.items() if key not in ("_from_model_config", "transformers_version")}

    def check(folder: Path) -> Verdict:
        write_directory(folder / "m", changed(sound_table(), config), generation=generation)

        def ours() -> dict[str, Any]:
            LLaMAModel.from_pretrained(folder / "m").save_pretrained(folder / "saved")
            return settings(folder / "saved")

        return judge(ours, lambda: settings(folder / "m"), names=[], compared="settings after a save equal")

    return Variation(AREA, label, "transformers", check)


def _damaged(label: str, text: str, named: str) -> Variation:
    def check(folder: Path) -> Verdict:
        write_directory(folder)
        (folder / "generation_config.json").write_text(text)
        return same_ids(folder, named)

    return Variation(AREA, label, "transformers", check)


MANY = {"eos_token_id": [5, 7, 9], "bos_token_id": 1, "pad_token_id": 3}
VARIATIONS = [
    *no_value_chosen(AREA, "GenerationConfig", vars(GenerationConfig()).keys() - FIELDS.keys()),
    *(_field(name, value) for name, values in FIELDS.items() for value in values),
    _files("end token in config.json only", {"eos_token_id": "greedy"}, lambda tokens: None),
    _files("end token in neither file", {"eos_token_id": REMOVED}, lambda tokens: None),
    _files("several end tokens in config.json", {"eos_token_id": [60, 61]}, lambda tokens: None),
    _files("config.json's end token absent from the other file", {"eos_token_id": "greedy"}, lambda tokens: {}),
    _files("another end token in each file", {"eos_token_id": "greedy"}, lambda tokens: {"eos_token_id": [tokens[2]]}),
    _files("a null in generation_config.json", {"eos_token_id": "greedy"}, lambda tokens: {"eos_token_id": None}),
    _files("repetition_penalty in config.json", {"repetition_penalty": 1.5}, lambda tokens: None),
    _kept("saved: [5, 7, 9] in both files", MANY, MANY | {"temperature": 0.6, "do_sample": True}),
    _kept("saved: [5, 7, 9] in config.json only", MANY, None),
    _kept("saved: [5, 7, 9] in generation_config.json only", {}, MANY),
    _kept("saved: no end token at all", {"eos_token_id": None, "bos_token_id": None}, None),
    _kept("saved: settings of config.json", {"repetition_penalty": 1.5}, None),
    _damaged("not JSON", "{", "generation_config.json"),
    _damaged("a list", "[]", "generation_config.json"),
    _damaged("an integer of 5,000 digits", json.dumps({"eos_token_id": 0}).replace("0", "9" * 5000), "digits"),
    _damaged("3,000 nested brackets", "[" * 3000, "nested"),
]

"""generation_config.json: which tokens end a text, what is done to logits, what is not supported.

As transformers 5 (`GenerationConfig`, `GenerationMixin._get_logits_processor`): where the file exists, it alone says
how to generate; otherwise config.json does. Sampling is asked for at `generate`, not taken from the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import ConfigError, FormatError
from entrenar.io.json_file import read_json_object


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


GENERATION_FILE = "generation_config.json"
APPLIED = {  # what is done to the logits, and the values that do nothing
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # what would change greedy generation, and the values that do nothing
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "use_mtp": (False,),
    "assistant_early_exit": (),
    "continuous_batching_config": (),
    "cache_config": (),
    "compile_config": (),
    "is_assistant": (False,),
    "speculation_type": (),
    "prompt_lookup_num_tokens": (),
    "top_h": (),
    "custom_generate": (),
}
# Said by the caller of `generate`, of no effect on one greedy sequence, or about how transformers computes.
ASKED = words(
    "max_length max_new_tokens early_stopping do_sample use_cache cache_implementation max_cache_len temperature top_k "
    "top_p min_p typical_p epsilon_cutoff eta_cutoff encoder_repetition_penalty length_penalty renormalize_logits "
    "remove_invalid_values output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
    "pad_token_id bos_token_id encoder_no_repeat_ngram_size decoder_start_token_id num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind "
    "target_lookbehind assistant_ensemble_weight disable_compile low_memory diversity_penalty "
    "prefill_chunk_size chat_format "
    "max_window_size max_context_size eos_token_id"
)
METADATA = words("_from_model_config transformers_version _commit_hash _original_object_hash")
SETTINGS = {*APPLIED, *UNSUPPORTED, *ASKED, *METADATA}


@dataclass(frozen=True)
class Generation:
    """How a model generates: the ids that end a text, changes to the logits, and what is not supported of the file."""

    end_tokens: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    unsupported: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_table(table: Mapping[str, Any], where: str) -> Generation:
        """From generation_config.json, or from config.json; FormatError for a value of another type."""
        values: dict[str, Any] = {"end_tokens": _ids(table, "eos_token_id", where)}
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            values[name] = _ids(table, name, where)
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            values[name] = _number(table, name, 0, where, int)
        values["repetition_penalty"] = _number(table, "repetition_penalty", 1.0, where, int | float)
        if not 0 < values["repetition_penalty"] < np.inf:
            raise FormatError(
                f"{where}: repetition_penalty is {values['repetition_penalty']}, expected a positive number."
            )
        return Generation(**values, unsupported=_unsupported(table))

    def check(self) -> None:
        """ConfigError, naming the first, where the file sets what would give another text and is not supported."""
        for name, value in self.unsupported.items():
            raise ConfigError(
                f"generate: generation_config.json asks for {name} = {shown(value)}, which is not supported; take it "
                "out of the file, or in Python pass generation=Generation(end_tokens=...), to go without it."
            )

    def plain(self) -> Generation:
        """The same end tokens and nothing else."""
        return Generation(self.end_tokens)

    def remarks(self, where: str) -> list[str]:
        """A sentence for each setting that the samples of a run go without."""
        return [
            f"{where}: samples during training are greedy and go without {name} = {shown(value)}."
            for name, value in (self.unsupported | self._applied).items()
        ]

    @cached_property
    def _applied(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in APPLIED if getattr(self, name) not in (*APPLIED[name], ())}

    def process(self, logits: np.ndarray, tokens: Sequence[int], prompt_length: int) -> np.ndarray:
        """The logits (vocab,) that follow `tokens` (prompt and what was produced), changed as the settings say."""
        if not self._applied:
            return logits
        logits = logits.copy()
        if self.repetition_penalty != 1.0:
            seen = np.unique(np.asarray(tokens))
            scores = logits[seen]
            penalty = np.float32(self.repetition_penalty)
            with np.errstate(all="ignore"):  # a penalty near 0 or beyond float32
                logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        logits[self._banned(tokens, prompt_length, len(logits))] = -np.inf
        return logits

    def _banned(self, tokens: Sequence[int], prompt_length: int, vocab_size: int) -> list[int]:
        banned = list(self.suppress_tokens)
        if len(tokens) < max(self.min_length, prompt_length + self.min_new_tokens):
            banned += self.end_tokens
        if len(tokens) == prompt_length:
            banned += self.begin_suppress_tokens
        size = self.no_repeat_ngram_size
        if 0 < size <= len(tokens):
            last = list(tokens[len(tokens) - size + 1 :])
            starts = range(len(tokens) - size + 1)
            banned += [tokens[i + size - 1] for i in starts if list(tokens[i : i + size - 1]) == last]
        return [index for index in banned if 0 <= index < vocab_size]


def read_generation(directory: Path, config_table: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Generation]:
    """The content of generation_config.json (None where there is none) and what it, or config.json, says."""
    path = directory / GENERATION_FILE
    if not path.exists():
        return None, Generation.from_table(config_table, str(directory / "config.json"))
    table = read_json_object(path, "a Hugging Face generation_config.json")
    return table, Generation.from_table(table, str(path))


def _unsupported(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: table[name]
        for name, neutral in UNSUPPORTED.items()
        if table.get(name) is not None and table[name] not in neutral
    }


def _number(table: Mapping[str, Any], name: str, default: Any, where: str, kind: Any) -> Any:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value < 2**63:
        raise FormatError(f"{where}: {name} is {shown(value)}, expected a number that is not negative.")
    return value


def _ids(table: Mapping[str, Any], name: str, where: str) -> tuple[int, ...]:
    """Token ids given as one or as a list; ids below 0, which some files have for "none", are left out."""
    value = table.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if name == "eos_token_id" and value == []:
        raise FormatError(f"{where}: {name} is [], expected a token id, a list of them, or null.")
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
        raise FormatError(f"{where}: {name} is {shown(value)}, expected a token id or a list of them.")
    return tuple(index for index in ids if index >= 0)

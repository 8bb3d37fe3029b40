"""Whether a model learns to stop: each answer is to be trained up to a token at which a generation ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np

from entrenar.data import Sample
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel

LOOKED_AT = 1000  # samples
NAMED = 4  # tokens in a sentence


def end_tokens(model: LLaMAModel, tokenizer: Tokenizer) -> set[int]:
    """All that end a generation: by the model's files and by the tokenizer's."""
    return {*model.generation.end_tokens, *model.config.eos_ids, *tokenizer.eos_ids}


def stop_remarks(samples: Sequence[Sample], ends: Collection[int], tokenizer: Tokenizer) -> list[str]:
    """What is to be said where whole samples train none of the tokens `ends`; nothing where all do.

    As TRL warns of templates whose generation blocks leave the end of the turn out.
    """
    seen = [sample for sample in islice(samples, LOOKED_AT) if not sample.truncated]
    wanted = np.array(sorted(ends), np.int32)
    without = sum(not np.isin(sample.tokens[sample.trained], wanted).any() for sample in seen)
    if not without:
        return []
    names = ", ".join(repr(tokenizer.token(int(index))) for index in wanted[:NAMED])
    named = f"of those that end a generation ({names})" if names else "that ends a generation (the model names none)"
    return [
        f"In {without:,} of the first {len(seen):,} whole samples no token {named} is trained: the model does not "
        "learn to stop. Use a chat template that writes one after each answer (inside the generation block where it "
        "has one), or name the token that it writes in eos_token_id of the directory's generation_config.json."
    ]

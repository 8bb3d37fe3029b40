"""Losses over preferences: DPO, ORPO and KTO, as TRL computes them, and the batches that they need.

Rafailov et al., "Direct Preference Optimization", 2023 (arXiv 2305.18290); Hong et al., "ORPO", 2024 (2403.07691);
Ethayarajh et al., "KTO", 2024 (2402.01306). The reference is the model as the run begins, before it has adapters: its
log-probabilities are computed once, and no second model exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from entrenar.autograd import Tensor, no_grad
from entrenar.autograd.ops.cross_entropy import linear_cross_entropy
from entrenar.autograd.precision import get_matmul_precision, matmul_precision
from entrenar.data import IGNORE, Batch, DataLoader, Sample, Samples, collate
from entrenar.data.packing import Rows
from entrenar.data.places import compact
from entrenar.errors import ConfigError, NumericsError
from entrenar.models.api import LLaMAModel
from entrenar.train.config import Preferences
from entrenar.train.evaluate import Evaluation
from entrenar.train.objective import Objective


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """A row an answer: chosen and rejected in turn, or any with its label; `reference` has the log-probability of each.

    `shifted` are the same prompts with the answers of others, for KTO's estimate of the divergence.
    """

    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    reference: np.ndarray = field(default_factory=lambda: np.zeros(0))
    shifted: Batch | None = None
    shifted_reference: np.ndarray = field(default_factory=lambda: np.zeros(0))


class PreferenceData:
    """Encoded answers with their labels and, once they are computed, the reference's log-probabilities.

    Of pairs, the chosen and the rejected answer follow each other. With `shifts` each prompt also stands with the
    answer before it, as in TRL's KTO. Many of these stand in `folder` (`Samples`).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: Sequence[bool] | np.ndarray,
        group: int,
        shifts: bool,
        folder: str | None = None,
    ) -> None:
        self.samples, self.labels, self.group = samples, np.array(labels, bool), group
        shifted = (_with_answer(sample, samples[i - 1]) for i, sample in enumerate(samples))
        self.shifted = Samples(shifted if shifts else (), folder)
        self.reference, self.shifted_reference = np.zeros(len(samples)), np.zeros(len(self.shifted))

    def compute_reference(self, model: LLaMAModel, sequence_length: int, pad_id: int) -> None:
        """Take the log-probabilities of the model as it is as those of the reference."""
        for samples, found in ((self.samples, self.reference), (self.shifted, self.shifted_reference)):
            for i, sample in enumerate(samples):
                batch = collate([[sample]], min(sequence_length, max(2, len(sample))), pad_id)
                found[i] = -sum(s.item() for s in _costs(model, batch))

    def batch(self, rows: Sequence[int], sequence_length: int, pad_id: int) -> PreferenceBatch:
        """The answers `rows`, each in a row of its own, as long as the longest of them."""
        length = min(sequence_length, max(2, *(len(self.samples[i]) for i in rows)))
        plain = collate([[self.samples[i]] for i in rows], length, pad_id)
        shifted = None
        if self.shifted:
            length = min(sequence_length, max(2, *(len(self.shifted[i]) for i in rows)))
            shifted = collate([[self.shifted[i]] for i in rows], length, pad_id)
        return PreferenceBatch(
            **vars(plain),
            labels=self.labels[rows],
            reference=self.reference[rows],
            shifted=shifted,
            shifted_reference=self.shifted_reference[rows] if self.shifted else np.zeros(0),
        )


class PreferenceLoader(DataLoader):
    """Batches of `batch_size` pairs, or of as many labelled answers, shuffled anew each epoch."""

    def __init__(self, data: PreferenceData, batch_size: int, sequence_length: int, *, seed: int, pad_id: int) -> None:
        self.data = data
        super().__init__(
            data.samples, data.group * batch_size, sequence_length, seed=seed, packing=False, pad_id=pad_id
        )

    @property
    def rows(self) -> int:
        """Pairs, or labelled answers, of this epoch: what a batch size counts."""
        return len(self._order) // self.data.group

    def _shuffled(self) -> Sequence[list[int]]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        group = self.data.group
        order = compact(rng.permutation(len(self.samples) // group))
        answers = (order[:, None] * group + np.arange(group, dtype=order.dtype)).reshape(-1)
        return Rows(answers, np.arange(len(answers) + 1))

    def _collated(self, rows: list[list[int]]) -> Batch:
        return self.data.batch([i for row in rows for i in row], self.sequence_length, self.pad_id)


class PreferenceBatches(Sequence[PreferenceBatch]):
    """Every answer once, in a fixed order, in batches that are made when they are asked for."""

    def __init__(self, data: PreferenceData, batch_size: int, sequence_length: int, pad_id: int) -> None:
        self._data, self._size = data, data.group * batch_size
        self._sequence_length, self._pad_id = sequence_length, pad_id

    def __len__(self) -> int:
        return -(-len(self._data.samples) // self._size)

    @overload
    def __getitem__(self, index: int) -> PreferenceBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceBatch]: ...
    def __getitem__(self, index: int | slice) -> PreferenceBatch | list[PreferenceBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        start = range(len(self))[index] * self._size
        stop = min(start + self._size, len(self._data.samples))
        return self._data.batch(range(start, stop), self._sequence_length, self._pad_id)


def _with_answer(prompt: Sample, answer: Sample) -> Sample:
    """The prompt of one sample with the answer of another."""
    ends = [int(sample.trained.argmax()) for sample in (prompt, answer)]
    tokens = np.concatenate([prompt.tokens[: ends[0]], answer.tokens[ends[1] :]])
    return Sample(tokens, np.concatenate([np.zeros(ends[0], bool), answer.trained[ends[1] :]]))


def _costs(model: LLaMAModel, batch: Batch) -> list[Tensor]:
    """-log P of each row's trained tokens, without gradients and dropout."""
    precision = get_matmul_precision()
    with no_grad(), model.evaluating(), matmul_precision("high" if precision == "medium" else precision):
        return _row_costs(model, model.hidden_states(batch.tokens, batch.positions, batch.cu_seqlens), batch.targets)


def _row_costs(model: LLaMAModel, hidden: Tensor, targets: np.ndarray) -> list[Tensor]:
    return [
        _cost(model, hidden, np.where(np.arange(len(targets))[:, None] == i, targets, IGNORE))
        for i in range(len(targets))
    ]


def _cost(model: LLaMAModel, hidden: Tensor, targets: np.ndarray) -> Tensor:
    """Summed cross-entropy of the targets that are not IGNORE."""
    return linear_cross_entropy(
        model.divided(hidden),
        model.head_weight,
        targets,
        reduction="sum",
        softcap=model.config.final_logit_softcapping,
    )


# ---------------------------------------------------------------------- the losses, in float64
def log_sigmoid(x: float) -> float:
    """log(1 / (1 + e^-x))."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return math.exp(log_sigmoid(x))


def dpo(ratios: np.ndarray, beta: float, smoothing: float) -> tuple[float, np.ndarray]:
    """The sum over pairs of -log sigmoid(margin), and its derivative, by log-ratios of chosen and rejected in turn.

    Smoothed as conservative DPO (Mitchell, 2023).
    """
    total, slopes = 0.0, np.zeros(len(ratios))
    for i in range(0, len(ratios), 2):
        margin = beta * float(ratios[i] - ratios[i + 1])
        total -= (1 - smoothing) * log_sigmoid(margin) + smoothing * log_sigmoid(-margin)
        slope = beta * (smoothing * sigmoid(margin) - (1 - smoothing) * sigmoid(-margin))
        slopes[i], slopes[i + 1] = slope, -slope
    return total, slopes


def orpo(means: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """-beta log sigmoid(log odds ratio) summed over pairs, and its derivative, by mean log-probabilities in turn."""
    total, slopes = 0.0, np.zeros(len(means))
    for i in range(0, len(means), 2):
        chosen, rejected = (min(float(mean), -1e-12) for mean in means[i : i + 2])
        odds = chosen - rejected - (math.log(-math.expm1(chosen)) - math.log(-math.expm1(rejected)))
        total -= beta * log_sigmoid(odds)
        slope = -beta * sigmoid(-odds)  # by the odds, which grow by 1 / (1 - P) with log P
        slopes[i], slopes[i + 1] = slope / -math.expm1(chosen), -slope / -math.expm1(rejected)
    return total, slopes


def kto(
    ratios: np.ndarray, labels: np.ndarray, divergence: float, beta: float, weights: tuple[float, float]
) -> tuple[float, np.ndarray]:
    """The sum over answers of KTO's loss, and its derivative by their log-ratios; `weights` of wanted and unwanted."""
    total, slopes = 0.0, np.zeros(len(ratios))
    for i, (ratio, wanted) in enumerate(zip(ratios.tolist(), labels.tolist(), strict=True)):
        sign, weight = (1, weights[0]) if wanted else (-1, weights[1])
        value = sigmoid(sign * beta * (ratio - divergence))
        total += weight * (1 - value)
        slopes[i] = -weight * sign * beta * value * (1 - value)
    return total, slopes


class PreferenceObjective(Objective):
    """The mean loss over the pairs, or labelled answers, of a step that has `count` of them.

    ORPO's first term is the mean over all tokens of the step that it trains.
    """

    of_tokens = False

    def __init__(self, settings: Preferences, count: int) -> None:
        self.settings, self.count = settings, count

    def loss(self, model: LLaMAModel, batch: Batch, total: float) -> Tensor:
        assert isinstance(batch, PreferenceBatch)
        return self._loss(model, batch, self.count, total)

    def weight(self, batch: Batch) -> float:
        orpo = self.settings.method == "orpo"
        return float((_whole_targets(batch) != IGNORE).sum()) if orpo else batch.trained_weight

    def _loss(self, model: LLaMAModel, batch: PreferenceBatch, count: int, weight: float) -> Tensor:
        """The share of a micro-batch in the loss of `count` pairs or answers, whose `weight` is the sum of theirs."""
        s = self.settings
        hidden = model.hidden_states(batch.tokens, batch.positions, batch.cu_seqlens)
        costs = _row_costs(model, hidden, batch.targets)
        logs = -np.array([cost.item() for cost in costs])
        if not np.isfinite(logs).all():
            return costs[int((~np.isfinite(logs)).argmax())]  # what is not finite is said by the caller
        extra: Tensor | None = None
        if s.method == "dpo":
            value, slopes = dpo(logs - batch.reference, s.beta, s.label_smoothing)
        elif s.method == "orpo":
            lengths = (batch.targets != IGNORE).sum(-1)
            value, slopes = orpo(logs / lengths, s.beta)
            slopes = slopes / lengths
            extra = _cost(model, hidden, _whole_targets(batch)) * (1 / weight)
        else:
            weights = (s.desirable_weight, s.undesirable_weight)
            value, slopes = kto(logs - batch.reference, batch.labels, self._divergence(model, batch), s.beta, weights)
        total = costs[0] * float(-slopes[0] / count)
        for cost, slope in zip(costs[1:], slopes[1:], strict=True):
            total = total + cost * float(-slope / count)
        total = total + float(value / count - total.item())  # the value of the loss, with its gradient
        return total if extra is None else total + extra

    def _divergence(self, model: LLaMAModel, batch: PreferenceBatch) -> float:
        """The mean log-ratio of answers to other prompts, at least 0: what KTO compares with, as a constant."""
        assert batch.shifted is not None
        logs = -np.array([cost.item() for cost in _costs(model, batch.shifted)])
        return max(0.0, float((logs - batch.shifted_reference).mean()))

    def evaluate(self, model: LLaMAModel, batches: Iterable[Batch], step: int | None = None) -> Evaluation:
        total, precision = 0.0, get_matmul_precision()
        each = list(batches) if isinstance(batches, Iterator) else batches  # they are gone through twice
        group = 1 if self.settings.method == "kto" else 2
        sizes = [(len(batch.tokens) // group, batch.trained_tokens, self.weight(batch)) for batch in each]
        if not sizes:
            raise NumericsError("The held-out set has no preferences; hold out more.")
        count, tokens, weight = (sum(column) for column in zip(*sizes, strict=True))
        with no_grad(), model.evaluating(), matmul_precision("high" if precision == "medium" else precision):
            for batch in each:
                assert isinstance(batch, PreferenceBatch)
                loss = self._loss(model, batch, int(count), weight).item()
                if not math.isfinite(loss):
                    raise NumericsError(f"The held-out preference loss is {loss}; training diverged.")
                total += loss
        return Evaluation(total, int(tokens))


def _whole_targets(batch: Batch) -> np.ndarray:
    """All tokens of the chosen answers with their prompts, which ORPO's first term trains, shifted."""
    whole = np.full_like(batch.targets, IGNORE)
    for row in range(0, len(whole), 2):
        last = int(np.flatnonzero(batch.targets[row] != IGNORE)[-1])
        whole[row, : last + 1] = batch.tokens[row, 1 : last + 2]
    return whole


def check_sample(sample: Sample, where: str) -> None:
    """ConfigError, naming its place, for an answer of which no token is left in a row."""
    if not sample.trained[1:].any():
        raise ConfigError(
            f"{where}: has an answer of which no token is trained in a row; give a longer training.sequence_length, or "
            "leave the record out."
        )

"""What held a run up most, in sentences that say what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from entrenar.observe.profile import Profile, Row, rate_of

NEAR_THE_PEAK = 0.75
FEW_ROWS = 64  # of a product: what is packed for it is used too seldom
PRODUCTS = ("linear_forward", "linear_backward_input", "linear_backward_weight", "matmul")
UPDATES = ("adam_step", "sgd_step", "sum_squares")
ADVICE = {  # by the beginning of a kernel's name
    "skinny": "these are the adapters' products: fewer lora.target_modules have fewer of them",
    "attention": "its work grows with the square of a row's length: a shorter training.sequence_length has less",
    "cross_entropy": "its work is trained tokens times vocabulary: data.train_on_prompt off trains on fewer",
    "embedding": "it reads rows of the vocabulary's table at random: only fewer tokens make it shorter",
}
OUTSIDE = {  # by phase
    "data": "shorter examples, or fewer of them at once (training.gradient_accumulation), make batches sooner",
    "checkpoint": "raise checkpointing.every or checkpointing.minutes, or write to a faster disk",
    "reduce": "ranks wait here for the slowest one: look at its machine",
}


@dataclass(frozen=True)
class Bottleneck:
    """Something that a run would be faster without, by at most `lost` seconds of wall time."""

    lost: float
    sentence: str


def bottlenecks(profile: Profile, count: int = 3) -> list[str]:
    """The `count` largest, by how much time they cost beyond what this machine needs at its peak."""
    found = sorted([*_of_kernels(profile), *_of_the_rest(profile)], key=lambda each: -each.lost)
    return [each.sentence for each in found[:count]]


def _of_kernels(profile: Profile) -> Iterator[Bottleneck]:
    """One of each kernel; its sentence names the shape in which it spent most."""
    shapes: dict[str, list[Row]] = {}
    for row in profile.kernels():
        shapes.setdefault(row.kernel, []).append(row)
    for kernel, rows in shapes.items():
        seconds = sum(row.seconds for row in rows)
        share = sum(row.least(profile.peak) for row in rows) / seconds if seconds else 0.0
        worst = max(rows, key=lambda row: row.lost(profile.peak))
        lost = sum(row.lost(profile.peak) for row in rows)
        yield Bottleneck(
            lost,
            f"{kernel} takes {_percent(seconds, profile)} at {100 * share:.0f} % of this machine's peak, which costs "
            f"{_percent(lost, profile)}, most of it at {worst.shape} ({worst.bound(profile.peak)}-bound, "
            f"{100 * worst.share(profile.peak):.0f} %): {_advice(worst, profile)}.",
        )


def _advice(row: Row, profile: Profile) -> str:
    peak = profile.peak
    if row.kernel in PRODUCTS:
        if row.arithmetic == "fp32" and peak.int16 > peak.fp32:
            return "training.precision high multiplies in 16-bit integers, which this machine does faster"
        if row.share(peak) >= NEAR_THE_PEAK:
            return (
                "that is near what the machine can do, so less work is what helps: shorter rows, fewer layers "
                "recomputed (training.gradient_checkpointing)"
            )
        if row.extents and row.extents[0] < FEW_ROWS:
            return f"{row.extents[0]} rows are few for a product; raise training.batch_size or sequence_length"
        if row.arithmetic == "int16" and peak.int8 > rate_of(peak, "int16"):
            return "training.precision medium multiplies in 8 bits, where the loss bears it; cores of its own help too"
        return "its threads wait for each other where other programs take their cores; give it cores of its own"
    if row.kernel in UPDATES:
        return "training.gradient_accumulation makes one update serve more tokens"
    for beginning, advice in ADVICE.items():
        if row.kernel.startswith(beginning):
            return advice
    if row.bound(peak) == "memory":
        return (
            "it moves memory, which more threads do not speed up; fewer tokens at once (training.batch_size, "
            "sequence_length) stay in the caches"
        )
    return "it computes elementary functions, whose operations count as one each: more threads help"


def _of_the_rest(profile: Profile) -> Iterator[Bottleneck]:
    """The interpreter and waiting, in phases that have their own remedy and in all others together."""
    groups: dict[str, list[tuple[str, float, float]]] = {}
    for phase, (seconds, cpu) in profile.outside.items():
        groups.setdefault(phase if phase in OUTSIDE else "", []).append((phase, cpu, seconds - cpu))
    idle = (
        f" while {profile.threads - 1} of {profile.threads} threads have nothing to do" if profile.threads > 1 else ""
    )
    for group, parts in groups.items():
        interpreter, waiting = sum(part[1] for part in parts), sum(part[2] for part in parts)
        longest = max(parts, key=lambda part: part[1])[0] or "what is between the phases"
        advice = OUTSIDE.get(
            group, "larger operations (training.batch_size, training.sequence_length) have less of it for a token"
        )
        yield Bottleneck(
            interpreter,
            f"The interpreter takes {_percent(interpreter, profile)} outside of kernels, most of it in {longest},"
            f"{idle}: {advice}.".replace(",:", ":"),
        )
        longest = max(parts, key=lambda part: part[2])[0] or "what is between the phases"
        advice = OUTSIDE.get(
            group, "other programs have the cores, or a disk is slow; make profile-llama shows which calls wait"
        )
        yield Bottleneck(
            waiting,
            f"The run waits without a CPU for {_percent(waiting, profile)} outside of kernels, most of it in "
            f"{longest}: {advice}.",
        )


def _percent(seconds: float, profile: Profile) -> str:
    return f"{100 * seconds / profile.wall_seconds:.1f} % of the time" if profile.wall_seconds else "no time"

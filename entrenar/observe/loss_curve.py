"""A run's losses as a picture: every step's, their mean over some steps, the held-out ones, and the lowest of those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from entrenar.observe.extras import needed

OPTION, EXTRA = "observe.loss_curve", "plot"
SIZE, DPI = (9.0, 5.0), 120  # inches, dots an inch
SMOOTH_FROM, SMOOTH_PARTS = 12, 16  # steps; a mean is over one part
TRAINED, MEAN, HELD_OUT = "#9db4d3", "#1f4e99", "#c8501e"
Points = Sequence[tuple[int, float]]


def check() -> None:
    """ConfigError where matplotlib is missing."""
    needed("matplotlib", OPTION, EXTRA)


def means(losses: Points) -> list[tuple[float, float]]:
    """The mean loss of each sixteenth of the steps, at its middle; nothing of few steps."""
    if len(losses) < SMOOTH_FROM:
        return []
    parts = min(SMOOTH_PARTS, len(losses) // 3)
    bounds = [len(losses) * part // parts for part in range(parts + 1)]
    found = [losses[start:stop] for start, stop in pairwise(bounds)]
    return [
        (math.fsum(step for step, _ in part) / len(part), math.fsum(loss for _, loss in part) / len(part))
        for part in found
    ]


def draw(path: Path, losses: Points, held_out: Points, *, title: str, best: str, unit: str) -> None:
    """Write the picture as PNG (raises OSError); held-out losses are those after a step, 0 being before training.

    `best` says what the lowest of them is, `unit` what a loss is of. ConfigError where matplotlib is missing.
    """
    figure_module = needed("matplotlib.figure", OPTION, EXTRA)
    ticker = needed("matplotlib.ticker", OPTION, EXTRA)
    figure = figure_module.Figure(figsize=SIZE, layout="constrained", facecolor="white")  # no global state, no window
    axes = figure.add_subplot(facecolor="white")
    smooth = means(losses)
    if losses:
        few = {"marker": "."} if len(losses) < SMOOTH_FROM else {}
        axes.plot(*zip(*losses, strict=True), color=TRAINED if smooth else MEAN, linewidth=1, label="training", **few)
    if smooth:
        axes.plot(*zip(*smooth, strict=True), color=MEAN, linewidth=2, label="training, mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=HELD_OUT, linewidth=1.5, marker="o", label="held out")
    if len(held_out) > 1:
        step, loss = min(held_out, key=lambda point: point[1])
        marked = {"marker": "*", "markersize": 16, "markeredgecolor": "black", "linestyle": "none", "zorder": 5}
        axes.plot([step], [loss], color="#f2b705", label=f"{best}: {loss:.4f} after step {step}", **marked)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    axes.set_title(title, loc="left", parse_math=False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if losses or held_out:
        axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=DPI)

"""Charts of a report, as SVG elements of a size that does not grow with the run: lines, stacked columns, bars.

A line of more points than pixels is drawn by the least and the largest value of each pixel column, so that no spike is
lost; stacked columns are means of as many steps as fit. Colours are classes, which the page's style gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from entrenar.errors import safe
from entrenar.observe.report_run import Column

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 72, 28, 26, 34
COLUMNS = WIDTH - LEFT - RIGHT
MOST_BARS = 240  # steps that have a column of their own in a timeline
MOST_GAPS = 120  # columns that have a gap between them
LOG_FROM = 100.0  # the ratio of largest to least from which a scale is logarithmic
LABEL_WIDTH, LABEL_ROWS = 17, 2  # of the numbers at marks
SMOOTH_FROM, SMOOTH_PARTS = 12, 16  # steps; a mean is over one part


@dataclass(frozen=True)
class Series:
    """A line, or dots joined by one; `style` is a class."""

    label: str
    style: str
    x: Column
    y: Column
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """An anomaly at a step: its number in the list, its severity and what is said of it."""

    number: int
    step: float
    severity: str
    text: str


def clean(text: object) -> str:
    """Text for a page: escaped, without characters that HTML has no place for."""
    return escape(safe(str(text)))


def short(value: float) -> str:
    """A number for an axis."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


# ---------------------------------------------------------------------- scales
@dataclass(frozen=True)
class Scale:
    """From values to pixels; logarithmic where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: Column) -> Column:
        """Pixels, within the chart."""
        if self.log:
            part = np.log10(np.maximum(values, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            part = (values - self.low) / (self.high - self.low)
        return self.start + np.clip(part, 0, 1) * (self.end - self.start)

    def at(self, value: float) -> float:
        """The pixel of one value."""
        return float(self(np.array([value]))[0])

    def ticks(self, most: int, whole: bool = False) -> list[float]:
        """Round values within the scale, `most` at most; `whole` for counts."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = max(1, -(-len(powers) // most))
            return [10.0**power for power in powers][::every]
        distance = nice((self.high - self.low) / most)
        distance = max(1.0, distance) if whole else distance
        first, last = math.ceil(self.low / distance - 1e-9), math.floor(self.high / distance + 1e-9)
        return [count * distance for count in range(first, last + 1)]


def nice(distance: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `distance`."""
    power = 10.0 ** math.floor(math.log10(distance))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= distance * (1 - 1e-9))


def vertical(values: Column, height: float, *, zero: bool = False, may_log: bool = True) -> Scale | None:
    """The scale of the finite ones of `values`, with room above and below; None where there is none."""
    found = values[np.isfinite(values)]
    if not found.size:
        return None
    low, high = float(found.min()), float(found.max())
    if may_log and not zero and low > 0 and high / low > LOG_FROM:
        return Scale(
            10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)), height - BOTTOM, TOP, True
        )
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return Scale(min(0.0, low) if zero else low - room, high + room, height - BOTTOM, TOP)


def horizontal(steps: Column) -> Scale:
    """The scale of steps; a single one is in the middle."""
    low, high = float(steps.min()), float(steps.max())
    return Scale(low - 0.5, high + 0.5, LEFT, WIDTH - RIGHT)


# ---------------------------------------------------------------------- lines
def decimated(x: Column, y: Column) -> tuple[Column, Column]:
    """Pixels of a line: where there are more points than columns, the least and the largest of each, in their order."""
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if x.size <= 2 * COLUMNS:
        return x, y
    starts = np.flatnonzero(np.diff(np.floor(x), prepend=-1.0))
    ends = np.append(starts[1:], x.size)
    kept = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        kept += sorted({start + int(y[start:end].argmin()), start + int(y[start:end].argmax())})
    return x[kept], y[kept]


def smooth(y: Column) -> Column:
    """Means over a part of the line about each point, NaN left out."""
    width = max(5, y.size // SMOOTH_PARTS)
    there = np.isfinite(y)
    sums, counts = (np.cumsum(np.concatenate([[0.0], part])) for part in (np.where(there, y, 0.0), there.astype(float)))
    points = np.arange(y.size)
    first, last = np.maximum(points - width // 2, 0), np.minimum(points + width // 2 + 1, y.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[last] - sums[first]) / (counts[last] - counts[first]))


def line_chart(
    series: Sequence[Series],
    *,
    name: str,
    height: int = 240,
    zero: bool = False,
    may_log: bool = True,
    reference: Sequence[float] = (),
    marks: Sequence[Mark] = (),
) -> str | None:
    """Lines over steps; `reference` are horizontal lines. None where no value is finite."""
    everything = np.concatenate([*(line.y for line in series), np.array(reference)])
    up = vertical(everything, height, zero=zero, may_log=may_log)
    if up is None:
        return None
    across = horizontal(np.concatenate([line.x for line in series]))
    parts = _axes(across, up, height)
    for value in reference:
        parts.append(f'<path class="reference" d="M{LEFT} {up.at(value):.1f}H{WIDTH - RIGHT}"/>')
    for line in series:
        parts += _line(line, across, up)
    parts += _marks(marks, across, height)
    return _svg(parts, height, name)


def _line(line: Series, across: Scale, up: Scale) -> list[str]:
    x, y = decimated(across(line.x), np.where(np.isfinite(line.y), up(line.y), np.nan))
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    if not points:
        return []
    drawn = [f'<path class="line {line.style}" d="M{"L".join(points)}"/>']
    if (line.dots and len(points) <= MOST_BARS) or len(points) == 1:
        places = zip(x.tolist(), y.tolist(), strict=True)
        drawn += [f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in places]
    return drawn


# ---------------------------------------------------------------------- stacked columns
def timeline(steps: Column, parts: Mapping[str, Column], seconds: Column, marks: Sequence[Mark], name: str) -> str:
    """The seconds of each step, stacked by phase; beyond MOST_BARS steps means of several, the slowest as a line."""
    height = 260
    count = min(len(steps), MOST_BARS)
    edges = np.linspace(0, len(steps), count + 1).astype(int)
    sizes = np.diff(edges)
    means = {label: np.add.reduceat(np.nan_to_num(column), edges[:-1]) / sizes for label, column in parts.items()}
    slowest = np.maximum.reduceat(np.nan_to_num(seconds), edges[:-1])
    up = vertical(np.append(slowest, 0.0), height, zero=True)
    assert up is not None
    across = horizontal(steps)
    left = across(steps[edges[:-1]] - 0.5)
    right = np.append(left[1:], WIDTH - RIGHT)
    gap = np.minimum(1.0, 0.15 * (right - left)) * (count <= MOST_GAPS)
    drawn, below = _axes(across, up, height), np.zeros(count)
    for index, (label, column) in enumerate(means.items()):
        low, high = up(below), up(below + column)
        below = below + column
        boxes = zip(left.tolist(), (right - left - gap).tolist(), low.tolist(), high.tolist(), strict=True)
        path = "".join(f"M{x:.1f} {a:.1f}h{w:.1f}V{b:.1f}h{-w:.1f}z" for x, w, a, b in boxes if a - b >= 0.05)
        drawn.append(f'<path class="area {phase_style(label, index)}" d="{path}"><title>{clean(label)}</title></path>')
    if count < len(steps):
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip((left + right) / 2, up(slowest), strict=True))
        drawn.append(f'<path class="line slowest" d="M{points}"/>')
    return _svg(drawn + _marks(marks, across, height), height, name)


PHASES = ("data", "forward", "backward", "reduce", "clip", "optimizer", "verify", "other")


def phase_style(label: str, index: int) -> str:
    """The class of a phase's colour: its own where it is known."""
    return f"phase{PHASES.index(label) if label in PHASES else index % len(PHASES)}"


# ---------------------------------------------------------------------- bars
def bars(rows: Mapping[str, Mapping[str, float]], *, name: str) -> str | None:
    """Horizontal bars of bytes, each of parts by label; None where nothing is above zero."""
    longest = max((sum(parts.values()) for parts in rows.values()), default=0.0)
    if longest <= 0:
        return None
    start, room, each = 150, 110, 40
    scale = (WIDTH - start - room) / longest
    drawn = []
    for row, (label, parts) in enumerate(rows.items()):
        y, x = 8 + row * each, float(start)
        drawn.append(f'<text class="row" x="{start - 10}" y="{y + 18}" text-anchor="end">{clean(label)}</text>')
        for index, (item, size) in enumerate(parts.items()):
            style = f"phase{index % len(PHASES)}" if len(parts) > 1 else "whole"
            box = f'x="{x:.1f}" y="{y}" width="{size * scale:.1f}" height="26"'
            drawn.append(f'<rect class="area {style}" {box}><title>{clean(item)}: {mebibytes(size)}</title></rect>')
            x += size * scale
        drawn.append(f'<text class="row" x="{x + 8:.1f}" y="{y + 18}">{mebibytes(sum(parts.values()))}</text>')
    return _svg(drawn, 8 + each * len(rows), name)


def mebibytes(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.0f} MiB"


# ---------------------------------------------------------------------- frame
def _svg(parts: Sequence[str], height: int, name: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{clean(name)}">{"".join(parts)}</svg>'


def _axes(across: Scale, up: Scale, height: int) -> list[str]:
    drawn = []
    for value in up.ticks(5):
        y = up.at(value)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in across.ticks(10, whole=True):
        x = across.at(value)
        drawn.append(f'<path class="tick" d="M{x:.1f} {height - BOTTOM}v5"/>')
        drawn.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{value:,.0f}</text>')
    drawn.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{WIDTH - RIGHT}"/>')
    return drawn


def _marks(marks: Sequence[Mark], across: Scale, height: int) -> list[str]:
    """A line at each mark, with its number where there is room for it in one of the rows above the chart."""
    drawn, free = [], [-math.inf] * LABEL_ROWS
    for mark in sorted(marks, key=lambda mark: mark.step):
        x = across.at(mark.step)
        row = next((row for row in range(LABEL_ROWS) if x - free[row] >= LABEL_WIDTH), None)
        label = ""
        if row is not None:
            free[row] = x
            label = f'<text x="{x:.1f}" y="{TOP - 4 - 11 * row}" text-anchor="middle">{mark.number}</text>'
        line = f'<title>{clean(mark.text)}</title><path d="M{x:.1f} {TOP}V{height - BOTTOM}"/>'
        style = f"mark {severity_style(mark.severity)}"
        drawn.append(f'<a href="#anomaly-{mark.number}" class="{style}">{line}{label}</a>')
    return drawn


def severity_style(severity: str) -> str:
    """The class of a severity's colour."""
    return severity if severity in ("low", "medium", "high") else "medium"

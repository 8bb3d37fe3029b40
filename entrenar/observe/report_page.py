"""The report of a run as one HTML page that needs nothing else: no script, no address outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from entrenar.observe.report_charts import (
    MOST_BARS,
    SMOOTH_FROM,
    Mark,
    Series,
    bars,
    clean,
    line_chart,
    mebibytes,
    phase_style,
    severity_style,
    smooth,
    timeline,
)
from entrenar.observe.report_run import MEMORY, Column, Run, facts, number, part
from entrenar.observe.report_style import STYLE

MOST_ANOMALIES, MOST_KERNELS, MOST_REMARKS, MOST_KEYS = 100, 15, 50, 400
MOST_TEXT, MOST_VALUE = 6000, 300  # characters of a sample, of a value
OF_TRAINING = ("loss_spike", "grad_norm_spike", "nonfinite", "plateau", "dead_adapter", "update_ratio")
OF_MEMORY = ("memory_leak",)
OF_EVERY_RUN = (
    "training",
    "lr_schedule",
    "data",
    "checkpointing",
    "observe",
    "preference",
)  # sections
# The page can load nothing, whatever text it shows; its icon is empty, so that none is asked for.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: Run, folder: str) -> str:
    """The whole page; `folder` is where the run is."""
    title = f"Run {PurePath(folder).name or folder}"
    listed = _listed(run.anomalies)
    marks = [Mark(count, row["step"], row["severity"], row["sentence"]) for count, row in enumerate(listed, 1)]
    parts = [
        f"<h1>{clean(title)}</h1>",
        _about(run),
        _tiles(run),
        _section(
            "Loss", _loss(run, [mark for mark, row in zip(marks, listed, strict=True) if row["kind"] in OF_TRAINING])
        ),
        _section("Time", _time(run, marks)),
        _section("Anomalies", _anomalies(run, listed)),
        _section(
            "Memory", _memory(run, [mark for mark, row in zip(marks, listed, strict=True) if row["kind"] in OF_MEMORY])
        ),
        _section("Kernels against this machine's peak", _kernels(run)),
        _section("Samples before and after", _samples(run)),
        _section("Configuration", _configuration(run)),
        _section("Fingerprint", _fingerprint(run)),
        _section("Remarks", _remarks(run)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{clean(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{clean(title)}</h2>\n{content}\n</section>"


def _missing(sentence: str) -> str:
    return f'<p class="faint">{clean(sentence)}</p>'


def _cut(value: object, most: int = MOST_VALUE) -> str:
    text = str(value)
    return clean(text if len(text) <= most else f"{text[:most]} [{len(text) - most:,} more characters]")


def _figure(title: str, chart: str | None, keys: Iterable[tuple[str, str]], note: str = "") -> str:
    if chart is None:
        return _missing(f"{title}: the run recorded no finite value.")
    legend = "".join(f'<span class="key"><i class="{style}"></i>{clean(label)}</span>' for label, style in keys)
    said = f"<span>{clean(note)}</span>" if note else ""
    caption = f"<figcaption><b>{clean(title)}</b>{legend}{said}</figcaption>"
    return f'<figure>{caption}<div class="wide">{chart}</div></figure>'


# ---------------------------------------------------------------------- the head
def _about(run: Run) -> str:
    summary, machine = run.summary, part(run.summary, "machine")
    configuration = part(summary, "configuration")
    adapter = next((name for name in configuration if name not in OF_EVERY_RUN), None)
    said = [PurePath(str(summary["model"])).name] if summary.get("model") else []
    if configuration:
        said.append(f"method {adapter}" if adapter else "all weights trained")
    said += [f"tuned by {run.preference}"] if run.preference else []
    if machine:
        said.append(f"{machine.get('threads')} threads on {machine.get('cpu')}")
        said.append(f"tier {machine.get('tier')}, precision {machine.get('precision')}")
    said += [f"run {summary['run']}"] if summary.get("run") else []
    said += [str(summary["written"])] if summary.get("written") else []
    if not summary:
        return _missing("The folder has no summary.json, so that configuration, samples and machine are unknown.")
    return f'<p class="faint">{" · ".join(_cut(each) for each in said)}</p>'


def _tiles(run: Run) -> str:
    found = facts(run)
    steps, wanted = found["steps"], number(part(run.summary, "configuration", "training").get("steps"))
    held_out = found["held_out"]
    tiles = [(f"{steps:,}" + (f" of {wanted:,.0f}" if wanted else ""), "steps")]
    if len(held_out) > 1:
        first, last = held_out[0]["loss"], held_out[-1]["loss"]
        beside = "" if run.preference else f", perplexity {_perplexity(first)} → {_perplexity(last)}"
        tiles.append((f"{first:.3f} → {last:.3f}", f"held-out loss{beside}"))
    elif found["loss"]["last"] is not None:
        tiles.append((f"{found['loss']['last']:.4g}", "loss of the last step"))
    rate, seconds = found["tokens_per_second"], found["seconds"]
    if rate:
        tiles.append((f"{rate:,.0f}", f"tokens a second; {found['tokens']:,} tokens in {_duration(seconds)} of steps"))
    estimate, peak = found["memory"]["estimated_bytes"], found["memory"]["peak"]
    if peak:
        beside = f", estimated {mebibytes(estimate)}" if estimate else ""
        tiles.append((mebibytes(peak), f"largest resident set{beside}"))
    count = len(run.anomalies)
    tiles.append((f"{count:,}", "anomalies" if run.watched or count else "anomalies: not watched (--monitor)"))
    shown = "".join(
        f'<div class="tile"><b>{clean(value)}</b><span>{clean(label)}</span></div>' for value, label in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 20 else f"e^{loss:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------------- curves
def _loss(run: Run, marks: Sequence[Mark]) -> str:
    steps, loss = run.columns["step"], run.columns["loss"]
    lines = _with_mean("loss of each step", steps, loss)
    at, held_out = run.held_out
    if held_out.size:
        lines.append(Series("held-out loss", "held", at, held_out, dots=True))
    keys = [(line.label, line.style) for line in lines]
    title = f"Loss ({run.preference})" if run.preference else "Loss (nats a token)"
    shown = [_figure(title, line_chart(lines, name="Loss by step", marks=marks, height=280), keys)]
    if not held_out.size:
        shown.append(_missing("Nothing was held out, so that there is no loss before and after."))
    for title, name, may_log in (("Gradient norm", "grad_norm", True), ("Learning rate", "learning_rate", False)):
        lines = [Series(title, "one", steps, run.columns[name])]
        chart = line_chart(lines, name=f"{title} by step", height=170, may_log=may_log)
        shown.append(_figure(title, chart, []))
    return "\n".join(shown)


def _with_mean(label: str, steps: Column, values: Column) -> list[Series]:
    """A line and, where there are enough steps, its mean over a part of them."""
    if steps.size < SMOOTH_FROM:
        return [Series(label, "one", steps, values, dots=True)]
    return [Series(label, "train", steps, values), Series("mean of the steps about it", "mean", steps, smooth(values))]


def _time(run: Run, marks: Sequence[Mark]) -> str:
    steps, seconds = run.columns["step"], run.columns["seconds"]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(seconds > 0, run.columns["tokens"] / seconds, np.nan)
    lines = _with_mean("tokens a second", steps, rate)
    keys = [(line.label, line.style) for line in lines]
    shown = [_figure("Throughput", line_chart(lines, name="Tokens a second by step", zero=True, height=200), keys)]
    parts = dict(run.phases)
    if not parts:
        shown.append(_missing("The run recorded no phases (older runs have none), so that steps are shown whole."))
    rest = np.maximum(0.0, np.nan_to_num(seconds) - sum(parts.values(), np.zeros(steps.size)))
    parts["other"] = rest
    each = -(-steps.size // MOST_BARS)
    keys = [(label, phase_style(label, index)) for index, label in enumerate(parts) if parts[label].any()]
    note = "numbers are those of the anomalies below" if marks else ""
    if steps.size > MOST_BARS:
        keys.append(("the slowest step", "slowest"))
        note = f"a column is the mean of about {each:,} steps" + (f"; {note}" if note else "")
    chart = timeline(steps, parts, seconds, marks, "Seconds of each step by phase")
    return "\n".join([*shown, _figure("Seconds of each step, by phase", chart, keys, note), _phase_table(parts)])


def _phase_table(parts: Mapping[str, Column]) -> str:
    whole = sum(float(column.sum()) for column in parts.values())
    rows = []
    for name, column in list(parts.items())[:MOST_KERNELS]:
        share = 100 * column.sum() / whole if whole else 0.0
        figures = (f"{column.sum():,.2f}", f"{share:.1f} %", f"{np.median(column):.4g}", f"{column.max():.4g}")
        rows.append([clean(name), *map(_n, figures)])
    return _table(["phase", "-seconds", "-share", "-median of a step", "-largest"], rows)


def _n(text: str) -> str:
    """The cell of a number."""
    return f"\0{text}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], ids: str = "") -> str:
    """A table of cells that are HTML; a heading that begins with - is of numbers, a cell with NUL too."""
    head = "".join(
        f'<th class="n">{clean(name[1:])}</th>' if name.startswith("-") else f"<th>{clean(name)}</th>"
        for name in headings
    )
    body = []
    for count, row in enumerate(rows, 1):
        cells = "".join(
            f'<td class="n">{cell[1:]}</td>' if cell.startswith("\0") else f'<td class="long">{cell}</td>'
            for cell in row
        )
        body.append(f'<tr id="{ids}-{count}">{cells}</tr>' if ids else f"<tr>{cells}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if headings else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(body)}</tbody></table></div>'


# ---------------------------------------------------------------------- anomalies
def _listed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are shown, in order of their steps: the most severe, where there are too many."""
    ranks = {"high": 0, "medium": 1}
    worst = sorted(rows, key=lambda row: (ranks.get(row["severity"], 2), -(row["z"] or 0.0)))[:MOST_ANOMALIES]
    return sorted(worst, key=lambda row: row["step"])


def _anomalies(run: Run, listed: Sequence[dict[str, Any]]) -> str:
    if not listed:
        watched = "The run was watched, and nothing unusual was found."
        return _missing(
            watched if run.watched else "The run was not watched (--monitor), so that anomalies are unknown."
        )
    rows = []
    for count, row in enumerate(listed, 1):
        until = "lasted" if row["ended"] is None else f"{row['ended']:,.0f}"
        badge = f'<span class="badge {severity_style(row["severity"])}">{_cut(row["severity"])}</span>'
        causes = [cause for cause in row["causes"] if cause not in row["sentence"]]
        said = "".join(f"<br>{_cut(text)}" for text in causes)
        figures = [
            _n(str(count)),
            _n(f"{row['step']:,}"),
            _n(until),
            badge,
            _n("" if row["z"] is None else f"{row['z']:.1f}"),
        ]
        rows.append([*figures, _cut(row["kind"].replace("_", " ")), _cut(row["sentence"], 2 * MOST_VALUE) + said])
    left = len(run.anomalies) - len(listed)
    more = _missing(f"{left:,} less severe ones are in anomalies.jsonl.") if left else ""
    return _table(["-", "-step", "-over at", "severity", "-z", "kind", "what, and why"], rows, "anomaly") + more


# ---------------------------------------------------------------------- memory and kernels
def _memory(run: Run, marks: Sequence[Mark]) -> str:
    estimate, peak, sampled = run.estimate, run.peak, run.columns[MEMORY] / 2**20
    rows: dict[str, Mapping[str, float]] = {}
    if estimate:
        rows["estimated peak"] = estimate
    if peak:
        rows["largest resident"] = {"largest resident set": peak}
    chart = bars(rows, name="Memory against the estimate")
    shown = []
    if not estimate:
        shown.append(_missing("The run recorded no estimate of its memory (older runs have none)."))
    if chart:
        keys = [(name, f"phase{index % 8}") for index, name in enumerate(estimate)]
        shown.append(_figure("Memory against the estimate", chart, keys))
    if not np.isfinite(sampled).any():
        shown.append(_missing("The resident set was not sampled step by step (--monitor does)."))
        return "\n".join(shown)
    reference = [sum(estimate.values()) / 2**20] if estimate else []
    lines = [Series("resident set", "one", run.columns["step"], sampled)]
    keys = [("resident set", "one"), *([("estimated peak", "reference")] if estimate else [])]
    curve = line_chart(lines, name="Resident set by step", height=200, zero=True, reference=reference, marks=marks)
    return "\n".join([*shown, _figure("Resident set at the end of each step (MiB)", curve, keys)])


def _kernels(run: Run) -> str:
    found = run.profile.get("kernels")
    kernels = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    if not kernels:
        return _missing("The run was not profiled (--profile), so that its kernels are unknown.")
    whole = sum(number(row.get("seconds")) or 0.0 for row in kernels)
    kernels = sorted(kernels, key=lambda row: -(number(row.get("seconds")) or 0.0))
    rows = []
    for row in kernels[:MOST_KERNELS]:
        seconds, calls, share = (number(row.get(name)) for name in ("seconds", "calls", "share_of_peak"))
        speeds = [number(row.get(name)) for name in ("gflops", "gbs")]
        figures = ["" if calls is None else f"{calls:,.0f}", f"{seconds or 0:,.2f}"]
        figures += [f"{100 * (seconds or 0) / whole if whole else 0:.1f} %"]
        figures += ["" if speed is None else f"{speed:,.1f}" for speed in speeds]
        width = min(100.0, max(0.0, 100 * (share or 0.0)))
        bar = f'<span class="share"><i style="width:{width:.0f}%"></i></span>' if share is not None else ""
        of_peak = [_n("" if share is None else f"{100 * share:.0f} %"), bar]
        rows.append([_cut(row.get("kernel", "")), _cut(row.get("shape", "")), *map(_n, figures), *of_peak])
    headings = ["kernel", "shape", "-calls", "-seconds", "-of kernels", "-GFLOP/s", "-GB/s", "-of peak", ""]
    rest = sum(number(row.get("seconds")) or 0.0 for row in kernels[MOST_KERNELS:])
    left = len(kernels) - MOST_KERNELS
    more = (
        _missing(f"{left:,} others take {100 * rest / whole:.1f} % of the kernels' time.") if left > 0 and whole else ""
    )
    return _peak(run, kernels[:MOST_KERNELS]) + _bottlenecks(run) + _table(headings, rows) + more


def _peak(run: Run, shown: Sequence[Mapping[str, Any]]) -> str:
    measured = part(run.profile, "peak")
    units = {"gflops": "GFLOP/s fp32", "gops_int16": "Gop/s 16-bit", "gops_int8": "Gop/s 8-bit", "gbs": "GB/s read"}
    said = [f"{value:,.1f} {unit}" for name, unit in units.items() if (value := number(measured.get(name))) is not None]
    busy = "; a share above 100 % says that the machine was busier while its peak was measured than in the run"
    note = busy if any((number(row.get("share_of_peak")) or 0) > 1.05 for row in shown) else ""
    return _missing(f"Measured peak: {', '.join(said)}{note}.") if said else ""


def _bottlenecks(run: Run) -> str:
    found = run.profile.get("bottlenecks")
    sentences = found[:MOST_REMARKS] if isinstance(found, list) else []
    return f"<ol>{''.join(f'<li>{_cut(each, 3 * MOST_VALUE)}</li>' for each in sentences)}</ol>" if sentences else ""


# ---------------------------------------------------------------------- words
def _samples(run: Run) -> str:
    samples = part(run.summary, "samples")
    shown = []
    for name, title in (("prompt", "Prompt"), ("before", "Before"), ("after", "After")):
        if name in samples:
            text = str(samples[name]).strip()
            shown.append(f"<h3>{title}</h3><pre>{_cut(text, MOST_TEXT) or '(nothing)'}</pre>")
        elif samples:
            shown.append(_missing(f"{title}: none; the run has not come so far."))
    return "\n".join(shown) or _missing("The run recorded no samples (older runs have none).")


def _configuration(run: Run) -> str:
    sections = part(run.summary, "configuration")
    shown = []
    for name, keys in list(sections.items())[:MOST_KEYS]:
        if isinstance(keys, Mapping):
            shown.append(f"<div><h3>[{_cut(name)}]</h3>{_keys(keys)}</div>")
    if not shown:
        return _missing("The run recorded no configuration (older runs have none).")
    return f'<div class="sections">{"".join(shown)}</div>'


def _keys(table: Mapping[str, Any]) -> str:
    return _table([], [[_cut(name), _cut(_value(value))] for name, value in list(table.items())[:MOST_KEYS]])


def _value(value: Any) -> str:
    """A value as TOML has it, about."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return str(value) if value != "" and value != {} else "none"


def _fingerprint(run: Run) -> str:
    """What decides the bits, but for the settings, which stand in the configuration."""
    found, machine = part(run.summary, "fingerprint"), dict(part(run.summary, "machine"))
    memory = number(machine.pop("memory_bytes", None))
    machine |= {} if memory is None else {"memory": mebibytes(memory)}
    settings = [f"{name}." for name in part(run.summary, "configuration")]
    rest = {name: value for name, value in found.items() if not any(str(name).startswith(each) for each in settings)}
    shape = {name: value for name, value in rest.items() if str(name).startswith("model.")}
    others = {name: value for name, value in rest.items() if name not in shape}
    shape = {str(name).removeprefix("model."): value for name, value in shape.items() if value is not None}
    tables = [("Hashes and engine", others), ("Model", shape), ("Machine", machine), ("Data", _data(run))]
    shown = [f"<div><h3>{title}</h3>{_keys(keys)}</div>" for title, keys in tables if keys]
    note = "" if found else _missing("The run recorded no fingerprint (older runs have none).")
    same = "Two runs of one fingerprint and configuration have the same bits, whatever the number of threads."
    return (_missing(same) if found else note) + (f'<div class="sections">{"".join(shown)}</div>' if shown else "")


def _data(run: Run) -> dict[str, Any]:
    data = part(run.summary, "data")
    found = {"source": data["source"]} if "source" in data else {}
    for side in ("training", "held_out"):
        for name in ("examples", "samples", "tokens", "trained_tokens"):
            value = number(part(data, side).get(name))
            if value is not None:
                found[f"{side}: {name}"] = f"{value:,.0f}"
    return found


def _remarks(run: Run) -> str:
    found = run.summary.get("remarks")
    sentences = found[:MOST_REMARKS] if isinstance(found, list) else []
    shown = "".join(f"<li>{_cut(each, 2 * MOST_VALUE)}</li>" for each in sentences)
    return f"<ul>{shown}</ul>" if shown else _missing("None: nothing was left out, cut or changed.")

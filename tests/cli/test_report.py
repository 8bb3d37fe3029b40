"""`entrenar report`: runs of any length, with and without their parts, hostile text, damaged files, a real browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.cli.report import main
from entrenar.errors import FormatError
from entrenar.observe.report_charts import COLUMNS, LEFT, Scale, decimated, nice, short, smooth
from tests.observe import chromium
from tests.train.builders import config_for, quiet, run_entrenar, write_examples, write_model

pytestmark = pytest.mark.unit
HOSTILE = "<script>document.title='taken'</script><img src='http://127.0.0.1:9/x.png'>\x00\ud800&amp;\"'</pre>"
NEEDS_BROWSER = pytest.mark.skipif(not chromium.PROGRAM, reason="Chromium is not installed")


def write_run(folder: Path, steps: int, *, parts: bool = True, slow: int = 0, spike: int = 0) -> Path:
    """What a run of `steps` steps leaves; without `parts` the metrics alone, as older runs have them."""
    rng = np.random.default_rng(0)
    loss = 2 + np.exp(-np.arange(steps) / (steps / 3)) + 0.1 * rng.standard_normal(steps)
    if spike:
        loss[spike] = 1e6
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            seconds = 4.0 if step == slow else 1.0
            row = {"step": step, "loss": loss[step - 1], "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 512}
            row |= {"trained_tokens": 400, "seconds": seconds}
            if parts:
                row["phases"] = {"data": 0.01, "forward": 0.4 * seconds, "backward": 0.5 * seconds, "odd <b>": 0.01}
                row["resources"] = {"resident_bytes": 5e8 + 1e5 * step}
            if step % max(1, steps // 10) == 0:
                row["held_out"] = {"loss": float(loss[step - 1]) + 0.2, "tokens": 900}
            file.write(json.dumps(row) + "\n")
    if parts:
        (folder / "summary.json").write_text(json.dumps(summary()))
        (folder / "profile.json").write_text(json.dumps(profile()))
        rows = [anomaly(max(1, min(steps, step))) for step in (slow, slow + 1)]
        (folder / "anomalies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def summary() -> dict[str, Any]:
    return {
        "run": "0123abcd",
        "model": "/models/small.gguf",
        "held_out": {"before": {"loss": 3.5, "tokens": 900}, "after": {"loss": 2.2, "tokens": 900}},
        "samples": {"prompt": "What?", "before": HOSTILE, "after": "\u05d0 right to left, \U0001f600"},
        "memory": {"estimate": {"weights": 3e8, "activations": 2e8}, "peak_resident_bytes": 6e8},
        "machine": {"cpu": "A CPU", "threads": 2, "tier": "v4", "precision": "high", "memory_bytes": 1 << 34},
        "configuration": {"training": {"steps": 50, "seed": 3}, "qlora": {"rank": 8, "target_modules": ["q_proj"]}},
        "fingerprint": {"training.seed": 3, "model.hidden_size": 64, "the examples": "f00d" * 16},
        "data": {"source": "x.jsonl", "training": {"examples": 9}},
        "remarks": ["3 examples are cut.", HOSTILE],
    }


def profile() -> dict[str, Any]:
    kernel = {"kernel": "linear_forward", "shape": "512x576x576", "calls": 9, "seconds": 3.0}
    kernel |= {"gflops": 40.0, "gbs": 1.5}
    rows = [kernel | {"share_of_peak": share} for share in (0.7, 1.3, None)] * 10
    return {"wall_seconds": 9, "kernels": rows, "peak": {"gflops": 60.0, "gbs": 9.0}, "bottlenecks": ["linear_forward"]}


def anomaly(step: int) -> dict[str, Any]:
    cause = "the cgroup was throttled for 1.8 s (cpu.max 150 %)"
    row = {"step": step, "time": 0.0, "kind": "slow_step", "severity": "high", "z": 9.0, "value": 4.0, "expected": 1.0}
    return row | {"operation": None, "causes": [cause], "sentence": f"step {step}: 4.0x slower; {cause}", "ended": None}


class Checker(HTMLParser):
    """Collects tags and text; fails where elements are not closed in order."""

    EMPTY = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path) -> tuple[str, Checker]:
    main([str(folder)])
    page = (folder / "report.html").read_text()
    return page, Checker(page)


def test_preferences_are_named_and_have_no_perplexity(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 3)
    summary = json.loads((folder / "summary.json").read_text())
    summary["configuration"]["preference"] = {"method": "dpo"}
    (folder / "summary.json").write_text(json.dumps(summary))
    _, found = report(folder)
    assert "method qlora · tuned by dpo" in found.text and "Loss (dpo)" in found.text
    assert "perplexity" not in found.text and "nats" not in found.text
    summary["configuration"]["preference"] = {"method": "none"}
    (folder / "summary.json").write_text(json.dumps(summary))
    _, found = report(folder)
    assert "method qlora" in found.text and "tuned by" not in found.text and "perplexity" in found.text


def test_the_curve_of_a_learning_rate_that_ends_near_zero_is_the_schedules(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 40)
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) | {"learning_rate": 1e-3 * 0.8**i} for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, _ = report(folder)
    chart = page[page.index("Learning rate by step") :]
    ticks = re.findall(r">([^<>]+)</text>", chart[: chart.index("</svg>")])
    assert "0" in ticks and "5e-4" in ticks and "1e-6" not in ticks


@pytest.mark.parametrize("steps", [1, 2, 3, 60, 700])
def test_every_part_of_a_run_is_in_the_page(tmp_path: Path, steps: int) -> None:
    page, found = report(write_run(tmp_path, steps, slow=steps))
    assert page.count("<svg") == 7 and "nan" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL).lower()
    words = ("3.500 → 2.200", "572 MiB", "estimated 477 MiB", "linear_forward", "512x576x576", "130 %", "tier v4")
    words += ("target_modules", "q_proj", "f00d" * 16, "3 examples are cut.", "method qlora", "small.gguf", "odd <b>")
    for said in words:
        assert said in found.text, said
    assert "4.0x slower; the cgroup was throttled for 1.8 s (cpu.max 150 %)" in found.text
    assert [tag for tag, values in found.tags if (values.get("id") or "") == "anomaly-2"] == ["tr"]
    assert "training.seed" not in found.text  # it stands in the configuration
    assert "15 others take" in found.text


def test_text_is_text_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page, found = report(write_run(tmp_path, 5))
    assert {tag for tag, _ in found.tags} & {"script", "img", "iframe", "object", "style"} == {"style"}
    assert "document.title='taken'" in found.text and "\x00" not in page
    addresses = [values.get(name) for _, values in found.tags for name in ("src", "href") if values.get(name)]
    assert all(each == "data:," or str(each).startswith("#anomaly-") for each in addresses)
    assert "url(" not in page and "@import" not in page


def test_a_hundred_thousand_steps_make_a_page_of_bounded_size_with_their_spike(tmp_path: Path) -> None:
    page, _ = report(write_run(tmp_path, 100_000, slow=54_321, spike=777))
    assert len(page) < 600_000 and ">1M<" in page
    assert "a column is the mean of about 417 steps" in page


def test_what_a_run_lacks_is_said_in_a_line_each(tmp_path: Path) -> None:
    _, found = report(write_run(tmp_path, 30, parts=False))
    for said in ("no summary.json", "no phases", "not watched (--monitor)", "not profiled (--profile)", "no samples"):
        assert said in found.text, said
    for said in ("no estimate", "not sampled", "no configuration", "no fingerprint"):
        assert said in found.text, said


def test_an_older_run_with_metrics_csv_alone(tmp_path: Path) -> None:
    header = "step,loss,learning_rate,grad_norm,tokens,trained_tokens,seconds,held_out_loss\n"
    (tmp_path / "metrics.csv").write_text(header + "1,2.5,0.001,1.0,512,400,1.5,\n2,2.4,0.001,1.0,512,400,1.5,2.6\n")
    table = main([str(tmp_path)])
    assert table["steps"] == 2 and table["held_out"] == [{"step": 2, "loss": 2.6}]


def test_summaries_of_odd_values_do_not_keep_a_page_from_being_written(tmp_path: Path) -> None:
    write_run(tmp_path, 8)
    for odd in (None, 7, "x", [], [1], {}, {"before": 1}, True, 10**400, float("nan")):
        for name in (*summary(), "written"):
            (tmp_path / "summary.json").write_text(json.dumps(summary() | {name: odd}))
            main([str(tmp_path)])
        for name in profile():
            (tmp_path / "profile.json").write_text(json.dumps(profile() | {name: odd}))
            main([str(tmp_path)])
        (tmp_path / "profile.json").unlink()


def test_a_run_as_it_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = quiet(write_model(tmp_path / "model"), config_for(write_examples(tmp_path / "data"), tmp_path / "run"))
    capsys.readouterr()
    table = main([str(tmp_path / "run"), "--json", "--out", str(tmp_path / "there" / "page.html")])
    assert json.loads(capsys.readouterr().out) == table
    assert table["report"] == str(tmp_path / "there" / "page.html") and table["steps"] == 4
    assert table["samples"]["after"] == result.sample_after and table["machine"]["threads"] >= 1
    assert result.before is not None and result.after is not None
    assert [each["loss"] for each in table["held_out"]] == [result.before.loss, result.after.loss]
    assert table["memory"]["peak"] > 0 and table["memory"]["estimated_bytes"] > 0
    Checker((tmp_path / "there" / "page.html").read_text())


# ---------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metrics.jsonl",
            '{"step": 1, "loss": 2.0, "seconds": 1.0}\n{"step": 2, "lo',
            "jsonl: line 2 is no step",
        ),
        ("metrics.jsonl", "", "holds no step"),
        ("metrics.jsonl", "[]\n", "line 1 is no step of a run"),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0, "seconds": 1.0, "phases": {"data": -1}}\n', "line 1 is no step"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl: cannot be read"),
        ("anomalies.jsonl", '{"step": 1, "sent', "anomalies.jsonl: line 1 is no anomaly"),
        ("summary.json", "{", "summary.json: is no JSON"),
        ("summary.json", "[" * 100_000, "summary.json: is no JSON"),
        ("profile.json", "[]", "profile.json: holds no object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    write_run(tmp_path, 3)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError, match=re.escape(said)):
        main([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_no_folder_and_no_place_and_a_wrong_flag_are_a_sentence_each(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", 3)
    cases = {
        ("empty",): "holds no run (metrics.jsonl is missing)",
        ("nowhere",): "there is no such folder",
        ("run/metrics.jsonl",): "is a file; expected the output folder of a run",
        ("run", "--out", str(tmp_path / "empty")): "is a folder; expected a file to write",
    }
    for (folder, *flags), said in cases.items():
        with pytest.raises(FormatError, match=re.escape(said)):
            main([str(tmp_path / folder), *flags])
    done = run_entrenar("report", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    done = run_entrenar("report", tmp_path / "run", "--outt", "x")
    assert done.returncode == 2 and "--out" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


# ---------------------------------------------------------------------- charts
def test_decimation_keeps_the_extremes_and_bounds_the_points() -> None:
    rng = np.random.default_rng(1)
    x, y = np.linspace(LEFT, LEFT + COLUMNS, 50_000), rng.standard_normal(50_000)
    y[[77, 40_000]], y[123] = (50.0, -60.0), np.nan
    _, kept = decimated(x, y)
    assert kept.size <= 2 * (COLUMNS + 1) and kept.max() == 50 and kept.min() == -60


def test_a_mean_of_a_line_leaves_gaps_out_and_does_not_jump_at_its_ends() -> None:
    y = np.where(np.arange(400) % 2, 1.0, 3.0)
    y[200] = np.nan
    assert np.abs(smooth(y) - 2).max() < 0.1
    assert np.isnan(smooth(np.full(20, np.nan))).all()


def test_ticks_are_round_and_within_the_scale() -> None:
    assert Scale(0.3, 9.7, 0, 100).ticks(5) == [2, 4, 6, 8]
    assert Scale(0.5, 3.5, 0, 100).ticks(10, whole=True) == [1, 2, 3]
    assert Scale(1e-3, 1e3, 0, 100, log=True).ticks(7) == pytest.approx([10.0**power for power in range(-3, 4)])
    assert [nice(value) for value in (0.11, 3, 1)] == pytest.approx([0.2, 5, 1])
    shown = {0: "0", 0.5: "0.5", 25_000: "25k", 2e6: "2M", 1e-5: "1e-5", 1.25e-4: "1.25e-4"}
    assert {value: short(value) for value in shown} == shown


# ---------------------------------------------------------------------- a browser
@NEEDS_BROWSER
def test_a_browser_shows_the_page_without_errors_or_requests(tmp_path: Path) -> None:
    report(write_run(tmp_path, 60, slow=30))
    address = (tmp_path / "report.html").as_uri()
    with chromium.Page(tmp_path / "profile", address) as page:
        wanted = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in wanted if not url.startswith("data:")] == [address]
        problems = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        assert [event for event in page.events if event["method"] in problems] == []
        assert page.evaluate("document.title").startswith("Run ")
        assert page.evaluate("document.scripts.length + document.images.length") == 0
        boxes = "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect())"
        found = page.evaluate(f"{boxes}.map(r => [r.width, r.height])")
        assert len(found) == 7 and all(width > 500 and height > 50 for width, height in found)
        outside = (
            "[...document.querySelectorAll('svg text')].filter(e => { const t = e.getBoundingClientRect(), "
            "s = e.ownerSVGElement.getBoundingClientRect(); return t.width && (t.left < s.left - 1 || t.right > "
            "s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1) }).map(e => e.textContent)"
        )
        assert page.evaluate(outside) == []
        colour, colours = "getComputedStyle(document.body).backgroundColor", []
        for mode in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": mode}]
            page.call("Emulation.setEmulatedMedia", features=features)
            colours.append(page.evaluate(colour))
        assert colours[0] == "rgb(255, 255, 255)" and colours[1] != colours[0]
        page.call("Emulation.setEmulatedMedia", media="print", features=features)
        assert page.evaluate(colour) == colours[0]
        assert len(page.call("Page.printToPDF")["data"]) > 10_000
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

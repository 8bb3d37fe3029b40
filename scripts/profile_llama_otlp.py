"""Train the QLoRA example traced to an OTLP receiver: `python scripts/profile_llama_otlp.py [--steps 10]`.

The receiver is the one that OTEL_EXPORTER_OTLP_* name, on this machine unless set. Prints the trace's id and where to
look when the receiver has all of it. A receiver that does not answer, or lacks spans, is a sentence and status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from entrenar.errors import EntrenarError
from entrenar.observe import otlp, otlp_sdk
from entrenar.observe.events import span
from entrenar.observe.extras import needed

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "llama2_finetune_qlora.py"
NAME = "profile-llama-otlp"
UI = "http://127.0.0.1:16686"  # Jaeger's, of docker-compose-jaeger.yml; JAEGER_UI names another
PATIENCE = 30  # seconds for Jaeger to show what it has taken
TIMEOUT = 5  # seconds for the receiver to answer at all


class Failed(EntrenarError):
    """There is no whole trace; the message says why and what to do."""


def options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and those of the example behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of the run (default: 10)")
    parser.add_argument("example", nargs="*", help="flags of the example, behind --")
    parsed = parser.parse_args(arguments)
    if parsed.steps < 1:
        parser.error(f"--steps is {parsed.steps}, expected at least 1")
    return parsed, parsed.example


def check_receiver() -> None:
    """Failed where the receiver does not take a request without spans."""
    said: list[str] = []
    with otlp_sdk.one_sentence("traces", NAME, said.append):
        exporter = otlp.Counted(otlp_sdk.exporter("traces", NAME, timeout=TIMEOUT), "the receiver")
        result = exporter.export(())
        exporter.shutdown()
    if result is not needed("opentelemetry.sdk.trace.export", NAME).SpanExportResult.SUCCESS:
        reason = said[0].removeprefix(f"{NAME}: ").removesuffix("; the run goes on.") if said else "it said nothing"
        raise Failed(
            f"no OTLP receiver answers ({reason}); start one (docker compose -f docker-compose-jaeger.yml up -d), or "
            "name one with OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_PROTOCOL."
        )


def train(steps: int, flags: list[str], traceparent: str, folder: Path) -> int:
    """Run the example under this parent, its output passed on; how many spans it says it has sent."""
    command = [sys.executable, str(EXAMPLE), "--output", str(folder / "run"), "--steps", str(steps), "--trace", *flags]
    environment = {**os.environ, "TRACEPARENT": traceparent}
    spans, lost, last = None, "", "nothing"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            if otlp.LOST in line:
                lost = line.strip().rstrip(".")
            if line.startswith(f"trace {traceparent.split('-')[1]}, "):
                spans = int(line.split()[2])
    if process.returncode:
        raise Failed(f"the example ended with status {process.returncode}; the last that it said is: {last}")
    if lost:
        raise Failed(f"the receiver does not have the whole trace: {lost}.")
    if spans is None:
        raise Failed("the example sent no spans; see OTEL_TRACES_SAMPLER and OTEL_SDK_DISABLED.")
    return spans


def shown(trace: str, spans: int) -> str:
    """Where to look, when it is there; Failed where Jaeger answers and does not come to have all spans."""
    address = os.environ.get("JAEGER_UI", UI).rstrip("/")
    deadline, count = time.monotonic() + PATIENCE, 0
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/traces/{trace}", timeout=TIMEOUT) as answer:
                count = sum(len(each["spans"]) for each in json.load(answer)["data"])
            if count >= spans:
                return f"{address}/trace/{trace}"
        except urllib.error.HTTPError:
            pass  # it has no such trace yet
        except (OSError, ValueError, LookupError, TypeError):
            return f"search the receiver for the trace; no Jaeger answers at {address} (JAEGER_UI)"
        if time.monotonic() > deadline:
            raise Failed(f"Jaeger at {address} shows {count} of {spans} spans of the trace {trace}.")
        time.sleep(0.2)


def profile(steps: int, flags: list[str]) -> None:
    """Trace a run and print where the trace is."""
    check_receiver()
    said: list[str] = []
    exporter = otlp.Counted(otlp_sdk.exporter("traces", NAME), "the receiver")
    with (
        tempfile.TemporaryDirectory() as folder,
        otlp.tracing([exporter], {}, said.append) as spans,
        span(f"make {NAME}", steps=steps),
    ):
        if spans.traceparent is None:
            raise Failed("nothing is traced; see OTEL_TRACES_SAMPLER, OTEL_SDK_DISABLED and TRACEPARENT.")
        trace, sent = spans.traceparent.split("-")[1], train(steps, flags, spans.traceparent, Path(folder))
    if said:
        raise Failed(" ".join(said))
    where = shown(trace, sent + 1)
    print(f"Trace {trace}: {sent + 1} spans, all at the receiver.\nLook at it: {where}")


def main(arguments: list[str] | None = None) -> int:
    """Print where the trace is; 1, with a sentence, where there is none."""
    parsed, flags = options(arguments)
    try:
        profile(parsed.steps, flags)
    except EntrenarError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

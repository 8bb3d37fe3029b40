"""The traces of a run, by receivers of OTLP gRPC, HTTP and files; and faults of theirs, which no run notices."""

from __future__ import annotations

import io
import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrenar.errors import ConfigError, NumericsError
from entrenar.observe import extras, otlp, otlp_sdk
from entrenar.observe.events import event, span
from entrenar.train.config import Observe
from entrenar.train.observe_traces import of_rank
from entrenar.train.observers import observers
from entrenar.train.trainer import Trainer

from .builders import listen, losses, run_config, trainer_of

pytestmark = pytest.mark.unit
pytest.importorskip("opentelemetry.sdk.trace")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
receivers = pytest.importorskip("tests.observe.receivers")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STEPS = 4


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's; complaints of the SDK are not held back as repeated ones of an earlier test."""
    import os

    for name in [*os.environ]:
        if name.startswith("OTEL_") or name in ("TRACEPARENT", "TRACESTATE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


def observed(folder: Path, said: io.StringIO | None = None, **observe: Any) -> Trainer:
    config = run_config(folder, steps=STEPS, evaluate_every=2, every=2)
    config.observe = Observe(**observe)
    console = Console(file=said or io.StringIO(), width=1000)
    return trainer_of(config, callbacks=observers(config, folder, console))


def plain(folder: Path) -> list[str]:
    trainer = trainer_of(run_config(folder / "plain", steps=STEPS, evaluate_every=2, every=2))
    trainer.run()
    return losses(trainer)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def check_tree(spans: list[Any], trainer: Trainer) -> dict[str, list[Any]]:
    """Every span ended, in one trace, its parent in it and around it; as many steps as were run. By name."""
    by_id = {each.span_id: each for each in spans}
    assert len(by_id) == len(spans)
    assert len({each.trace_id for each in spans}) == 1
    found: dict[str, list[Any]] = {}
    for each in sorted(spans, key=lambda one: one.start_time_unix_nano):
        found.setdefault(each.name, []).append(each)
        assert 0 < each.start_time_unix_nano <= each.end_time_unix_nano
        if each.name == "entrenar.run":
            continue
        parent = by_id[each.parent_span_id]
        assert parent.start_time_unix_nano <= each.start_time_unix_nano
        assert each.end_time_unix_nano <= parent.end_time_unix_nano
        assert parent.name == ("entrenar.run" if each.name == "entrenar.step" else "entrenar.step")
    reports = trainer.reports
    assert len(found["entrenar.run"]) == 1
    assert len(found["entrenar.step"]) == len(reports) == STEPS
    for phase in ("data", "forward", "backward", "reduce", "clip", "optimizer"):
        assert len(found[phase]) == STEPS
    assert len(found["evaluate"]) == len(found["checkpoint"]) == 2
    return found


@pytest.mark.parametrize("receiver", [receivers.grpc_receiver, receivers.http_receiver])
def test_a_receiver_has_the_whole_tree_with_typed_attributes(
    receiver: Callable[[], AbstractContextManager[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=a")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    with receiver() as received:
        set_all(monkeypatch, received.environment())
        trainer = observed(tmp_path / "run", said, trace=True)
        trainer.run()
    found = check_tree(received.spans, trainer)
    (run,) = found["entrenar.run"]
    facts = receivers.attributes(run)
    assert run.parent_span_id == b""
    assert facts["run"] == trainer.run_id
    assert (facts["seed"], facts["rank"], facts["steps"], facts["method"]) == (3, 0, STEPS, "full")
    assert isinstance(facts["threads"], int)
    for name in ("model", "tier", "precision", "version"):
        assert facts[name]
    for one, report in zip(found["entrenar.step"], trainer.reports, strict=True):
        values = receivers.attributes(one)
        assert [values[key] for key in ("step", "loss", "learning_rate", "grad_norm", "tokens")] == [
            report.step,
            report.loss,
            report.learning_rate,
            report.grad_norm,
            report.tokens,
        ]
        assert values["tokens_per_second"] == report.tokens / report.seconds
        assert values["rss_bytes"] > 1 << 20
    assert received.resource["service.name"] == "named"
    assert received.resource["team"] == "a"
    assert received.resource["entrenar.run"] == trainer.run_id
    assert all(headers["x-key"] == "secret" for headers in received.headers)
    assert said.getvalue() == f"trace {run.trace_id.hex()}, {len(received.spans)} spans\n"
    assert losses(trainer) == plain(tmp_path)


def test_traceparent_is_the_parent_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", PARENT)
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    observed(tmp_path / "run", trace_file=str(tmp_path / "trace.jsonl")).run()
    spans = receivers.spans_of(receivers.read_lines((tmp_path / "trace.jsonl").read_text()))
    (run,) = [each for each in spans if each.name == "entrenar.run"]
    assert run.parent_span_id.hex() == "00f067aa0ba902b7"
    assert {each.trace_id.hex() for each in spans} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert {each.trace_state for each in spans} == {"vendor=1"}
    assert run.flags == 0x301  # sampled; the parent is another process's


@pytest.mark.parametrize("given", ["garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + PARENT[2:]])
def test_a_malformed_traceparent_is_a_sentence_and_a_trace_of_its_own(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setenv("TRACEPARENT", given)
    trainer = observed(tmp_path / "run", said, trace_file=str(tmp_path / "trace.jsonl"))
    trainer.run()
    found = check_tree(receivers.spans_of(receivers.read_lines((tmp_path / "trace.jsonl").read_text())), trainer)
    assert found["entrenar.run"][0].parent_span_id == b""
    assert said.getvalue().startswith(f"TRACEPARENT is '{given}', which is no W3C trace context")
    assert said.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    "variables",
    [{"OTEL_TRACES_SAMPLER": "always_off"}, {"OTEL_SDK_DISABLED": "true"}, {"TRACEPARENT": PARENT[:-1] + "0"}],
)
def test_what_is_not_sampled_is_not_sent_and_not_missed(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    set_all(monkeypatch, variables)
    with receivers.grpc_receiver() as received:
        set_all(monkeypatch, received.environment())
        observed(tmp_path / "run", said, trace=True).run()
    assert received.requests == []
    assert said.getvalue() == ""


def test_a_file_is_what_protobuf_reads_and_encodes(tmp_path: Path) -> None:
    """Line by line the same message as the exporter's, NaN, infinities, large integers and sequences included."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from entrenar.observe.otlp_file import JsonLines

    path, batches = tmp_path / "trace.jsonl", []

    class Both(JsonLines):
        def export(self, spans: Any) -> Any:
            batches.append(encode_spans(spans))
            return super().export(spans)

    exporter = otlp.Counted(Both(path, print), str(path), "observe.trace_file")
    odd = {"nan": math.nan, "inf": -math.inf, "big": 1 << 80, "int": -(1 << 63), "none": None, "path": tmp_path}
    with otlp.tracing([exporter], {"a": "b"}, print):
        with span("outer", **odd, flag=True, shape=(2, 3), mixed=[1, "a"], nested=[[1], [2]], text="ä\n"):
            event("moment", value=math.inf, step=3)
        try:
            with span("fails", step=7), span("inner"):
                raise ZeroDivisionError("seven")
        except ZeroDivisionError:
            pass
    read = receivers.read_lines(path.read_text())
    spans = {each.name: each for each in receivers.spans_of(read)}
    for each in spans.values():
        assert each.flags & 0xFF  # sampled: the exporter leaves out the flags of the trace
        each.flags &= ~0xFF
    assert [str(one) for one in read] == [str(one) for one in batches]  # as text, in which NaN is equal to itself
    outer = receivers.attributes(spans["outer"])
    assert math.isnan(outer["nan"])
    assert (outer["inf"], outer["big"], outer["int"], outer["flag"]) == (-math.inf, str(1 << 80), -(1 << 63), True)
    assert (outer["shape"], outer["mixed"], outer["nested"]) == ([2, 3], ["1", "a"], ["[1]", "[2]"])
    assert "none" not in outer
    (moment,) = spans["outer"].events
    assert (moment.name, receivers.attributes(moment)) == ("moment", {"value": math.inf, "step": 3})
    assert spans["inner"].status.code == spans["fails"].status.code == 2
    failed = receivers.attributes(spans["inner"].events[0])
    assert (failed["exception.type"], failed["step"]) == ("ZeroDivisionError", 7)


def test_layers_and_operations_lie_in_their_phases(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    observed(tmp_path / "run", trace_file=str(path), trace_layers=True, trace_ops=True).run()
    spans = receivers.spans_of(receivers.read_lines(path.read_text()))
    by_id = {each.span_id: each for each in spans}
    assert sum(each.name == "layer.forward" for each in spans) == 2 * STEPS
    for each in spans:
        if each.name.startswith(("layer.", "op.")):
            above = by_id[each.parent_span_id]
            assert above.name in ("forward", "backward", "layer.forward", "layer.backward")
            assert above.start_time_unix_nano <= each.start_time_unix_nano
            assert each.end_time_unix_nano <= above.end_time_unix_nano
    product = next(each for each in spans if each.name == "op.linear")
    facts = receivers.attributes(product)
    assert [type(facts[key]) for key in ("flops", "bytes", "share_of_peak", "shape")] == [int, int, float, list]


def test_a_step_that_is_not_finite_is_an_event_of_its_span(tmp_path: Path) -> None:
    trainer = observed(tmp_path / "run", trace_file=str(tmp_path / "t.jsonl"), trace_chrome=str(tmp_path / "t.json"))

    def poison(report: Any) -> None:
        if report.step == 2:
            trainer.parameters[0][1].numpy()[:] = math.nan

    listen(trainer, on_step=poison)
    trainer.config.checkpointing.every = 0
    with pytest.raises(NumericsError):
        trainer.run()
    spans = receivers.spans_of(receivers.read_lines((tmp_path / "t.jsonl").read_text()))
    failed = max((each for each in spans if each.name == "forward"), key=lambda each: each.start_time_unix_nano)
    events = {one.name: receivers.attributes(one) for one in failed.events}
    assert events["nonfinite"]["step"] == 3
    assert trainer.parameters[0][0].startswith(events["nonfinite"]["layer"])
    assert events["nonfinite"]["op"]
    assert events["exception"]["exception.type"].endswith("NumericsError")
    assert events["exception"]["step"] == 3
    assert {each.name for each in spans if each.status.code == 2} == {"entrenar.run", "entrenar.step", "forward"}
    chrome = json.loads((tmp_path / "t.json").read_text())
    assert [one["args"]["step"] for one in chrome if one["name"] == "nonfinite"] == [3]


# ---------------------------------------------------------------------- receivers that fail
def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def run_against(tmp_path: Path, endpoint: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run says whose receiver does not do its part; its losses are those of a run that nobody sees."""
    said = io.StringIO()
    set_all(monkeypatch, {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    monkeypatch.setattr(otlp_sdk, "LAST_MILLISECONDS", 300)
    trainer = observed(tmp_path / "run", said, trace=True)
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    return said.getvalue()


def check_said(text: str, lost: bool = True) -> None:
    """One warning, the count of what was lost, and the trace."""
    lines = text.splitlines()
    assert sum("the run goes on" in line for line in lines) == 1, text
    assert sum(otlp.LOST in line for line in lines) == int(lost), text
    assert sum(line.startswith("trace ") for line in lines) == 1
    assert len(lines) == 2 + lost, text


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_closed_port_is_one_sentence(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_said(run_against(tmp_path, closed_port(), protocol, monkeypatch))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_receiver_that_answers_garbage_is_one_sentence(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receivers.raw_receiver(b"\x00\xffno such protocol\r\n\r\n") as endpoint:
        check_said(run_against(tmp_path, endpoint, protocol, monkeypatch))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_receiver_that_never_answers_holds_nobody_up(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receivers.raw_receiver(None) as endpoint:
        started = time.monotonic()
        text = run_against(tmp_path, endpoint, protocol, monkeypatch)
        assert time.monotonic() - started < 60  # the default timeout of one export is ten seconds
    assert text.count(otlp.LOST) == 1, text


@pytest.mark.parametrize("status", [400, 503])
def test_a_receiver_that_refuses_is_one_sentence(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receivers.http_receiver(status, b"<html>no</html>") as received:
        check_said(run_against(tmp_path, received.endpoint, "http/protobuf", monkeypatch))


def test_a_receiver_that_answers_yes_with_garbage_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receivers.http_receiver(200, b"<html>yes</html>") as received:
        text = run_against(tmp_path, received.endpoint, "http/protobuf", monkeypatch)
    assert text.splitlines() == [text.rstrip("\n")]
    assert text.startswith("trace ")


@pytest.mark.parametrize("receiver", [receivers.grpc_receiver, receivers.http_receiver])
def test_a_receiver_killed_in_mid_run_is_one_sentence(
    receiver: Callable[[], AbstractContextManager[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(otlp_sdk, "LAST_MILLISECONDS", 300)
    around = receiver()
    received = around.__enter__()
    set_all(monkeypatch, received.environment())
    trainer = observed(tmp_path / "run", said, trace=True)

    def kill(report: Any) -> None:
        if report.step == 2:
            assert received.arrived.wait(10)
            around.__exit__(None, None, None)

    listen(trainer, on_step=kill)
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    check_said(said.getvalue())
    lost, ended = [int(word) for word in said.getvalue().split() if word.isdecimal()][-3:-1]
    assert 0 < lost <= ended  # all, where no answer came before the end


def test_a_full_queue_drops_spans_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    said: list[str] = []
    go = threading.Event()

    class Slow:
        def export(self, spans: Any) -> Any:
            from opentelemetry.sdk.trace.export import SpanExportResult

            go.wait(10)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

    with otlp.tracing([otlp.Counted(Slow(), "the receiver")], {}, said.append) as spans:
        for number in range(100):
            with span("one", number=number):
                pass
        go.set()
    assert spans.ended == 100
    assert said[-1].endswith(f"of 100 {otlp.LOST} the receiver.")
    assert 85 <= int(said[-1].split()[1]) < 100
    assert len(said) == 2, said


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize("option", ["trace_file", "trace_chrome"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(option: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    said = io.StringIO()
    trainer = observed(tmp_path / "run", said, **{option: "/dev/full"})
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    lines = said.getvalue().splitlines()
    assert lines[0] == (
        f"observe.{option}: /dev/full cannot be written (No space left on device); the run goes on without it."
    )
    assert len(lines) == (2 if option == "trace_file" else 1), lines


@pytest.mark.parametrize("option", ["trace_file", "trace_chrome"])
@pytest.mark.parametrize("place", ["nowhere/trace.json", "."])
def test_a_file_that_cannot_be_opened_is_a_sentence_before_training(option: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"observe.{option} is .*, which cannot be written"):
        observed(tmp_path / "run", **{option: str(tmp_path / place)})


@pytest.mark.parametrize("option", ["trace_file", "trace_chrome"])
def test_a_file_that_cannot_be_opened_any_more_is_a_sentence(option: str, tmp_path: Path) -> None:
    said, folder = io.StringIO(), tmp_path / "folder"
    folder.mkdir()
    trainer = observed(tmp_path / "run", said, **{option: str(folder / "trace")})
    shutil.rmtree(folder)
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    assert "cannot be written (No such file or directory)" in said.getvalue().splitlines()[0]


def test_each_rank_has_a_file_of_its_own() -> None:
    assert of_rank(Path("a/trace.jsonl"), 0) == Path("a/trace.jsonl")
    assert of_rank(Path("a/trace.jsonl"), 2) == Path("a/trace.rank2.jsonl")


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json', expected one of"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER is .none., and observe.trace exports over OTLP"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "x"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is 'x', expected one of"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "the OTEL_BSP_\\* variables contradict each other"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "the exporter refuses what the OTEL_EXPORTER_OTLP_\\* variables say"),
    ],
)
def test_variables_that_make_no_sense_are_a_sentence_before_training(
    variables: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(ConfigError, match=sentence):
        observed(tmp_path / "run", trace=True)


@pytest.mark.parametrize("options", [{"trace": True}, {"trace_file": "trace.jsonl"}])
def test_a_missing_library_is_a_sentence(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=f"observe.{next(iter(options))} needs opentelemetry.*entrenar.observe"):
        observed(tmp_path / "run", **options)


def test_traces_and_metrics_together_say_each_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", closed_port())
    monkeypatch.setattr(otlp_sdk, "LAST_MILLISECONDS", 1500)
    trainer = observed(tmp_path / "run", said, trace=True, metrics=True)
    trainer.run()
    assert losses(trainer) == plain(tmp_path)
    for option in ("observe.trace", "observe.metrics"):
        lines = said.getvalue().splitlines()
        (sentence,) = [line for line in lines if line.startswith(option) and "goes on" in line]
        assert "UNAVAILABLE" in sentence, lines  # the reason, not that the end came

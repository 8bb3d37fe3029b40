"""Spans of layers and operations: a whole tree whatever the run is, of the same bits, with shares of the peak."""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from entrenar._kernels import profile as counters
from entrenar.autograd import Tensor, bits, linear
from entrenar.errors import ConfigError, NumericsError
from entrenar.observe import subscribe, unsubscribe
from entrenar.observe.events import Event, Span, Subscriber
from entrenar.observe.peak import machine_peak
from entrenar.qlora import QLoRAConfig
from entrenar.train import TrainConfig, Trainer
from entrenar.train.config import Observe
from entrenar.train.observers import observers

from .builders import DROPOUT, listen, losses, run_config, trainer_of, weights_hash

pytestmark = pytest.mark.unit

STEPS, LAYERS = 2, 2


class Heard(Subscriber):
    """Every span and event, in order."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.ended: list[Span] = []
        self.events: list[Event] = []

    def on_span_start(self, span: Span) -> None:
        self.spans.append(span)

    def on_span_end(self, span: Span) -> None:
        self.ended.append(span)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def under(self, parent: Span) -> list[Span]:
        return [span for span in self.spans if span.parent is parent]


def trainer(directory: Path, adapter: Any = None, checkpointing: bool | int = False, **observe: Any) -> Trainer:
    accumulation, every = observe.pop("accumulation", 1), observe.pop("verify_every", 0)
    config = run_config(directory, steps=STEPS, adapter=adapter, gradient_accumulation=accumulation)
    if observe:
        config.observe = Observe(trace_chrome=str(directory / "trace.json"), **observe)
    config.observe = replace(config.observe, verify_every=every)
    directory.mkdir(exist_ok=True)
    made = trainer_of(config, callbacks=observers(config, directory, Console(file=io.StringIO())))
    made.model.gradient_checkpointing = checkpointing
    return made


def heard(made: Trainer) -> Heard:
    """What a run tells."""
    ear = Heard()
    subscribe(ear)
    try:
        made.run()
    finally:
        unsubscribe(ear)
    return ear


QLORA = QLoRAConfig(rank=4, alpha=8.0, dropout=0.1, target_modules=["all-linear"])
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": DROPOUT},
    "qlora": {"adapter": QLORA},
    "checkpointing": {"checkpointing": True},
    "checkpointing of one layer, lora": {"checkpointing": 1, "adapter": DROPOUT},
    "accumulation": {"accumulation": 2},
    "verified": {"verify_every": 1, "adapter": DROPOUT},
}


@pytest.mark.parametrize("options", [*RUNS.values()], ids=[*RUNS])
def test_each_layer_is_a_span_a_direction_in_order_under_its_phase(options: dict[str, Any], tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", **options)
    plain.run()
    watched = trainer(tmp_path / "watched", **options, trace_layers=True, trace_ops=True)
    ear = heard(watched)
    assert losses(watched) == losses(plain) and weights_hash(watched) == weights_hash(plain)
    assert Counter(map(id, ear.spans)) == Counter(map(id, ear.ended)), "a span has not ended, or ended twice"
    assert watched.model.in_place is None
    for span in ear.spans:
        assert span.end >= span.start and span.error is None
        if span.parent is not None:
            assert span.parent.start <= span.start and span.end <= span.parent.end
    passes = STEPS * options.get("accumulation", 1)
    for name, order in (("forward", [0, 1]), ("backward", [1, 0])):
        phases = ear.named(name)
        assert len(phases) == passes
        for phase in phases:
            layers = [span for span in ear.under(phase) if span.name == f"layer.{name}"]
            assert [span.attributes for span in layers] == [{"layer": index} for index in order]
    recomputed = int(options.get("checkpointing", 0)) and (LAYERS if options["checkpointing"] is True else 1)
    again = ear.named("layer.recompute")
    assert len(again) == passes * recomputed
    for span in again:
        assert span.parent is not None and span.parent.name == "layer.backward"
        assert span.attributes == span.parent.attributes


def test_each_operation_is_a_span_in_its_layer_with_its_work_and_its_share_of_the_peak(tmp_path: Path) -> None:
    ear = heard(trainer(tmp_path, adapter=DROPOUT, checkpointing=1, trace_layers=True, trace_ops=True))
    operations = [span for span in ear.spans if span.name.startswith("op.")]
    for span in operations:
        assert span.parent is not None and (span.attributes["flops"] or span.attributes["bytes"])
        assert span.attributes["share_of_peak"] > 0  # above 1 here: operands of tests come out of the caches
        if span.parent.name.startswith("layer."):
            assert span.attributes["layer"] == span.parent.attributes["layer"]
            assert span.attributes["direction"] == span.parent.name.removeprefix("layer.")
        else:
            assert "layer" not in span.attributes and span.parent.name == span.attributes["direction"]
    first = ear.under(ear.named("layer.forward")[0])
    linears = [span.attributes for span in first if span.name == "op.lora_linear"]
    parts = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    parts += [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
    assert [each["weights"] for each in linears] == [[f"model.layers.0.{name}" for name in names] for names in parts]
    assert [each["shape"][-1] for each in linears] == [64 + 32 + 32, 64, 96 + 96, 64]
    rows = np.prod(linears[1]["shape"][:-1])
    assert linears[1]["flops"] >= 2 * rows * 64 * 64
    assert "op.attention" in {span.name for span in first}
    again = ear.named("layer.recompute")[0]
    assert {span.name for span in ear.under(again)} <= {span.name for span in first}
    loss = ear.named("op.linear_cross_entropy")
    assert [span.parent.name for span in loss if span.parent] == ["forward"] * STEPS  # which has its gradient too


def test_a_large_product_has_a_share_of_the_peak_between_0_and_about_1() -> None:
    peak = machine_peak()
    x, w = Tensor(np.ones((256, 1024))), Tensor(np.ones((1024, 1024)))
    counters.enable()
    counters.meter((peak.fp32, peak.int16, peak.int8, peak.read))
    try:
        linear(x, w)
        calls, start, end, nanoseconds, flops, moved, least = counters.take()
        bits.digest(x)  # what a watcher does between operations
        assert counters.take() == (0, 0, 0, 0, 0, 0, 0.0)
    finally:
        counters.meter(None)
        counters.disable()
    assert calls and 0 < nanoseconds <= end - start <= time.monotonic_ns() - start
    assert flops >= 2 * 256 * 1024 * 1024 and moved >= 4 * 1024 * 1024
    assert 0 < least / nanoseconds < 2  # the peak is measured while others use the machine too
    linear(x, w)
    assert counters.take()[0] == 0, "metered without a meter"


def test_operations_without_layers_lie_in_their_phase_and_have_the_layer_s_number(tmp_path: Path) -> None:
    ear = heard(trainer(tmp_path, trace_ops=True))
    assert not [span for span in ear.spans if span.name.startswith("layer.")]
    attention = ear.named("op.attention")
    expected = [("forward", 0), ("forward", 1), ("backward", 1), ("backward", 0)] * STEPS
    assert [(span.attributes["direction"], span.attributes["layer"]) for span in attention] == expected


def test_layers_alone_meter_no_kernel_and_make_no_span_of_an_operation(tmp_path: Path) -> None:
    ear = heard(trainer(tmp_path, trace_layers=True))
    assert not [span for span in ear.spans if span.name.startswith("op.")]
    assert len(ear.named("layer.backward")) == STEPS * LAYERS


def test_the_held_out_set_is_not_traced_by_layer(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=STEPS, evaluate_every=1)
    config.observe = Observe(trace_chrome=str(tmp_path / "trace.json"), trace_layers=True)
    ear = heard(trainer_of(config, callbacks=observers(config, tmp_path, Console(file=io.StringIO()))))
    assert len(ear.named("evaluate")) == STEPS
    assert len(ear.named("layer.forward")) == STEPS * LAYERS


def test_an_error_in_a_layer_ends_its_spans_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, checkpointing=True, trace_layers=True)
    calls = iter(range(100))

    def fails(mlp: Any, x: Any) -> Any:
        if next(calls) == 2:  # recomputed in the first backward
            raise NumericsError("planted")
        return genuine(mlp, x)

    kind = type(made.model.model.layers[0].mlp)
    genuine = kind.__call__
    monkeypatch.setattr(kind, "__call__", fails)
    ear = Heard()
    subscribe(ear)
    try:
        with pytest.raises(NumericsError, match="planted"):
            made.run()
    finally:
        unsubscribe(ear)
    assert Counter(map(id, ear.spans)) == Counter(map(id, ear.ended))
    failed = [span.name for span in ear.ended if span.error is not None]
    assert failed == ["layer.recompute", "layer.backward", "backward", "entrenar.step", "entrenar.run"]


@pytest.mark.parametrize("name", ["trace_layers", "trace_ops"])
def test_spans_that_nobody_reads_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"observe\.{name} is true, which has no effect without a trace; set "):
        TrainConfig(observe=Observe(**{name: True}))
    TrainConfig(observe=Observe(trace_chrome="trace.json", **{name: True}))


# ---------------------------------------------------------------------- what is not finite
def failing(made: Trainer) -> list[dict[str, Any]]:
    """The events "nonfinite" of a run that ends for it, with the name of their span."""
    ear = Heard()
    subscribe(ear)
    try:
        with pytest.raises(NumericsError):
            made.run()
    finally:
        unsubscribe(ear)
    found = [event for event in ear.events if event.name == "nonfinite"]
    return [{**event.attributes, "span": event.span and event.span.name} for event in found]


@pytest.mark.parametrize(
    ("name", "layer", "op"),
    [
        ("model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn.v_proj", "linear"),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj", "linear"),
        ("lm_head.weight", "lm_head", "linear_cross_entropy"),
    ],
)
def test_a_loss_that_is_not_finite_is_an_event_with_step_layer_and_operation(
    name: str, layer: str, op: str, tmp_path: Path
) -> None:
    made = trainer(tmp_path, trace_layers=True)

    def overflow(report: object) -> None:
        dict(made.parameters)[name].numpy()[...] = np.float32(3e38)

    listen(made, on_step=overflow)
    assert failing(made) == [{"step": 2, "layer": layer, "op": op, "direction": "forward", "span": "forward"}]


def test_a_weight_that_is_not_finite_is_an_event(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    dict(made.parameters)["model.layers.1.mlp.up_proj.weight"].numpy()[3, 5] = np.nan
    weight = {"layer": "model.layers.1.mlp.up_proj", "op": "weight"}
    assert failing(made) == [{"step": 1, **weight, "direction": "forward", "span": "forward"}]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_is_not_finite_is_an_event_with_the_operation_that_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    made = trainer(tmp_path, adapter=DROPOUT, checkpointing=checkpointing)
    mlp = made.model.model.layers[1].mlp

    def steep(self: Any, x: Tensor) -> Tensor:  # 0 in forward, a gradient beyond float32 in backward
        y = genuine(self, x)
        return y if self is not mlp else ((y * 0.0) * 3e38) * 3e38

    genuine = type(mlp).__call__
    monkeypatch.setattr(type(mlp), "__call__", steep)
    [event] = failing(made)
    assert (event["step"], event["direction"], event["span"]) == (1, "backward", "clip")
    assert (event["layer"], event["op"]) == ("model.layers.1.mlp", "mul")


def test_a_gradient_that_is_finite_when_computed_again_is_an_event_with_its_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, accumulation=2)
    weight = dict(made.parameters)["model.layers.0.mlp.down_proj.weight"]
    backward = Trainer._backward

    def poisoned(self: Trainer, loss: Tensor) -> None:
        backward(self, loss)
        assert weight.grad is not None
        weight.grad.numpy()[0, 0] = np.nan

    monkeypatch.setattr(Trainer, "_backward", poisoned)
    [event] = failing(made)
    assert (event["step"], event["layer"], event["op"]) == (1, "model.layers.0.mlp.down_proj", "gradient")

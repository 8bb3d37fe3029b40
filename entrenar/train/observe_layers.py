"""Spans of decoder layers and of operations inside the spans `forward` and `backward`.

`layer.forward`, `layer.backward` and, where activations are computed again, `layer.recompute` inside of it, each with
its layer's number; `op.<name>` with direction, layer, shape of the output, FLOPs, bytes and share of the peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import Any

from entrenar._kernels import profile as counters
from entrenar.autograd import Tensor
from entrenar.autograd.tape import watching_ops
from entrenar.models.api import LLaMAModel
from entrenar.models.decoder import DecoderLayer
from entrenar.nn.layers import names_by_weight
from entrenar.observe.events import Span, Subscriber, completed, span, subscribe, unsubscribe
from entrenar.observe.peak import machine_peak
from entrenar.train.callbacks import Callback
from entrenar.train.trainer import Trainer

TRACED = ("forward", "backward")  # phases
NOTHING: AbstractContextManager[object] = nullcontext()
Reading = tuple[int, int, int, int, int, int, float]  # of the meter of kernels: counters.take
Node = tuple[int | None, str, str | None, tuple[int, ...]]  # layer, operation, the linear's name and the output's shape


class LayerSpans(Callback):
    """Makes spans of layers and of operations while the run lasts, as `layers` and `ops` say."""

    def __init__(self, layers: bool, ops: bool) -> None:
        self.layers, self.ops = layers, ops

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """From here to the end of the run."""
        return self._around(trainer.model)

    @contextmanager
    def _around(self, model: LLaMAModel) -> Iterator[None]:
        tracer = Tracer(model, self.layers, Operations(model) if self.ops else None)
        with nullcontext() if tracer.ops is None else tracer.ops.metered():
            subscribe(tracer)
            try:
                yield
            finally:
                unsubscribe(tracer)
                tracer.stop()


class Operations:
    """Spans of operations: from their first kernel to their last, by this thread's meter of kernels."""

    def __init__(self, model: LLaMAModel) -> None:
        self._names = names_by_weight(model)
        self._since = 0  # nanoseconds from the clock of kernels to that of spans
        self._held: tuple[str, Reading, dict[str, Any]] | None = None  # linears: more may belong to them

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Inside the block kernels are counted, and this thread's metered against the machine's peak."""
        peak, counted = machine_peak(), counters.enabled()
        counters.enable()
        counters.meter((peak.fp32, peak.int16, peak.int8, peak.read))
        try:
            yield
        finally:
            counters.meter(None)
            if not counted:
                counters.disable()

    def begin(self) -> None:
        """A phase begins: what was metered before belongs to no operation."""
        self._since = time.time_ns() - time.monotonic_ns()
        self._held = None
        counters.take()

    def weight(self, weight: object) -> str | None:
        """The name of the linear that has this weight."""
        return self._names.get(id(weight))

    def forward(self, op: str, weight: str | None, shape: tuple[int, ...], layer: int | None, direction: str) -> None:
        """An operation has computed its output; linears of one input, which run together, are one span."""
        reading = counters.take()
        if op not in ("linear", "lora_linear"):
            self.flush()
            self._tell(op, reading, self._attributes(reading, [weight], shape, layer, direction))
        elif reading[0]:
            self.flush()
            self._held = (op, reading, self._attributes(reading, [weight], shape, layer, direction))
        elif self._held is not None and self._held[0] == op and weight is not None:
            attributes = self._held[2]
            attributes["shape"][-1] += shape[-1]
            attributes["weights"].append(weight)

    def begin_node(self) -> None:
        """A node's backward begins: what was metered between nodes belongs to none."""
        self.flush()
        counters.take()

    def backward(self, op: str, weight: str | None, shape: tuple[int, ...], layer: int | None) -> None:
        """A node has added to the gradients of its inputs."""
        reading = counters.take()
        self._tell(op, reading, self._attributes(reading, [weight], shape, layer, "backward"))

    def flush(self) -> None:
        """No further linear belongs to the last."""
        if self._held is not None:
            self._tell(*self._held)
            self._held = None

    def _attributes(
        self,
        reading: Reading,
        weights: list[str | None],
        shape: tuple[int, ...],
        layer: int | None,
        direction: str,
    ) -> dict[str, Any]:
        _, _, _, nanoseconds, flops, moved, least = reading
        found: dict[str, Any] = {"direction": direction, "shape": list(shape), "flops": flops, "bytes": moved}
        if layer is not None:
            found["layer"] = layer
        if weights[0] is not None:
            found["weights"] = weights
        if nanoseconds:
            found["share_of_peak"] = least / nanoseconds
        return found

    def _tell(self, op: str, reading: Reading, attributes: dict[str, Any]) -> None:
        if reading[0]:  # without a kernel nothing was computed
            completed(f"op.{op}", reading[1] + self._since, reading[2] + self._since, **attributes)


class Tracer(Subscriber):
    """Watches the layers and operations of `model` in each span of a phase that the thread which made this opens."""

    def __init__(self, model: LLaMAModel, layers: bool, ops: Operations | None) -> None:
        self.ops = ops
        self._model, self._layers, self._thread = model, layers, get_ident()
        self._phase: Span | None = None
        self._watching = watching_ops(self)
        self._nodes: dict[int, Node] = {}  # of the tape since the phase `forward` began
        self._running: int | None = None  # the layer that is called, in forward or recomputed
        self._left: int | None = None  # that has returned last
        self._behind: int | None = None  # whose nodes backward walks
        self._open = NOTHING  # its span
        if ops is not None:
            self.on_node_end = self._node_end  # each costs a call a node

    # ------------------------------------------------------------------ phases
    def on_span_start(self, span: Span) -> None:
        """A phase begins: watch it."""
        if span.name not in TRACED or span.thread != self._thread or self._phase is not None:
            return
        if span.name == "forward":
            self._nodes.clear()
        if self.ops is not None:
            self.ops.begin()
        self._phase, self._left, self._model.in_place = span, None, self._placed
        self._watching.__enter__()

    def on_span_end(self, span: Span) -> None:
        """The phase is over."""
        if span is self._phase:
            self.stop()

    def stop(self) -> None:
        """Watch no more until the next phase."""
        if self._phase is not None:
            self._watching.__exit__(None, None, None)
            self._phase, self._model.in_place = None, None

    # ------------------------------------------------------------------ layers
    def _placed(self, index: int, layer: DecoderLayer) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            return layer(*arguments) if self._phase is None else self._run(index, layer, arguments)

        return run

    def _run(self, index: int, layer: DecoderLayer, arguments: tuple[Any, ...]) -> Tensor:
        name = "layer.forward" if self._direction == "forward" else "layer.recompute"
        self._running = index
        try:
            with span(name, layer=index) if self._layers else NOTHING:
                output = layer(*arguments)
                if self.ops is not None:
                    self.ops.flush()
        finally:
            self._running = None
        self._left = index
        return output

    @property
    def _direction(self) -> str:
        """Of what is computed now, backward itself apart."""
        return "forward" if self._phase is not None and self._phase.name == "forward" else "recompute"

    def _move(self, layer: int | None, error: BaseException | None = None) -> None:
        """Backward comes to another layer, or to what belongs to none."""
        if layer != self._behind:
            self._open.__exit__(None if error is None else type(error), error, None)
            self._open = NOTHING if layer is None or not self._layers else span("layer.backward", layer=layer)
            self._open.__enter__()
            self._behind = layer

    # ------------------------------------------------------------------ what the tape shows
    def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
        """An operation has computed its output, in forward or once more in backward."""
        if self.ops is None:
            if node:
                self._nodes[node] = (self._running, op, None, ())
            return
        name, shape = self.ops.weight(weight), output.shape
        if node:
            self._nodes[node] = (self._running, op, name, shape)
        layer = self._behind if self._running is None else self._running
        self.ops.forward(op, name, shape, layer, self._direction)

    def on_checkpoint(self, node: int) -> None:
        """The layer that has returned is a node."""
        layer = self._left if self._running is None else self._running
        self._nodes[node] = (layer, "checkpoint", None, ())

    def on_node(self, kind: str, node: int) -> None:
        """A node's backward begins."""
        if node in self._nodes:
            self._move(self._nodes[node][0])
        if self.ops is not None:
            self.ops.begin_node()

    def _node_end(self, kind: str, node: int) -> None:
        """A node's backward is over."""
        assert self.ops is not None
        _, op, weight, shape = self._nodes.get(node, (None, kind, None, ()))
        self.ops.backward(op, weight, shape, self._behind)

    def on_backward_end(self, error: BaseException | None) -> None:
        """Backward is over."""
        self._move(None, error)

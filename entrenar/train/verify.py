"""Silent data corruption: a step computed again by other threads on other cores must give the same bits.

Every result of an operation is hashed where it is computed, in both computations, so that the first one that differs
names where the fault was, a transient one too. No result depends on the number of threads: there is no tolerance.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from entrenar._kernels import cpu
from entrenar.autograd import Tensor, bits, random
from entrenar.autograd.tape import watching_ops
from entrenar.errors import CorruptionError, NumericsError
from entrenar.models.api import LLaMAModel
from entrenar.models.decoder import activations
from entrenar.nn.layers import names_by_weight
from entrenar.observe.events import event
from entrenar.optim import Optimizer
from entrenar.train.placement import orders

Digest = tuple[int, int, int]
T = TypeVar("T")
PIECE_BYTES = 64 << 20  # of weights that are updated, kept and updated again at a time
RESULTS = 4.2  # floats that are hashed for each that a layer saves for backward; of LLaMA with LoRA, measured
ORDINALS = ("first", "second", "third")


class Place(NamedTuple):
    """What was computed: the layer, the operation in it, and forward, backward, recomputed, gradient or update."""

    layer: str
    operation: str
    direction: str
    part: str = ""

    def __str__(self) -> str:
        return ", ".join(word for word in (self.layer, self.operation, self.direction) if word) + self.part


class Result(NamedTuple):
    """The hash of what was computed somewhere."""

    place: Place
    shape: tuple[int, ...]
    digest: Digest


class Recording(AbstractContextManager["Recording"]):
    """Inside its blocks, hashes every result of the operations of `model` in order; `turn` counts computations from 1.

    `wanted` is (position, element) of the word that is kept as it stands there.
    """

    def __init__(self, model: LLaMAModel, turn: int, wanted: tuple[int, int] | None = None) -> None:
        self.model, self.turn, self.wanted = model, turn, wanted
        self.results: list[Result] = []
        self.word: int | None = None
        self.bytes, self.seconds = 0, 0.0
        self._layers: list[str] = []
        self._nodes: dict[int, tuple[str, str]] = {}
        self._open = ExitStack()
        self._names = names_by_weight(model)

    def __enter__(self) -> Recording:
        leave = self.model.watching(lambda name, output: self._leave(), self._layers.append)
        self._open.enter_context(leave)
        self._open.enter_context(watching_ops(self))
        return self

    def __exit__(self, *raised: object) -> None:
        self._layers.clear()
        self._open.close()

    def _leave(self) -> None:
        self._layers.pop()

    # ------------------------------------------------------------------ what the tape shows
    def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
        """An operation of forward."""
        layer = self._layers[-1] if self._layers else "the loss"
        if op in ("linear", "lora_linear"):
            layer = self._names.get(id(weight), layer)
        if node:
            self._nodes[node] = (layer, op)
        self.add(Place(layer, op, "forward"), output)

    def on_gradient(self, kind: str, node: int, index: int, gradient: Tensor) -> None:
        """What a node's backward added to the gradient of its input `index`."""
        layer, op = self._nodes.get(node, ("", kind))
        self.add(Place(layer, op, "backward", f" (gradient of input {index})"), gradient)

    def on_recomputed(self, kind: str, node: int, output: Tensor) -> None:
        """A value that was left out in forward."""
        layer, op = self._nodes.get(node, ("", kind))
        self.add(Place(layer, op, "recomputed"), output)

    def add(self, place: Place, tensor: Tensor) -> None:
        """Hash a result."""
        started = time.perf_counter()
        if self.wanted is not None and self.wanted[0] == len(self.results) and self.wanted[1] < tensor.size:
            self.word = bits.word(tensor, self.wanted[1])
        self.results.append(Result(place, tensor.shape, bits.digest(tensor)))
        self.bytes += tensor.nbytes
        self.seconds += time.perf_counter() - started

    def add_number(self, place: Place, number: float) -> None:
        """As `add`, of a float64: its words are what is compared."""
        low, high = struct.unpack("<II", struct.pack("<d", number))
        self.results.append(Result(place, (), (low, high, 0)))


@dataclass
class Computed:
    """A computation that is over: what it recorded, what it gave or the NumericsError it raised, and where it ran."""

    recording: Recording
    value: Any
    error: NumericsError | None
    cpus: list[int]


@dataclass
class Verifier:
    """Computes what is due every `every` steps again and compares every bit; see the module."""

    model: LLaMAModel
    every: int
    clean: int = 0  # the last step that was verified
    fixed: str = ""  # why threads stay where the system puts them
    _cpus: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self._cpus = sorted(os.sched_getaffinity(0))
            cpu.place_threads(self._cpus, False)
        except AttributeError:
            self.fixed = "it has no affinity"
        except OSError as error:
            self.fixed = error.strerror or str(error)

    def is_due(self, step: int) -> bool:
        """Whether step number `step` is verified."""
        return step % self.every == 0

    def cost(self, tokens: int) -> str:
        """What a person is told before the first step, of `tokens`; the speed of the hash is measured."""
        words, seconds = Tensor(np.zeros(1 << 22, np.float32)), []
        for _ in range(3):
            started = time.perf_counter()
            bits.digest(words)
            seconds.append(time.perf_counter() - started)
        config = self.model.config
        hashed = RESULTS * 4 * activations(config).layer * config.num_hidden_layers * tokens
        hashes = 2 * hashed / words.nbytes * min(seconds)
        often = "every step" if self.every == 1 else f"every {self.every} steps"
        said = f"{often} once more: about {max(100 / self.every, 1):.0f} % more time, and {hashes:.2g} s of hashes each"
        return f"{said}; threads stay where the system puts them ({self.fixed})" if self.fixed else said

    # ------------------------------------------------------------------ what is verified
    def gradients(
        self,
        step: int,
        parameters: Sequence[tuple[str, Tensor]],
        compute: Callable[[Recording], float],
        again: Callable[[], AbstractContextManager[None]],
    ) -> float:
        """The loss that `compute(recording)` gives, with the gradients of `parameters`, which have none yet.

        `again` is entered around the computations after the first. Raises CorruptionError where bits differ, else the
        NumericsError that every computation raised.
        """
        state = random.get_state()

        def reset() -> None:
            random.set_state(state)
            for _, tensor in parameters:
                tensor.grad = None

        def whole(recording: Recording) -> float:
            loss = compute(recording)
            recording.add_number(Place("", "loss", ""), loss)
            for name, tensor in parameters:
                if tensor.grad is not None:
                    recording.add(Place(name, "", "gradient"), tensor.grad)
            return loss

        return self._verified(step, whole, reset, again)

    def norm(self, step: int, compute: Callable[[], float], again: Callable[[], AbstractContextManager[None]]) -> float:
        """The norm of the gradients that `compute()` gives; raises as `gradients`."""

        def whole(recording: Recording) -> float:
            norm = compute()
            recording.add_number(Place("", "gradient norm", ""), norm)
            return norm

        return self._verified(step, whole, lambda: None, again)

    def update(
        self, step: int, optimizer: Optimizer, scale: float, again: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """The optimizer's step, a piece of the weights at a time; raises as `gradients`."""
        for group, entries in optimizer.entries():
            for piece in _pieces(entries):
                self._update(
                    step, optimizer, piece, partial(optimizer.update, group=group, gradient_scale=scale), again
                )

    def _update(
        self,
        step: int,
        optimizer: Optimizer,
        piece: list[Any],
        update: Callable[[list[Any]], None],
        again: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """A function of its own: the copies of one piece are freed before those of the next are made."""
        before = [_copied(parameter, state) for _, (parameter, _, state) in piece]

        def whole(recording: Recording) -> None:
            update([entry for _, entry in piece])
            for name, (parameter, _, state) in piece:
                recording.add(Place(name, optimizer.name, "update"), parameter)
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        recording.add(Place(name, optimizer.name, "update", f" of {key}"), value)

        def reset() -> None:
            for (_, (parameter, _, state)), (weights, values) in zip(piece, before, strict=True):
                parameter.numpy()[...] = weights
                state.clear()
                state.update({k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in values.items()})

        self._verified(step, whole, reset, again)

    # ------------------------------------------------------------------ how
    def _verified(
        self,
        step: int,
        compute: Callable[[Recording], T],
        reset: Callable[[], None],
        again: Callable[[], AbstractContextManager[None]],
    ) -> T:
        first = self._computed(compute, 1)
        with again():
            reset()
            second = self._computed(compute, 2)
            at = _first_difference(first, second)
            if at is None:
                if second.error is not None:
                    raise first.error or second.error
                return second.value
            reset()
            third = self._computed(compute, 3, _wanted(first, second, at))
        raise self._corruption(step, at, [first, second, third])

    def _computed(
        self, compute: Callable[[Recording], T], turn: int, wanted: tuple[int, int] | None = None
    ) -> Computed:
        recording, value, error = Recording(self.model, turn, wanted), None, None
        with self._placed(turn) as cpus:
            try:
                value = compute(recording)
            except NumericsError as raised:
                error = raised
        return Computed(recording, value, error, cpus)

    @contextmanager
    def _placed(self, turn: int) -> Iterator[list[int]]:
        """Inside, threads are on the cores of this turn; after the first there is another number of them.

        Of two that can change places, one would leave a core's work where it was: they stay two in the second turn.
        """
        threads = cpu.get_num_threads()
        swapped = turn == 2 and threads == 2 and not self.fixed
        count = threads if turn == 1 or swapped else max(threads - 1, 1)
        order = [] if self.fixed else orders(self._cpus, threads)[turn - 1]
        cpu.set_num_threads(count)
        try:
            if order:
                cpu.place_threads(order, True)
            yield order[:count]
        finally:
            cpu.set_num_threads(threads)
            if order:
                cpu.place_threads(self._cpus, False)

    def _corruption(self, step: int, at: int, turns: list[Computed]) -> CorruptionError:
        """What is said of a difference at position `at` of the results."""
        recorded = [turn.recording.results for turn in turns]
        result = next(results[at] for results in recorded if at < len(results))
        digests = [results[at].digest if at < len(results) else None for results in recorded]
        wrong = next((i for i in range(2) if digests[1 - i] == digests[2]), None)
        error_words, element = _words(result, digests, turns[2].recording)
        where = f" at element {list(element)}" if element is not None else ""
        bits_of = [f" {_bits(word)}" for word in error_words] or [""] * 3
        ran = [f" on CPU {', '.join(map(str, turn.cpus))}" if turn.cpus else "" for turn in turns]
        said = [f"{bits_of[i]} in the {ORDINALS[i]} computation{ran[i]}" for i in range(3)]
        verdict = (
            "all three differ"
            if wrong is None
            else f"the third agrees with the {ORDINALS[1 - wrong]}: the {ORDINALS[wrong]} was wrong"
        )
        shape = f", of shape {list(result.shape)}," if result.shape else ""
        error = CorruptionError(
            f"Silent data corruption in step {step}: {result.place}{shape} is not the same bits{where}:"
            f"{said[0]},{said[1]},{said[2]}; {verdict}."
        )
        error.step, error.layer, error.operation, error.direction = step, *result.place[:3]
        error.shape, error.element, error.words = result.shape, element, error_words
        error.wrong = None if wrong is None else wrong + 1
        event("corruption", step=step, layer=error.layer, operation=error.operation, direction=error.direction)
        return error


def _first_difference(first: Computed, second: Computed) -> int | None:
    """The position of the first result that is not the same, in place or bits."""
    a, b = first.recording.results, second.recording.results
    for at, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return at
    return None if len(a) == len(b) else min(len(a), len(b))


def _wanted(first: Computed, second: Computed, at: int) -> tuple[int, int] | None:
    """Position and element of the word that the third computation keeps, where one element differs."""
    a, b = first.recording.results, second.recording.results
    if at >= min(len(a), len(b)) or (not a[at].shape and a[at].digest[2] == 0):
        return None
    single = bits.single_difference(a[at].digest, b[at].digest)
    return None if single is None else (at, single[0])


def _words(
    result: Result, digests: list[Digest | None], third: Recording
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The bits that each computation had at the one element that differs, and its index; nothing where more differ."""
    last = digests[2]
    if third.word is None or third.wanted is None or last is None:
        return (), None
    words = []
    for digest in digests:
        change = None if digest is None else bits.single_difference(digest, last)
        if digest is None or (digest != last and (change is None or change[0] != third.wanted[1])):
            return (), None
        if change is not None and not bits.is_single(digest, last, *change, third.word):
            return (), None
        words.append(third.word + (change[1] if change else 0))
    index = np.unravel_index(third.wanted[1], result.shape) if result.shape else ()
    return tuple(words), tuple(int(i) for i in index)


def _bits(word: int) -> str:
    return f"{word:#010x} ({struct.unpack('<f', struct.pack('<I', word))[0]:.9g})"


def _pieces(entries: list[Any]) -> Iterator[list[Any]]:
    """The entries, a few at a time."""
    piece: list[Any] = []
    size = 0
    for entry in entries:
        if piece and size + entry[1][0].nbytes > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(entry)
        size += entry[1][0].nbytes
    if piece:
        yield piece


def _copied(parameter: Tensor, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    values = {key: value.numpy().copy() if isinstance(value, Tensor) else value for key, value in state.items()}
    return parameter.numpy().copy(), values

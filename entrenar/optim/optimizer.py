"""What every optimizer shares: parameter groups, the loop over them, and its state as NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError

Entry = tuple[Tensor, Tensor, dict[str, Any]]  # a parameter, its gradient, its state
Parameters = Iterable[Any]  # Tensors, (name, Tensor) pairs, or dicts with "params" and options of their own


def listed(parameters: Any) -> list[Any]:
    """The parameters as a list, a single one too; ConfigError for what is no collection of them."""
    if isinstance(parameters, Tensor):
        return [parameters]
    try:
        return list(parameters)
    except TypeError:
        raise ConfigError(f"Expected Tensors or (name, Tensor) pairs, not {type(parameters).__name__}.") from None


def named(parameters: Tensor | Parameters) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each parameter, a tied one once; those without a name are called by their position."""
    seen = set()
    for i, item in enumerate(listed(parameters)):
        pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        name, tensor = item if pair else (f"parameter {i}", item)
        if not isinstance(tensor, Tensor):
            raise ConfigError(
                f"Expected Tensors or (name, Tensor) pairs as parameters; {name} is {type(tensor).__name__}."
            )
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def check_range(owner: str, name: str, value: Any, low: float, high: float = math.inf) -> None:
    """A ConfigError unless low <= value < high."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not low <= value < high:
        limits = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g})"
        raise ConfigError(f"{owner}: {name} must be a number {limits}, not {value!r:.80}.")
    check_float(owner, name, value)


def check_float(owner: str, name: str, value: Any) -> float:
    """The value as a float; a ConfigError where it is no number or too large for one."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
            raise TypeError
        return float(value)
    except (TypeError, OverflowError):
        raise ConfigError(f"{owner}: {name} must be a number, not {value!r:.80}.") from None


class Optimizer:
    """Base of the optimizers. `param_groups` is a list of dicts: "params" (Tensors), "names", and the options.

    A subclass checks options in `check(group)`, and updates the parameters of a group in `update`, where the state of
    each is a dict of Tensors and numbers, empty at its first step.
    """

    state_names: tuple[str, ...] = ()  # what the state of a parameter has once it was updated
    numbers: tuple[str, ...] = ("step",)  # of these, what is no tensor: "step" is whole, others are float64

    def __init__(self, params: Tensor | Parameters, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}  # by position among all parameters
        items = listed(params)
        grouped = any(isinstance(item, Mapping) for item in items)
        seen: set[int] = set()
        for group in items if grouped else [{"params": items}]:
            self._add_group(group, seen)
        if not seen:
            raise ConfigError(f"{self.name}: there are no parameters to optimize; is everything frozen?")

    @property
    def name(self) -> str:
        """What messages call the optimizer."""
        return type(self).__name__

    def check(self, group: dict[str, Any]) -> None:
        """ConfigError, naming the option, where a group's options are out of range."""
        raise NotImplementedError

    def state_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """What the state of a parameter of this group has once it was updated."""
        return self.state_names

    def update(self, entries: list[Entry], group: dict[str, Any], gradient_scale: float) -> None:
        """One step of parameters of a group, in place, each with what its state keeps for it from step to step."""
        raise NotImplementedError

    def _add_group(self, group: Any, seen: set[int]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise ConfigError(f"{self.name}: a parameter group is a dict with the key 'params', not {group!r:.80}.")
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise ConfigError(
                f"{self.name}: a parameter group has the unknown options {sorted(unknown)}; "
                f"the known ones are {sorted(self.defaults)}."
            )
        new = {**self.defaults, **group, "params": [], "names": []}
        for name, tensor in named(group["params"]):
            if not tensor.requires_grad:
                raise ConfigError(
                    f"{self.name}: {name} is frozen (requires_grad is False); pass the trainable parameters only."
                )
            if not tensor.numpy().flags.writeable:
                raise ConfigError(
                    f"{self.name}: {name} shares read-only memory, which no step can change; copy it with Tensor(...)."
                )
            if id(tensor) not in seen:
                seen.add(id(tensor))
                new["params"].append(tensor)
                new["names"].append(name)
        self.check(new)
        self.param_groups.append(new)

    def _parameters(self) -> Iterator[tuple[int, str, Tensor, dict[str, Any]]]:
        position = 0
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                yield position, name, tensor, group
                position += 1

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of every group."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        check_range(self.name, "lr", value, 0)
        for group in self.param_groups:
            group["lr"] = float(value)

    # ------------------------------------------------------------------ weights of training and of the result
    def train(self) -> None:
        """Have the parameters hold what is trained, as they do at first; see `eval`."""

    def eval(self) -> None:
        """Have the parameters hold the result so far, where that is another than what is trained."""

    @property
    def evaluates(self) -> bool:
        """Whether the parameters hold another value than what is trained."""
        return False

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the parameters are as after `eval`; then they are what they were before, to the same bits."""
        before = self.evaluates
        self.eval()
        try:
            yield
        finally:
            if not before:
                self.train()

    def trained(self, parameter: Tensor) -> np.ndarray:
        """What is trained of a parameter, whatever it holds now: with `state_dict()`, what training continues from."""
        return parameter.numpy()

    def results(self, weights: Mapping[str, np.ndarray], state_dict: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """By name, what `eval` gives of parameters with the trained `weights` and this optimizer's `state_dict`."""
        return weights

    # ------------------------------------------------------------------ a step
    def step(self, gradient_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient and is not frozen meanwhile, in place.

        Gradients count `gradient_scale` times (what clipping found, say) and stay as they are.
        """
        gradient_scale = check_float(self.name, "gradient_scale", gradient_scale)
        for group, entries in self.entries():
            self.update([entry for _, entry in entries], group, gradient_scale)

    def entries(self) -> list[tuple[dict[str, Any], list[tuple[str, Entry]]]]:
        """(group, its (name, entry) pairs) of what a step updates."""
        found: dict[int, list[tuple[str, Entry]]] = {}
        for position, name, tensor, group in self._parameters():
            gradient = tensor.grad
            if gradient is not None and tensor.requires_grad:
                entry = (tensor, gradient, self.state.setdefault(position, {}))
                found.setdefault(id(group), []).append((name, entry))
        return [(group, found[id(group)]) for group in self.param_groups if id(group) in found]

    def zero_grad(self) -> None:
        """Forget every gradient (they become None, and their memory is free)."""
        for _, _, tensor, _ in self._parameters():
            tensor.grad = None

    # ------------------------------------------------------------------ the state
    def state_dict(self) -> dict[str, Any]:
        """The options and the state: NumPy arrays, which share the optimizer's memory, and plain values.

        {"param_groups": [{"names": [...], "lr": ..., ...}], "state": {position: {"step": ..., "exp_avg": array}}}
        """
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        state = {
            position: {key: value.numpy() if isinstance(value, Tensor) else value for key, value in entry.items()}
            for position, entry in self.state.items()
        }
        return {"param_groups": groups, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict()` gave; arrays are copied.

        Raises ConfigError, and changes nothing, where names, options or array shapes are not this optimizer's.
        """
        if not isinstance(state_dict, Mapping):
            raise ConfigError(f"{self.name}: a state is a dict, not {type(state_dict).__name__}.")
        if not {"param_groups", "state"} <= set(state_dict):
            raise ConfigError(
                f"{self.name}: a state has the keys 'param_groups' and 'state', not {sorted(map(str, state_dict))}."
            )
        groups = self._checked_groups(state_dict["param_groups"])
        tensors = {position: (name, tensor) for position, name, tensor, _ in self._parameters()}
        expected = {position: self.state_of(group) for position, _, _, group in self._parameters()}
        state: dict[int, dict[str, Any]] = {}
        for key, entry in state_dict["state"].items():
            position = int(key)
            if position not in tensors:
                raise ConfigError(
                    f"{self.name}: the state has parameter {key}, but there are {len(tensors)} parameters."
                )
            if entry and set(entry) != set(expected[position]):
                raise ConfigError(
                    f"{self.name}: the state of parameter {key} has {sorted(entry)}, "
                    f"expected {sorted(expected[position])}."
                )
            state[position] = {name: self._loaded(name, value, *tensors[position]) for name, value in entry.items()}
        self.state = state
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)

    def _checked_groups(self, groups: Any) -> list[dict[str, Any]]:
        if len(groups) != len(self.param_groups):
            raise ConfigError(
                f"{self.name}: the state has {len(groups)} parameter groups, expected {len(self.param_groups)}."
            )
        checked = []
        for i, (group, mine) in enumerate(zip(groups, self.param_groups, strict=True)):
            expected = set(mine) - {"params"}
            if (set(group) ^ expected) - {"initial_lr"}:  # which a schedule adds, before or after
                raise ConfigError(
                    f"{self.name}: group {i} of the state has the keys {sorted(group)}, expected {sorted(expected)}."
                )
            for ours, theirs in zip(mine["names"], group["names"], strict=False):
                if ours != theirs:
                    raise ConfigError(f"{self.name}: the state has parameter {theirs!r} where {ours!r} was expected.")
            if len(group["names"]) != len(mine["names"]):
                raise ConfigError(
                    f"{self.name}: group {i} of the state has {len(group['names'])} parameters, "
                    f"expected {len(mine['names'])}."
                )
            self.check({**mine, **group})
            checked.append({key: value for key, value in group.items() if key != "names"})
        return checked

    def _loaded(self, key: str, value: Any, name: str, tensor: Tensor) -> Any:
        if key in self.numbers:
            return int(value) if key == "step" else check_float(self.name, f"{key} of {name}", value)
        if np.shape(value) != tensor.shape:
            raise ConfigError(
                f"{self.name}: {key} of {name} has shape {np.shape(value)} in the state, expected {tensor.shape}."
            )
        return Tensor(value)

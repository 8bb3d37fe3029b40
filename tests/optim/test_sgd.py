"""SGD against its definition in float64 and against torch.optim.SGD, every option."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.optim import SGD

from . import reference

OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def in_float64(lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    """SGD as its docstring states it."""
    params = [p.astype(np.float64) for p in reference.starting_point()]
    buffers = [None] * len(params)
    for step in range(reference.STEPS):
        for i, gradient in enumerate(reference.gradients(step)):
            g = gradient + weight_decay * params[i]
            if momentum:
                buffers[i] = g if buffers[i] is None else momentum * buffers[i] + (1 - dampening) * g
                g = g + momentum * buffers[i] if nesterov else buffers[i]
            params[i] = params[i] - lr * g
    return params


@pytest.mark.unit
@every_option
def test_follows_its_definition(options, tier) -> None:
    ours = reference.run(lambda params: SGD(params, lr=0.01, **options))
    reference.assert_close(ours, in_float64(0.01, **options), 3e-6)


@pytest.mark.peers
@every_option
def test_tracks_torch(options, tier) -> None:
    torch = pytest.importorskip("torch")
    ours = reference.run(lambda params: SGD(params, lr=0.01, **options))
    theirs = reference.run_torch(lambda params: torch.optim.SGD(params, lr=0.01, **options))
    reference.assert_close(ours, theirs, 1e-5)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr must be a number at least 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"weight_decay": "0.1"}, "weight_decay must be"),
        ({"nesterov": True}, "Nesterov"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SGD([Tensor([1.0], requires_grad=True)], **options)

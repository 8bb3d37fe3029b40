"""The communicator of one rank, and that it is one."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.distributed import Communicator, LocalCommunicator


@pytest.mark.unit
def test_one_rank_leaves_every_bit_as_it_is() -> None:
    communicator: Communicator = LocalCommunicator()
    assert (communicator.rank, communicator.size) == (0, 1)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, 3e38], np.float32)
    before = odd.tobytes()
    communicator.all_reduce(odd)
    communicator.barrier()
    assert odd.tobytes() == before
    value = {"run": "x"}
    assert communicator.broadcast(value) is value


@pytest.mark.unit
def test_the_local_communicator_has_every_method_of_the_protocol() -> None:
    methods = {name for name in vars(Communicator) if not name.startswith("_")}
    assert methods == {"rank", "size", "all_reduce", "broadcast", "barrier"}
    assert methods <= set(vars(LocalCommunicator))

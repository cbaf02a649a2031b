"""Data that the ranks of a host share, under `mpirun`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hvd_train.comm.communicator import Communicator
from tests.bodies import node_memory as bodies


@pytest.mark.parametrize("body", bodies.BODIES, ids=lambda body: body.__name__)
def test_node_memory(comm: Communicator, body: Callable[[Communicator], None]) -> None:
    body(comm)

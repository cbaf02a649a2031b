"""The bodies of every engine, under `mpirun`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from hvd_train.comm import ops
from hvd_train.comm.communicator import Communicator
from tests.bodies import comm as bodies

Body = Callable[[Communicator], None]


def test_world_is_that_of_the_launcher(comm: Communicator) -> None:
    launched = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1
    assert comm.size == int(launched)


@pytest.mark.parametrize("body", bodies.BODIES, ids=lambda body: body.__name__)
def test_engine(comm: Communicator, body: Body) -> None:
    body(comm)


@pytest.mark.parametrize(
    "body",
    [
        bodies.all_reduce_of_every_dtype,
        bodies.several_in_flight_waited_in_reverse,
        bodies.all_gather_of_every_dtype,
        bodies.broadcast_from_every_root,
        bodies.all_to_all_of_unequal_parts,
        bodies.exchange_around_a_ring_and_over_permutations,
    ],
    ids=lambda body: body.__name__,
)
def test_tensors_too_long_for_one_call(comm: Communicator, body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_CHUNK", 2)
    body(comm)

"""Checked engines pass the bodies of all engines under `mpirun`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.wrappers.checked import CheckedCommunicator, checked
from tests.bodies import comm as bodies


@pytest.fixture(scope="module")
def watched(comm: Communicator) -> Iterator[Communicator]:
    made = checked(comm)
    yield made
    assert isinstance(made, CheckedCommunicator)
    made._calls.mailbox.close()


BODIES = [
    bodies.all_reduce_of_every_dtype,
    bodies.several_in_flight_waited_in_reverse,
    bodies.all_to_all_of_unequal_parts,
    bodies.exchange_around_a_ring_and_over_permutations,
    bodies.split_makes_groups_in_the_order_of_keys,
    bodies.split_off_one_rank_and_into_ranks_alone,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_engine(watched: Communicator, body: Callable[[Communicator], None]) -> None:
    body(watched)

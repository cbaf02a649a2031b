"""What ranks of one host do together while they load data, on every engine. All ranks call each body."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.errors import UserError
from hvd_train.rank.node import on_node


def arrays_are_made_once_and_shared(comm: Communicator) -> None:
    before = sorted(os.listdir("/dev/shm"))
    made = []
    first = comm.rank - comm.local_rank  # of this host, whose ranks follow one another

    def make() -> tuple[dict[str, Any], Any]:
        made.append(comm.rank)
        return {"a": np.arange(6.0).reshape(2, 3) + comm.rank, "empty": np.zeros((0, 2), np.int8)}, {"by": comm.rank}

    arrays, facts = on_node(comm, lambda node: once(node, make))
    assert facts == {"by": first}
    assert made == [first] * (comm.rank == first)
    assert arrays["a"].values.tolist() == (np.arange(6.0).reshape(2, 3) + first).tolist()
    assert arrays["empty"].shape == (0, 2)
    assert sorted(os.listdir("/dev/shm")) == before


def an_error_of_one_rank_is_the_error_of_all(comm: Communicator) -> None:
    """Wherever the rank fails: before, between or after what the ranks do together."""

    def task(node: Node, failing: int, at: int) -> None:
        for number in range(3):
            if (comm.rank, number) == (failing, at):
                raise UserError(f"file {number} is damaged")
            if number < 2:
                node.gather(number)

    for failing in range(comm.size):
        for at in range(3):
            with pytest.raises(UserError, match=f"^file {at} is damaged") as caught:
                on_node(comm, lambda node, failing=failing, at=at: task(node, failing, at))
            assert len({*gather_json(comm, str(caught.value))}) == 1


BODIES: list[Callable[[Communicator], None]] = [
    arrays_are_made_once_and_shared,
    an_error_of_one_rank_is_the_error_of_all,
]

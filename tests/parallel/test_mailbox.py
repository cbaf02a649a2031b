"""Mailboxes under mpirun, on the engines that offer them."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_train.comm.base import Communicator
from hvd_train.errors import UserError
from tests.bodies import mailbox as body


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    if comm.outlives_ranks:
        check(comm)
    else:
        with pytest.raises(UserError, match="--engine mpi"):
            comm.mailbox()

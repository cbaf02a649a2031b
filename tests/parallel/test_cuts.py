"""Rollouts that are cut under mpirun; the engine needs a mailbox."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from tests.bodies import cuts


@pytest.mark.parametrize("check", cuts.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)

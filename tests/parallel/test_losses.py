"""Losses with unequal units a rank under mpirun, on the engine and number of ranks of this session."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from tests.bodies import losses as body


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)

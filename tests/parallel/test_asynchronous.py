"""Asynchronous strategies under mpirun, on the engines that survive a dead rank.

Other engines reject them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.errors import UserError
from tests.bodies import asynchronous as body
from tests.bodies import training


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    if comm.outlives_ranks:
        check(comm)
    else:
        with pytest.raises(UserError, match="--engine mpi"):
            training.trainer(comm, body.configuration(3, {"strategy": "async_ps"}))


@pytest.mark.parametrize("check", body.SAVING, ids=lambda f: f.__name__)
def test_bodies_that_save(check: Any, comm: Communicator, tmp_path: Path) -> None:
    if comm.outlives_ranks:
        check(comm, Path(broadcast_json(comm, str(tmp_path))))

"""Federated rounds under mpirun. They need only collectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import federated as body


@pytest.mark.parametrize("check", [*body.BODIES, *body.MASKED], ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)


@pytest.mark.parametrize("check", body.ON_DISK, ids=lambda f: f.__name__)
def test_on_disk(check: Any, comm: Communicator, tmp_path: Path) -> None:
    check(comm, Path(broadcast_json(comm, str(tmp_path))))

"""Agents under mpirun, with the engine and the ranks of this session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import agents as body


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)


def test_resumed_is_bitwise_equal(comm: Communicator, tmp_path: Path) -> None:
    body.resumed_is_bitwise_equal(comm, Path(broadcast_json(comm, str(tmp_path))), agent=body.NORMALISED)

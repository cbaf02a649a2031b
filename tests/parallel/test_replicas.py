"""Strategies whose replicas differ, on the engine and number of ranks of this session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import replicas as body


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)


@pytest.mark.parametrize("name", body.RESUMED)
def test_resumed_is_bitwise_equal(name: str, comm: Communicator, tmp_path: Path) -> None:
    sync, train = body.RESUMED[name]
    body.resumed_is_bitwise_equal(comm, Path(broadcast_json(comm, str(tmp_path))), sync, **train)

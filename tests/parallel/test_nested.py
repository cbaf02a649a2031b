"""Nested batches, counted units and streams under mpirun, with the engine of this session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import nested


@pytest.mark.parametrize("check", nested.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)


def test_a_stream_resumes(comm: Communicator, tmp_path: Path) -> None:
    nested.streams_resume(comm, Path(broadcast_json(comm, str(tmp_path))) / "checkpoints")

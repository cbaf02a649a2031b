"""Model parallelism under mpirun, on the engine and number of ranks of this session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import parallelism as body


@pytest.mark.parametrize("check", body.BODIES + body.NOISY, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    check(comm)


@pytest.mark.parametrize("check", [*body.RESUMING, body.resumes_to_the_bit], ids=lambda f: f.__name__)
def test_resuming(check: Any, comm: Communicator, tmp_path: Path) -> None:
    check(comm, Path(broadcast_json(comm, str(tmp_path))))

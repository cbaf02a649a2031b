"""Models with unusual state under mpirun, on ranks that share only what they send."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from tests.bodies import odd_models as odd


@pytest.fixture
def folder(comm: Communicator) -> Iterator[Path]:
    """Return one folder for all ranks."""
    made = Path(broadcast_json(comm, tempfile.mkdtemp() if comm.rank == 0 else None))
    yield made
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(made)


@pytest.mark.parametrize("sync", ["allreduce", "local_sgd", "federated"])
def test_all_features_resume_bitwise(sync: str, comm: Communicator, folder: Path) -> None:
    odd.is_resumed_bitwise(comm, list(odd.FEATURES), odd.SYNCHRONOUS[sync], folder)


def test_several_resume_bitwise(comm: Communicator, folder: Path) -> None:
    """All ranks draw the same examples, because their collectives must match."""
    servers = [name for name in odd.SYNCHRONOUS if comm.size > 1 or name != "parameter_server"]
    number = iter(range(10**6))

    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(features=odd.combinations(), sync=st.sampled_from(servers))
    def check(features: list[str], sync: Any) -> None:
        odd.is_resumed_bitwise(comm, features, odd.SYNCHRONOUS[sync], folder / str(next(number)))

    check()


def test_ranks_equal_one_process(comm: Communicator) -> None:
    odd.equals_one_process(comm, sorted(odd.ALIKE))

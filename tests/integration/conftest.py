"""Fixtures: clusters for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import hosts as of_hosts
from tests.cluster import slurm as of_slurm
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Slurm
from tests.integration.parts import require


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Hosts n1, n2 and n3, created for each test in a fraction of a second."""
    require(of_hosts.missing())
    with Hosts(3) as made:
        yield made


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Nodes n1 and n2 with two cores each, shared by all tests.

    A test waits for the jobs that it submits, or cancels them.
    """
    require(of_slurm.missing())
    with Slurm(2, 2) as made:
        yield made

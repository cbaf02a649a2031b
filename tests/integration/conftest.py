"""Fixtures: clusters for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts as of_hosts
from tests.cluster import slurm as of_slurm
from tests.cluster.hosts import Hosts, wait_until
from tests.cluster.slurm import Slurm
from tests.integration.ddl import SMALL
from tests.integration.parts import require
from tests.integration.site import Site


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


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Iterator[Site]:
    """A user with a profile `lab` and a file m.yaml. The queue is empty after the test."""
    home = tmp_path / "my models"
    (home / "config" / "ddl" / "profiles").mkdir(parents=True)
    (home / "config" / "ddl" / "profiles" / "lab.yaml").write_text("time: 10\n")
    (home / "m.yaml").write_text(SMALL)
    for name in ("cli", "hvd_train"):
        (home / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    yield Site(slurm, home)
    slurm.run(["scancel", "--me"])
    wait_until(lambda: not slurm.run(["squeue", "--noheader"]).stdout, "an empty queue", 30)

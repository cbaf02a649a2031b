"""A real SLURM of two nodes: the test's own parts, and `ddl run` in an allocation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster.hosts import wait_until
from tests.cluster.slurm import Slurm
from tests.integration.ddl import DIGITS, summary

TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2"]
SHARED_CORES = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_osc": "^ucx"}
WORLD = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.rank, c.size, MPI.Get_processor_name(), c.allreduce(1))"


def test_srun_starts_one_mpi_world_on_both_nodes(slurm: Slurm) -> None:
    done = slurm.run(["srun", "--mpi=pmix", *TWO_BY_TWO, sys.executable, "-m", "mpi4py", "-c", WORLD], env=SHARED_CORES)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 4 n1 4", "1 4 n1 4", "2 4 n2 4", "3 4 n2 4"]


def test_ddl_run_takes_its_ranks_from_the_allocation(slurm: Slurm, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "run", "--np", "4", "--output", tmp_path / "out", DIGITS]
    done = slurm.run(["salloc", *TWO_BY_TWO, *command], timeout=150, cwd=tmp_path, env=SHARED_CORES)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "out")["eval"]["accuracy"] >= 0.95
    assert summary(tmp_path / "out")["world_size"] == 4
    first = [log.read_text().split(",")[0] for log in sorted((tmp_path / "out" / "logs").iterdir())]
    assert first == [f"rank {rank} of 4 on n{1 + rank // 2}" for rank in range(4)]
    assert "srun" in (tmp_path / "out" / "command.txt").read_text()


def test_the_end_of_slurm_leaves_nothing(slurm: Slurm) -> None:
    slurm.start(["srun", "--nodes=2", "sleep", "600"], stderr=subprocess.DEVNULL)
    wait_until(lambda: all(any(p.name() == "sleep" for p in slurm.hosts.processes(n)) for n in slurm.nodes), "a job")
    left = [p for name in slurm.hosts.names for p in slurm.hosts.processes(name)]
    assert {"munged", "slurmctld", "slurmd"} < {p.name() for p in left}
    slurm.down()
    assert not any(p.is_running() for p in left)
    assert not slurm.hosts.folder.exists()
    slurm.up()

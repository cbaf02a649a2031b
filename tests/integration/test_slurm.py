"""A real SLURM of two nodes: the test cluster itself, and `ddl run` in an allocation."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.remote.ssh import unframed
from tests.cluster.hosts import wait_until
from tests.cluster.slurm import Slurm
from tests.integration.ddl import DIGITS, ROOT, SMALL, summary

TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2"]
EVERYBODY = ["0 4 n1 4", "1 4 n1 4", "2 4 n2 4", "3 4 n2 4"]
WORLD = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.rank, c.size, MPI.Get_processor_name(), c.allreduce(1))"


def test_srun_starts_one_mpi_world_on_both_nodes(slurm: Slurm) -> None:
    done = slurm.run(["srun", "--mpi=pmix", *TWO_BY_TWO, sys.executable, "-m", "mpi4py", "-c", WORLD])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == EVERYBODY


def test_ddl_run_takes_its_ranks_from_the_allocation(slurm: Slurm, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "run", "--np", "4", "--output", tmp_path / "out", DIGITS]
    done = slurm.run(["salloc", "--quiet", *TWO_BY_TWO, *command], timeout=150, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(tmp_path / "out")["eval"]["accuracy"] >= 0.95
    assert summary(tmp_path / "out")["world_size"] == 4
    first = [log.read_text().split(",")[0] for log in sorted((tmp_path / "out" / "logs").iterdir())]
    assert first == [f"rank {rank} of 4 on n{1 + rank // 2}" for rank in range(4)]
    assert "srun" in (tmp_path / "out" / "command.txt").read_text()


STEPS = """\
run() { name=$1; shift; echo $name; "$@" > $name.out 2> $name.err < /dev/null; echo $? > $name.code; }
ddl="$PYTHON -m cli run --timeout 60"
for launcher in srun mpirun; do
    run script-$launcher $ddl --launcher $launcher --tee all world.py
    run yaml-$launcher $ddl --launcher $launcher --output yaml-$launcher.run m.yaml train.epochs=1 data.batch_size=64
done
run lone srun --overlap --ntasks=1 --nodes=1 $ddl --launcher mpirun world.py
run twice srun --overlap --ntasks=2 --nodes=2 $ddl --np 4 world.py
touch end
"""


@pytest.mark.timeout(300)
def test_ddl_run_in_a_shell_that_is_a_step_itself(slurm: Slurm, tmp_path: Path) -> None:
    """The shell of `srun --pty` has all CPUs of the job, and looks like a rank (`--mpi=pmix`)."""
    (tmp_path / "m.yaml").write_text(SMALL)
    (tmp_path / "world.py").write_text(WORLD)
    (tmp_path / "steps").write_text(STEPS)
    with _typed(slurm, ["srun", "--mpi=pmix", *TWO_BY_TWO, "--pty", "bash", "--norc"], "bash steps", tmp_path) as drain:
        wait_until(lambda: drain() or (tmp_path / "end").exists(), "the end of all steps", 200)

    def read(name: str) -> str:
        return (tmp_path / name).read_text()

    ways = [f"{kind}-{launcher}" for kind in ("script", "yaml") for launcher in ("srun", "mpirun")]
    found = {name: (read(f"{name}.code"), read(f"{name}.err")) for name in [*ways, "lone"]}
    assert found == dict.fromkeys(found, ("0\n", ""))
    for launcher in ("srun", "mpirun"):
        tagged = [f"[{rank}] {line}" for rank, line in enumerate(EVERYBODY)]
        assert sorted(read(f"script-{launcher}.out").splitlines()) == tagged
        assert summary(tmp_path / f"yaml-{launcher}.run")["world_size"] == 4
    assert read("lone.out").split()[:2] == ["0", "1"]
    assert read("twice.code") == "2\n"
    refused = "ddl: srun started this command 2 times, and each of them would start a job; leave out srun: ddl run"
    assert sum(line.startswith(refused) for line in read("twice.err").splitlines()) == 2, read("twice.err")


@contextlib.contextmanager
def _typed(slurm: Slurm, argv: list[str], line: str, cwd: Path) -> Iterator[Callable[[], None]]:
    """Run `argv` on a terminal and type `line`; yield a function that reads the terminal."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    told = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    command = ["setsid", "--ctty", "--wait", "env", f"--chdir={cwd}", *argv]
    shell = slurm.start(command, stdin=slave, stdout=slave, stderr=slave, env=told)
    os.close(slave)

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(master, 65536)

    try:
        os.write(master, f"{line}\n".encode())
        yield drain
    finally:
        slurm.run(["scancel", "--me"])
        shell.wait(30)
        os.close(master)


IN_JOB = """\
import json
from dataclasses import asdict
from cli.doctor import trial
from cli.doctor.examine import examine
from cli.doctor.base import Finding
checks = {name: asdict(finding) for name, finding in examine({"slurm": {}, "ssh": {}}).items()}
found = asdict(trial.trial("srun", "mpi"))
trial.trial = lambda *_: Finding("ok", "")
launchers = [name for name, _ in trial.trials() if name.endswith("/mpi")]
print(json.dumps({"checks": checks, "trial": found, "launchers": launchers}))
"""


def test_doctor_knows_slurm_outside_and_inside_an_allocation(slurm: Slurm, tmp_path: Path) -> None:
    login = slurm.run([sys.executable, "-m", "cli.doctor", '{"slurm": {}, "ssh": {}}'], cwd=tmp_path)
    outside = unframed(login.stdout)["slurm"]
    assert outside["level"] == "ok", outside
    assert outside["facts"]["slurm"].count(".") == 2
    assert {"pmi2", "pmix"} <= set(outside["facts"]["plugins"])
    assert "outside an allocation" in outside["figure"]
    salloc = ["salloc", "--nodes=1", "--ntasks-per-node=2"]
    done = slurm.run([*salloc, sys.executable, "-c", IN_JOB], timeout=150, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checks"]["slurm"]["facts"]["job"]
    assert found["checks"]["ssh"]["figure"] == "not needed in a SLURM allocation"
    assert found["launchers"] == ["mpirun/mpi", "srun/mpi"]
    assert found["trial"]["level"] == "ok", found["trial"]
    assert not list(tmp_path.iterdir()), "the trial's scratch folder is removed"


def test_the_end_of_slurm_leaves_nothing(slurm: Slurm) -> None:
    slurm.start(["srun", "--nodes=2", "sleep", "600"], stderr=subprocess.DEVNULL)
    wait_until(lambda: all(any(p.name() == "sleep" for p in slurm.hosts.processes(n)) for n in slurm.nodes), "a job")
    left = [p for name in slurm.hosts.names for p in slurm.hosts.processes(name)]
    assert {"munged", "slurmctld", "slurmd"} < {p.name() for p in left}
    slurm.down()
    assert not any(p.is_running() for p in left)
    assert not slurm.hosts.folder.exists()
    slurm.up()

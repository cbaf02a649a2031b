"""Failures of jobs on several hosts, with real ssh and mpirun."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Hosts, wait_until
from tests.integration.ddl import SMALL, alive, ddl, falters, is_rank, ranks, start, summary, wait_for, wait_for_steps
from tests.integration.parts import needs

ENDLESS = ["train.epochs=100000", "checkpoint.every=100000000", "train.eval_every=1000000"]
FINITE = ["train.epochs=8", "train.precision=fp32", "checkpoint.every=15"]
STALL = 5
MARGIN = 20
"""Seconds that a job may take to end after `--stall-timeout`."""


@dataclass
class Job:
    """A `ddl run` on n1 with ranks on each host; `out` is its run folder."""

    hosts: Hosts
    process: subprocess.Popen[str]
    out: Path
    began: float = field(default_factory=time.monotonic)

    def rank_on(self, host: str) -> psutil.Process:
        return next(p for p in self.hosts.processes(host) if is_rank(p))

    def end(self, seconds: float) -> str:
        """Return its stderr. It must end within `seconds` and leave nothing on any host."""
        _, errors = self.process.communicate(timeout=seconds)
        left = {name: self.hosts.processes(name) for name in self.hosts.names}
        assert not any(left.values()), left
        assert not any(self._remains()), errors
        return errors

    def _remains(self) -> Iterator[str]:
        """Return its files that are left in shared memory and in Open MPI's folders."""
        for name in self.hosts.names:
            yield from self.hosts.run(name, ["ls", "/dev/shm"]).stdout.split()
            yield from (p.name for p in (self.hosts.folder / "tmp" / name).iterdir() if "." in p.name)


def launch(hosts: Hosts, *options: str | Path, first: int = 0) -> Job:
    """Start a job with a rank on each host from the `first` on. The last option is its length."""
    file = hosts.folder / "hostfile"
    file.write_text("".join(f"{name} slots=1\n" for name in hosts.names[first:]))
    model, out = hosts.folder / "model.yaml", hosts.folder / "out"
    model.write_text(SMALL)
    command = [
        sys.executable,
        "-m",
        "cli",
        "run",
        "--hostfile",
        file,
        "--output",
        out,
        *options[:-1],
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    more = ENDLESS if options[-1] == "endless" else FINITE
    process = hosts.start("n1", [*command, model, *more], cwd=hosts.folder, **pipes)
    job = Job(hosts, process, out)
    if more is ENDLESS:
        wait_for_steps(out)
    else:
        wait_for(hosts.folder, "out/checkpoints/step-*/manifest.json")
    for name in hosts.names[1:]:
        wait_until(lambda name=name: any(map(_watches, hosts.processes(name))), f"a guard on {name}")
    return job


def _watches(process: psutil.Process) -> bool:
    """Return True for a guard that watches processes."""
    with contextlib.suppress(psutil.Error, OSError):
        if "cli.follow.guard" in process.cmdline():
            return any("pidfd" in os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir())
    return False


def test_a_killed_rank_is_named_and_the_job_resumes_from_its_checkpoint(hosts: Hosts) -> None:
    job = launch(hosts, "--max-restarts", "1", "finite")
    job.rank_on("n2").kill()
    errors = job.end(90)
    assert job.process.returncode == 0, errors
    assert re.search(
        r"the first failure: rank 1 on n2 (was killed by signal 9|ended without reporting an error)", errors
    ), errors
    assert "restart 1 of 1: 3 ranks on n1:1,n2:1,n3:1" in errors
    assert summary(job.out)["epochs"] == 8
    assert summary(job.out)["eval"]["accuracy"] >= 0.93


def test_a_host_without_its_daemons_ends_the_job(hosts: Hosts) -> None:
    job = launch(hosts, "endless")
    for process in hosts.processes("n2"):
        if process.name() == "prted":
            process.kill()
    errors = job.end(MARGIN)
    assert job.process.returncode == 1, errors
    assert re.search(r"the first failure: the launcher's daemon ended on n2\nrank 1 on n2: last at ", errors), errors


def test_a_host_that_is_killed_whole_ends_the_job(hosts: Hosts) -> None:
    job = launch(hosts, "endless")
    for process in hosts._hosts["n2"].processes():
        process.kill()
    _, errors = job.process.communicate(timeout=MARGIN)
    assert job.process.returncode == 1, errors
    assert re.search(r"the first failure: .* n2( is lost)?\nrank 1 on n2: ", errors), errors
    assert not any(hosts.processes(name) for name in hosts.names)


def test_a_host_that_is_cut_off_is_named_and_the_job_restarts_without_it(hosts: Hosts) -> None:
    stall = ["--stall-timeout", str(STALL)]
    job = launch(hosts, *stall, "--max-restarts", "1", "--min-np", "2", "finite")
    hosts.cut("n2")
    cut = time.monotonic()
    errors = job.end(120)
    assert job.process.returncode == 0, errors
    assert re.search(
        r"rank 1 sent no heartbeat for 5 seconds \(--stall-timeout\)\nrank 1 on n2: last at (step \d+, \w+: )?[\w<]+",
        errors,
    ), errors
    assert "restart 1 of 1: 2 ranks on n1:1,n3:1" in errors
    assert summary(job.out)["world_size"] == 2
    assert summary(job.out)["eval"]["accuracy"] >= 0.93
    assert time.monotonic() - cut < 120


@pytest.mark.parametrize("engine", ["mpi", "horovod"])
def test_a_stopped_rank_ends_the_job_in_time_with_the_position_of_all_ranks(engine: str, hosts: Hosts) -> None:
    """Horovod blocks the interpreter of a rank that calls it then, so other ranks may become silent too."""
    needs(engine)
    job = launch(hosts, "--stall-timeout", str(STALL), "--engine", engine, "endless")
    stack = hosts.run("n1", [sys.executable, "-m", "cli", "stack", job.out])
    for rank, host in enumerate(hosts.names):
        assert re.search(rf"^rank {rank} on {host}, process \d+$", stack.stdout, re.MULTILINE), stack
    assert stack.stdout.count('loop.py", line') >= 3
    job.rank_on("n3").suspend()
    errors = job.end(STALL + MARGIN)
    assert job.process.returncode == 1
    silent = "rank 2" if engine == "mpi" else "(rank|ranks [01, ]*) ?2"
    assert re.search(rf"{silent} sent no heartbeat for 5 seconds \(--stall-timeout\)\n", errors), errors
    assert re.search(r"^rank 2 on n3: last at step \d+", errors, re.MULTILINE), errors
    for rank, host in [(0, "n1"), (1, "n2")]:
        waits = rf"^rank {rank} on {host}: at step \d+, (comm|optimizer): \w+ \(.*:\d+\)$"
        assert engine == "horovod" or re.search(waits, errors, re.MULTILINE), errors


def test_a_request_to_stop_reaches_ranks_that_are_all_on_other_hosts(hosts: Hosts) -> None:
    job = launch(hosts, "endless", first=1)
    psutil.Process(job.process.pid).children()[0].send_signal(signal.SIGTERM)
    errors = job.end(60)
    assert job.process.returncode == 75, errors
    assert [p.name for p in (job.out / "checkpoints").iterdir()] == [f"step-{summary(job.out)['steps']:08d}"]


def test_ranks_end_with_the_command_that_started_them(hosts: Hosts) -> None:
    job = launch(hosts, "endless")
    psutil.Process(job.process.pid).children()[0].send_signal(signal.SIGKILL)
    job.process.wait(timeout=MARGIN)
    wait_until(lambda: not any(hosts.processes(name) for name in hosts.names), "the end of all", MARGIN)


def test_a_rank_for_which_the_others_wait_is_named_with_its_line(tmp_path: Path) -> None:
    needs("mpirun")
    (tmp_path / "mine.py").write_text(falters("time.sleep(1000)"))
    (tmp_path / "m.yaml").write_text("model: {target: 'mine:Model'}\ndata: digits\n")
    job = start("run", "--np", "2", "--stall-timeout", "3", "--output", "out", "m.yaml", cwd=tmp_path)
    wait_for(tmp_path, "out/logs/rank-1.log")
    processes = ranks(job.pid)
    _, errors = job.communicate(timeout=40)
    assert job.returncode == 1
    assert "no rank made progress for 3 seconds (--stall-timeout); the others wait for rank 1" in errors
    assert re.search(r"rank 1 on \S+: at step 7, forward: forward \(.*mine.py:12\)", errors), errors
    assert alive(processes) == []


def test_a_burst_of_signals_is_one_request_to_save(tmp_path: Path) -> None:
    """`scancel --full` sends them to the command, through the batch script again, and to mpirun."""
    needs("mpirun")
    (tmp_path / "m.yaml").write_text(SMALL)
    job = start("run", "--np", "2", "--output", "out", "m.yaml", *ENDLESS, cwd=tmp_path)
    wait_for(tmp_path, "out/metrics.jsonl")
    wait_until(lambda: len(ranks(job.pid)) == 2, "ranks")
    mpirun = psutil.Process(job.pid).children()[0]
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        job.send_signal(number)
        time.sleep(0.02)
    with contextlib.suppress(psutil.NoSuchProcess):
        mpirun.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75, errors
    steps = summary(tmp_path / "out")["steps"]
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step-{steps:08d}"]


UNLIKE = """\
import os, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.calls = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10), 0
        self.first.requires_grad_(False)

    def forward(self, x):
        self.calls += 1
        if self.calls == 3 and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            self.first.requires_grad_(True)
        return self.last(self.first(x.flatten(1)))
"""


@pytest.mark.parametrize("engine", ["mpi", "horovod"])
def test_models_that_differ_between_ranks_are_named_by_check_collectives(engine: str, tmp_path: Path) -> None:
    """Only one rank trains a layer from the third step on."""
    needs("mpirun")
    needs(engine)
    (tmp_path / "mine.py").write_text(UNLIKE)
    (tmp_path / "m.yaml").write_text("model: {target: 'mine:Model'}\ndata: digits\nsync: {shard_optimizer: false}\n")
    told = ["--np", "2", "--engine", engine, "--check-collectives", "--output", "out", "m.yaml"]
    done = ddl("run", *told, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.stderr
    head, *lines = done.stderr[done.stderr.index("ddl: the first failure: ") :].splitlines()[1:3]
    assert head == "ranks ask for different collectives (--check-collectives)"
    assert re.fullmatch(r"rank 0 on \S+: all_reduce sum of float32 \[\d+\], number \d+ of the world, at .*", lines[0])
    assert "Traceback" not in done.stderr

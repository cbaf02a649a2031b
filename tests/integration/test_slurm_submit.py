"""`ddl submit` on a real SLURM of two nodes: results, disturbances, sweeps, related commands."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvd_train.rank import internal
from tests.cluster.hosts import PATH, wait_until
from tests.integration.ddl import DIGITS, ROOT, SMALL, ddl, summary
from tests.integration.parts import needs
from tests.integration.site import SECONDS, Site

TWO_BY_TWO = ["--nodes", "2", "--ntasks-per-node", "2", "--profile", "lab"]
ONE_BY_TWO = ["--nodes", "2", "--ntasks-per-node", "1", "--profile", "lab"]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return safetensors.torch.load_file(newest / "model.safetensors")


@pytest.mark.timeout(300)
def test_every_engine_and_launcher_trains_as_mpirun_does_here(site: Site, tmp_path: Path) -> None:
    needs("horovod")
    told = [DIGITS, "train.precision=fp64"]
    ways = [(engine, launcher) for engine in ("mpi", "horovod") for launcher in ("srun", "mpirun")]
    done = ddl("run", "--np", "4", "--engine", "mpi", "--output", "here", *told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = parameters(tmp_path / "here")
    for engine, launcher in ways:
        how = ["--engine", engine, "--launcher", launcher, "--iface", "eth0"]
        site.submit(f"{engine}-{launcher}", *TWO_BY_TWO, *how, *told)
    for engine, launcher in ways:
        name = f"{engine}-{launcher}"
        (attempt,) = site.wait(name)
        assert (attempt["cause"], attempt["exit_code"]) == ("finished", 0), site.log(name)
        out = site.home / name
        assert launcher in (out / "command.txt").read_text().split("hvd_train")[0]
        assert (summary(out)["engine"], summary(out)["world_size"]) == (engine, 4)
        assert summary(out)["eval"]["accuracy"] >= 0.95
        first = [log.read_text().splitlines()[0] for log in sorted((out / "logs").iterdir())]
        assert first == [f"rank {rank} of 4 on n{1 + rank // 2}, 1 threads" for rank in range(4)]
        for key, value in parameters(out).items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-9, msg=f"{name} {key}")


SLOW = """\
import pathlib, time, torch

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, x):
        if self.training and pathlib.Path("slowly").exists():
            time.sleep(0.1)
        return self.inner(x)
"""
SLOWLY = """\
model: {target: 'slow:Slow'}
data: {name: synthetic, features: [64], samples: 2048, batch_size: 2}
train: {epochs: 3, log_every: 1}
checkpoint: {every: 1000000}
slurm: {notice: 45}
"""


@pytest.mark.timeout(420)
def test_signals_requeues_lost_nodes_and_the_time_limit_lose_nothing(site: Site) -> None:
    """A job that is stopped in five ways ends with the same bits as an undisturbed job."""
    (site.home / "slow.py").write_text(SLOW)
    (site.home / "slow.yaml").write_text(SLOWLY)
    site.submit("calm", *ONE_BY_TWO, "slow.yaml")
    site.wait("calm")
    (site.home / "slowly").touch()
    job = site.submit("stormy", *ONE_BY_TWO, "slow.yaml")
    disturbances = {
        "preemption": ["scancel", "--full", "--signal=USR1", job],
        "requeued": ["scontrol", "requeue", job],
        "node failure": lambda: site.slurm.lose("n2"),
        "node failure at once": lambda: [process.kill() for process in site.slurm.hosts.processes("n2")],
        "time limit": ["scontrol", "update", f"JobId={job}", "TimeLimit=1"],
    }
    for count, (cause, disturb) in enumerate(disturbances.items(), 1):
        _wait_for_steps(site, "stormy", 3)
        if count > 1:  # as a rank of the previous attempt whose node returns
            site.slurm.run(["scancel", f"{job}.{count - 2}"])
            _wait_for_steps(site, "stormy", 1)
        if callable(disturb):
            disturb()
        else:
            assert site.slurm.run(disturb).returncode == 0
        attempt = site.wait("stormy", count)[-1]
        lost = cause.startswith("node failure")
        expected = ("node failure", 69) if lost else (cause, 75)
        assert (attempt["cause"], attempt["exit_code"]) == expected, site.log("stormy")
        if lost:
            site.slurm.restore("n2")
    (site.home / "slowly").unlink()
    assert site.slurm.run(["scontrol", "update", f"JobId={job}", "TimeLimit=10"]).returncode == 0
    assert site.wait("stormy", 6)[-1]["cause"] == "finished"
    out = summary(site.home / "stormy")
    assert (out["ended"], out["steps"]) == ("length", summary(site.home / "calm")["steps"])
    assert (out["slurm"]["requeues"], out["slurm"]["restarts"]) == (3, 5)
    wanted, found = parameters(site.home / "calm"), parameters(site.home / "stormy")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    steps = [json.loads(line)["step"] for line in (site.home / "stormy" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def _wait_for_steps(site: Site, folder: str, more: int) -> None:
    def step() -> int:
        path = site.home / folder / "metrics.jsonl"
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    before = step()
    site.wait_until(folder, lambda: step() >= before + more, f"{more} steps after {before}")


@pytest.mark.timeout(200)
def test_a_sweep_is_followed_and_shown_in_one_table(site: Site) -> None:
    sweep = ["--sweep", "optimizer.lr=0.05,0.0001", "--sweep", "seed=0..1"]
    done = site.ddl("submit", "--output", "sweep", "--profile", "lab", "--wait", *sweep, "m.yaml", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    job, *lines = done.stdout.splitlines()
    for task in range(4):
        assert f"{task}: rank 0 of 1 on n1, 1 threads" in lines or f"{task}: rank 0 of 1 on n2, 1 threads" in lines
    rows = json.loads(site.ddl("results", "sweep", "--json").stdout)
    assert [(row["run"], row["optimizer.lr"], row["seed"], row["ended"]) for row in rows] == [
        ("sweep/0", 0.05, 0, "length"),
        ("sweep/1", 0.05, 1, "length"),
        ("sweep/2", 0.0001, 0, "length"),
        ("sweep/3", 0.0001, 1, "length"),
    ]
    assert min(row["test accuracy"] for row in rows[:2]) > max(row["test accuracy"] for row in rows[2:])
    stands = json.loads(site.ddl("status", "sweep", "--json").stdout)
    assert [(row["job"], row["state"], row["why"]) for row in stands] == [
        (f"{job}_{task}", "COMPLETED", "finished") for task in range(4)
    ]


@pytest.mark.timeout(200)
def test_status_and_cancel_and_the_script_submitted_again_by_hand(site: Site) -> None:
    endless = ["train.epochs=100000", "train.log_every=1", "checkpoint.every=1000000"]
    job = site.submit("runs/long", "--profile", "lab", "m.yaml", *endless)
    behind = site.submit("runs/behind", "--dependency", f"afterok:{job}", "m.yaml")
    _wait_for_steps(site, "runs/long", 5)
    waiting, running = json.loads(site.ddl("status", "--json").stdout)
    assert (waiting["job"], waiting["state"], waiting["why"]) == (behind, "PENDING", "Dependency")
    assert (running["run"], running["job"], running["state"], running["nodes"]) == ("runs/long", job, "RUNNING", "n1")
    assert running["step"] >= 5
    shown = site.ddl("stack", "runs/long")
    assert shown.returncode == 0, shown.stderr
    first, *lines = shown.stdout.splitlines()
    assert re.fullmatch(r"rank 0 on n1, process \d+", first)
    assert any("training/loop.py" in line for line in lines)
    assert not any("heartbeat.py" in line for line in lines)
    assert site.ddl("cancel", "runs").stderr.startswith("ddl: runs has 2 jobs that have not ended:\n")
    assert site.ddl("cancel", "runs/behind").stdout == f"{behind}: cancelled\n"
    assert site.stands("runs/behind") == ("CANCELLED", "cancelled", 143, "cancelled (exit code 143)")
    assert site.ddl("cancel", "runs/long").stdout == f"{job}: cancelled\n"
    (attempt,) = site.wait("runs/long")
    assert (attempt["cause"], attempt["exit_code"], attempt["again"]) == ("cancelled", 75, False)
    wait_until(lambda: not site.run("squeue", "--noheader").stdout, "an empty queue", 30)
    assert site.ddl("cancel", "runs/long").stdout == "nothing to cancel: every job has ended\n"
    assert "CANCELLED" in site.ddl("status", "runs/long").stdout
    script = site.home / "runs" / "long" / "job.sh"
    script.write_text(script.read_text().replace("train.epochs=100000", "train.epochs=1"))
    done = site.run("sbatch", "--parsable", script)
    assert done.returncode == 0, done.stderr
    assert site.wait("runs/long", 2)[-1]["cause"] == "finished", site.log("runs/long")
    (stands,) = json.loads(site.ddl("status", "runs/long", "--json").stdout)
    assert stands["job"] == done.stdout.strip() != job


PROGRAMS = "ddl|salloc|srun|sbatch|scancel|scontrol"
NOT_RUN = {
    "srun --nodes 2 --ntasks-per-node 2 --pty bash": "opens a shell; test_slurm.py runs ddl in such a step",
    "srun --pty": "opens a shell; test_slurm.py runs ddl in such a step",
    "srun --ntasks 2": "is refused around ddl run, as test_slurm.py tests",
    "ddl results RUN": "stands above with a folder",
    "sbatch --test-only": "test_an_impossible_request_is_refused_and_leaves_nothing",
    "scancel --signal=USR1": "test_signals_requeues_lost_nodes_and_the_time_limit_lose_nothing",
    "scancel --full": "test_signals_requeues_lost_nodes_and_the_time_limit_lose_nothing",
    "scontrol requeue": "test_signals_requeues_lost_nodes_and_the_time_limit_lose_nothing",
    "scontrol update JobId=J StartTime=now": "names a job of the reader's",
    "srun --mpi=...": "test_every_engine_and_launcher_trains_as_mpirun_does_here",
    "srun --mpi=list": "test_every_engine_and_launcher_trains_as_mpirun_does_here",
}


def documented() -> list[str]:
    """Return the commands in docs/slurm.md and the SLURM commands in README.md, without comments."""
    page, readme = ((ROOT / path).read_text() for path in ("docs/slurm.md", "README.md"))
    lines = re.findall(rf"^    ((?:{PROGRAMS}) .*)$", page, re.MULTILINE)
    lines += re.findall(r"^    (ddl (?:submit|status|results|cancel)\b.*)$", readme, re.MULTILINE)
    inline = re.findall(rf"`((?:ddl \w+|{PROGRAMS}) [^`]+)`", page)
    inline = [words for words in inline if len(words.split()) > 1 + words.startswith("ddl ")]
    return [re.sub(r"\s+#.*", "", line) for line in (*lines, *inline)]


@pytest.mark.timeout(300)
def test_every_command_of_the_documentation_runs_as_it_is_written(site: Site) -> None:
    commands = documented()
    assert set(NOT_RUN) <= set(commands)
    assert len(commands) - len(NOT_RUN) >= 10
    short = SMALL.replace("epochs: 2", "epochs: 1")
    (site.home / "model.yaml").write_text(f"{short}slurm: {{profile: lab}}\n")
    (site.home / "train.py").write_text("import sys; assert sys.argv[1:] == ['--epochs', '3']")
    path = f"PATH={Path(sys.executable).parent}:{PATH}"
    for command in commands:
        if command not in NOT_RUN:
            done = site.run("env", path, "bash", "-c", command, timeout=SECONDS)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


SAYS = """\
import os
print(*(os.environ.get(name, "unset") for name in ("SLURM_MEM_PER_NODE", "SLURM_CPU_BIND", "OUTER", "NOTE")), flush=True)
"""


@pytest.mark.timeout(200)
def test_jobs_that_never_run_or_are_scripts_are_told_as_they_are(site: Site) -> None:
    """A failing preparation, a dependent job, a script inside a step, two jobs in one second."""
    (site.home / "says.py").write_text(SAYS)
    broken = site.submit("broken", "m.yaml", "slurm.modules=[none]")
    inside = ["srun", "--quiet", "--mem=100", "--cpu-bind=none", "env", "OUTER=1"]
    command = ["submit", "--output", "says", "-x", "NOTE=a b", "--np", "1", "says.py", "--flag"]
    done = site.run(*inside, *internal.argv("cli"), *command)
    assert done.returncode == 0, done.stderr
    submit = shlex.join([*internal.argv("cli"), "submit", "--sbatch", "hold", "m.yaml"])
    done = site.run("bash", "-c", f"{submit} & {submit} & wait")
    assert len(done.stdout.split()) == 2, done.stderr
    folders = [path.name for path in (site.home / "runs").iterdir()]
    assert len(folders) == 2
    site.wait("broken")
    done = site.ddl("submit", "--output", "behind", "--wait", "--dependency", f"afterok:{broken}", "m.yaml")
    assert done.returncode == 1, done.stderr
    assert "waits (DependencyNeverSatisfied): the job it depends on did not end in the required way" in done.stderr
    site.wait("says")
    assert "unset unset 1 a b\n" in site.log("says")
    assert site.stands("broken") == ("FAILED", "preparation", 127, "preparation (exit code 127)")
    assert site.stands("says") == ("COMPLETED", "finished", 0, "finished")
    assert site.stands(f"runs/{folders[0]}") == ("PENDING", "JobHeldUser", None, "not yet")
    assert "module: command not found" in site.log("broken")
    assert site.slurm.run(["scancel", "--me"]).returncode == 0
    assert site.stands(f"runs/{folders[1]}") == ("CANCELLED", "cancelled", 143, "cancelled (exit code 143)")
    assert (site.home / "runs" / folders[1] / "state.json").exists()


def test_a_time_that_the_partition_does_not_allow_ends_a_wait(site: Site) -> None:
    change = ["scontrol", "update", "PartitionName=debug"]
    assert site.slurm.run([*change, "MaxTime=1"]).returncode == 0
    try:
        done = site.ddl("submit", "--output", "long", "--wait", "--time", "1h", "m.yaml")
    finally:
        assert site.slurm.run([*change, "MaxTime=INFINITE"]).returncode == 0
    assert done.returncode == 2
    assert "request a shorter --time" in done.stderr
    assert "ddl: it can never start; remove it from the queue with: ddl cancel" in done.stderr


RAISES = """\
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("no such column")
MPI.COMM_WORLD.barrier()
"""


@pytest.mark.timeout(240)
def test_a_script_that_raises_is_blamed_and_not_the_ranks_that_srun_killed_then(site: Site) -> None:
    (site.home / "raises.py").write_text(RAISES)
    launch = [*internal.argv("cli"), "run", "--launcher", "srun", "raises.py"]
    done = site.run("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2", *launch)
    site.submit("raises", *TWO_BY_TWO, "--launcher", "srun", "raises.py")
    (attempt,) = site.wait("raises")
    assert (done.returncode, attempt["cause"], attempt["exit_code"]) == (1, "failure", 1), site.log("raises")
    for text in (done.stderr, site.log("raises")):
        assert "ddl: the first failure: rank 1 on n1:\nTraceback (most recent call last):\n" in text, text
        assert '/raises.py", line 3, in <module>\n' in text, text
        assert "\nValueError: no such column\n" in text, text
        assert "killed by signal" not in text, text


def test_an_impossible_request_is_refused_and_leaves_nothing(site: Site) -> None:
    for impossible in (["--nodes", "3"], ["--partition", "none"], ["--container-image", "x"]):
        done = site.ddl("submit", "--output", "out", *impossible, "m.yaml")
        assert done.returncode == 2
        assert done.stderr.startswith("ddl: SLURM can never run this job: "), done.stderr
        assert not (site.home / "out").exists()


def test_a_dry_run_writes_nothing_and_says_what_is_wrong_with_the_file(site: Site) -> None:
    done = site.ddl("submit", "--dry-run", *TWO_BY_TWO, "m.yaml")
    assert (done.returncode, done.stdout[:11]) == (0, "#!/bin/bash")
    assert not (site.home / "runs").exists()
    done = site.ddl("submit", "m.yaml", "--sweep", "optimizer.lr=0.1,fast")
    assert done.returncode == 2
    assert "'optimizer.lr=fast'" in done.stderr


def test_ranks_that_srun_leaves_alone_in_worlds_of_their_own_say_so(site: Site) -> None:
    """On many clusters srun defaults to the plugin 'none', whose exit code would be 0.

    srun ends the other rank after the first one, and returns the highest exit code: 143 if the signal
    was faster than the refusal of the other rank.
    """
    launch = [*internal.argv("cli"), "run", "--dry-run", "--output", "out", "m.yaml"]
    line = site.run("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", *launch).stdout
    assert " srun --ntasks 2 --mpi=pmix" in line
    wrong = line.replace("--mpi=pmix_v4", "--mpi=none")
    done = site.run("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", wrong)
    assert done.returncode in (2, 128 + signal.SIGTERM)
    assert "this rank sees a world of 1, not of 2: launcher and MPI library do not know each other" in done.stderr
    assert not (site.home / "out").exists()


SAY = """\
import os
from mpi4py import MPI
c = MPI.COMM_WORLD
print("rank", c.rank, "of", c.size, "on", MPI.Get_processor_name(), os.environ["OMP_NUM_THREADS"], flush=True)
"""


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_an_allocation_with_unequal_nodes_gives_its_ranks_and_their_threads(launcher: str, site: Site) -> None:
    (site.home / "say.py").write_text(SAY)
    launch = [*internal.argv("cli"), "run", "--tee", "all", "--launcher", launcher]
    done = site.run("salloc", "--quiet", "--nodes=2", "--ntasks=3", *launch, "say.py")
    assert done.returncode == 0, done.stderr
    shown = sorted(line for line in done.stdout.splitlines() if line.startswith("["))
    assert shown == [f"[{rank}] rank {rank} of 3 on {node} 1" for rank, node in enumerate(("n1", "n1", "n2"))]
    done = site.run("salloc", "--quiet", "--nodes=2", "--cpus-per-task=2", *launch, "say.py")
    shown = sorted(line for line in done.stdout.splitlines() if line.startswith("["))
    assert shown == ["[0] rank 0 of 2 on n1 2", "[1] rank 1 of 2 on n2 2"]
    done = site.run("salloc", "--quiet", "--nodes=2", "--ntasks=3", *launch, "--np", "4", "say.py")
    assert done.returncode == 2
    assert "4 ranks need 4 tasks but job" in done.stderr

"""Trials of a search as jobs of a real SLURM of two nodes."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from hvd_train.state.checkpoint_folder import folders
from tests.cluster.hosts import Done
from tests.integration.ddl import summary
from tests.integration.site import Site

COMMON = """\
import json, os, signal, subprocess, time
from pathlib import Path
from cli.slurm import submit
from cli.tune.runner import Run
from cli.tune.runners.slurm_jobs import SlurmJobs

jobs = SlurmJobs({"profile": "lab", "ntasks_per_node": 1})

def run(name, *overrides):
    return Run(Path("m.yaml").absolute(), overrides, 2, Path("trials", name).absolute())

def wait(true):
    by = time.monotonic() + 60
    while not true():
        assert time.monotonic() < by, "not after 60 s"
        time.sleep(0.02)

def end(job):
    wait(lambda: job.poll() is not None)
    return job.code, job.message()

"""
THREE = """\
short = ["train.epochs=1"]
good, bad = jobs.start(run("good", *short)), jobs.start(run("bad", "optimizer.lr=1e300", *short))
long = jobs.start(run("long", "train.epochs=100000", "train.log_every=1", "checkpoint.every=1000000"))
metrics = long.folder / "metrics.jsonl"
wait(lambda: (long.poll(), metrics.exists() and metrics.stat().st_size)[1])
long.stop()
print(json.dumps([end(job) for job in (good, bad, long)]))
jobs.close()
"""
DIES = """\
original = submit.control.submit

def dies(script):
    original(script)
    os.kill(os.getpid(), signal.SIGKILL)

submit.control.submit = dies
jobs.start(run("again", "train.epochs=1", "slurm.sbatch={hold: null}"))
"""
ATTACHES = """\
job = jobs.attach(run("again").folder)
subprocess.run(["scontrol", "release", job.number], check=True)
print(json.dumps(end(job)))
jobs.close()
"""


def drive(site: Site, text: str) -> Done:
    """Run a searcher on the login host, outside of the folder of the user, which hides `cli`."""
    path = site.home / "driver" / "driver.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(COMMON + text)
    return site.run(sys.executable, path)


def driven(site: Site, text: str) -> Any:
    done = drive(site, text)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def submitted(site: Site) -> int:
    """Return how many jobs SLURM has, also of those that ended in the last minutes."""
    return len(site.run("squeue", "--noheader", "--states=all").stdout.splitlines())


@pytest.mark.timeout(200)
def test_trials_are_jobs_that_end_fail_stop_and_are_found_again(site: Site) -> None:
    before = submitted(site)
    good, bad, long = driven(site, THREE)
    assert good == [0, ""], site.log("trials/good")
    assert bad[0] == 3
    assert "the loss became nan at step 2" in bad[1]
    assert long == [75, "stopped"], site.log("trials/long")
    assert summary(site.home / "trials" / "good")["world_size"] == 2
    assert folders(site.home / "trials" / "long" / "checkpoints")
    assert [attempt["again"] for attempt in site.attempts("trials/long")] == [False]
    killed = drive(site, DIES)
    assert killed.returncode == -9, killed.stderr
    assert json.loads((site.home / "trials" / "again" / "job.json").read_text())["job"] is None
    assert driven(site, ATTACHES) == [0, ""]
    assert submitted(site) == before + 4


STAND_IN = """\
#!/bin/bash
# Behaves as ddl tune: SIGUSR1 makes it exit with 75. The second start ends at once.
trap 'exit 75' USR1
echo "$@" >> said
[ "$(wc -l < said)" = 2 ] && exit 0
while :; do sleep 0.05; done
"""
SEARCHES = """\
from cli.launch.entrypoint import YamlFile
from cli.tune.runners.searcher_job import submit_searcher

submit.find_program = lambda name: Path("stand-in").absolute()
submit_searcher(Path("search"), YamlFile(Path("m.yaml")), ("--slurm",), {"profile": "lab", "nodes": 2})
"""


@pytest.mark.timeout(100)
def test_the_searcher_is_one_small_job_that_requeues_itself_and_goes_on(site: Site) -> None:
    (site.home / "stand-in").write_text(STAND_IN)
    (site.home / "stand-in").chmod(0o755)
    (site.home / "search").mkdir()
    done = drive(site, SEARCHES)
    assert done.returncode == 0, done.stderr
    job, said = done.stdout.strip(), site.home / "said"
    assert done.stderr == f"ddl: search: job {job} searches and requeues itself\n"
    site.wait_until("search", said.exists, "the start")
    assert site.run("squeue", "--noheader", "--format=%i %D %C %m").stdout == f"{job} 1 1 2G\n"
    assert site.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    (attempt,) = site.wait("search")
    assert (attempt["cause"], attempt["exit_code"], attempt["again"]) == ("preemption", 75, True), site.log("search")
    site.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    attempt = site.wait("search", 2)[-1]
    assert (attempt["job"], attempt["cause"], attempt["restarts"]) == (job, "finished", 1), site.log("search")
    assert said.read_text() == f"tune --resume {site.home}/search --slurm\n" * 2

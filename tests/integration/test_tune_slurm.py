"""Trials of a search as jobs of a real SLURM of two nodes."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from cli.runs import records
from cli.search import records as trials
from cli.tune import study
from hvd_train.rank import internal
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


SEARCHES = """\
from cli.launch.entrypoint import YamlFile
from cli.tune.runners.searcher_job import submit_searcher

flags = {"profile": "lab", "nodes": 2}
submit_searcher(Path("search"), YamlFile(Path("m.yaml")), ("--max-seconds", "600"), flags)
"""
SEARCH = ["--output", "search", "--trials", "2", "--set", "seed=[0, 1]", "--sampler", "grid", "--max-seconds", "0.001"]


@pytest.mark.timeout(100)
def test_the_searcher_is_one_small_job_that_requeues_itself_and_goes_on(site: Site) -> None:
    """The time of the search is used up after its first trial, and it goes on as a job with more time."""
    begun = site.ddl("tune", *SEARCH, "m.yaml", "train.epochs=2")
    assert "seconds used up" in begun.stderr
    done = drive(site, SEARCHES)
    assert done.returncode == 0, done.stderr
    job, started = done.stdout.strip(), site.home / "search" / "trials" / "0001.log"
    assert done.stderr == f"ddl: search: job {job} searches and requeues itself\n"
    assert site.run("squeue", "--noheader", "--format=%i %D %C %m").stdout == f"{job} 1 1 2G\n"
    site.wait_until("search", started.exists, "the start of the second trial")
    assert site.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    (attempt,) = site.wait("search")
    assert (attempt["cause"], attempt["exit_code"], attempt["again"]) == ("preemption", 75, True), site.log("search")
    site.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    attempt = site.wait("search", 2)[-1]
    assert (attempt["job"], attempt["cause"], attempt["restarts"]) == (job, "finished", 1), site.log("search")
    ends = [summary(folder)["ended"] for folder in sorted((site.home / "search" / "trials").glob("000[01]"))]
    assert ends == ["length", "length"]


def test_a_search_whose_trials_are_jobs_is_killed_and_goes_on(site: Site) -> None:
    """The jobs of the killed search go on, are found again, and none is submitted twice."""
    space = ["--set", "optimizer.lr=[0.01,0.05,0.1]", "--sampler", "grid", "slurm.profile=lab"]
    words = [*internal.argv("cli"), "tune", "m.yaml", *space, "--slurm", "--np", "2", "--output", "s"]
    killed = site.run("timeout", "--signal=KILL", "6", *words)
    assert killed.returncode != 0
    before = {f.name: records.recorded(f) for f in sorted((site.home / "s" / "trials").glob("0*")) if f.is_dir()}
    assert any(run is not None and run.job is not None for run in before.values()), killed.stderr
    done = site.ddl("tune", "--resume", "s")
    assert done.returncode == 0, done.stderr
    found = trials.records(study.load(site.home / "s"))
    assert [r.state for r in found] == ["complete"] * 3
    for record in found:
        run, earlier = records.recorded(site.home / "s" / record.folder), before.get(record.folder.rpartition("/")[2])
        assert run is not None
        assert earlier is None or earlier.job in (None, run.job)
        assert summary(site.home / "s" / record.folder)["world_size"] == 2
    jobs = site.run("scontrol", "--oneliner", "show", "jobs").stdout
    assert len(set(re.findall(r"JobName=(m-000\d-\w+)", jobs))) == 3

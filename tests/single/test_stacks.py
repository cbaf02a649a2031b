"""`ddl stack` shows the threads of a rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.follow import ranks, stacks
from hvd_train.rank import internal

MAIN = """\
Current thread 0x1 (most recent call first):
  File "/home/me/model.py", line 3 in forward
  File "{here}/trainer.py", line 7 in step
  File "<frozen runpy>", line 88 in _run_code"""
OF_DDL = """\
Thread 0x2 (most recent call first):
  File "/lib/python3.11/threading.py", line 320 in wait
  File "{here}/heartbeat.py", line 70 in _beat
  File "/lib/python3.11/threading.py", line 975 in run
  File "/lib/python3.11/threading.py", line 1038 in _bootstrap_inner
  File "/lib/python3.11/threading.py", line 995 in _bootstrap"""
POOL = OF_DDL.replace(
    '/lib/python3.11/threading.py", line 975', '/lib/python3.11/concurrent/futures/thread.py", line 83'
)
USERS = OF_DDL.replace("{here}/heartbeat.py", "/home/me/loader.py").replace("0x2", "0x3")
IDLE = """\
Thread 0x4 (most recent call first):
  File "/lib/python3.11/concurrent/futures/thread.py", line 81 in _worker
  File "/lib/python3.11/threading.py", line 995 in _bootstrap"""
DEEP = MAIN.replace("0x1", "0x5").rpartition("\n")[0] + "\n  ..."


@pytest.mark.parametrize(
    ("threads", "shown"),
    [
        ([MAIN], [MAIN]),
        ([OF_DDL, USERS, POOL, MAIN], [MAIN, USERS]),
        ([IDLE, OF_DDL, DEEP], [DEEP, IDLE]),
        (["Thread 0x6 (most recent call first):\n  <no Python frame>", MAIN], [MAIN]),
    ],
)
def test_the_main_thread_comes_first_and_those_of_ddl_are_left_out(threads: list[str], shown: list[str]) -> None:
    here = [thread.replace("{here}", internal.PACKAGE) for thread in threads]
    found = stacks.arrange("\n\n".join(here) + "\n").split("\n\n")
    assert found == [thread.replace("{here}", internal.PACKAGE) for thread in shown]


RANK = """\
import sys, threading, time
from hvd_train.compute.activity import Activity
from hvd_train.rank.heartbeat import Heartbeat
beat = Heartbeat(2, Activity(0))
threading.Thread(target=lambda: time.sleep(60), daemon=True).start()
def here():
    print("ready", flush=True)
    time.sleep(60)
here()
"""


def test_a_rank_answers_and_another_process_does_not(tmp_path: Path) -> None:
    environment = {**os.environ, "OMPI_DDL_BEAT": "0.1"}
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
        found = stacks.stack(rank.pid)
        assert found["answered"]
        first, second = found["text"].split("\n\n")
        assert "in here" in first
        assert "in <lambda>" in second
        ranks.write(tmp_path, [{"rank": 0, "host": os.uname().nodename, "pid": rank.pid}], launcher=os.getpid())
        done = subprocess.run(internal.argv("cli", "stack", str(tmp_path)), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"rank 0 on {os.uname().nodename}, process {rank.pid}\n    ")
    finally:
        rank.kill()
        rank.communicate()
    done = subprocess.run(internal.argv("cli", "stack", str(tmp_path)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ddl: {tmp_path}: no rank answers: process {rank.pid} is not a rank of ddl\n"


def test_nodes_of_a_slurm_job_are_asked_by_srun(tmp_path: Path) -> None:
    """On a login host inside another job, variables of that job must not reach srun."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$SLURM_NTASKS $@" >> "$LOG"\necho "srun: error: no such job" >&2\nexit 1\n')
    srun.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_NTASKS": "7",
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ranks.NAME).write_text(
        json.dumps([{"rank": rank, "host": f"far{rank}", "pid": 10 + rank, "job": "5"} for rank in range(2)])
    )
    command = internal.argv("cli", "stack", str(folder))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ddl: {folder}: no rank answers: srun: error: no such job\n"
    asked = sorted((tmp_path / "log").read_text().splitlines())
    assert [line.split()[:3] for line in asked] == [
        ["--overlap", "--jobid=5", f"--nodelist=far{rank}"] for rank in range(2)
    ]
    assert [line.split()[-2:] for line in asked] == [["cli.follow.stacks", "10"], ["cli.follow.stacks", "11"]]

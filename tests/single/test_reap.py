"""Processes and files that a killed launcher leaves."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from cli.follow import ranks, reap
from cli.follow.guard import Guards
from cli.follow.record import RunRecord
from cli.launch.job import Command
from hvd_train.rank import events


@pytest.mark.parametrize(
    ("space", "number"),
    [("prterun-vm-27581@1", 0x67F40001), ("prterun-vm-27591@1", 0x72800001), ("prterun-vm-27610@1", 0x31270001)],
)
def test_the_number_of_a_job_is_that_of_open_mpi(space: str, number: int) -> None:
    """The numbers come from file names of Open MPI 5.0."""
    assert reap.job_number(space) == number


def test_only_the_segments_of_the_killed_job_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "SHARED", tmp_path / "shm")
    monkeypatch.setattr(reap.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "shm").mkdir()
    (tmp_path / "tmp").mkdir()
    host, me = socket.gethostname(), os.getuid()
    mine, other = (reap.job_number(f"prterun-{host}-{pid}@1") for pid in (77, 78))
    gone = [f"sm_segment.{host}.{me}.{mine:x}.{rank}" for rank in (0, 1)]
    kept = [
        f"sm_segment.{host}.{me}.{other:x}.0",
        f"sm_segment.{host}.{me + 1}.{mine:x}.0",
        f"data.{me}.{mine:x}.0",
        "mine",
    ]
    for name in (*gone, *kept):
        (tmp_path / "shm" / name).touch()
    for job in (mine, other):
        (tmp_path / "tmp" / f"ompi.{host}.{me}" / "jf.0" / str(job) / "0").mkdir(parents=True)
    reap.remove_job_files(77)
    assert sorted(path.name for path in (tmp_path / "shm").iterdir()) == sorted(kept)
    assert [path.name for path in (tmp_path / "tmp").glob("*/*/*")] == [str(other)]
    reap.remove_job_files(78)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("here", [True, False], ids=["this machine", "another machine"])
def test_a_resumed_run_removes_the_files_of_a_launcher_whose_command_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    monkeypatch.setattr(reap.tempfile, "tempdir", str(tmp_path))
    run = tmp_path / "run"
    run.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for launcher in (ended.pid, os.getpid()):
        (tmp_path / f"ompi.{launcher}").mkdir()
        ranks.write(run, [{"rank": 0, "host": "h", "pid": 1}], launcher)
        if not here:
            (run / ranks.NAME).write_text((run / ranks.NAME).read_text().replace(events.machine(), "another"))
        RunRecord(Command(("mpirun",)), Guards([], 0), launcher=1).open(run)
    assert (tmp_path / f"ompi.{ended.pid}").exists() is not here
    assert (tmp_path / f"ompi.{os.getpid()}").exists(), "a launcher that runs keeps its files"


def test_a_session_is_found_once_its_leader_is_gone() -> None:
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while len(reap.session(leader.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        leader.kill()
        leader.wait()
        left = reap.session(leader.pid)
        assert len(left) == 2
    finally:
        reap.end(reap.session(leader.pid), 0)
    assert reap.session(leader.pid) == []

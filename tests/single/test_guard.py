"""What a launcher that was killed leaves."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from cli import guard


@pytest.mark.parametrize(
    ("space", "number"),
    [("prterun-vm-27581@1", 0x67F40001), ("prterun-vm-27591@1", 0x72800001), ("prterun-vm-27610@1", 0x31270001)],
)
def test_the_number_of_a_job_is_that_of_open_mpi(space: str, number: int) -> None:
    """As seen in the names of files of Open MPI 5.0."""
    assert guard.job_number(space) == number


def test_of_a_killed_job_only_its_own_segments_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SHARED", tmp_path / "shm")
    monkeypatch.setattr(guard.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "shm").mkdir()
    (tmp_path / "tmp").mkdir()
    host, me = socket.gethostname(), os.getuid()
    mine, other = (guard.job_number(f"prterun-{host}-{pid}@1") for pid in (77, 78))
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
    guard.clear_job(77)
    assert sorted(path.name for path in (tmp_path / "shm").iterdir()) == sorted(kept)
    assert [path.name for path in (tmp_path / "tmp").glob("*/*/*")] == [str(other)]
    guard.clear_job(78)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_session_is_found_once_its_leader_is_gone() -> None:
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while len(guard.session(leader.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        leader.kill()
        leader.wait()
        left = guard.session(leader.pid)
        assert len(left) == 2
    finally:
        guard.end(guard.session(leader.pid), 0)
    assert guard.session(leader.pid) == []

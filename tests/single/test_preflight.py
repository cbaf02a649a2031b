"""What hosts say of themselves, judged; and how long they may take to say it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cli import ssh
from cli.hosts import Host
from cli.network import Network
from cli.preflight import check as preflight
from cli.preflight.check import Needs, check
from cli.preflight.compare import clashes, namesakes, problems, skew
from cli.preflight.needs import needs
from cli.target import RANK
from cli.watchdog import Watchdog
from hvd_train import events
from hvd_train.errors import UserError

NETWORK = Network("eth0", IPv4Network("10.77.0.0/24"))
FACTS: dict[str, Any] = {
    "name": "n1",
    "machine": "1",
    "shell": "bash",
    "variables": ["OMP_NUM_THREADS"],
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "mpi4py": "4.1.2", "horovod": None},
    "mpi": "Open MPI v5.0.11",
    "code": "abc",
    "files": {"/x.py": "123"},
    "paths": {"/data": True},
    "memory": 2**34,
    "free": {"/dev/shm": 2**30},
    "addresses": [("eth0", "10.77.0.1/255.255.255.0")],
    "skew": 0.0,
}


def test_a_host_like_this_one_has_no_problem() -> None:
    assert list(problems(FACTS, FACTS, "n2", 4, NETWORK)) == []


@pytest.mark.parametrize(
    ("change", "level", "what", "remedy"),
    [
        ({"shell": "fish"}, "error", "its login shell is fish, and bash here: mpirun cannot", "chsh -s $(which bash)"),
        ({"shell": "tcsh"}, "error", "its login shell is tcsh, and bash here: mpirun cannot", "chsh -s $(which bash)"),
        ({"python": "3.9.1"}, "error", "Python 3.9.1, and 3.11.7 here", "install the same"),
        (
            {"packages": {**FACTS["packages"], "torch": "2.4.0"}},
            "error",
            "torch 2.4.0, and 2.13.0 here",
            "pip install torch==2.13.0",
        ),
        (
            {"packages": {**FACTS["packages"], "mpi4py": None}},
            "error",
            "mpi4py is missing",
            "pip install mpi4py==4.1.2",
        ),
        (
            {"packages": {**FACTS["packages"], "horovod": "0.28.1"}},
            "error",
            "horovod 0.28.1, and none here",
            "uninstall",
        ),
        ({"mpi": "MPICH Version: 4.2"}, "error", "mpi4py loads 'MPICH Version: 4.2'", "install the same MPI"),
        ({"code": None}, "error", "ddl's code is not the same", "install the same ddl"),
        ({"files": {"/x.py": "124"}}, "error", "/x.py is not the same as here", "rsync -aR /x.py n2:/"),
        ({"files": {"/x.py": None}}, "error", "/x.py is missing", "rsync -aR /x.py n2:/"),
        ({"paths": {"/data": False}}, "error", "no /data", "rsync -aR /data n2:/"),
        ({"free": {"/dev/shm": 2**20}}, "error", "1 MiB are free in /dev/shm", "make room"),
        (
            {"addresses": [("eth1", "10.1.0.1/255.255.0.0")]},
            "error",
            "no interface in 10.77.0.0/24 (its own: eth1 10.1.0.1/16)",
            "--iface",
        ),
        ({"memory": 2**28}, "warning", "256 MiB of memory are available for 4 ranks", "fewer ranks"),
        (
            {"variables": ["NCCL_DEBUG", "OMP_NUM_THREADS"]},
            "warning",
            "sets NCCL_DEBUG, and this",
            "-x NCCL_DEBUG=VALUE",
        ),
        ({"skew": -3600.0}, "warning", "its clock is -3600 s off", "time server"),
    ],
)
def test_a_difference_is_one_problem(change: dict[str, Any], level: str, what: str, remedy: str) -> None:
    (found,) = problems(FACTS, {**FACTS, **change}, "n2", 4, NETWORK)
    assert (found.level, found.host) == (level, "n2")
    assert what in found.what
    assert remedy in found.remedy


def test_a_clock_is_off_only_by_what_asking_does_not_explain() -> None:
    assert [skew(t, 10, 20) for t in (4, 10, 15, 20, 27)] == [-6, 0, 0, 0, 7]


def test_an_address_that_two_hosts_have_matters_where_it_may_be_used() -> None:
    bridge = ("docker0", "172.17.0.1/255.255.0.0")
    found = {
        "n1": {"addresses": [("eth0", "10.77.0.1/255.255.255.0"), bridge]},
        "n2": {"addresses": [("eth0", "10.77.0.2/255.255.255.0"), bridge]},
    }
    assert list(clashes(found, NETWORK)) == []
    assert [p.level for p in clashes(found, None)] == ["warning"]
    (error,) = clashes(found, Network("docker0"))
    assert (error.level, error.host) == ("error", "n2")
    assert "172.17.0.1 (docker0)" in error.what


def test_hosts_of_one_name_are_refused_and_so_is_one_host_under_two() -> None:
    here, other = {"name": "node", "machine": "1"}, {"name": "node", "machine": "2"}
    assert list(namesakes({"this machine": here, "n2": {"name": "n2", "machine": "2"}})) == []
    (error,) = namesakes({"this machine": here, "n2": other})
    assert (error.level, error.host) == ("error", "n2")
    assert "its hostname is 'node', as that of this machine" in error.what
    (error,) = namesakes({"n2": other, "n2-ib": other})
    assert (error.host, error.what) == ("n2-ib", "it is n2, under another name")


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Called as ssh, it does what the file holds; `$host` is the host."""
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nhost=$1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


def test_64_slow_hosts_take_no_longer_than_one(fake_ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh.write_text(fake_ssh.read_text() + "exec sleep 60\n")
    monkeypatch.setattr(preflight, "_here", lambda _: FACTS)
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        check([Host(f"n{i}", 1) for i in range(64)], Needs(Path.cwd()), None, seconds=2)
    assert time.monotonic() - began < 10
    text = str(refused.value)
    assert "64 of 64 other hosts cannot run this job" in text
    assert "no answer within 2 seconds" in text
    assert "... and 44 more" in text
    assert "first, on n0: see that ssh n0 true ends at once: the host may hang, or a login script" in text


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("ssh: Could not resolve hostname n2: Name or service not known", "add it to /etc/hosts"),
        ("Host key verification failed.", "accept its key: ssh n2"),
        ("root@n2: Permission denied (publickey).", "ssh-copy-id n2"),
        ("ssh: connect to host n2 port 22: Connection refused", "start sshd on n2"),
        ("ssh: connect to host n2 port 22: Connection timed out", "no firewall drops port 22"),
        (f"bash: line 1: {sys.executable}: No such file or directory", f"at the same path: {sys.prefix}"),
    ],
)
def test_what_ssh_says_has_a_remedy(says: str, remedy: str, fake_ssh: Path) -> None:
    fake_ssh.write_text(fake_ssh.read_text() + f"echo '{says}' >&2; exit 255\n")
    answer = ssh.Client().ask("n2", ["true"], 10)
    assert answer.problem == says
    assert remedy in answer.remedy


def test_the_probe_tells_all_that_is_compared(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("pass\n")
    argv = Needs(tmp_path, (str(tmp_path / "x.py"), "/none"), (str(tmp_path), "/none"), (str(tmp_path),)).argv()
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    found = ssh.unframed(done.stdout)
    assert {*FACTS} - {"skew"} <= {*found}
    assert found["packages"]["ddl"]
    assert len(found["code"]) == len(found["files"][str(tmp_path / "x.py")]) == 12
    assert (found["files"]["/none"], found["paths"]) == (None, {str(tmp_path): True, "/none": False})


def test_needs_are_read_from_the_command_of_a_rank(tmp_path: Path) -> None:
    for name in ("mine.py", "data.npz"):
        (tmp_path / name).touch()
    config = {"model": {"target": "mine:Model"}, "data": {"name": "npz", "path": "data.npz", "x": "x"}}
    found = needs((*RANK, json.dumps({"config": config, "launch": {}})), tmp_path)
    assert (found.files, found.paths) == ((str(tmp_path / "mine.py"),), (str(tmp_path / "data.npz"),))
    assert needs((*RANK, "--script", "--engine=mpi", "/x.py", "a"), tmp_path).files == ("/x.py",)
    assert needs((*RANK, "--script", "-m", "mine"), tmp_path).files == ()


def beat(rank: int, turn: int | None, phase: str = "comm") -> dict[str, Any]:
    return {
        "event": "beat", "rank": rank, "host": f"n{rank}", "machine": f"m{rank}", "pid": 100 + rank, "parent": 50,
        "step": 6, "phase": phase, "turn": turn, "at": "wait (mpi.py:9)",
    }  # fmt: skip


def watch(until: float, dog: Watchdog, *silent: int, turn: int | None = None, phase: str = "comm") -> str | None:
    """What the dog says by the time `until`, while ranks but the silent ones beat each second."""
    for rank in (0, 1):
        dog.hear({**beat(rank, 0), "event": "started"}, dog._looked)
    for now in range(int(dog._looked) + 1, int(until) + 1):
        for rank in {0, 1} - {*silent}:
            dog.hear(beat(rank, now if turn is None else turn, phase), now)
        said = dog.look(now)
        if said:
            return f"{now}: {said}"
    return None


def test_a_job_that_moves_is_left_alone() -> None:
    assert watch(1000, Watchdog(2, 10, 0)) is None


def test_a_silent_rank_is_named() -> None:
    dog = Watchdog(2, 10, 0)
    assert watch(5, dog) is None
    said = watch(100, dog, 1)
    assert said is not None
    assert said.splitlines() == [
        "16: no word from rank 1 for 10 seconds (--stall-timeout)",
        "rank 1 on n1: last at step 7, comm: wait (mpi.py:9)",
        "rank 0 on n0: at step 7, comm: wait (mpi.py:9)",
    ]


def test_ranks_that_fall_silent_one_after_the_other_are_named_together() -> None:
    """Horovod holds the interpreter of a rank that waits for a stopped one, which may then have been heard of later."""
    dog = Watchdog(2, 10, 0)
    assert watch(5, dog, 0) is None  # rank 0 was last heard of at 0, rank 1 at 5
    said = watch(100, dog, 0, 1)
    assert said is not None
    assert said.startswith("16: no word from ranks 0, 1 for 10 seconds")


def test_ranks_that_beat_and_do_not_move_are_stuck_but_for_phases_that_may_be_long() -> None:
    dog = Watchdog(2, 10, 0)
    assert watch(5, dog) is None
    assert watch(100, dog, turn=5, phase="checkpoint") is None
    said = watch(200, dog, turn=6)
    assert said is not None
    assert said.startswith("112: no rank has moved for 10 seconds")


def test_ranks_that_never_start_are_named_after_a_minute_at_least() -> None:
    said = watch(100, Watchdog(3, 10, 0))
    assert said is not None
    assert said.startswith("61: rank 2 did not start within 60 seconds")


def test_ranks_that_wait_for_their_engine_for_too_long_are_named_with_the_line() -> None:
    dog = Watchdog(2, 10, 0)
    dog.hear({**beat(0, 0), "event": "started"}, 1)
    for now in range(1, 62):
        for rank in (0, 1):
            dog.hear({**beat(rank, None), "step": None, "at": "Init (mpi.py:1)"}, now)
        said = dog.look(now)
    assert said == (
        "rank 1 did not start within 60 seconds\nrank 0 on n0: at Init (mpi.py:1)\nrank 1 on n1: at Init (mpi.py:1)"
    )


def test_a_watchdog_that_slept_itself_blames_nobody() -> None:
    dog = Watchdog(2, 10, 0)
    watch(5, dog)
    assert dog.look(500) is None
    assert watch(600, dog) is None


def test_with_a_timeout_of_0_nothing_is_too_long() -> None:
    dog = Watchdog(2, 0, 0)
    watch(5, dog)
    assert watch(5000, dog, 0, 1) is None


def test_an_event_that_another_was_put_into_is_found_too() -> None:
    inner, outer = ({"event": e, "host": "n", "machine": "m", "pid": 1, "time": 0} for e in ("done", "beat"))
    whole = events._encode(outer)
    found, text, rest = events.split(b"a" + whole[:20] + events._encode(inner) + whole[20:] + b"b")
    assert [e["event"] for e in found] == ["done", "beat"]
    assert (text, rest) == (b"ab", b"")

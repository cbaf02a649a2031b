"""The preflight check: how facts of hosts are judged, and how long hosts may take to answer."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cli.hosts.hostfile import Host
from cli.hosts.network import Network
from cli.launch.entrypoint import Module, Script
from cli.launch.target import RANK, Target, of_script
from cli.remote import ssh
from cli.remote.preflight import check as preflight
from cli.remote.preflight.check import Needs, check
from cli.remote.preflight.compare import clashes, namesakes, problems, skew
from cli.remote.preflight.needs import needs
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
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
        ({"shell": "fish"}, "error", "its login shell is fish, but bash here: mpirun cannot", "chsh -s $(which bash)"),
        ({"shell": "tcsh"}, "error", "its login shell is tcsh, but bash here: mpirun cannot", "chsh -s $(which bash)"),
        ({"python": "3.9.1"}, "error", "Python 3.9.1, but 3.11.7 here", "install the same"),
        (
            {"packages": {**FACTS["packages"], "torch": "2.4.0"}},
            "error",
            "torch 2.4.0, but 2.13.0 here",
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
            "horovod 0.28.1, but none here",
            "uninstall",
        ),
        ({"mpi": "MPICH Version: 4.2"}, "error", "mpi4py loads 'MPICH Version: 4.2'", "install the same MPI"),
        ({"code": None}, "error", "the code of ddl differs", "install the same ddl"),
        ({"files": {"/x.py": "124"}}, "error", "/x.py differs from the file here", "rsync -aR /x.py n2:/"),
        ({"files": {"/x.py": None}}, "error", "/x.py is missing", "rsync -aR /x.py n2:/"),
        ({"paths": {"/data": False}}, "error", "no /data", "rsync -aR /data n2:/"),
        ({"free": {"/dev/shm": 2**20}}, "error", "1 MiB are free in /dev/shm", "free space"),
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
            "sets NCCL_DEBUG, which this",
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


def test_skew_excludes_the_time_that_the_question_takes() -> None:
    assert [skew(t, 10, 20) for t in (4, 10, 15, 20, 27)] == [-6, 0, 0, 0, 7]


def test_an_address_of_two_hosts_is_an_error_in_the_network_of_the_job() -> None:
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


def test_two_hosts_with_one_name_and_one_host_with_two_are_refused() -> None:
    here, other = {"name": "node", "machine": "1"}, {"name": "node", "machine": "2"}
    assert list(namesakes({"this machine": here, "n2": {"name": "n2", "machine": "2"}})) == []
    (error,) = namesakes({"this machine": here, "n2": other})
    assert (error.level, error.host) == ("error", "n2")
    assert "its hostname 'node' is also that of this machine" in error.what
    (error,) = namesakes({"n2": other, "n2-ib": other})
    assert (error.host, error.what) == ("n2-ib", "it is n2 under another name")


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a script that is run as ssh; `$host` is the host."""
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
    assert "first, on n0: check that ssh n0 true ends at once: the host may hang, or your login script" in text


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
def test_messages_of_ssh_have_a_remedy(says: str, remedy: str, fake_ssh: Path) -> None:
    fake_ssh.write_text(fake_ssh.read_text() + f"echo '{says}' >&2; exit 255\n")
    answer = ssh.Client().ask("n2", ["true"], 10)
    assert answer.problem == says
    assert remedy in answer.remedy


def test_the_probe_answers_all_facts_that_are_compared(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("pass\n")
    argv = Needs(tmp_path, (str(tmp_path / "x.py"), "/none"), (str(tmp_path), "/none"), (str(tmp_path),)).argv()
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    found = ssh.unframed(done.stdout)
    assert {*FACTS} - {"skew"} <= {*found}
    assert found["packages"]["ddl"]
    assert len(found["code"]) == len(found["files"][str(tmp_path / "x.py")]) == 12
    assert (found["files"]["/none"], found["paths"]) == (None, {str(tmp_path): True, "/none": False})


@pytest.mark.parametrize(
    ("values", "files", "paths"),
    [
        ({"model": {"target": "mine:Model"}, "data": {"name": "npz", "path": "data.npz"}}, ["mine.py"], ["data.npz"]),
        ({"model": {"target": "package:Model"}, "data": "digits"}, ["package/__init__.py"], []),
        ({"model": "mlp", "data": {"target": "elsewhere:create"}}, [], []),
    ],
)
def test_a_yaml_run_needs_its_modules_and_data(
    values: dict[str, Any], files: list[str], paths: list[str], tmp_path: Path
) -> None:
    (tmp_path / "package").mkdir()
    for name in ("mine.py", "package/__init__.py", "data.npz"):
        (tmp_path / name).touch()
    found = needs(Target(RANK, config=resolve(Document(values, "model.yaml"))), tmp_path)
    assert found.files == tuple(str(tmp_path / name) for name in files)
    assert found.paths == tuple(str(tmp_path / name) for name in paths)


def test_a_script_needs_its_file_and_a_module_nothing(tmp_path: Path) -> None:
    assert needs(of_script(Script(Path("/x.py"), ("a",))), tmp_path).files == ("/x.py",)
    assert needs(of_script(Module("mine")), tmp_path).files == ()

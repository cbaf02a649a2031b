"""The preflight check of hosts prints all problems in one table, with the first remedy."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import Done, Hosts, complaints
from tests.integration.ddl import ROOT, long_yaml, summary

SCRIPT = "print('never')\n"


@pytest.fixture
def cluster(hosts: Hosts) -> Hosts:
    (hosts.folder / "work").mkdir()
    return hosts


def run(hosts: Hosts, *arguments: str | Path) -> Done:
    """Run in a folder of the hosts, because entering a host ends in its root folder."""
    start = ["env", "--chdir", hosts.folder / "work", sys.executable, "-m", "cli", "run"]
    return hosts.run("n1", [*start, "--hostfile", hosts.hostfile(3, 1), *arguments])


def test_problems_are_a_table_and_nothing_starts(cluster: Hosts) -> None:
    """n2 has no script and a full /dev/shm, n3 is cut off."""
    script = cluster.folder / "work" / "train.py"
    script.write_text(SCRIPT)
    cluster.run("n2", ["mount", "-t", "tmpfs", "tmpfs", script.parent])
    cluster.run("n2", ["mount", "-o", "remount,size=1m", "/dev/shm"])
    cluster.cut("n3")
    began = time.monotonic()
    done = run(cluster, script)
    assert time.monotonic() - began < 30
    assert done.returncode == 2, done
    assert "never" not in done.stdout
    assert "ddl: preflight: 2 of 2 other hosts cannot run this job (--no-preflight skips this)" in done.stderr
    assert re.search(r"^ddl:   n3 +ssh: connect to host n3 .* +check that n3 is up", done.stderr, re.M), done.stderr
    assert re.search(rf"^ddl:   n2 +{script} is missing +rsync -aR {script} n2:/$", done.stderr, re.M), done.stderr
    assert re.search(r"^ddl:   n2 +\d MiB are free in /dev/shm", done.stderr, re.M), done.stderr
    assert "ddl: first, on n3: check that n3 is up" in done.stderr


def test_another_script_or_no_data_on_a_host(cluster: Hosts) -> None:
    work = cluster.folder / "work"
    (work / "data.npz").write_bytes(b"x")
    (work / "model.yaml").write_text("model: mlp\ndata: {name: npz, path: " + f"{work}/data.npz" + "}\n")
    (work / "train.py").write_text(SCRIPT)
    (work / "other.py").write_text("pass\n")
    cluster.run("n2", ["mount", "--bind", work / "other.py", work / "train.py"])
    done = run(cluster, work / "train.py")
    assert done.returncode == 2
    assert f"{work / 'train.py'} differs from the file here" in done.stderr
    cluster.run("n3", ["mount", "-t", "tmpfs", "tmpfs", work])
    done = run(cluster, work / "model.yaml")
    assert done.returncode == 2, done.stderr
    assert f"no {work / 'data.npz'}" in done.stderr


def test_hosts_that_share_no_files_run_and_log_locally(cluster: Hosts) -> None:
    """The configuration is too long for a command line, and no other host has its file."""
    work = cluster.folder / "work"
    (work / "model.yaml").write_text(long_yaml())
    for name in ("n2", "n3"):
        cluster.run(name, ["mount", "-t", "tmpfs", "tmpfs", work])
    for name in cluster.names:
        module = f"from tests.integration.ddl import LONG; open('{work}/long.py', 'w').write(LONG)"
        assert cluster.run(name, [sys.executable, "-c", module], env={"PYTHONPATH": str(ROOT)}).returncode == 0
    done = run(cluster, "--output", work / "out", work / "model.yaml")
    assert (done.returncode, complaints(done)) == (0, []), done.stderr
    assert summary(work / "out")["world_size"] == 3
    assert [p.name for p in (work / "out" / "logs").iterdir()] == ["rank-0.log"]
    for rank, name in ((1, "n2"), (2, "n3")):
        assert f"rank {rank} of 3 on {name}" in cluster.run(name, ["cat", work / f"out/logs/rank-{rank}.log"]).stdout
    command = (work / "out" / "command.txt").read_text()
    assert "--mca btl_tcp_if_include 10.77.0.0/24 --prtemca prte_if_include 10.77.0.0/24" in command


def test_a_bridge_with_one_address_on_every_host_is_not_used(cluster: Hosts) -> None:
    """MPI by itself would use an interface such as docker0 and hang."""
    for name in cluster.names:
        cluster.run(name, ["ip", "link", "add", "docker0", "type", "bridge"])
        cluster.run(name, ["ip", "address", "add", "172.17.0.1/16", "dev", "docker0"])
        cluster.run(name, ["ip", "link", "set", "docker0", "up"])
    script = cluster.folder / "work" / "sum.py"
    script.write_text("from mpi4py import MPI\nprint('sum', MPI.COMM_WORLD.allreduce(1), flush=True)\n")
    done = run(cluster, "--timeout", "30", "--tee", "all", script)
    assert (done.returncode, done.stdout.count("sum 3")) == (0, 3), done.stderr
    wrong = run(cluster, "--iface", "docker0", script)
    assert wrong.returncode == 2
    assert "172.17.0.1 (docker0) is also an address of this machine, n2" in wrong.stderr

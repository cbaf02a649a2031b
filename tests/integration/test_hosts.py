"""The simulated hosts behave like hosts, and end with their test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Hosts, wait_until
from tests.integration.ddl import ROOT

MEGABYTE = 10**6
FACTS = "hostname; ip -4 -br address show eth0; ls /dev/shm; ls /proc | grep -c '^[0-9]'; echo $TMPDIR"
HOLD = """\
import subprocess, time
from tests.cluster.hosts import Hosts
hosts = Hosts(2)
hosts.up()
hosts.start("n1", ["ssh", "n2", "sleep 600"], stdout=subprocess.DEVNULL)
while not hosts.processes("n2"):
    time.sleep(0.01)
print(hosts.folder, flush=True)
time.sleep(600)
"""


def seconds_to_send(hosts: Hosts, megabytes: int) -> float:
    """Return the seconds that data takes from n1 to n2 over ssh."""
    begin = time.monotonic()
    done = hosts.run("n1", ["sh", "-c", f"head -c {megabytes * MEGABYTE} /dev/zero | ssh n2 'cat >/dev/null'"])
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begin


def test_each_host_has_a_name_a_network_memory_and_processes_of_its_own(hosts: Hosts) -> None:
    hosts.run("n2", ["touch", "/dev/shm/of-n2"])
    assert not Path("/dev/shm/of-n2").exists()
    for number, name in enumerate(hosts.names, 1):
        told = hosts.run("n1", ["ssh", name, FACTS]).stdout.split("\n")
        assert told[0] == name
        assert told[1].split()[2] == f"10.77.0.{number}/24"
        assert ("of-n2" in told) == (name == "n2")
        assert int(told[-3]) < 12, "a host sees its own processes only"
        assert told[-2] == str(hosts.folder / "tmp" / name)


def test_traffic_is_counted_where_it_passes(hosts: Hosts) -> None:
    before = {name: hosts.traffic(name) for name in hosts.names}
    seconds_to_send(hosts, 20)
    passed = {name: hosts.traffic(name) - before[name] for name in hosts.names}
    assert passed["n1"].sent == pytest.approx(20 * MEGABYTE, rel=0.02)
    assert passed["n2"].received == pytest.approx(20 * MEGABYTE, rel=0.02)
    assert passed["n1"].received + passed["n2"].sent < MEGABYTE
    assert passed["n3"].sent + passed["n3"].received < MEGABYTE / 10


def test_a_shaped_link_is_as_slow_as_asked_for(hosts: Hosts) -> None:
    free = seconds_to_send(hosts, 4)
    hosts.shape("8mbit")
    shaped = seconds_to_send(hosts, 4)
    hosts.shape(None)
    assert 3.5 < shaped < 12, "4 MB at 1 MB/s"
    assert free < shaped / 2
    assert seconds_to_send(hosts, 4) < shaped / 2


def test_a_cut_host_is_silent_until_it_is_reconnected(hosts: Hosts) -> None:
    def reaches(host: str) -> bool:
        return hosts.run("n1", ["ssh", "-o", "ConnectTimeout=1", host, "true"]).returncode == 0

    hosts.cut("n2")
    assert not reaches("n2")
    assert reaches("n3")
    assert "UP" in hosts.run("n2", ["ip", "-br", "link", "show", "eth0"]).stdout, "the host itself sees no fault"
    hosts.mend("n2")
    assert reaches("n2")


def test_two_clusters_at_once_are_separate(hosts: Hosts) -> None:
    hosts.run("n1", ["touch", "/dev/shm/first"])
    with Hosts(2) as others:
        assert "first" not in others.run("n2", ["ssh", "n1", "ls /dev/shm"]).stdout
        assert others.run("n1", ["ssh", "-o", "ConnectTimeout=1", "10.77.0.3", "true"]).returncode == 255
    assert "first" in hosts.run("n2", ["ssh", "n1", "ls /dev/shm"]).stdout


def test_the_end_leaves_nothing(hosts: Hosts) -> None:
    hosts.start("n1", ["ssh", "n2", "trap '' TERM HUP; setsid sleep 600 & sleep 600"], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(hosts.processes("n2")) >= 2, "two sleeps on n2")
    left = hosts.processes("n2")
    interfaces = psutil.net_if_stats().keys()
    hosts.down()
    assert not any(p.is_running() for p in left)
    assert not hosts.folder.exists()
    assert not _mentioned(str(hosts.folder))
    assert psutil.net_if_stats().keys() == interfaces
    hosts.up()


@pytest.mark.usefixtures("hosts")
def test_hosts_end_with_the_process_that_made_them() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = process.stdout.readline().strip()
    try:
        assert _mentioned(folder)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not _mentioned(folder), "the end of the hosts", seconds=5)
        subprocess.run(["rm", "-rf", folder], check=True)


def _mentioned(folder: str) -> list[str]:
    """Return command lines and mounts on this machine that name `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + Path(f"/proc/{process.pid}/mountinfo").read_text()
        except (psutil.Error, OSError):
            continue
        if folder in text:
            found.append(text)
    return found

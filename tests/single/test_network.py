"""The network between hosts: found by routes, passed to every launcher, refused if missing."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from cli.hosts import network
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.hosts.network import Network
from cli.launch.flavor import Flavor
from cli.launch.job import Job
from cli.launch.launchers.horovodrun import Horovodrun
from cli.launch.launchers.mpirun import Mpirun
from hvd_train.errors import UserError

HERE = {"eth0": IPv4Interface("10.77.0.1/24"), "docker0": IPv4Interface("172.17.0.1/16")}
FOUND = Network("eth0", IPv4Network("10.77.0.0/24"))
JOB = Job(("python", "x.py"), 4, "mpi", (Host("n1", 2), Host("n2", 2)), network=FOUND)
MACHINE = Machine("n1", root=False, packages=(4,))
BOTH = "10.77.0.0/24"


@pytest.fixture(autouse=True)
def _interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interfaces", lambda: HERE)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"n2": "10.77.0.1", "n3": "10.77.0.1"}, FOUND),
        ({"n2": "10.77.0.1", "n3": "172.17.0.1"}, None),
        ({"n2": "10.77.0.1", "unknown": None}, None),
        ({}, None),
    ],
)
def test_one_network_must_lead_to_all_hosts(
    sources: dict[str, str | None], expected: Network | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_source", sources.get)
    assert network.between(sources) == expected


def test_a_route_says_where_packets_leave_from() -> None:
    assert network._source("127.0.0.1") == "127.0.0.1"
    assert network._source("no.such.host.invalid") is None


def test_iface_takes_an_interface_or_a_subnet() -> None:
    assert network.named("docker0") == Network("docker0")
    assert network.named("10.77.0.0/16") == Network("eth0", IPv4Network("10.77.0.0/16"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eth1", r"no interface 'eth1' is up on this machine; did you mean 'eth0'\? \(choices: docker0, eth0\)"),
        (
            "10.9.0.0/16",
            r"no interface of this machine is in 10.9.0.0/16 \(interfaces: eth0 10.77.0.1/24, docker0 172.17.0.1/16\)",
        ),
        ("10.77.0.1/16", r"'10.77.0.1/16' is not a subnet; expected a subnet such as 10.1.0.0/16"),
    ],
)
def test_iface_refuses(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        network.named(text)


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("openmpi", (5, 0, 11), f"--mca btl_tcp_if_include {BOTH} --prtemca prte_if_include {BOTH}"),
        ("openmpi", (4, 1, 6), f"--mca btl_tcp_if_include {BOTH} --mca oob_tcp_if_include {BOTH}"),
        ("mpich", (4, 2), "-iface eth0"),
        ("intel", (2021, 11), "-iface eth0"),
    ],
)
def test_messages_and_control_take_it(name: str, version: tuple[int, ...], expected: str) -> None:
    launcher = Mpirun(Flavor(name, version, Path("/bin/mpirun")), MACHINE)  # type: ignore[arg-type]
    assert f" {expected} " in str(launcher.command(JOB))
    assert "if_include" not in str(launcher.command(dataclasses.replace(JOB, network=None)))
    assert "-iface" not in str(launcher.command(dataclasses.replace(JOB, network=None)))


def test_horovodrun_takes_it_over_gloo_and_mpi() -> None:
    job = dataclasses.replace(JOB, engine="horovod")
    gloo = Horovodrun(Path("/bin/horovodrun"), None, MACHINE, "/bin").command(job)
    assert "--network-interfaces eth0" in str(gloo)
    flavor = Flavor("openmpi", (5, 0, 11), Path("/bin/mpirun"))
    mpi = Horovodrun(Path("/bin/horovodrun"), flavor, MACHINE, "/bin").command(job)
    assert "--network-interfaces eth0" in str(mpi)
    assert f"--prtemca prte_if_include {BOTH}" in str(mpi)
    assert "btl_tcp_if_include" not in str(mpi), "horovodrun gives it by itself, and twice is an error of mpirun"

"""How a job reaches other hosts: forwarded variables and ssh arguments."""

from __future__ import annotations

import dataclasses

import pytest

from cli.hosts import network
from cli.hosts.hostfile import Host, parse_hosts
from cli.hosts.machine import Machine
from cli.hosts.network import Network
from cli.remote import forwarded
from cli.remote.reach import Reach, reach
from hvd_train.errors import UserError

HERE = Machine("n0", root=False, packages=(4,))
OTHERS = (Host("n0", 1), Host("n1", 2))
BOTH = {"PRTE_MCA_plm_ssh_args": "-p 22 -x", "OMPI_MCA_plm_rsh_args": "-q"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "between", lambda hosts: Network("eth0", None) if list(hosts) else None)


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("HOROVOD_FUSION_THRESHOLD", True),
        ("NCCL_DEBUG", True),
        ("OMP_NUM_THREADS", True),
        ("UCX_TLS", True),
        ("PYTHONPATH", True),
        ("CUDA_VISIBLE_DEVICES", True),
        ("HF_HOME", True),
        ("TOKENIZERS_PARALLELISM", True),
        ("HF_TOKEN", False),
        ("WANDB_API_KEY", False),
        ("HOROVOD_SECRET_KEY", False),
        ("HOROVOD_RANK", False),
        ("HOROVOD_GLOO_RENDEZVOUS_ADDR", False),
        ("PATH", False),
        ("TMPDIR", False),
        ("OMPI_MCA_btl", False),
        ("MY_NCCL_DEBUG", False),
    ],
)
def test_variables_that_are_forwarded(name: str, goes: bool) -> None:
    assert forwarded.select({name: "1"}) == ({name: "1"} if goes else {})
    told = reach(OTHERS, HERE, forward=("A",), environment={name: "1"})
    assert told.forward == (("A", name) if goes else ("A",))
    assert told.client.environment == ({name: "1"} if goes else {})


def test_a_secret_is_noted_unless_the_user_forwards_it() -> None:
    variables = {"HF_TOKEN": "hush", "WANDB_API_KEY": "hush", "MY_TOKEN": "hush"}
    (note,) = reach(OTHERS, HERE, environment=variables).notes
    assert note.endswith("HF_TOKEN, WANDB_API_KEY; -x HF_TOKEN forwards it")
    (note,) = reach(OTHERS, HERE, forward=("HF_TOKEN",), environment=variables).notes
    assert note.endswith("WANDB_API_KEY; -x WANDB_API_KEY forwards it")
    assert "hush" not in note


def test_without_other_hosts_nothing_is_forwarded() -> None:
    alone = reach(OTHERS[:1], HERE, ssh_args="-p 1", forward=("A",), environment={"NCCL_DEBUG": "1", "HF_TOKEN": "1"})
    assert alone == Reach(forward=("A",))


@pytest.mark.parametrize(
    ("hosts", "ssh_args", "variables", "expected"),
    [
        ("n0,n1", None, {}, ()),
        ("n0,me@n1,me@n2", None, {}, ("-l", "me")),
        ("you@n0,n1", "-p 2222 -J 'a b'", {}, ("-p", "2222", "-J", "a b")),
        ("me@n1", "-i key", BOTH, ("-l", "me", "-i", "key", "-p", "22", "-x")),
        ("n1", None, {"OMPI_MCA_plm_rsh_args": "-q"}, ("-q",)),
    ],
)
def test_ssh_arguments(hosts: str, ssh_args: str | None, variables: dict[str, str], expected: tuple[str, ...]) -> None:
    found = reach(parse_hosts(hosts, "--hosts"), HERE, ssh_args=ssh_args, environment=variables)
    assert found.client.args == expected


def test_a_port_of_a_hostfile_is_an_ssh_argument() -> None:
    assert reach([Host("n1", 1, "me", 2222)], HERE, environment={}).client.args == ("-l", "me", "-p", "2222")


@pytest.mark.parametrize(
    ("hosts", "ssh_args", "words"),
    [
        ("me@n1,you@n2", None, r"n1 has user=me and n2 has user=you; launchers .* ~/\.ssh/config"),
        ("n1,you@n2", None, "n1 has no user or port and n2 has user=you"),
        ("n1", "-o 'x", "--ssh-args: cannot split '-o 'x' into words"),
    ],
)
def test_ssh_arguments_that_are_refused(hosts: str, ssh_args: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        reach(parse_hosts(hosts, "--hosts"), HERE, ssh_args=ssh_args, environment={})


def test_a_launcher_that_knows_interfaces_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Network("eth0", network.ip_network("10.0.0.0/8"))  # type: ignore[arg-type]
    monkeypatch.setattr(network, "between", lambda hosts: found)
    assert reach(OTHERS, HERE, environment={}).network == found
    assert reach(OTHERS, HERE, environment={}, by_interface=True).network == Network("eth0")
    assert dataclasses.replace(found, subnet=None) == Network("eth0")

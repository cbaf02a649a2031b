"""Mailboxes under mpirun, on the engines that support them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from hvd_train.comm.addresses import facts
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.errors import UserError
from tests.bodies import mailbox as body


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies(check: Any, comm: Communicator) -> None:
    if comm.outlives_ranks:
        check(comm)
    else:
        with pytest.raises(UserError, match="--engine mpi"):
            comm.mailbox()


def test_ranks_listen_on_loopback_or_in_the_network_of_the_job(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On hosts with a second interface, ranks use the one that Open MPI is told to use."""
    if not comm.outlives_ranks or comm.size == 1:
        return
    seen: list[str] = []
    real = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda at, **options: (seen.append(at[0]), real(at, **options))[1])
    comm.mailbox().close()
    assert len(seen) == 1
    hosts = set(gather_json(comm, socket.gethostname()))
    if len(hosts) == 1:
        assert seen == ["127.0.0.1"]
    else:
        assert [address.partition("/")[0] for address in facts(comm.interfaces)["at"]] == seen
        assert len(set(gather_json(comm, seen[0]))) == len(hosts)


@pytest.mark.parametrize("variable", ["OMPI_MCA_btl_tcp_if_include", "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE"])
def test_an_engine_knows_the_interfaces_that_its_launcher_chose(
    variable: str, comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "10.77.0.0/24,ib0")
    part = comm.split(comm.rank % 2)
    assert part.interfaces == "10.77.0.0/24,ib0"
    part.close()

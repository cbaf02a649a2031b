"""Mailboxes of threads; `tests/parallel/test_mailbox.py` runs the same bodies under mpirun."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from hvd_train.comm import _mailbox, threads
from hvd_train.comm.base import Communicator
from hvd_train.comm.single import SingleCommunicator
from tests.bodies import mailbox as body


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def test_nothing_is_left_of_a_closed_mailbox() -> None:
    before = threading.active_count()
    SingleCommunicator().mailbox().close()
    assert threading.active_count() == before


def test_an_idle_mailbox_takes_no_time() -> None:
    def idle(comm: Communicator) -> float:
        mail = comm.mailbox()
        comm.barrier()
        before = time.process_time()
        assert mail.receive(1.0) is None
        used = time.process_time() - before
        comm.barrier()
        mail.close()
        return used

    assert max(threads.run(2, idle)) < 0.1


def test_who_does_not_know_the_token_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger connects first and speaks first; the ranks find each other all the same."""
    real = _mailbox._call

    def with_a_stranger(peer: dict[str, Any], network: list[int], hello: bytes) -> socket.socket:
        stranger = socket.create_connection(("127.0.0.1", peer["port"]))
        stranger.sendall(bytes(len(hello)))
        connection = real(peer, network, hello)
        assert stranger.recv(1) == b""
        stranger.close()
        return connection

    monkeypatch.setattr(_mailbox, "_call", with_a_stranger)
    threads.run(2, body.tensors_arrive_as_they_were)

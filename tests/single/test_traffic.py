"""The counter of a rank's bytes: control messages apart from training, by thread, shared by split communicators."""

from __future__ import annotations

import threading

import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.traffic import Traffic
from tests.engines import threads


def test_what_a_thread_sends_aside_is_control() -> None:
    traffic = Traffic()
    traffic.add(1)
    with traffic.aside():
        traffic.add(10)
        with traffic.aside():
            traffic.add(100)
        traffic.add(1000.4)
        other = threading.Thread(target=traffic.add, args=(10_000,))
        other.start()
        other.join()
    traffic.add(100_000)
    assert (traffic.sent, traffic.control, traffic.training) == (111_111, 1110, 110_001)


def test_groups_count_together() -> None:
    def body(comm: Communicator) -> tuple[int, int]:
        group = comm.split(0)
        before = comm.traffic.training
        group.all_reduce_(torch.zeros(4))
        with group.aside():
            comm.all_reduce_(torch.zeros(400))
        return group.traffic.training - before, comm.bytes_sent - group.bytes_sent

    assert threads.run(2, body) == [(16, 0)] * 2

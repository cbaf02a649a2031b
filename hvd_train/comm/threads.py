"""Ranks as threads of one process: the test double of a launched world."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, Done, Op, SharedMemory, Then, Work, place, reduce_in_order

T = TypeVar("T")
Key = tuple[Hashable, int]
"""A group of ranks, and the number of its operation."""


@dataclass
class _Table:
    """What the ranks of a group handed over for one operation, by rank."""

    operations: dict[int, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    collected: int = 0


class _Meeting:
    """Where the ranks of a run leave what they hand over, until their whole group has."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._tables: defaultdict[Key, _Table] = defaultdict(_Table)
        self.first_error: BaseException | None = None

    def leave(self, key: Key, rank: int, operation: str, value: Any) -> None:
        with self._changed:
            self._tables[key].operations[rank] = operation
            self._tables[key].values[rank] = value
            self._changed.notify_all()

    def collect(self, key: Key, size: int) -> list[Any]:
        """What each rank left; BrokenBarrierError where one never does, RuntimeError where they differ."""
        with self._changed:
            table = self._tables[key]
            self._changed.wait_for(lambda: len(table.values) == size or self.first_error, self._timeout)
            table.collected += 1
            if table.collected == size:
                del self._tables[key]
        missing = [rank for rank in range(size) if rank not in table.values]
        if missing:
            raise threading.BrokenBarrierError(f"{table.operations} waits for ranks {missing}")
        if len(set(table.operations.values())) > 1:
            raise RuntimeError(f"ranks disagree on what comes next: {table.operations}")
        return [table.values[rank] for rank in range(size)]

    def abort(self, error: BaseException) -> None:
        """Release every waiting rank."""
        with self._changed:
            self.first_error = self.first_error or error
            self._changed.notify_all()


class ThreadsCommunicator(Communicator):
    """One thread's view of a group; operations match by the order in which each rank issues them."""

    def __init__(self, meeting: _Meeting, group: Hashable, nodes: Sequence[int], rank: int) -> None:
        super().__init__()
        self._meeting, self._group, self._nodes = meeting, group, nodes
        self.rank, self.size = rank, len(nodes)
        self.local_rank, self.local_size, self.cross_rank, self.cross_size = place(nodes, rank)
        self._issued = 0
        self._shared: _Shared | None = None

    @property
    def shared_memory(self) -> SharedMemory | None:  # type: ignore[override]
        if self._shared is None and self.local_size > 1:
            node = self._nodes[self.rank]
            group = self._group, "node", node
            self._shared = _Shared(ThreadsCommunicator(self._meeting, group, [node] * self.local_size, self.local_rank))
        return self._shared

    def barrier(self) -> None:
        self._exchange("barrier", None)

    def split(self, color: int, key: int = 0) -> Communicator:
        group = self._group, self._issued, color
        asked = self._exchange("split", (color, key))
        members = sorted((k, r) for r, (c, k) in enumerate(asked) if c == color)
        nodes = [self._nodes[r] for _, r in members]
        return ThreadsCommunicator(self._meeting, group, nodes, members.index((key, self.rank)))

    def abort(self, code: int) -> None:
        raise SystemExit(code)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        collect = self._issue(f"all_reduce {op} of {flat.numel()} {flat.dtype}", flat.clone())
        return Then(Done(), lambda: flat.copy_(reduce_in_order(collect(), op)))

    def _broadcast(self, flat: Tensor, root: int) -> None:
        flat.copy_(self._exchange(f"broadcast {root} of {flat.numel()} bytes", flat.clone())[root])

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        addressed = self._exchange("all_to_all", [f.clone() for f in flats])
        return [sent[self.rank] for sent in addressed]

    def _exchange(self, operation: str, value: Any) -> list[Any]:
        return self._issue(operation, value)()

    def _issue(self, operation: str, value: Any) -> Callable[[], list[Any]]:
        """Hand over `value`; the result waits for every rank's."""
        key = self._group, self._issued
        self._issued += 1
        self._meeting.leave(key, self.rank, operation, value)
        return lambda: self._meeting.collect(key, self.size)


class _Shared:
    """Threads share all memory: what is called so here is merely known to all of them."""

    def __init__(self, comm: ThreadsCommunicator) -> None:
        self._comm, self.rank, self.size = comm, comm.rank, comm.size

    def allocate(self, nbytes: int) -> list[Tensor]:
        parts: list[Tensor] = self._comm._exchange("allocate", torch.zeros(nbytes, dtype=torch.uint8))
        return parts

    def barrier(self) -> None:
        self._comm.barrier()


def run(size: int, body: Callable[[Communicator], T], *, nodes: Sequence[int] = (), timeout: float = 60) -> list[T]:
    """Return what `body(comm)` returns on each of `size` ranks; raise the first exception of any rank.

    `nodes[r]` is the number of rank r's node; without `nodes`, all ranks are on one.
    """
    meeting = _Meeting(timeout)
    nodes = nodes or [0] * size

    def on_rank(rank: int) -> T:
        try:
            return body(ThreadsCommunicator(meeting, "world", nodes, rank))
        except BaseException as error:
            meeting.abort(error)
            raise

    with ThreadPoolExecutor(size) as pool:
        results = [pool.submit(on_rank, rank) for rank in range(size)]
    if meeting.first_error:
        raise meeting.first_error
    return [result.result() for result in results]


def create() -> Communicator:
    return ThreadsCommunicator(_Meeting(timeout=60), "world", nodes=[0], rank=0)

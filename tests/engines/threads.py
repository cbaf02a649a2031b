"""An engine whose ranks are threads of one process: the test double of a launched world."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Done, SharedMemory, Then, Work, node_ranks
from hvd_train.comm.connect import connect
from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import Op, reduce_in_order
from hvd_train.comm.traffic import Traffic

T = TypeVar("T")
Key = tuple[Hashable, int]
"""A group of ranks and the number of its operation."""


@dataclass
class _Table:
    """The values that ranks of a group have deposited for one operation, by rank."""

    operations: dict[int, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    collected: int = 0


class _Rendezvous:
    """Where the ranks of a run deposit values until their whole group has done so."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._tables: defaultdict[Key, _Table] = defaultdict(_Table)
        self.first_error: BaseException | None = None
        self.mailboxes: list[Mailbox] = []

    def deposit(self, key: Key, rank: int, operation: str, value: Any) -> None:
        with self._changed:
            self._tables[key].operations[rank] = operation
            self._tables[key].values[rank] = value
            self._changed.notify_all()

    def collect(self, key: Key, size: int) -> list[Any]:
        """Return every rank's value.

        BrokenBarrierError if one never comes, RuntimeError if the operations differ.
        """
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
            raise RuntimeError(f"ranks disagree on the next operation: {table.operations}")
        return [table.values[rank] for rank in range(size)]

    def abort(self, error: BaseException) -> None:
        """Release every waiting rank."""
        with self._changed:
            self.first_error = self.first_error or error
            self._changed.notify_all()


class ThreadsCommunicator(Communicator):
    """A group of threads. Operations match by the order in which each rank issues them."""

    def __init__(
        self, rendezvous: _Rendezvous, group: Hashable, nodes: Sequence[int], rank: int, traffic: Traffic | None = None
    ) -> None:
        super().__init__(traffic)
        self._rendezvous, self._group, self._nodes = rendezvous, group, nodes
        self.rank, self.size = rank, len(nodes)
        self.local_rank, self.local_size, self.cross_rank, self.cross_size = node_ranks(nodes, rank)
        self._issued = 0
        self._shared: _Shared | None = None

    @property
    def shared_memory(self) -> SharedMemory | None:  # type: ignore[override]
        if self._shared is None and self.local_size > 1:
            node = self._nodes[self.rank]
            group = self._group, "node", node
            self._shared = _Shared(
                ThreadsCommunicator(self._rendezvous, group, [node] * self.local_size, self.local_rank)
            )
        return self._shared

    def barrier(self) -> None:
        self._exchange("barrier", None)

    def split(self, color: int, key: int = 0) -> Communicator:
        group = self._group, self._issued, color
        asked = self._exchange("split", (color, key))
        members = sorted((k, r) for r, (c, k) in enumerate(asked) if c == color)
        nodes = [self._nodes[r] for _, r in members]
        return ThreadsCommunicator(self._rendezvous, group, nodes, members.index((key, self.rank)), self.traffic)

    def mailbox(self) -> Mailbox:
        opened = connect(self)
        self._rendezvous.mailboxes.append(opened)
        return opened

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
        """Deposit `value`. Calling the result waits for the values of all ranks."""
        key = self._group, self._issued
        self._issued += 1
        self._rendezvous.deposit(key, self.rank, operation, value)
        return lambda: self._rendezvous.collect(key, self.size)


class _Shared:
    """Shared memory of threads: each tensor is passed to all of them."""

    def __init__(self, comm: ThreadsCommunicator) -> None:
        self._comm, self.rank, self.size = comm, comm.rank, comm.size

    def allocate(self, nbytes: int) -> list[Tensor]:
        parts: list[Tensor] = self._comm._exchange("allocate", torch.zeros(nbytes, dtype=torch.uint8))
        return parts

    def barrier(self) -> None:
        self._comm.barrier()


def run(size: int, body: Callable[[Communicator], T], *, nodes: Sequence[int] = (), timeout: float = 60) -> list[T]:
    """Return the result of `body(comm)` on each of `size` ranks.

    Raise the first exception of any rank. `nodes[r]` is the number of rank r's node. By default all
    ranks are on one node.
    """
    rendezvous = _Rendezvous(timeout)
    nodes = nodes or [0] * size

    def on_rank(rank: int) -> T:
        try:
            return body(ThreadsCommunicator(rendezvous, "world", nodes, rank))
        except BaseException as error:
            rendezvous.abort(error)
            raise

    with ThreadPoolExecutor(size) as pool:
        results = [pool.submit(on_rank, rank) for rank in range(size)]
    for mailbox in rendezvous.mailboxes:
        with contextlib.suppress(OSError):  # the rank has closed it
            mailbox.hang_up()
    if rendezvous.first_error:
        raise rendezvous.first_error
    return [result.result() for result in results]

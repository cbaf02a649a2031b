"""Process sets: subsets of ranks with their own collective operations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from hvd_train.comm.objects import gather_json
from hvd_train.torch import runtime
from hvd_train.torch.entry import Entry
from hvd_train.torch.requests import Request, Spec

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvd_train.torch.executor import Executor

_EXPECTED = "a process set is a list of ranks, which are integers, or an mpi4py communicator"


def is_communicator(what: object) -> bool:
    """Return True if `what` is an mpi4py communicator, which requires that MPI has been imported."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(what, mpi.Comm)


class ProcessSet:
    """A set of ranks.

    `process_set_id` is None unless `init` or `add_process_set` has registered it.
    """

    process_set_id: int | None = None
    ranks: list[int] | None = None
    mpi_comm: MPI.Comm | None = None

    def __init__(self, ranks_or_comm: Iterable[int] | MPI.Comm) -> None:
        if is_communicator(ranks_or_comm):
            self.mpi_comm = cast("MPI.Comm", ranks_or_comm)
            return
        ranks: list[Any] = list(cast("Iterable[int]", ranks_or_comm)) if hasattr(ranks_or_comm, "__iter__") else [None]
        if not all(isinstance(rank, int) for rank in ranks):
            raise ValueError(f"{_EXPECTED}; got {ranks_or_comm!r}")
        self.ranks = sorted(ranks)

    def size(self) -> int | None:
        """Return the number of ranks, or None if the set is not registered."""
        return None if self.process_set_id is None else len(_members(self.process_set_id))

    def rank(self) -> int | None:
        """Return this process's rank in the set. Roots of broadcasts remain ranks of the world."""
        if self.process_set_id is None:
            return None
        members, rank = _members(self.process_set_id), runtime.executor().rank
        if rank not in members:
            raise ValueError(f"rank {rank} is not part of {self}")
        return members.index(rank)

    def included(self) -> bool | None:
        """Return True if this process belongs to the set."""
        return None if self.ranks is None else runtime.executor().rank in self.ranks

    def _invalidate(self) -> None:
        self.process_set_id = None

    def __str__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, mpi_comm={self.mpi_comm})"


global_process_set = ProcessSet([])
global_process_set.process_set_id = 0


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Register a process set.

    Every rank of the world calls this with the same sets in the same order.

    Raise ValueError if the set exists, if it has ranks that do not exist, or if ranks disagree.
    """
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    if process_set.ranks is None:
        raise NotImplementedError(
            "add_process_set() takes no MPI communicators, only init() does; give a list of ranks"
        )
    return register(process_set, _dynamic("adding"))


def remove_process_set(process_set: ProcessSet) -> bool:
    """Unregister a process set on every rank of the world, and return True if it was registered."""
    number = process_set.process_set_id
    if not number:
        return False
    executor = _dynamic("removing")
    process_set._invalidate()
    entry = executor.submit(Request(Spec("remove", root=number)), Entry([], []), wake=False)
    executor.wait(entry)
    return entry.error is None


def register(process_set: ProcessSet, executor: Executor) -> ProcessSet:
    """Register a process set.

    Ranks may give different communicators. Each communicator becomes a set.
    """
    if process_set.mpi_comm is None or process_set.ranks is not None:
        process_set.process_set_id = _register(process_set.ranks or [], executor)
        return process_set
    process_set.ranks = sorted(executor.ranks_of(process_set.mpi_comm))
    for ranks in sorted({tuple(ranks) for ranks in gather_json(executor.world, process_set.ranks)}):
        number = _register(list(ranks), executor)
        if list(ranks) == process_set.ranks:
            process_set.process_set_id = number
    return process_set


def _register(ranks: list[int], executor: Executor) -> int:
    if not ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(executor.size)):
        raise ValueError(f"process set: expected different ranks below {executor.size}, got {ranks}")
    entry = executor.submit(Request(Spec("add", shapes=(tuple(ranks),))), Entry([], []), wake=False)
    executor.wait(entry)
    if entry.error:
        raise ValueError(entry.error)
    return int(entry.result)


def members(process_set: ProcessSet, what: str) -> tuple[int, ...]:
    """Return the ranks of the set. Raise ValueError if it is not registered or lacks this rank."""
    if process_set.process_set_id is None:
        raise ValueError(f"{what}: {process_set} is not registered; pass it to init() or add_process_set() first")
    ranks, rank = _members(process_set.process_set_id), runtime.executor().rank
    if rank not in ranks:
        raise ValueError(f"{what}: rank {rank} is not part of the process set of ranks {list(ranks)}")
    return ranks


def _members(number: int) -> tuple[int, ...]:
    ranks = runtime.executor().negotiation.process_sets.get(number)
    if ranks is None:
        raise ValueError(f"there is no process set {number}; register it with add_process_set()")
    return ranks


def _dynamic(what: str) -> Executor:
    executor = runtime.executor()
    if not executor.settings.dynamic_process_sets:
        raise ValueError(
            f"{what} process sets after init() needs init(process_sets='dynamic') or HOROVOD_DYNAMIC_PROCESS_SETS=1"
        )
    return executor

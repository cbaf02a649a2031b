"""Process sets: ranks that operate among themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from hvd_train.comm.base import gather_json
from hvd_train.torch import _runtime
from hvd_train.torch._entry import Entry
from hvd_train.torch._negotiation import Request, Spec

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvd_train.torch._engine import Engine

_EXPECTED = "a process set is a list of ranks, which are integers, or an mpi4py communicator"


def is_communicator(what: object) -> bool:
    """Whether it is of mpi4py; nothing can be where MPI was never imported."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(what, mpi.Comm)


class ProcessSet:
    """Ranks that `init` or `add_process_set` register; `process_set_id` is None before and after that."""

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
        """Number of ranks; None where it is not registered."""
        return None if self.process_set_id is None else len(_members(self.process_set_id))

    def rank(self) -> int | None:
        """This process's place in it; roots of broadcasts are ranks of the world all the same."""
        if self.process_set_id is None:
            return None
        members, rank = _members(self.process_set_id), _runtime.engine().rank
        if rank not in members:
            raise ValueError(f"rank {rank} is not part of {self}")
        return members.index(rank)

    def included(self) -> bool | None:
        """Whether this process is part of it."""
        return None if self.ranks is None else _runtime.engine().rank in self.ranks

    def _invalidate(self) -> None:
        self.process_set_id = None

    def __str__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, mpi_comm={self.mpi_comm})"


global_process_set = ProcessSet([])
global_process_set.process_set_id = 0


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Register a process set; every rank of the world calls this with the same ranks, in the same order of sets.

    ValueError for one that exists, for ranks that there are not, and where ranks disagree.
    """
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    if process_set.ranks is None:
        raise NotImplementedError("only init() takes process sets of MPI communicators; give a list of ranks")
    return register(process_set, _dynamic("adding"))


def remove_process_set(process_set: ProcessSet) -> bool:
    """Unregister a process set, with every rank of the world; whether there was one."""
    number = process_set.process_set_id
    if not number:
        return False
    engine = _dynamic("removing")
    process_set._invalidate()
    entry = engine.submit(Request(Spec("remove", root=number)), Entry([], []), ring=False)
    engine.wait(entry)
    return entry.error is None


def register(process_set: ProcessSet, engine: Engine) -> ProcessSet:
    """What `add_process_set` does once it is allowed; ranks may give different communicators, which are a set each."""
    if process_set.mpi_comm is None or process_set.ranks is not None:
        process_set.process_set_id = _register(process_set.ranks or [], engine)
        return process_set
    process_set.ranks = sorted(engine.ranks_of(process_set.mpi_comm))
    for ranks in sorted({tuple(ranks) for ranks in gather_json(engine.world, process_set.ranks)}):
        number = _register(list(ranks), engine)
        if list(ranks) == process_set.ranks:
            process_set.process_set_id = number
    return process_set


def _register(ranks: list[int], engine: Engine) -> int:
    if not ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(engine.size)):
        raise ValueError(f"a process set needs different ranks below {engine.size}, got {ranks}")
    entry = engine.submit(Request(Spec("add", shapes=(tuple(ranks),))), Entry([], []), ring=False)
    engine.wait(entry)
    if entry.error:
        raise ValueError(entry.error)
    return int(entry.result)


def members(process_set: ProcessSet, what: str) -> tuple[int, ...]:
    """Its ranks of the world; ValueError where it is not registered, or this rank is no part of it."""
    if process_set.process_set_id is None:
        raise ValueError(f"{what}: {process_set} is not registered; hand it to init() or to add_process_set() first")
    ranks, rank = _members(process_set.process_set_id), _runtime.engine().rank
    if rank not in ranks:
        raise ValueError(f"{what}: rank {rank} is not part of the process set of ranks {list(ranks)}")
    return ranks


def _members(number: int) -> tuple[int, ...]:
    ranks = _runtime.engine().negotiation.process_sets.get(number)
    if ranks is None:
        raise ValueError(f"there is no process set {number}; add_process_set() registers one")
    return ranks


def _dynamic(what: str) -> Engine:
    engine = _runtime.engine()
    if not engine.settings.dynamic_process_sets:
        raise ValueError(
            f"{what} process sets after init() needs init(process_sets='dynamic') or HOROVOD_DYNAMIC_PROCESS_SETS=1"
        )
    return engine

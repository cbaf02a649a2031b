"""The engine that the functions of this API speak to: the only state of the process.

MPI starts with the first `init`, not with the import: worker processes of a data loader import the script too.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from hvd_train.torch._settings import Settings, set_up_log
from hvd_train.torch.exceptions import NOT_INITIALIZED

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvd_train.torch._engine import Engine

_engine: Engine | None = None
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def start(ranks: Iterable[int] | MPI.Comm | None) -> Engine:
    """An engine for these ranks of the world, or those of a communicator; by default for all."""
    global _engine
    if _engine is None:
        from hvd_train.torch._engine import Engine

        comm = _communicator(ranks)
        set_up_log(comm.rank)
        _engine = Engine(comm, Settings.read())
        if Settings.read().timeline not in {"", "DYNAMIC"}:
            _engine.start_timeline(_engine.settings.timeline, _engine.settings.mark_cycles)
        atexit.register(_at_exit, os.getpid())
    return _engine


def stop() -> None:
    """Leave together with the other ranks; without an engine, nothing."""
    global _engine
    if _engine is not None:
        _engine.shutdown()
        _engine = None


def started() -> bool:
    return _engine is not None


def running() -> Engine | None:
    return _engine


def engine() -> Engine:
    """ValueError before `init` and after `shutdown`."""
    if _engine is None:
        raise ValueError(NOT_INITIALIZED)
    return _engine


def _at_exit(pid: int) -> None:
    """A forked child has no part in what its parent shares with other ranks."""
    if os.getpid() == pid:
        stop()


def _communicator(ranks: Iterable[int] | MPI.Comm | None) -> MPI.Intracomm:
    from mpi4py import MPI

    if isinstance(ranks, MPI.Intracomm):
        return ranks.Dup()
    if ranks is not None and not hasattr(ranks, "__iter__"):
        raise ValueError(f"init: expected a list of ranks or an mpi4py communicator, got {ranks!r}")
    world = MPI.COMM_WORLD
    _check(world.size)
    chosen = list(cast("Iterable[int]", ranks)) if ranks is not None else []
    if not chosen:
        return world.Dup()
    if not set(chosen) <= set(range(world.size)) or len(set(chosen)) < len(chosen):
        raise ValueError(f"init: expected different ranks below {world.size}, got {chosen}")
    if world.rank not in chosen:
        raise ValueError(f"init: this is rank {world.rank}, which is not one of the ranks {chosen}; only those call it")
    group = world.group.Incl(chosen)
    return world.Create_group(group)


def _check(size: int) -> None:
    """A launcher of another MPI starts worlds of one rank each."""
    started = next((int(os.environ[name]) for name in _LAUNCHED if name in os.environ), size)
    if size == 1 < started:
        from mpi4py import MPI

        raise ValueError(
            f"init: the launcher started {started} ranks, and MPI sees one: they are of different MPI libraries; "
            f"this one is {MPI.Get_library_version().splitlines()[0]}"
        )

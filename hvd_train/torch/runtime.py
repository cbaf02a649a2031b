"""The executor that this API uses: the only global state of the process.

MPI starts with the first `init` and not with the import, because the worker processes of a data
loader import the script too.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from hvd_train.torch.exceptions import NOT_INITIALIZED
from hvd_train.torch.settings import Settings, set_up_log

if TYPE_CHECKING:
    from mpi4py import MPI

    from hvd_train.torch.executor import Executor

_executor: Executor | None = None
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def start(ranks: Iterable[int] | MPI.Comm | None) -> Executor:
    """Start the executor on these ranks of the world, or on those of a communicator, and return it.

    The default is all ranks. If an executor runs already, return that one.
    """
    global _executor
    if _executor is None:
        from hvd_train.torch.executor import Executor

        comm = _communicator(ranks)
        set_up_log(comm.rank)
        settings = Settings.read()
        _executor = Executor(comm, settings)
        if settings.timeline not in {"", "DYNAMIC"}:
            _executor.start_timeline(settings.timeline, settings.mark_cycles)
        atexit.register(_at_exit, os.getpid())
    return _executor


def stop() -> None:
    """Shut the executor down on all ranks. Do nothing if none runs."""
    global _executor
    if _executor is not None:
        _executor.shutdown()
        _executor = None


def started() -> bool:
    return _executor is not None


def running() -> Executor | None:
    return _executor


def executor() -> Executor:
    """Return the executor. Raise ValueError before `init` and after `shutdown`."""
    if _executor is None:
        raise ValueError(NOT_INITIALIZED)
    return _executor


def _at_exit(pid: int) -> None:
    """Stop the executor, but not in a forked child, which does not own what its parent shares."""
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
        raise ValueError(f"init: rank {world.rank} is not one of the ranks {chosen}; only these ranks may call init")
    group = world.group.Incl(chosen)
    return world.Create_group(group)


def _check(size: int) -> None:
    """Raise ValueError if the launcher belongs to another MPI and started worlds of one rank."""
    started = next((int(os.environ[name]) for name in _LAUNCHED if name in os.environ), size)
    if size == 1 < started:
        from mpi4py import MPI

        raise ValueError(
            f"init: the launcher started {started} ranks, but MPI sees one, because they use different MPI libraries; "
            f"start ranks with the mpirun of {MPI.Get_library_version().splitlines()[0]}"
        )

"""The retry loop around a training function, for failures and changes of hosts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from hvd_train.torch.elastic.state import State
from hvd_train.torch.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from hvd_train.torch.mpi_ops import init, rank, shutdown
from hvd_train.torch.settings import LOG

T = TypeVar("T")

FIXED = (
    "elastic: the ranks of this job are fixed; after a failed operation training returns to the last commit; a lost "
    "rank ends the job, which its launcher can restart from the newest checkpoint"
)


def run(func: Callable[..., T]) -> Callable[..., T]:
    """Return a function that calls `func(state, ...)` after `state.sync()`.

    After a failed operation it calls `func` again from the last commit.
    """
    looped = run_fn(func, _restart)

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> T:
        if rank() == 0:
            LOG.warning(FIXED)
        return looped(state, *args, **kwargs)

    return wrapper


def run_fn(func: Callable[..., T], reset: Callable[[], object]) -> Callable[..., T]:
    """Return `run(func)` with `reset` as the function that restarts the communication of the ranks."""

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> T:
        skip_sync = False
        while True:
            try:
                if not skip_sync:
                    state.sync()
                return func(state, *args, **kwargs)
            except HorovodInternalError:
                state.restore()
                skip_sync = False
            except HostsUpdatedInterrupt as interrupt:
                skip_sync = interrupt.skip_sync
            reset()
            state.on_reset()

    return wrapper


def _restart() -> None:
    shutdown()
    init()

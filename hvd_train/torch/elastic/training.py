"""The loop around a training function that failures and changes of hosts send back to its start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from hvd_train.torch._settings import LOG
from hvd_train.torch.elastic.state import State
from hvd_train.torch.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from hvd_train.torch.mpi_ops import init, rank, shutdown

T = TypeVar("T")

FIXED = (
    "elastic: the ranks of this job are fixed; a failed operation goes back to the last commit, and a lost rank ends "
    "the job, which its launcher can start again from the newest checkpoint"
)


def run(func: Callable[..., T]) -> Callable[..., T]:
    """`func(state, ...)` after a `state.sync()`; again from the last commit whenever an operation fails."""
    looped = run_fn(func, _restart)

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> T:
        if rank() == 0:
            LOG.warning(FIXED)
        return looped(state, *args, **kwargs)

    return wrapper


def run_fn(func: Callable[..., T], reset: Callable[[], object]) -> Callable[..., T]:
    """`run`, where `reset` brings the ranks together again."""

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

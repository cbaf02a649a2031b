"""Start and end of the API, and facts about the ranks and the build, as in `horovod.common.basics`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hvd_train.torch import operations, runtime
from hvd_train.torch.process_sets import ProcessSet, global_process_set, is_communicator, register

if TYPE_CHECKING:
    from mpi4py import MPI


def init(comm: Iterable[int] | MPI.Comm | None = None, process_sets: Iterable[ProcessSet] | str | None = None) -> None:
    """Start with all ranks, with a list of ranks, or with the ranks of an mpi4py communicator.

    A second call does nothing. `process_sets` are registered at once; "dynamic" allows
    `add_process_set` later.
    """
    if runtime.started():
        return
    if isinstance(process_sets, str):
        if process_sets.lower() != "dynamic":
            raise ValueError(f"init: process_sets: expected a list or 'dynamic', got '{process_sets}'")
        os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
        process_sets = None
    wanted = list(process_sets or ())
    if any(ps.ranks is None for ps in wanted) and not is_communicator(comm):
        raise NotImplementedError(
            "process sets of MPI communicators need init(comm=...) with a communicator of all ranks"
        )
    executor = runtime.start(comm)
    operations.forget()
    global_process_set.ranks = list(range(executor.size))
    try:
        for process_set in wanted:
            register(process_set, executor)
    except ValueError:
        shutdown()
        raise


def shutdown() -> None:
    """Shut down. Operations that other ranks wait for fail there. Do nothing before `init`."""
    runtime.stop()
    operations.forget()


def is_initialized() -> bool:
    return runtime.started()


def rank() -> int:
    return runtime.executor().rank


def size() -> int:
    return runtime.executor().size


def local_rank() -> int:
    return runtime.executor().world.local_rank


def local_size() -> int:
    return runtime.executor().world.local_size


def cross_rank() -> int:
    return runtime.executor().world.cross_rank


def cross_size() -> int:
    return runtime.executor().world.cross_size


def is_homogeneous() -> bool:
    """Return True if all hosts have the same number of ranks, and False before `init`."""
    return runtime.started() and runtime.executor().homogeneous


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Write a Chrome trace of later operations to `file_path`, on rank 0."""
    executor = runtime.executor()
    if not executor.settings.timeline:
        raise ValueError("start_timeline: set HOROVOD_TIMELINE=DYNAMIC before init() to start timelines later")
    executor.start_timeline(file_path, mark_cycles)


def stop_timeline() -> None:
    runtime.executor().stop_timeline()


def mpi_threads_supported() -> bool:
    """Return True if other threads may use MPI beside this API."""
    runtime.executor()
    from mpi4py import MPI

    return MPI.Query_thread() == MPI.THREAD_MULTIPLE


def mpi_enabled() -> bool:
    return runtime.started()


def mpi_built() -> bool:
    return True


def gloo_enabled() -> bool:
    return False


def gloo_built() -> bool:
    return False


def nccl_built() -> int:
    return 0


def ddl_built() -> bool:
    return False


def ccl_built() -> bool:
    return False


def cuda_built() -> bool:
    return False


def rocm_built() -> bool:
    return False

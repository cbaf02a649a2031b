"""init, shutdown, and calls before and after.

The module is not initialized before or after a body.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.bodies.horovod_api.base import WORLD, Hvd, bodies, ours_only, same, works


def use_before_init_and_after_shutdown(hvd: Hvd) -> None:
    _all_refuse(hvd)
    for _ in range(2):
        with _initialised(hvd):
            works(hvd)
        _all_refuse(hvd)


def what_is_built_in_is_known_before_init(hvd: Hvd) -> None:
    assert hvd.mpi_built()
    assert isinstance(hvd.gloo_built(), bool)
    assert not hvd.nccl_built()
    for built in (hvd.cuda_built, hvd.rocm_built, hvd.ccl_built, hvd.ddl_built):
        assert built() is False
    with _initialised(hvd):
        assert hvd.mpi_enabled()
        assert not hvd.gloo_enabled()
        assert hvd.mpi_threads_supported()


def init_twice_is_init(hvd: Hvd) -> None:
    with _initialised(hvd):
        hvd.init()
        works(hvd)


def shutdown_twice_is_shutdown(hvd: Hvd) -> None:
    hvd.shutdown()
    with _initialised(hvd):
        pass
    hvd.shutdown()
    assert not hvd.is_initialized()


def the_world_is_that_of_the_launcher(hvd: Hvd) -> None:
    with _initialised(hvd):
        assert hvd.is_initialized()
        assert (hvd.rank(), hvd.size()) == (WORLD.rank, WORLD.size)
        assert (hvd.local_rank(), hvd.local_size()) == (WORLD.rank, WORLD.size)
        assert (hvd.cross_rank(), hvd.cross_size()) == (0, 1)


@ours_only("Horovod has it in horovod.torch.mpi_ops only")
def one_machine_is_homogeneous(hvd: Hvd) -> None:
    with _initialised(hvd):
        assert hvd.is_homogeneous() is True


def init_with_a_communicator(hvd: Hvd) -> None:
    """The communicator has the ranks of one parity in reverse order."""
    comm = WORLD.Split(WORLD.rank % 2, -WORLD.rank)
    with _initialised(hvd, comm):
        assert (hvd.rank(), hvd.size()) == (comm.rank, comm.size)
        found = hvd.allreduce(torch.tensor([float(WORLD.rank)]), op=hvd.Sum, name="x")
        same(found, torch.tensor([float(sum(range(WORLD.rank % 2, WORLD.size, 2)))]))
    comm.Free()


def init_with_process_sets(hvd: Hvd) -> None:
    sets = [hvd.ProcessSet([rank]) for rank in range(WORLD.size)] if WORLD.size > 1 else []
    with _initialised(hvd, process_sets=sets):
        assert [s.process_set_id for s in sets] == list(range(1, len(sets) + 1))
        for process_set in sets:
            if process_set.included():
                same(hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=process_set), torch.ones(1))
        works(hvd)


def init_with_a_process_set_of_a_communicator(hvd: Hvd) -> None:
    if WORLD.size == 1:
        return
    comm = WORLD.Split(WORLD.rank % 2, WORLD.rank)
    mine = hvd.ProcessSet(comm)
    with _initialised(hvd, WORLD, process_sets=[mine]):
        assert mine.ranks == list(range(WORLD.rank % 2, WORLD.size, 2))
        assert (mine.rank(), mine.size()) == (comm.rank, comm.size)
        found = hvd.allreduce(torch.ones(1), op=hvd.Sum, process_set=mine, name="x")
        same(found, torch.tensor([float(comm.size)]))
        works(hvd)
    comm.Free()


def a_process_set_twice_is_refused(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match="duplicate"):
        hvd.init(process_sets=[hvd.ProcessSet([0]), hvd.ProcessSet([0])])
    WORLD.Barrier()
    hvd.shutdown()


def sets_may_only_be_added_where_that_was_asked_for(hvd: Hvd) -> None:
    with _initialised(hvd):
        with pytest.raises(ValueError, match="HOROVOD_DYNAMIC_PROCESS_SETS"):
            hvd.add_process_set([0])
    with _initialised(hvd, process_sets="dynamic"):
        if hvd.size() > 1:
            assert hvd.add_process_set([0]).size() == 1


def what_is_no_communicator_is_refused(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match="comm"):
        hvd.init(5)
    with pytest.raises((TypeError, ValueError)):
        hvd.init("abc")
    with pytest.raises(NotImplementedError):
        hvd.init(process_sets=[hvd.ProcessSet(WORLD)])
    assert not hvd.is_initialized()


@ours_only("Horovod ends the process")
def ranks_that_do_not_exist_are_refused(hvd: Hvd) -> None:
    for arguments in ({"comm": [0, WORLD.size]}, {"process_sets": [hvd.ProcessSet([0, WORLD.size])]}):
        with pytest.raises(ValueError, match="rank"):
            hvd.init(**arguments)
    with _initialised(hvd):
        works(hvd)


def a_timeline_is_started_where_that_was_asked_for(hvd: Hvd) -> None:
    with _initialised(hvd):
        with pytest.raises(ValueError, match="HOROVOD_TIMELINE"):
            hvd.start_timeline(os.devnull)
        assert hvd.stop_timeline() is None


def signatures_are_those_of_horovod(hvd: Hvd) -> None:
    for name, expected in _signatures(hvd).items():
        found = inspect.signature(getattr(hvd, name)).parameters.values()
        assert {p.name: p.default for p in found} == expected, name
        assert [p.name for p in found] == list(expected), name


def every_name_is_there(hvd: Hvd) -> None:
    assert [name for name in _NAMES if not hasattr(hvd, name)] == []
    assert {"TorchState", "ElasticSampler", "run"} <= set(dir(hvd.elastic))
    assert {"none", "fp16"} <= set(dir(hvd.Compression))


def init_with_ranks(hvd: Hvd) -> None:
    """The ranks of one parity.

    This body runs last, because Horovod keeps these ranks after the next init.
    """
    ranks = list(range(WORLD.rank % 2, WORLD.size, 2))
    with _initialised(hvd, ranks):
        assert (hvd.rank(), hvd.size()) == (ranks.index(WORLD.rank), len(ranks))
        found = hvd.allreduce(torch.tensor([float(WORLD.rank)]), op=hvd.Sum, name="x")
        same(found, torch.tensor([float(sum(ranks))]))


_NAMES = [
    "init", "shutdown", "is_initialized", "rank", "size", "local_rank", "local_size", "cross_rank", "cross_size",
    "start_timeline", "stop_timeline", "mpi_threads_supported", "mpi_enabled", "mpi_built", "gloo_enabled",
    "gloo_built", "nccl_built", "ddl_built", "ccl_built", "cuda_built", "rocm_built", "allreduce", "allreduce_",
    "allreduce_async", "allreduce_async_", "sparse_allreduce_async", "allgather", "allgather_async",
    "grouped_allreduce", "grouped_allreduce_", "grouped_allreduce_async", "grouped_allreduce_async_",
    "grouped_allgather", "grouped_allgather_async", "broadcast", "broadcast_", "broadcast_async", "broadcast_async_",
    "alltoall", "alltoall_async", "reducescatter", "reducescatter_async", "grouped_reducescatter",
    "grouped_reducescatter_async", "join", "barrier", "poll", "synchronize", "ProcessSet", "global_process_set",
    "add_process_set", "remove_process_set", "Average", "Sum", "Adasum", "Min", "Max", "Product",
    "HorovodInternalError", "DistributedOptimizer", "broadcast_parameters", "broadcast_optimizer_state",
    "broadcast_object", "allgather_object", "Compression", "SyncBatchNorm", "elastic",
]  # fmt: skip


def _signatures(hvd: Hvd) -> dict[str, dict[str, Any]]:
    """Return the names and defaults of the parameters."""
    needed, world, none = inspect.Parameter.empty, hvd.global_process_set, hvd.Compression.none
    tensor, tensors, name = {"tensor": needed}, {"tensors": needed}, {"name": None}
    where, factors = {"process_set": world}, {"prescale_factor": 1.0, "postscale_factor": 1.0}
    kind = {"average": None, "name": None, "op": None, **factors, **where}
    blocking = {"average": None, "name": None, "compression": none, "op": None, **factors, **where}
    scatter = {"name": None, "compression": none, "op": hvd.Average, **where, **factors}
    scatter_async = {"name": None, "op": hvd.Average, **where, **factors}
    from_root = {**tensor, "root_rank": needed, **name, **where}
    optimizer = {
        "optimizer": needed, "named_parameters": None, "compression": none, "backward_passes_per_step": 1, "op": hvd.Average,
        "gradient_predivide_factor": 1.0, "num_groups": 0, "groups": None, "sparse_as_dense": False, **where,
    }  # fmt: skip
    return {
        "allreduce": {**tensor, **blocking},
        "allreduce_": {**tensor, **kind},
        "allreduce_async": {**tensor, **kind},
        "allreduce_async_": {**tensor, **kind},
        "grouped_allreduce": {**tensors, **blocking},
        "grouped_allreduce_": {**tensors, **kind},
        "grouped_allreduce_async": {**tensors, **kind},
        "grouped_allreduce_async_": {**tensors, **kind},
        "sparse_allreduce_async": {**tensor, "name": needed, "op": needed, **where},
        "allgather": {**tensor, **name, **where},
        "allgather_async": {**tensor, **name, **where},
        "grouped_allgather": {**tensors, **name, **where},
        "grouped_allgather_async": {**tensors, **name, **where},
        **dict.fromkeys(("broadcast", "broadcast_", "broadcast_async", "broadcast_async_"), from_root),
        "alltoall": {**tensor, "splits": None, **name, **where},
        "alltoall_async": {**tensor, "splits": None, **name, **where},
        "reducescatter": {**tensor, **scatter},
        "reducescatter_async": {**tensor, **scatter_async},
        "grouped_reducescatter": {**tensors, **scatter},
        "grouped_reducescatter_async": {**tensors, **scatter_async},
        "poll": {"handle": needed},
        "synchronize": {"handle": needed},
        "join": {"device": -1},
        "barrier": where,
        "add_process_set": {"process_set": needed},
        "remove_process_set": {"process_set": needed},
        "DistributedOptimizer": optimizer,
        "broadcast_parameters": {"params": needed, "root_rank": needed},
        "broadcast_optimizer_state": {"optimizer": needed, "root_rank": needed, "model": None},
        "broadcast_object": {"obj": needed, "root_rank": 0, **name, **where},
        "allgather_object": {"obj": needed, **name},
        "start_timeline": {"file_path": needed, "mark_cycles": False},
    }


@contextmanager
def _initialised(hvd: Hvd, *arguments: Any, **options: Any) -> Iterator[None]:
    hvd.init(*arguments, **options)
    yield
    WORLD.Barrier()
    hvd.shutdown()
    os.environ.pop("HOROVOD_DYNAMIC_PROCESS_SETS", None)


def _all_refuse(hvd: Hvd) -> None:
    assert hvd.is_initialized() is False
    x, world = torch.ones(2), hvd.global_process_set
    parameter = torch.nn.Parameter(x.clone())
    for ask in (
        hvd.rank, hvd.size, hvd.local_rank, hvd.local_size, hvd.cross_rank, hvd.cross_size, hvd.mpi_threads_supported,
        hvd.stop_timeline, world.size, world.rank, world.included,
        lambda: hvd.start_timeline(os.devnull),
        lambda: hvd.add_process_set([0]),
        lambda: hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=1.0), [("p", parameter)]),
        lambda: hvd.broadcast_object(1),
        lambda: hvd.alltoall(x),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"initialized|not enabled"):
            ask()
    for operation in (
        hvd.join, hvd.barrier,
        lambda: hvd.allreduce(x), lambda: hvd.allreduce_(x), lambda: hvd.allgather(x), lambda: hvd.broadcast(x, 0),
        lambda: hvd.reducescatter(x), lambda: hvd.grouped_allreduce([x]),
    ):  # fmt: skip
        with pytest.raises(hvd.HorovodInternalError, match="initialized"):
            operation()


BODIES = bodies(globals())

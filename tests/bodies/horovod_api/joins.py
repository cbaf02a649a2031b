"""join: rank r runs r + 1 reductions, and ranks that have joined contribute zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.bodies.horovod_api.base import Hvd, bodies, ours_only, same, works


def sums_go_on_without_those_who_joined(hvd: Hvd) -> None:
    for _ in range(3):
        for step in range(hvd.rank() + 1):
            found = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum, name=f"step {step}")
            assert found.item() == sum(r + 1 for r in range(step, hvd.size()))
        assert hvd.join() == hvd.size() - 1
    works(hvd)


def an_average_is_still_over_all(hvd: Hvd) -> None:
    for step in range(hvd.rank() + 1):
        found = hvd.allreduce(torch.full((3,), 4.0), name=f"step {step}")
        same(found, torch.full((3,), 4.0 * (hvd.size() - step) / hvd.size()))
    hvd.join()


def the_last_to_join_is_told(hvd: Hvd) -> None:
    """The first rank runs the most reductions."""
    for step in range(hvd.size() - hvd.rank()):
        hvd.allreduce(torch.ones(1), name=f"step {step}")
    found = hvd.join()
    assert type(found) is int
    assert found == 0


def names_that_a_joined_rank_never_saw(hvd: Hvd) -> None:
    """New names, shapes and dtypes, several in flight."""
    last = hvd.rank() == hvd.size() - 1
    if last:
        shapes = [(2,), (3, 2), (), (0,)]
        dtypes = (torch.float32, torch.float64, torch.int32, torch.float16)
        cases = [(s, d) for s in shapes for d in dtypes]
        handles = [hvd.allreduce_async(torch.full(s, 3).to(d), op=hvd.Sum, name=f"{s}{d}") for s, d in cases]
        for (shape, dtype), handle in zip(cases, handles, strict=True):
            same(hvd.synchronize(handle), torch.full(shape, 3).to(dtype))
    assert hvd.join() in range(hvd.size())


def optimizers_with_uneven_data(hvd: Hvd) -> None:
    """The gradient of a step is the sum over ranks that still have data, divided by all ranks."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), named_parameters=[("p", p)])
    for _ in range(hvd.rank() + 1):
        optimizer.zero_grad()
        (p * hvd.size()).sum().backward()
        optimizer.step()
    last = hvd.join()
    hvd.broadcast_parameters([("p", p.data)], root_rank=last)
    total = sum(hvd.size() - step for step in range(hvd.size()))
    same(p.data, torch.full((2,), -float(total)))


@ours_only("Horovod counts the operations of each rank alone, and waits for ever")
def operations_without_names_after_uneven_ones(hvd: Hvd) -> None:
    """Rank r ran r operations before."""
    for _ in range(hvd.rank()):
        hvd.allreduce(torch.ones(1))
    hvd.join()
    for _ in range(2):
        same(hvd.allreduce(torch.ones(2), op=hvd.Sum), torch.full((2,), float(hvd.size())))
        assert hvd.broadcast_object(hvd.rank()) == 0


def what_cannot_go_on_without_all_is_refused(hvd: Hvd) -> None:
    _refused_after_join(hvd, lambda: hvd.broadcast(torch.ones(1), hvd.size() - 1, name="late"))


@ours_only("Horovod corrupts its memory")
def what_else_cannot_go_on_without_all_is_refused(hvd: Hvd) -> None:
    _refused_after_join(hvd, lambda: hvd.allgather(torch.ones(1), name="gather"))
    _refused_after_join(hvd, lambda: hvd.alltoall(torch.ones(hvd.size()), name="exchange"))
    _refused_after_join(hvd, lambda: hvd.reducescatter(torch.ones(hvd.size()), name="scatter"))


def minima_take_a_joined_rank_for_zero(hvd: Hvd) -> None:
    last = hvd.rank() == hvd.size() - 1
    if last and hvd.size() > 1:
        _wait_for_joins(hvd)
        same(hvd.allreduce(torch.ones(1), op=hvd.Min, name="min"), torch.zeros(1))
        same(hvd.allreduce(-torch.ones(1), op=hvd.Max, name="max"), torch.zeros(1))
    hvd.join()


def _refused_after_join(hvd: Hvd, operation: Callable[[], object]) -> None:
    if hvd.rank() == hvd.size() - 1 and hvd.size() > 1:
        _wait_for_joins(hvd)
        with pytest.raises(hvd.HorovodInternalError):
            operation()
    hvd.join()
    works(hvd)


def _wait_for_joins(hvd: Hvd) -> None:
    """Wait until all others have joined: a reduction that only this rank issues then completes."""
    same(hvd.allreduce(torch.ones(1), op=hvd.Sum, name="all others have joined"), torch.ones(1))


BODIES = bodies(globals())

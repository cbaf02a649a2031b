"""Disagreements between ranks: every rank gets the same exception and can go on."""

from __future__ import annotations

import pytest
import torch

from tests.bodies.horovod_api.base import WORLD, Hvd, bodies, ours_only, reduced, refuses, same, works


def mismatched_shapes(hvd: Hvd) -> None:
    me = hvd.rank()
    refuses(hvd, lambda: hvd.allreduce(torch.ones(2 + (me == 0)), name="length"))
    refuses(hvd, lambda: hvd.allreduce(torch.ones([1] * (1 + (me == 0))), name="dimensions"))
    refuses(hvd, lambda: hvd.allreduce(torch.ones((2, 3) if me == 0 else (3, 2)), name="same number of elements"))
    refuses(hvd, lambda: hvd.broadcast(torch.ones(2 + (me == 0)), 0, name="broadcast"))
    refuses(hvd, lambda: hvd.reducescatter(torch.ones(4, 2 + (me == 0)), name="reducescatter"))


def mismatched_shapes_beyond_the_first_dimension(hvd: Hvd) -> None:
    me, size = hvd.rank(), hvd.size()
    refuses(hvd, lambda: hvd.allgather(torch.ones(2, 2 + (me == 0)), name="allgather"))
    refuses(hvd, lambda: hvd.allgather(torch.ones([2] * (1 + (me == 0))), name="allgather of other dimensions"))
    refuses(hvd, lambda: hvd.alltoall(torch.ones(size, 2 + (me == 0)), name="alltoall"))


def mismatched_dtypes(hvd: Hvd) -> None:
    x = torch.ones(hvd.size(), dtype=torch.float64 if hvd.rank() == 0 else torch.float32)
    refuses(hvd, lambda: hvd.allreduce(x, name="allreduce"))
    refuses(hvd, lambda: hvd.allgather(x, name="allgather"))
    refuses(hvd, lambda: hvd.broadcast(x, 0, name="broadcast"))
    refuses(hvd, lambda: hvd.alltoall(x, name="alltoall"))
    refuses(hvd, lambda: hvd.reducescatter(x, name="reducescatter"))


def mismatched_reductions(hvd: Hvd) -> None:
    first, x = hvd.rank() == 0, torch.ones(4)
    refuses(hvd, lambda: hvd.allreduce(x, op=hvd.Min if first else hvd.Max, name="min and max"))
    refuses(hvd, lambda: hvd.allreduce(x, op=hvd.Average if first else hvd.Sum, name="average and sum"))
    refuses(hvd, lambda: hvd.allreduce(x, op=hvd.Adasum if first else hvd.Sum, name="adasum and sum"))
    refuses(hvd, lambda: hvd.reducescatter(x, op=hvd.Average if first else hvd.Sum, name="reducescatter"))


def mismatched_factors(hvd: Hvd) -> None:
    x, factor = torch.ones(2), 1.0 + hvd.rank()
    refuses(hvd, lambda: hvd.allreduce(x, prescale_factor=factor, name="pre"))
    refuses(hvd, lambda: hvd.allreduce(x, postscale_factor=factor, name="post"))


def mismatched_roots(hvd: Hvd) -> None:
    refuses(hvd, lambda: hvd.broadcast(torch.ones(2), hvd.rank(), name="root"))


@ours_only("Horovod waits for ever where a reduction meets a gather")
def mismatched_operations(hvd: Hvd) -> None:
    x, first = torch.ones(hvd.size()), hvd.rank() == 0
    refuses(hvd, lambda: hvd.allreduce(x, name="x") if first else hvd.allgather(x, name="x"))
    refuses(hvd, lambda: hvd.broadcast(x, 0, name="y") if first else hvd.alltoall(x, name="y"))
    refuses(hvd, lambda: hvd.allreduce(x, name="z") if first else hvd.reducescatter(x, name="z"))


@ours_only("Horovod names neither the tensor nor the ranks")
def a_mismatch_names_the_tensor_and_both_ranks(hvd: Hvd) -> None:
    first = hvd.rank() == 0
    said = [
        refuses(hvd, lambda: hvd.allreduce(torch.ones(2 + first), name="weight.7")),
        refuses(
            hvd, lambda: hvd.allreduce(torch.ones(2).to(torch.float64 if first else torch.float32), name="weight.7")
        ),
        refuses(hvd, lambda: hvd.broadcast(torch.ones(2), int(first), name="weight.7")),
    ]
    for sentence in said:
        assert "weight.7" in sentence
        assert "rank 0" in sentence
        assert "rank 1" in sentence


def a_mismatch_ends_nothing_else_that_is_in_flight(hvd: Hvd) -> None:
    good = [hvd.allreduce_async(torch.full((3,), float(i)), name=f"good.{i}", op=hvd.Sum) for i in range(20)]
    bad = hvd.allreduce_async(torch.ones(2 + (hvd.rank() == 0)), name="bad")
    more = [hvd.allreduce_async(torch.full((3,), float(i)), name=f"more.{i}", op=hvd.Sum) for i in range(20)]
    with pytest.raises(hvd.HorovodInternalError):
        hvd.synchronize(bad)
    for i in range(20):
        for handle in (good[i], more[i]):
            same(hvd.synchronize(handle), torch.full((3,), float(i * hvd.size())))


def a_name_that_failed_may_be_used_again(hvd: Hvd) -> None:
    for _ in range(3):
        refuses(hvd, lambda: hvd.allreduce(torch.ones(2 + (hvd.rank() == 0)), name="again"))
        same(hvd.allreduce(torch.ones(2), name="again"), torch.ones(2))


def a_known_name_may_come_with_another_shape_and_dtype(hvd: Hvd) -> None:
    """The cached negotiation is no longer valid."""
    for dtype in (torch.float32, torch.float64, torch.int32, torch.float32):
        for length in (2, 5, 5, 2):
            x = torch.full((length,), hvd.rank() + 1).to(dtype)
            found = hvd.allreduce(x, op=hvd.Sum, name="known")
            same(found, reduced(hvd, hvd.Sum, lambda r, n=length, d=dtype: torch.full((n,), r + 1).to(d)))


def a_known_name_that_only_one_rank_changes_is_a_mismatch(hvd: Hvd) -> None:
    for _ in range(3):
        hvd.allreduce(torch.ones(2), name="known")
    refuses(hvd, lambda: hvd.allreduce(torch.ones(2 + (hvd.rank() == 0)), name="known"))
    same(hvd.allreduce(torch.ones(2), name="known"), torch.ones(2))


def a_name_in_flight_is_refused(hvd: Hvd) -> None:
    """The rank that uses the name twice fails at once, and the first operation completes."""
    if hvd.rank() == 0:
        handle = hvd.allreduce_async(torch.ones(2), name="twice")
        with pytest.raises(ValueError, match="name"):
            hvd.allreduce_async(torch.ones(2), name="twice")
        WORLD.Barrier()
    else:
        WORLD.Barrier()
        handle = hvd.allreduce_async(torch.ones(2), name="twice")
    same(hvd.synchronize(handle), torch.ones(2))
    same(hvd.allreduce(torch.ones(2), name="twice"), torch.ones(2))


def dtypes_without_a_reduction(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match="not supported"):
        hvd.allreduce(torch.ones(2, dtype=torch.complex64))
    works(hvd)


def tensors_that_are_not_contiguous(hvd: Hvd) -> None:
    x = torch.ones(2, 3).t()
    for operation in (hvd.allreduce, hvd.allgather, hvd.reducescatter, hvd.alltoall, hvd.allreduce_):
        with pytest.raises(ValueError, match="contiguous"):
            operation(x)
    with pytest.raises(ValueError, match="contiguous"):
        hvd.broadcast(x, 0)
    works(hvd)


@ours_only("Horovod looks at the first of a group only, and reduces the memory of the others in a wrong order")
def groups_with_a_tensor_that_is_not_contiguous(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        hvd.grouped_allreduce([torch.ones(2), torch.arange(6.0).view(2, 3).t()])
    works(hvd)


def scalars_that_cannot_be_divided(hvd: Hvd) -> None:
    with pytest.raises(ValueError, match=r"(?i)scalar"):
        hvd.reducescatter(torch.tensor(1.0))
    with pytest.raises(hvd.HorovodInternalError):
        hvd.synchronize(hvd.allgather_async(torch.tensor(1.0)))
    works(hvd)


def reductions_that_reducescatter_has_not(hvd: Hvd) -> None:
    for op in (hvd.Min, hvd.Max, hvd.Product, hvd.Adasum):
        with pytest.raises(hvd.HorovodInternalError):
            hvd.reducescatter(torch.ones(hvd.size()), op=op)
    works(hvd)


def splits_that_do_not_fit(hvd: Hvd) -> None:
    size = hvd.size()
    x = torch.ones(size + 1)
    if size > 1:
        with pytest.raises(ValueError, match="splits"):
            hvd.alltoall(x)
    for splits in ([1] * (size - 1) + [9], [1] * (size + 1), torch.ones(size, dtype=torch.int64)):
        with pytest.raises(ValueError, match="splits"):
            hvd.alltoall(x, splits=splits)
    works(hvd)


def roots_that_do_not_exist(hvd: Hvd) -> None:
    for root in (hvd.size(), -1):
        with pytest.raises((ValueError, hvd.HorovodInternalError)):
            hvd.broadcast(torch.ones(2), root, name=f"from {root}")
    works(hvd)


def handles_that_do_not_exist(hvd: Hvd) -> None:
    handle = hvd.allreduce_async(torch.ones(2), name="once")
    same(hvd.synchronize(handle), torch.ones(2))
    assert hvd.synchronize(handle) is None
    with pytest.raises(ValueError, match=r"(?i)handle"):
        hvd.poll(handle)


def the_internal_error_is_a_runtime_error(hvd: Hvd) -> None:
    assert issubclass(hvd.HorovodInternalError, RuntimeError)


BODIES = bodies(globals())

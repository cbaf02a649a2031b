"""allgather, grouped_allgather, broadcast and alltoall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.bodies.horovod_api.base import (
    ALSO_MOVABLE,
    MOVABLE,
    SHAPES,
    Hvd,
    all_same,
    bodies,
    contribution,
    ours_only,
    same,
)


def allgather_of_every_dtype(hvd: Hvd) -> None:
    _allgather_of(hvd, MOVABLE)


@ours_only("Horovod refuses these dtypes with a ValueError")
def allgather_of_further_dtypes(hvd: Hvd) -> None:
    _allgather_of(hvd, ALSO_MOVABLE)


def allgather_of_every_shape(hvd: Hvd) -> None:
    for shape in SHAPES:
        x = contribution(hvd.rank(), shape, torch.float32)
        same(hvd.allgather(x), torch.cat([contribution(r, shape, torch.float32) for r in range(hvd.size())]), shape)


def allgather_of_unequal_first_dimensions(hvd: Hvd) -> None:
    """Rank r has r rows, so the first rank has none."""
    for rest in [(), (3,), (2, 2)]:
        x = contribution(hvd.rank(), (hvd.rank(), *rest), torch.int64)
        parts = [contribution(r, (r, *rest), torch.int64) for r in range(hvd.size())]
        same(hvd.allgather(x), torch.cat(parts))
        same(hvd.synchronize(hvd.allgather_async(x, name="rows")), torch.cat(parts))


def grouped_allgather(hvd: Hvd) -> None:
    def make(rank: int) -> list[Tensor]:
        return [
            contribution(rank, (2,), torch.float32),
            contribution(rank, (rank, 3), torch.uint8),
            contribution(rank, (1, 2, 2), torch.float64),
        ]

    expected = [torch.cat(parts) for parts in zip(*map(make, range(hvd.size())), strict=True)]
    all_same(hvd.grouped_allgather(make(hvd.rank()), name="group"), expected)
    all_same(hvd.synchronize(hvd.grouped_allgather_async(make(hvd.rank()))), expected)


def broadcast_of_every_dtype_from_every_root(hvd: Hvd) -> None:
    _broadcast_of(hvd, MOVABLE)


@ours_only("Horovod refuses these dtypes with a ValueError")
def broadcast_of_further_dtypes(hvd: Hvd) -> None:
    _broadcast_of(hvd, ALSO_MOVABLE)


def broadcast_of_every_shape(hvd: Hvd) -> None:
    root = hvd.size() - 1
    for shape in [(), *SHAPES]:
        x = contribution(hvd.rank(), shape, torch.float32)
        same(hvd.broadcast(x, root), contribution(root, shape, torch.float32), shape)
        same(x, contribution(hvd.rank(), shape, torch.float32), "the input")


def broadcast_in_place_and_async(hvd: Hvd) -> None:
    x, y, z = (contribution(hvd.rank(), (5,), torch.float32) for _ in range(3))
    root = hvd.size() - 1
    expected = contribution(root, (5,), torch.float32)
    assert hvd.broadcast_(x, root) is x
    same(x, expected)
    handles = hvd.broadcast_async(y, root, name="y"), hvd.broadcast_async_(z, root, name="z")
    same(hvd.synchronize(handles[0]), expected)
    same(y, contribution(hvd.rank(), (5,), torch.float32), "the input")
    assert hvd.synchronize(handles[1]) is z
    same(z, expected)


def alltoall_in_equal_parts(hvd: Hvd) -> None:
    for dtype in MOVABLE:
        x = contribution(hvd.rank(), (2 * hvd.size(), 3), dtype)
        found = hvd.alltoall(x)
        same(found, torch.cat([contribution(r, x.shape, dtype).split(2)[hvd.rank()] for r in range(hvd.size())]), dtype)
        same(x, contribution(hvd.rank(), (2 * hvd.size(), 3), dtype), "the input")


@ours_only("Horovod refuses these dtypes with a ValueError")
def alltoall_of_further_dtypes(hvd: Hvd) -> None:
    for dtype in ALSO_MOVABLE:
        x = contribution(hvd.rank(), (hvd.size(),), dtype)
        same(hvd.alltoall(x), torch.stack([contribution(r, x.shape, dtype)[hvd.rank()] for r in range(hvd.size())]))


def alltoall_with_splits(hvd: Hvd) -> None:
    """Rank r sends r + d rows to rank d."""
    for rest in [(), (2,), (1, 3)]:
        _alltoall(hvd, lambda source, to: source + to, rest)


def alltoall_with_empty_splits(hvd: Hvd) -> None:
    """Rows go only to the next rank, then only from the first rank."""
    size = hvd.size()
    _alltoall(hvd, lambda source, to: 3 * (to == (source + 1) % size), (2,))
    _alltoall(hvd, lambda source, to: to * (source == 0), ())


def alltoall_takes_splits_as_a_list(hvd: Hvd) -> None:
    x = torch.arange(hvd.size()) + 10 * hvd.rank()
    found, received = hvd.alltoall(x, splits=[1] * hvd.size())
    same(found, torch.arange(hvd.size()) * 10 + hvd.rank())
    same(received, torch.ones(hvd.size(), dtype=torch.int32))


def alltoall_sends_the_first_rows_where_splits_are_fewer(hvd: Hvd) -> None:
    x = torch.arange(hvd.size() + 3.0)
    found, _ = hvd.alltoall(x, splits=torch.ones(hvd.size(), dtype=torch.int32))
    same(found, torch.full((hvd.size(),), float(hvd.rank())))


def alltoall_async_gives_the_splits_too(hvd: Hvd) -> None:
    x = torch.arange(2 * hvd.size())
    found, received = hvd.synchronize(hvd.alltoall_async(x, name="a2a"))
    same(found, x.view(hvd.size(), 2)[hvd.rank()].repeat(hvd.size()))
    same(received, torch.full((hvd.size(),), 2, dtype=torch.int32))


def the_input_of_a_gather_may_change_afterwards(hvd: Hvd) -> None:
    """The result is a copy, also on the rank itself."""
    x = torch.full((2,), float(hvd.rank()))
    found, sent = hvd.allgather(x), hvd.broadcast(x, 0)
    x.fill_(-1)
    same(found, torch.arange(float(hvd.size())).repeat_interleave(2))
    same(sent, torch.zeros(2))


def _allgather_of(hvd: Hvd, dtypes: Sequence[torch.dtype]) -> None:
    for dtype in dtypes:
        x = contribution(hvd.rank(), (2, 3), dtype)
        same(hvd.allgather(x), torch.cat([contribution(r, (2, 3), dtype) for r in range(hvd.size())]))


def _broadcast_of(hvd: Hvd, dtypes: Sequence[torch.dtype]) -> None:
    for dtype in dtypes:
        for root in range(hvd.size()):
            x = contribution(hvd.rank(), (4, 2), dtype)
            same(hvd.broadcast(x, root), contribution(root, (4, 2), dtype), f"{dtype} from {root}")


def _alltoall(hvd: Hvd, rows: Callable[[int, int], int], rest: tuple[int, ...]) -> None:
    size, me = hvd.size(), hvd.rank()
    splits = [rows(me, to) for to in range(size)]
    parts = [contribution(10 * me + to, (n, *rest), torch.float32) for to, n in enumerate(splits)]
    found, received = hvd.alltoall(torch.cat(parts), splits=torch.tensor(splits, dtype=torch.int32))
    expected = [contribution(10 * source + me, (rows(source, me), *rest), torch.float32) for source in range(size)]
    same(found, torch.cat(expected))
    same(received, torch.tensor([rows(source, me) for source in range(size)], dtype=torch.int32))


BODIES = bodies(globals())

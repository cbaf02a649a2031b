"""The gradient of each operation.

The incoming gradient at rank r is a small integer vector of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.bodies.horovod_api.base import Hvd, all_same, bodies, contribution, reduced, rows, same


def through_allreduce(hvd: Hvd) -> None:
    for op in (hvd.Sum, hvd.Average):
        x = _leaf(hvd, (2, 3))
        hvd.allreduce(x, op=op).backward(_incoming(hvd.rank(), (2, 3)))
        same(x.grad, reduced(hvd, op, lambda r: _incoming(r, (2, 3))))


def through_allreduce_with_factors(hvd: Hvd) -> None:
    x = _leaf(hvd, (3,))
    hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.25).backward(_incoming(hvd.rank(), (3,)))
    same(x.grad, reduced(hvd, hvd.Sum, lambda r: _incoming(r, (3,))) / 2)


def through_compressed_allreduce(hvd: Hvd) -> None:
    x = _leaf(hvd, (3,))
    hvd.allreduce(x, op=hvd.Sum, compression=hvd.Compression.fp16).backward(_incoming(hvd.rank(), (3,)))
    same(x.grad, reduced(hvd, hvd.Sum, lambda r: _incoming(r, (3,))))


def through_grouped_allreduce(hvd: Hvd) -> None:
    for op in (hvd.Sum, hvd.Average):
        x, shapes = [_leaf(hvd, (3,)), _leaf(hvd, (2, 2))], [(3,), (2, 2)]
        torch.autograd.backward(hvd.grouped_allreduce(x, op=op), [_incoming(hvd.rank(), s) for s in shapes])
        all_same([p.grad for p in x], [reduced(hvd, op, lambda r, s=s: _incoming(r, s)) for s in shapes])


def through_allgather_it_is_averaged(hvd: Hvd) -> None:
    """Parts are unequal: rank r has r + 1 rows."""
    x = _leaf(hvd, (hvd.rank() + 1, 2))
    total = hvd.size() * (hvd.size() + 1) // 2
    hvd.allgather(x).backward(_incoming(hvd.rank(), (total, 2)))
    same(x.grad, _own_rows(hvd, reduced(hvd, hvd.Average, lambda r: _incoming(r, (total, 2)))))


def through_grouped_allgather_it_is_averaged(hvd: Hvd) -> None:
    x, y = _leaf(hvd, (hvd.rank() + 1, 2)), _leaf(hvd, (1,))
    total = hvd.size() * (hvd.size() + 1) // 2
    torch.autograd.backward(
        hvd.grouped_allgather([x, y]), [_incoming(hvd.rank(), (total, 2)), _incoming(hvd.rank(), (hvd.size(),))]
    )
    same(x.grad, _own_rows(hvd, reduced(hvd, hvd.Average, lambda r: _incoming(r, (total, 2)))))
    same(y.grad, reduced(hvd, hvd.Average, lambda r: _incoming(r, (hvd.size(),)))[hvd.rank() : hvd.rank() + 1])


def through_broadcast_the_root_gets_the_mean(hvd: Hvd) -> None:
    root = hvd.size() - 1
    x = _leaf(hvd, (4,))
    hvd.broadcast(x, root).backward(_incoming(hvd.rank(), (4,)))
    mean = reduced(hvd, hvd.Average, lambda r: _incoming(r, (4,)))
    same(x.grad, mean if hvd.rank() == root else torch.zeros(4))


def through_alltoall_it_goes_back(hvd: Hvd) -> None:
    """Rank r sends r + d rows to rank d."""
    size, me = hvd.size(), hvd.rank()
    splits = [me + to for to in range(size)]
    x = _leaf(hvd, (sum(splits), 2))
    found, received = hvd.alltoall(x, splits=torch.tensor(splits, dtype=torch.int32))
    assert not received.requires_grad
    found.backward(torch.cat([_incoming(100 * me + source, (n, 2)) for source, n in enumerate(received.tolist())]))
    same(x.grad, torch.cat([_incoming(100 * to + me, (n, 2)) for to, n in enumerate(splits)]))


def through_alltoall_in_equal_parts(hvd: Hvd) -> None:
    size, me = hvd.size(), hvd.rank()
    x = _leaf(hvd, (size,))
    hvd.alltoall(x).backward(torch.arange(float(size)) + 10 * me)
    same(x.grad, torch.arange(float(size)) * 10 + me)


def through_reducescatter_it_is_gathered(hvd: Hvd) -> None:
    """A sum scales the gradient by the number of ranks, because allgather's own gradient is a mean."""
    length = hvd.size() + 1
    for op, factor in ((hvd.Sum, hvd.size()), (hvd.Average, 1)):
        x = _leaf(hvd, (length, 2))
        hvd.reducescatter(x, op=op).backward(_incoming(hvd.rank(), (rows(length, hvd.size())[hvd.rank()], 2)))
        parts = [_incoming(r, (n, 2)) for r, n in enumerate(rows(length, hvd.size()))]
        same(x.grad, torch.cat(parts) * factor)


def through_reducescatter_with_factors(hvd: Hvd) -> None:
    x = _leaf(hvd, (hvd.size(),))
    out = hvd.reducescatter(x, op=hvd.Average, prescale_factor=2.0, postscale_factor=4.0)
    out.backward(_incoming(hvd.rank(), (1,)))
    same(x.grad, 8 * torch.cat([_incoming(r, (1,)) for r in range(hvd.size())]))


def through_grouped_reducescatter(hvd: Hvd) -> None:
    for op, factor in ((hvd.Sum, hvd.size()), (hvd.Average, 1)):
        x = [_leaf(hvd, (hvd.size(),)), _leaf(hvd, (2 * hvd.size(), 3))]
        shapes = [(1,), (2, 3)]
        torch.autograd.backward(hvd.grouped_reducescatter(x, op=op), [_incoming(hvd.rank(), s) for s in shapes])
        expected = [factor * torch.cat([_incoming(r, s) for r in range(hvd.size())]) for s in shapes]
        all_same([p.grad for p in x], expected)


def nothing_is_recorded_where_nothing_asks(hvd: Hvd) -> None:
    assert not hvd.allreduce(torch.ones(2)).requires_grad
    assert not hvd.broadcast(torch.ones(2), 0).requires_grad
    with torch.no_grad():
        assert not hvd.allreduce(_leaf(hvd, (2,))).requires_grad


def a_loss_over_all_ranks_is_differentiated(hvd: Hvd) -> None:
    """The square of the mean inside a graph. Every rank gets its whole gradient."""
    x = torch.tensor([float(hvd.rank())], requires_grad=True)
    mean = hvd.allreduce(2 * x, name="mean")
    (mean**2).backward()
    same(x.grad, torch.tensor([4.0 * (hvd.size() - 1)]))


def _leaf(hvd: Hvd, shape: tuple[int, ...]) -> Tensor:
    return contribution(hvd.rank(), shape, torch.float32).requires_grad_()


def _incoming(rank: int, shape: tuple[int, ...]) -> Tensor:
    return contribution(1000 + rank, shape, torch.float32)


def _own_rows(hvd: Hvd, whole: Tensor) -> Tensor:
    return whole.split([r + 1 for r in range(hvd.size())])[hvd.rank()]


BODIES = bodies(globals())

"""allreduce, grouped_allreduce, reducescatter, grouped_reducescatter and sparse_allreduce_async."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.bodies.horovod_api.base import (
    ALSO_REDUCIBLE,
    REDUCIBLE,
    SHAPES,
    Hvd,
    all_same,
    bodies,
    contribution,
    ours_only,
    reduced,
    reductions,
    rows,
    same,
)


def allreduce_of_every_dtype_and_op(hvd: Hvd) -> None:
    for dtype, op in itertools.product(REDUCIBLE, reductions(hvd)):
        _allreduce(hvd, (3, 5), dtype, op)


@ours_only("Horovod refuses these dtypes with a ValueError")
def allreduce_of_further_dtypes(hvd: Hvd) -> None:
    for dtype, op in itertools.product(ALSO_REDUCIBLE, reductions(hvd)):
        _allreduce(hvd, (3, 5), dtype, op)


@ours_only("Horovod refuses bool with a ValueError")
def allreduce_of_bool(hvd: Hvd) -> None:
    for op in (hvd.Min, hvd.Max, hvd.Product):
        _allreduce(hvd, (3, 5), torch.bool, op)


def allreduce_of_every_shape(hvd: Hvd) -> None:
    for shape in [(), *SHAPES]:
        _allreduce(hvd, shape, torch.float32, hvd.Sum)
        _allreduce(hvd, shape, torch.int64, hvd.Max)


def allreduce_of_megabytes(hvd: Hvd) -> None:
    _allreduce(hvd, (1_300_007,), torch.float32, hvd.Sum)
    _allreduce(hvd, (1_300_007,), torch.float16, hvd.Average)


def allreduce_averages_unless_told(hvd: Hvd) -> None:
    x = torch.full((3,), float(2 * hvd.rank()))
    expected = torch.full((3,), hvd.size() - 1.0)
    same(hvd.allreduce(x), expected)
    same(hvd.allreduce(x, None, "positional", hvd.Compression.none, hvd.Average), expected)


def a_mean_of_integers_is_cut_towards_zero(hvd: Hvd) -> None:
    for dtype in (torch.int32, torch.int64):
        x = torch.tensor([3, -3, 7, -7], dtype=dtype) if hvd.rank() == 0 else torch.zeros(4, dtype=dtype)
        expected = torch.tensor([int(v / hvd.size()) for v in (3, -3, 7, -7)], dtype=dtype)
        same(hvd.allreduce(x, op=hvd.Average), expected)
        whole = hvd.reducescatter(torch.cat([x] * hvd.size()), op=hvd.Average)
        same(whole, expected)


def average_is_the_old_name_of_op(hvd: Hvd) -> None:
    x = torch.tensor([1.0 + hvd.rank()])
    with pytest.warns(DeprecationWarning, match="average"):
        same(hvd.allreduce(x, average=False), reduced(hvd, hvd.Sum, lambda r: torch.tensor([1.0 + r])))
    with pytest.warns(DeprecationWarning, match="average"):
        same(hvd.allreduce(x, average=True), reduced(hvd, hvd.Average, lambda r: torch.tensor([1.0 + r])))
    with pytest.raises(ValueError, match="op"):
        hvd.allreduce(x, average=True, op=hvd.Sum)


def prescale_and_postscale_of_floats(hvd: Hvd) -> None:
    for dtype, op in itertools.product((torch.float16, torch.float32, torch.float64), reductions(hvd)):
        x = contribution(hvd.rank(), (4,), dtype)
        found = hvd.allreduce(x, op=op, prescale_factor=0.5, postscale_factor=4.0)
        same(found, reduced(hvd, op, lambda r, d=dtype: contribution(r, (4,), d) * 0.5) * 4.0, f"{dtype} {op}")
        same(x, contribution(hvd.rank(), (4,), dtype), "the input")


def scaled_integers_are_cut_towards_zero(hvd: Hvd) -> None:
    for dtype in (torch.int32, torch.int64):
        x = torch.tensor([1, 3, -1, -3], dtype=dtype)
        before = torch.tensor([0, 1, 0, -1], dtype=dtype) * hvd.size()
        same(hvd.allreduce(x, op=hvd.Sum, prescale_factor=0.5), before)
        after = (torch.tensor([1, 3, -1, -3]) * hvd.size() * 0.25).trunc().to(dtype)
        same(hvd.allreduce(x, op=hvd.Sum, postscale_factor=0.25), after)


def allreduce_in_place(hvd: Hvd) -> None:
    for dtype, op in itertools.product(REDUCIBLE, reductions(hvd)):
        x = contribution(hvd.rank(), (6,), dtype)
        address = x.data_ptr()
        assert hvd.allreduce_(x, op=op) is x
        assert x.data_ptr() == address
        same(x, reduced(hvd, op, lambda r, d=dtype: contribution(r, (6,), d)))


def allreduce_async(hvd: Hvd) -> None:
    x, y = (contribution(hvd.rank(), shape, torch.float32) for shape in ((4,), (2, 2)))
    handles = hvd.allreduce_async(x, op=hvd.Sum), hvd.allreduce_async_(y, op=hvd.Max)
    assert all(isinstance(handle, int) for handle in handles)
    assert hvd.synchronize(handles[1]) is y
    same(y, reduced(hvd, hvd.Max, lambda r: contribution(r, (2, 2), torch.float32)))
    found = hvd.synchronize(handles[0])
    same(found, reduced(hvd, hvd.Sum, lambda r: contribution(r, (4,), torch.float32)))
    same(x, contribution(hvd.rank(), (4,), torch.float32), "the input")


def a_parameter_is_reduced_in_place(hvd: Hvd) -> None:
    parameter = torch.nn.Parameter(torch.full((3,), 2.0 * hvd.rank()))
    hvd.allreduce_(parameter.data)
    assert parameter.requires_grad
    assert parameter.tolist() == [hvd.size() - 1.0] * 3


def compressed_allreduce_rounds_to_half(hvd: Hvd) -> None:
    x = torch.tensor([1 + 2.0**-12, 3.0], dtype=torch.float64)
    same(hvd.allreduce(x, compression=hvd.Compression.fp16), torch.tensor([1.0, 3.0], dtype=torch.float64))
    integers = torch.tensor([100_001], dtype=torch.int32)
    same(hvd.allreduce(integers, compression=hvd.Compression.fp16), integers)


def adasum_of_orthogonal_vectors_is_their_sum(hvd: Hvd) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        expected = reduced(hvd, hvd.Sum, lambda r, d=dtype: _unit(hvd, r, d))
        same(hvd.allreduce(_unit(hvd, hvd.rank(), dtype), op=hvd.Adasum), expected)


def adasum_of_parallel_vectors_is_their_mean(hvd: Hvd) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.tensor([1.0, 2.0, -2.0, 4.0], dtype=dtype)
        same(hvd.allreduce(x, op=hvd.Adasum), x)


def adasum_is_that_of_the_paper(hvd: Hvd) -> None:
    """arXiv 2006.02924, over a tree of neighbours."""
    parts = [contribution(rank, (9,), torch.float64) for rank in range(hvd.size())]
    while len(parts) > 1:
        parts = [_adasum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    found = hvd.allreduce(contribution(hvd.rank(), (9,), torch.float64), op=hvd.Adasum)
    torch.testing.assert_close(found, parts[0], rtol=1e-12, atol=0)


def adasum_treats_the_tensors_of_a_group_apart(hvd: Hvd) -> None:
    """Gradients are parallel in the first tensor and orthogonal in the second.

    One long vector is neither.
    """
    x, y = torch.ones(3), _unit(hvd, hvd.rank(), torch.float32)
    found = hvd.grouped_allreduce([x, y], op=hvd.Adasum)
    all_same(found, [x, torch.arange(1.0, hvd.size() + 1)])


def grouped_allreduce_of_every_dtype_and_op(hvd: Hvd) -> None:
    for dtype, op in itertools.product(REDUCIBLE, reductions(hvd)):
        shapes = [(3,), (2, 2), (1, 2, 3)]
        found = hvd.grouped_allreduce([contribution(hvd.rank(), s, dtype) for s in shapes], op=op)
        assert isinstance(found, list)
        all_same(found, [reduced(hvd, op, lambda r, s=s, d=dtype: contribution(r, s, d)) for s in shapes])


def a_group_of_several_dtypes(hvd: Hvd) -> None:
    found = hvd.grouped_allreduce([contribution(hvd.rank(), (3,), d) for d in REDUCIBLE], op=hvd.Sum, name="mixed")
    all_same(found, [reduced(hvd, hvd.Sum, lambda r, d=d: contribution(r, (3,), d)) for d in REDUCIBLE])


def grouped_allreduce_scales(hvd: Hvd) -> None:
    x = [contribution(hvd.rank(), (3,), torch.float32), contribution(hvd.rank(), (2,), torch.float32)]
    found = hvd.grouped_allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.5)
    all_same(found, [reduced(hvd, hvd.Sum, lambda r, n=n: contribution(r, (n,), torch.float32)) for n in (3, 2)])


def grouped_allreduce_in_place_and_async(hvd: Hvd) -> None:
    def make(rank: int) -> list[Tensor]:
        return [contribution(rank, (n,), torch.float32) for n in (3, 0, 2)]

    expected = [reduced(hvd, hvd.Sum, lambda r, i=i: make(r)[i]) for i in range(3)]
    x, y, z = make(hvd.rank()), make(hvd.rank()), make(hvd.rank())
    found = hvd.grouped_allreduce_(x, op=hvd.Sum)
    assert all(a is b for a, b in zip(found, x, strict=True))
    all_same(x, expected)
    handle = hvd.grouped_allreduce_async(y, op=hvd.Sum)
    same_ = hvd.grouped_allreduce_async_(z, op=hvd.Sum)
    all_same(hvd.synchronize(handle), expected)
    all_same(y, make(hvd.rank()), "the input")
    hvd.synchronize(same_)
    all_same(z, expected)


def reducescatter_of_every_dtype(hvd: Hvd) -> None:
    for dtype, op in itertools.product(REDUCIBLE, (hvd.Sum, hvd.Average)):
        _reducescatter(hvd, (2 * hvd.size(), 3), dtype, op)


@ours_only("Horovod refuses these dtypes with a ValueError")
def reducescatter_of_further_dtypes(hvd: Hvd) -> None:
    for dtype, op in itertools.product(ALSO_REDUCIBLE, (hvd.Sum, hvd.Average)):
        _reducescatter(hvd, (2 * hvd.size(), 3), dtype, op)


def reducescatter_gives_the_first_ranks_the_rest(hvd: Hvd) -> None:
    for shape in [(hvd.size() + 1,), (1,), (2 * hvd.size() - 1, 2), (0, 3), (3, 1, 2)]:
        _reducescatter(hvd, shape, torch.float32, hvd.Sum)


def reducescatter_averages_unless_told(hvd: Hvd) -> None:
    found = hvd.reducescatter(torch.full((hvd.size(), 2), 2.0 * hvd.rank()))
    same(found, torch.full((1, 2), hvd.size() - 1.0))


def reducescatter_scales(hvd: Hvd) -> None:
    x = torch.arange(2.0 * hvd.size())
    found = hvd.reducescatter(x, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)
    same(found, 2.0 * hvd.size() * x.view(hvd.size(), 2)[hvd.rank()])


def reducescatter_async(hvd: Hvd) -> None:
    x = contribution(hvd.rank(), (hvd.size() + 1, 2), torch.float64)
    found = hvd.synchronize(hvd.reducescatter_async(x, op=hvd.Sum, name="rs"))
    same(found, _piece(hvd, (hvd.size() + 1, 2), torch.float64, hvd.Sum))


def compressed_reducescatter_rounds_to_half(hvd: Hvd) -> None:
    x = torch.full((hvd.size(),), 1 + 2.0**-12)
    same(hvd.reducescatter(x, compression=hvd.Compression.fp16), torch.ones(1))


def grouped_reducescatter(hvd: Hvd) -> None:
    shapes = [(hvd.size(),), (hvd.size() + 1, 2), (2 * hvd.size(), 1, 3)]
    for op in (hvd.Sum, hvd.Average):
        tensors = [contribution(hvd.rank(), shape, torch.float32) for shape in shapes]
        expected = [_piece(hvd, shape, torch.float32, op) for shape in shapes]
        found = hvd.grouped_reducescatter(tensors, op=op)
        assert isinstance(found, list)
        all_same(found, expected)
        all_same(hvd.synchronize(hvd.grouped_reducescatter_async(tensors, op=op)), expected)


def sparse_allreduce(hvd: Hvd) -> None:
    """Rank r holds rows r and r + 1, so that neighbours share one."""
    size, me = hvd.size(), hvd.rank()

    def dense(rank: int) -> Tensor:
        x = torch.zeros(size + 1, 2)
        x[rank], x[rank + 1] = rank + 1, 2.0
        return x

    for op in (hvd.Sum, hvd.Average):
        handle = hvd.sparse_allreduce_async(dense(me).to_sparse(1), name="sparse", op=op)
        found = handle()
        assert found.is_sparse
        same(found.coalesce().to_dense(), reduced(hvd, op, dense))


def sparse_allreduce_where_one_rank_has_nothing(hvd: Hvd) -> None:
    mine = torch.zeros(4, 2)
    mine[1] = float(hvd.rank())
    found = hvd.sparse_allreduce_async(mine.to_sparse(1), name="sparse", op=hvd.Sum)()
    same(found.to_dense()[1], torch.full((2,), hvd.size() * (hvd.size() - 1) / 2))


def _allreduce(hvd: Hvd, shape: tuple[int, ...], dtype: torch.dtype, op: object) -> None:
    x = contribution(hvd.rank(), shape, dtype)
    found = hvd.allreduce(x, op=op)
    same(found, reduced(hvd, op, lambda r: contribution(r, shape, dtype)), f"{dtype} {shape} {op}")
    same(x, contribution(hvd.rank(), shape, dtype), "the input")


def _reducescatter(hvd: Hvd, shape: tuple[int, ...], dtype: torch.dtype, op: object) -> None:
    x = contribution(hvd.rank(), shape, dtype)
    same(hvd.reducescatter(x, op=op), _piece(hvd, shape, dtype, op), f"{dtype} {shape} {op}")
    same(x, contribution(hvd.rank(), shape, dtype), "the input")


def _piece(hvd: Hvd, shape: tuple[int, ...], dtype: torch.dtype, op: object) -> Tensor:
    """Return this rank's share of the reduction."""
    whole = reduced(hvd, op, lambda r: contribution(r, shape, dtype))
    return whole.split(rows(shape[0], hvd.size()))[hvd.rank()]


def _unit(hvd: Hvd, rank: int, dtype: torch.dtype) -> Tensor:
    """Return a vector along a different axis for every rank."""
    x = torch.zeros(hvd.size(), dtype=dtype)
    x[rank] = rank + 1
    return x


def _adasum(a: Tensor, b: Tensor) -> Tensor:
    dot = a @ b
    return (1 - dot / (2 * a @ a)) * a + (1 - dot / (2 * b @ b)) * b


BODIES = bodies(globals())

"""What every engine must do. All ranks of a communicator of any size call each body.

Contributions are small integers, so that the expected result is exact in every dtype and order of
summation.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json, gather_json
from hvd_train.comm.ops import OPS, REDUCIBLE, Op, shares

SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0), (2, 3), (5, 2, 3)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t(),
    "strided": lambda x: x[:, ::2],
    "permuted": lambda x: x.view(2, 3, 4).permute(2, 0, 1),
    "offset": lambda x: x[1:],
}
THREE_OPS: tuple[Op, ...] = ("sum", "max", "mean")
BYTES_ONLY = (torch.uint16, torch.float8_e4m3fn)


def contribution(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    sizes = torch.randint(1, 4, (2, *shape), generator=generator)
    signs = 2 * torch.randint(0, 2, (2, *shape), generator=generator) - 1
    if dtype.is_complex:
        return torch.complex(*(sizes * signs).double()).to(dtype)
    if dtype == torch.bool:
        return sizes[0] > 1
    return (sizes[0] * signs[0] if dtype.is_signed else sizes[0]).to(dtype)


def reduced(comm: Communicator, op: Op, make: Callable[[int], Tensor]) -> Tensor:
    """The oracle: reduce every rank's `make(rank)` on this rank, in a wide dtype."""
    parts = torch.stack([make(rank) for rank in range(comm.size)])
    if parts.is_complex():
        return torch.view_as_complex(reduced(comm, op, lambda r: torch.view_as_real(parts[r])))
    wide = parts.to(torch.float64 if parts.is_floating_point() else torch.int64)
    reduce = {"mean": torch.mean, "sum": torch.sum, "min": torch.amin, "max": torch.amax, "product": torch.prod}
    return reduce[op](wide, 0).to(parts.dtype)


def defined(dtype: torch.dtype) -> tuple[Op, ...]:
    if dtype not in REDUCIBLE:
        return ()
    if dtype == torch.bool:
        return "min", "max", "product"
    if dtype.is_complex:
        return "mean", "sum"
    return OPS if dtype.is_floating_point else ("sum", "min", "max", "product")


def sums_halves_in_float32(comm: Communicator) -> bool:
    return type(comm).__module__ != "hvd_train.comm.engines.horovod"


def all_reduce_of_every_dtype(comm: Communicator) -> None:
    for dtype in REDUCIBLE:
        for op in defined(dtype):
            x = contribution(comm.rank, (3, 5), dtype)
            comm.all_reduce_(x, op)
            expected = reduced(comm, op, lambda r, dtype=dtype: contribution(r, (3, 5), dtype))
            assert torch.equal(x, expected), f"{op} of {dtype}: {x} is not {expected}"


def all_reduce_of_every_shape(comm: Communicator) -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            x = contribution(comm.rank, shape, dtype)
            comm.all_reduce_(x, "sum")
            expected = reduced(comm, "sum", lambda r, s=shape, d=dtype: contribution(r, s, d))
            assert torch.equal(x, expected), f"{dtype} {shape}"


def all_reduce_of_every_layout(comm: Communicator) -> None:
    for name, view in LAYOUTS.items():
        for dtype in (torch.float32, torch.float16, torch.complex64, torch.bool):
            whole = contribution(comm.rank, (4, 6), dtype)
            before = whole.clone()
            comm.all_reduce_(view(whole), "max" if dtype == torch.bool else "mean")
            op: Op = "max" if dtype == torch.bool else "mean"
            view(before).copy_(reduced(comm, op, lambda r, d=dtype, v=view: v(contribution(r, (4, 6), d))))
            assert torch.equal(whole, before), f"{name} {dtype}: wrong result, or a write outside of the view"


def all_reduce_of_a_conjugate_view(comm: Communicator) -> None:
    x = contribution(comm.rank, (5,), torch.complex64)
    comm.all_reduce_(x.conj(), "sum")
    assert torch.equal(x, reduced(comm, "sum", lambda r: contribution(r, (5,), torch.complex64)))


def all_reduce_of_a_parameter(comm: Communicator) -> None:
    parameter = torch.nn.Parameter(torch.full((3,), float(comm.rank)))
    comm.all_reduce_(parameter)
    assert parameter.requires_grad
    assert parameter.tolist() == [(comm.size - 1) / 2] * 3


def reductions_without_meaning_are_refused(comm: Communicator) -> None:
    for dtype in (*REDUCIBLE, *BYTES_ONLY):
        for op in (*OPS, "median"):
            if op not in defined(dtype):
                x = torch.zeros(2).to(dtype)
                for reduction in (comm.all_reduce_, comm.all_reduce_async_, comm.reduce_scatter):
                    with pytest.raises(ValueError, match=r"not defined|cannot be reduced|unknown reduction"):
                        reduction(x, op)
    with pytest.raises(ValueError, match="dimension"):
        comm.reduce_scatter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="one tensor for each"):
        comm.all_to_all([torch.zeros(1)] * (comm.size + 1))


def several_in_flight_waited_in_reverse(comm: Communicator) -> None:
    kinds = [(torch.float32, 1000), (torch.float16, 33), (torch.int64, 5), (torch.bfloat16, 1), (torch.bool, 9)]
    xs = [contribution(comm.rank, (n,), dtype) for dtype, n in kinds]
    works = [comm.all_reduce_async_(x, "max") for x in xs]
    for work in reversed(works):
        work.wait()
    works[0].wait()
    for x, (dtype, n) in zip(xs, kinds, strict=True):
        assert torch.equal(x, reduced(comm, "max", lambda r, d=dtype, n=n: contribution(r, (n,), d)))


def ranks_may_wait_in_different_orders_and_around_other_operations(comm: Communicator) -> None:
    dtypes = [torch.float32, torch.float16, torch.float64, torch.bfloat16]
    xs = [contribution(comm.rank, (70_000,), dtype) for dtype in dtypes]
    works = [comm.all_reduce_async_(x) for x in xs]
    odd = comm.rank % 2 == 1
    for work in works[:2] if odd else works[::-1]:
        work.wait()
    comm.barrier()
    gathered = comm.all_gather(torch.tensor([comm.rank]))
    for work in works:
        work.wait()
    assert [int(g) for g in gathered] == list(range(comm.size))
    for x, dtype in zip(xs, dtypes, strict=True):
        assert torch.equal(x, reduced(comm, "mean", lambda r, d=dtype: contribution(r, (70_000,), d)))


def sums_of_halves_are_exact(comm: Communicator) -> None:
    """Horovod sums halves in halves, the other engines in float32."""
    exact = sums_halves_in_float32(comm) or comm.size == 1
    for numel in (5, 70_000):
        largest = torch.full((numel,), 65504.0, dtype=torch.float16)
        comm.all_reduce_(largest, "mean")
        assert (largest == (65504.0 if exact else float("inf"))).all()
    if sums_halves_in_float32(comm):
        for dtype, big in ((torch.float16, 2048.0), (torch.bfloat16, 256.0)):
            x = torch.full((3,), big if comm.rank == 0 else 1.0, dtype=dtype)
            scattered = comm.reduce_scatter(x.repeat(comm.size), "sum")
            comm.all_reduce_(x, "sum")
            expected = torch.tensor(big + comm.size - 1).to(dtype)
            assert torch.equal(x, expected.expand(3)), f"{dtype}: {x}"
            assert torch.equal(scattered, expected.expand(3)), f"{dtype}: {scattered}"


def all_reduce_is_bitwise_equal_on_every_rank(comm: Communicator) -> None:
    for numel in (1, 17, 1_000, 300_001):
        for dtype in (torch.float32, torch.float16):
            generator = torch.Generator().manual_seed(comm.rank)
            x = torch.randn(numel, generator=generator).to(dtype)
            comm.all_reduce_(x, "sum")
            assert all(torch.equal(x, other) for other in comm.all_gather(x)), f"{numel} {dtype}"


def reduce_scatter_of_every_dtype(comm: Communicator) -> None:
    for dtype in REDUCIBLE:
        for op in defined(dtype):
            _check_reduce_scatter(comm, (2 * comm.size + 1, 3), dtype, op)


def reduce_scatter_of_every_shape(comm: Communicator) -> None:
    for rows in (0, 1, comm.size - 1, comm.size, comm.size + 1, 3 * comm.size):
        for width in ((), (3,), (2, 2), (0,)):
            _check_reduce_scatter(comm, (rows, *width), torch.float32, "mean")


def all_gather_of_every_dtype(comm: Communicator) -> None:
    for dtype in (*REDUCIBLE, *BYTES_ONLY):
        mine = contribution(comm.rank, (comm.rank + 1, 3), dtype)
        expected = [contribution(r, (r + 1, 3), dtype) for r in range(comm.size)]
        _assert_same(comm.all_gather(mine), expected)


def all_gather_of_every_shape(comm: Communicator) -> None:
    for shape in SHAPES:
        expected = [contribution(r, shape, torch.float32) for r in range(comm.size)]
        _assert_same(comm.all_gather(expected[comm.rank]), expected)


def all_gather_of_tensors_larger_than_shared_memory(comm: Communicator) -> None:
    lengths = [700_000 * (rank % 3) + 11 * rank for rank in range(comm.size)]
    expected = [torch.arange(length, dtype=torch.int32) * (rank + 1) for rank, length in enumerate(lengths)]
    for _ in range(2):
        _assert_same(comm.all_gather(expected[comm.rank]), expected)


def all_gather_where_one_rank_has_nothing(comm: Communicator) -> None:
    for idle in range(comm.size):
        rows = [0 if r == idle else r + 2 for r in range(comm.size)]
        expected = [contribution(r, (n, 2), torch.float64) for r, n in enumerate(rows)]
        _assert_same(comm.all_gather(expected[comm.rank]), expected)


def operations_that_return_tensors_read_every_layout(comm: Communicator) -> None:
    views = {**LAYOUTS, "expanded": lambda x: x[:1].expand(5, -1), "conjugate": lambda x: x.conj()}
    for view in views.values():
        expected = [view(contribution(r, (4, 6), torch.complex64)) for r in range(comm.size)]
        x = expected[comm.rank]
        _assert_same(comm.all_gather(x), expected)
        _assert_same(comm.all_to_all([x] * comm.size), expected)
        _assert_same([comm.exchange(x, comm.rank, comm.rank)], [x])
        total = reduced(comm, "sum", lambda r, expected=expected: expected[r].resolve_conj())
        _assert_same([comm.reduce_scatter(x, "sum")], [_share(comm, total)])


def results_are_memory_of_their_own(comm: Communicator) -> None:
    x = torch.ones(comm.size)
    results = [*comm.all_gather(x), *comm.all_to_all(list(x.split(1))), comm.exchange(x, comm.rank, comm.rank)]
    for result in [*results, comm.reduce_scatter(x, "mean")]:
        result.zero_()
    assert x.tolist() == [1.0] * comm.size


def broadcast_from_every_root(comm: Communicator) -> None:
    for root in range(comm.size):
        for dtype in (*REDUCIBLE, *BYTES_ONLY):
            x = contribution(comm.rank, (2, 3), dtype)
            comm.broadcast_(x, root)
            _assert_same([x], [contribution(root, (2, 3), dtype)])


def broadcast_of_every_shape_and_layout(comm: Communicator) -> None:
    root = comm.size - 1
    for shape in SHAPES:
        x = contribution(comm.rank, shape, torch.float32)
        comm.broadcast_(x, root)
        _assert_same([x], [contribution(root, shape, torch.float32)])
    for view in LAYOUTS.values():
        x, expected = (contribution(r, (4, 6), torch.float32) for r in (comm.rank, comm.rank))
        comm.broadcast_(view(x), root)
        view(expected).copy_(view(contribution(root, (4, 6), torch.float32)))
        assert torch.equal(x, expected)


def all_to_all_of_unequal_parts(comm: Communicator) -> None:
    def part(source: int, target: int, dtype: torch.dtype) -> Tensor:
        return contribution(10 * source + target, ((source + 2 * target) % 4, 3), dtype)

    for dtype in (*REDUCIBLE, *BYTES_ONLY):
        received = comm.all_to_all([part(comm.rank, r, dtype) for r in range(comm.size)])
        _assert_same(received, [part(r, comm.rank, dtype) for r in range(comm.size)])


def all_to_all_of_scalars_and_of_nothing(comm: Communicator) -> None:
    received = comm.all_to_all([torch.tensor(10.0 * comm.rank + r) for r in range(comm.size)])
    _assert_same(received, [torch.tensor(10.0 * r + comm.rank) for r in range(comm.size)])
    _assert_same(comm.all_to_all([torch.zeros(0, 2)] * comm.size), [torch.zeros(0, 2)] * comm.size)


def exchange_around_a_ring_and_over_permutations(comm: Communicator) -> None:
    permutations = [torch.randperm(comm.size, generator=torch.Generator().manual_seed(s)) for s in range(5)]
    for targets in [torch.arange(comm.size).roll(1), torch.arange(comm.size), *permutations]:
        target, source = int(targets[comm.rank]), int((targets == comm.rank).nonzero())
        for shape in SHAPES:
            received = comm.exchange(contribution(comm.rank, shape, torch.bfloat16), target, source)
            _assert_same([received], [contribution(source, shape, torch.bfloat16)])


def split_makes_groups_in_the_order_of_keys(comm: Communicator) -> None:
    even = [r for r in range(comm.size) if r % 2 == 0][::-1]
    odd = [r for r in range(comm.size) if r % 2 == 1][::-1]
    members = odd if comm.rank % 2 else even
    for group in (comm.split(comm.rank % 2, -comm.rank), comm.split(comm.rank % 2, -comm.rank)):
        assert (group.rank, group.size) == (members.index(comm.rank), len(members))
        _use(group, members)
        _use(comm, list(range(comm.size)))
        group.close()


def split_of_a_split_keeps_its_order(comm: Communicator) -> None:
    backwards = list(range(comm.size))[::-1]
    once = comm.split(7, -comm.rank)
    twice = once.split(0)
    for group in (once, twice):
        _use(group, backwards)
    twice.close()
    once.close()


def split_off_one_rank_and_into_ranks_alone(comm: Communicator) -> None:
    last = comm.size - 1
    group = comm.split(int(comm.rank == last))
    _use(group, [last] if comm.rank == last else list(range(last)))
    alone = comm.split(comm.rank)
    _use(alone, [comm.rank])
    _use(comm, list(range(comm.size)))
    alone.close()
    group.close()
    _use(comm, list(range(comm.size)))


def node_ranks_are_consistent(comm: Communicator) -> None:
    numbers = [tuple(n) for n in gather_json(comm, _numbers(comm))]
    assert all(0 <= lr < ls and 0 <= cr < cs for lr, ls, cr, cs in numbers)
    assert len({(lr, cr) for lr, _, cr, _ in numbers}) == comm.size
    group = comm.split(comm.rank % 2)
    assert gather_json(group, _numbers(group)).count(_numbers(group)) == 1
    assert group.local_size * group.cross_size >= group.size
    group.close()


def barrier_holds_until_the_last_rank(comm: Communicator) -> None:
    time.sleep(0.05 * comm.rank)
    before = time.monotonic()
    comm.barrier()
    after = time.monotonic()
    assert max(float(t) for t in comm.all_gather(torch.tensor(before, dtype=torch.float64))) <= after


def allocated_memory_is_flat_zeroed_and_reducible(comm: Communicator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = comm.allocate(11, dtype)
        assert x.shape == (11,)
        assert x.dtype == dtype
        assert not x.any()
        x += comm.rank
        comm.all_reduce_(x[3:7], "sum")
        total = comm.size * (comm.size - 1) // 2
        assert x.tolist() == [comm.rank] * 3 + [total] * 4 + [comm.rank] * 4


def sizes_on_both_sides_of_every_threshold(comm: Communicator) -> None:
    """Ordinary and allocated tensors from one element to several MB, reduced repeatedly."""
    for dtype in (torch.float32, torch.bfloat16):
        for numel in (1, comm.size, 8_191, 8_193, 70_001, 1_200_003):
            allocated = comm.allocate(numel, dtype)
            ramp = torch.arange(numel).remainder(5).to(dtype)
            for op in THREE_OPS:
                expected = reduced(comm, op, functools.partial(_scaled, ramp))
                for x in (torch.empty(numel, dtype=dtype), allocated):
                    x.copy_(ramp * (comm.rank + 1))
                    comm.all_reduce_(x, op)
                    assert torch.equal(x, expected), f"{op} of {numel} {dtype}"


def memory_of_one_rank_can_be_reduced_by_all(comm: Communicator) -> None:
    memory = comm.shared_memory
    if memory is not None and memory.size == comm.size:
        same = memory.allocate(4000 if comm.rank == 0 else 0)[0].view(torch.float32)
        if comm.rank == 0:
            same.fill_(3)
        comm.barrier()
        comm.all_reduce_(same, "sum")
        comm.barrier()
        assert (same == 3 * comm.size).all()


def bytes_sent_follow_the_ring_formulas(comm: Communicator) -> None:
    n, x = comm.size, torch.zeros(12 * comm.size)
    nbytes = 48 * n
    assert _sent(comm, lambda: comm.all_reduce_(x)) == 2 * (n - 1) * nbytes // n
    assert _sent(comm, lambda: comm.all_reduce_(x.half())) == (n - 1) * nbytes // n
    assert _sent(comm, lambda: comm.reduce_scatter(x)) == (n - 1) * nbytes // n
    assert _sent(comm, lambda: comm.all_gather(x)) == (n - 1) * nbytes
    assert _sent(comm, lambda: comm.all_to_all(list(x.split(12)))) == (n - 1) * nbytes // n
    assert _sent(comm, lambda: comm.exchange(x, comm.rank, comm.rank)) == 0
    if n > 1:
        ring = (comm.rank + 1) % n, (comm.rank - 1) % n
        assert _sent(comm, lambda: comm.exchange(x, *ring)) == nbytes
    sent = comm.all_gather(torch.tensor(_sent(comm, lambda: comm.broadcast_(x, root=n - 1))))
    assert sum(map(int, sent)) == (n - 1) * nbytes


def json_reaches_every_rank(comm: Communicator) -> None:
    values = [{"text": "é" * r, "none": None, "list": [1.5, True, r]} for r in range(comm.size)]
    assert gather_json(comm, values[comm.rank]) == values
    for root, value in enumerate(values):
        assert broadcast_json(comm, value if comm.rank == root else object(), root) == value


def _share(comm: Communicator, total: Tensor) -> Tensor:
    return total.split(shares(total.shape[0], comm.size))[comm.rank]


def _check_reduce_scatter(comm: Communicator, shape: tuple[int, ...], dtype: torch.dtype, op: Op) -> None:
    mine = comm.reduce_scatter(contribution(comm.rank, shape, dtype), op)
    total = reduced(comm, op, lambda r: contribution(r, shape, dtype))
    _assert_same([mine], [_share(comm, total)])


def _assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a, e in zip(actual, expected, strict=True):
        assert bool((a == e).all()), f"{a} is not {e}"


def _use(comm: Communicator, members: list[int]) -> None:
    """Call every primitive once, over a group whose ranks are `members` of the world."""
    me = members[comm.rank]
    assert [int(g) for g in comm.all_gather(torch.tensor(me))] == members
    total = torch.tensor([float(me)])
    comm.all_reduce_(total, "sum")
    assert total.item() == sum(members)
    for root, member in enumerate(members):
        value = torch.tensor(me)
        comm.broadcast_(value, root)
        assert int(value) == member
    received = comm.all_to_all([torch.tensor(100 * me + other) for other in members])
    assert [int(x) for x in received] == [100 * other + me for other in members]
    comm.barrier()


def _scaled(ramp: Tensor, rank: int) -> Tensor:
    return ramp * (rank + 1)


def _numbers(comm: Communicator) -> list[int]:
    return [comm.local_rank, comm.local_size, comm.cross_rank, comm.cross_size]


def _sent(comm: Communicator, operation: Callable[[], object]) -> int:
    before = comm.bytes_sent
    operation()
    return comm.bytes_sent - before


BODIES = [
    function
    for name, function in list(globals().items())
    if inspect.isfunction(function)
    and function.__module__ == __name__
    and list(inspect.signature(function).parameters) == ["comm"]
    and not name.startswith(("_", "sums_halves"))
]

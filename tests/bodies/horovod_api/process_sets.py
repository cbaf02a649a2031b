"""Process sets added at run time. lifecycle.py tests those passed to `init`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bodies.horovod_api.base import WORLD, Hvd, bodies, ours_only, reduced, same, works


def operations_among_disjoint_sets(hvd: Hvd) -> None:
    """Each set runs every operation at its own time, with the same names."""
    mine, _ = _parity_sets(hvd)
    ranks, me, count = mine.ranks, hvd.rank(), len(mine.ranks)
    x = torch.full((2 * count,), float(me))
    for _ in range(1 + me % 2 * 3):
        total = hvd.allreduce(x, op=hvd.Sum, process_set=mine, name="all")
        same(total, torch.full((2 * count,), float(sum(ranks))))
    same(hvd.allgather(x[:1], process_set=mine, name="gather"), torch.tensor(ranks, dtype=torch.float32))
    same(hvd.broadcast(x, ranks[-1], process_set=mine, name="cast"), torch.full((2 * count,), float(ranks[-1])))
    same(hvd.reducescatter(x, op=hvd.Sum, process_set=mine, name="scatter"), torch.full((2,), float(sum(ranks))))
    found, received = hvd.alltoall(x, splits=[2] * count, process_set=mine, name="exchange")
    same(found, torch.tensor(ranks, dtype=torch.float32).repeat_interleave(2))
    assert received.tolist() == [2] * count
    hvd.barrier(process_set=mine)


def groups_of_tensors_in_a_set(hvd: Hvd) -> None:
    mine, _ = _parity_sets(hvd)
    x = [torch.full((n,), float(hvd.rank())) for n in (1, 3)]
    found = hvd.grouped_allreduce(x, op=hvd.Average, process_set=mine, name="group")
    for tensor, n in zip(found, (1, 3), strict=True):
        same(tensor, reduced(hvd, hvd.Average, lambda r, n=n: torch.full((n,), float(r)), mine.ranks))
    gathered = hvd.grouped_allgather(x, process_set=mine, name="gathered")
    assert gathered[1].tolist() == [float(r) for r in mine.ranks for _ in range(3)]


def an_average_is_over_the_set(hvd: Hvd) -> None:
    mine, _ = _parity_sets(hvd)
    x = torch.full((2,), 2.0 * hvd.rank())
    same(hvd.allreduce(x, process_set=mine), torch.full((2,), 2.0 * sum(mine.ranks) / len(mine.ranks)))


def the_set_and_the_world_in_flight_together(hvd: Hvd) -> None:
    mine, _ = _parity_sets(hvd)
    x = torch.tensor([float(hvd.rank() + 1)])
    pairs = [
        (
            hvd.allreduce_async(x, op=hvd.Sum, name=f"t{i}"),
            hvd.allreduce_async(x, op=hvd.Sum, name=f"t{i}", process_set=mine),
        )
        for i in range(20)
    ]
    for everyone, ours in reversed(pairs):
        same(hvd.synchronize(ours), torch.tensor([float(sum(r + 1 for r in mine.ranks))]))
        same(hvd.synchronize(everyone), torch.tensor([hvd.size() * (hvd.size() + 1) / 2]))


def overlapping_sets(hvd: Hvd) -> None:
    """All ranks but the last, and all but the first, issued in opposite orders."""
    if hvd.size() < 3:
        return
    sets = [hvd.add_process_set(range(hvd.size() - 1)), hvd.add_process_set(range(1, hvd.size()))]
    order = [s for s in (sets if hvd.rank() % 2 else reversed(sets)) if s.included()]
    x = torch.tensor([float(hvd.rank())])
    handles = [(s, hvd.allreduce_async(x, op=hvd.Sum, name="x", process_set=s)) for s in order]
    for process_set, handle in handles:
        same(hvd.synchronize(handle), torch.tensor([float(sum(process_set.ranks))]))


def gradients_stay_in_the_set(hvd: Hvd) -> None:
    mine, _ = _parity_sets(hvd)
    count = len(mine.ranks)
    x = torch.ones(2, requires_grad=True)
    hvd.allreduce(x, op=hvd.Sum, process_set=mine).backward(torch.full((2,), float(hvd.rank())))
    same(x.grad, torch.full((2,), float(sum(mine.ranks))))
    y = torch.ones(1, requires_grad=True)
    hvd.allgather(y, process_set=mine).backward(torch.arange(float(count)))
    same(y.grad, torch.tensor([float(mine.rank())]))


def a_set_knows_its_ranks(hvd: Hvd) -> None:
    mine, other = _parity_sets(hvd)
    assert mine.ranks == list(range(hvd.rank() % 2, hvd.size(), 2))
    assert (mine.size(), mine.rank(), mine.included()) == (len(mine.ranks), mine.ranks.index(hvd.rank()), True)
    if other is not None:
        assert (other.size(), other.included()) == (len(other.ranks), False)
        assert other.process_set_id != mine.process_set_id
        with pytest.raises(ValueError, match="not part"):
            other.rank()


def the_global_set_is_the_world(hvd: Hvd) -> None:
    world = hvd.global_process_set
    assert (world.process_set_id, world.size(), world.rank()) == (0, hvd.size(), hvd.rank())
    assert world.ranks == list(range(hvd.size()))
    assert world.included()
    assert not hvd.remove_process_set(world)


def a_set_is_given_by_ranks_in_any_order(hvd: Hvd) -> None:
    found = hvd.add_process_set(hvd.ProcessSet([hvd.size() - 1]))
    assert found.ranks == [hvd.size() - 1]
    if hvd.size() > 2:
        assert hvd.add_process_set([2, 0]).ranks == [0, 2]


def a_set_that_exists_is_refused(hvd: Hvd) -> None:
    first = hvd.add_process_set([0]) if hvd.size() > 1 else hvd.global_process_set
    for ranks in ([0], range(hvd.size())):
        with pytest.raises(ValueError, match="duplicate"):
            hvd.add_process_set(ranks)
    assert first.size() == 1


def a_removed_set_is_no_more(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    process_set = hvd.add_process_set([hvd.size() - 1])
    assert hvd.remove_process_set(process_set)
    assert (process_set.process_set_id, process_set.size(), process_set.rank()) == (None, None, None)
    assert not hvd.remove_process_set(process_set)
    with pytest.raises((TypeError, ValueError)):
        hvd.allreduce(torch.ones(1), process_set=process_set)
    again = hvd.add_process_set([hvd.size() - 1])
    assert again.size() == 1
    works(hvd)


def sets_come_and_go(hvd: Hvd) -> None:
    for round_number in range(5):
        mine, other = _parity_sets(hvd)
        x = torch.tensor([float(hvd.rank() + round_number)])
        found = hvd.allreduce(x, op=hvd.Sum, process_set=mine, name="x")
        same(found, torch.tensor([float(sum(r + round_number for r in mine.ranks))]))
        for process_set in sorted(filter(None, (mine, other)), key=lambda s: s.ranks):
            assert hvd.remove_process_set(process_set) or process_set.ranks == list(range(hvd.size()))


def a_rank_outside_is_refused(hvd: Hvd) -> None:
    _, other = _parity_sets(hvd)
    if other is None:
        return
    x = torch.ones(4)
    for operation in (hvd.allreduce, hvd.allgather, hvd.alltoall, hvd.reducescatter):
        with pytest.raises(ValueError, match="process set"):
            operation(x, process_set=other)
    with pytest.raises(ValueError, match="process set"):
        hvd.barrier(process_set=other)
    WORLD.Barrier()
    works(hvd)


def a_root_outside_is_refused(hvd: Hvd) -> None:
    """The root is a rank of the world, not of the set."""
    mine, other = _parity_sets(hvd)
    if other is None:
        return
    with pytest.raises(ValueError, match="root"):
        hvd.broadcast(torch.ones(1), other.ranks[0], process_set=mine)
    WORLD.Barrier()
    works(hvd)


def a_set_that_was_not_added_is_refused(hvd: Hvd) -> None:
    stranger = hvd.ProcessSet([0])
    assert (stranger.process_set_id, stranger.size(), stranger.rank()) == (None, None, None)
    with pytest.raises((TypeError, ValueError)):
        hvd.allreduce(torch.ones(1), process_set=stranger)
    assert not hvd.remove_process_set(stranger)


def what_is_no_set_of_ranks_is_refused(hvd: Hvd) -> None:
    for wrong in (["a"], [0.5], 5):
        with pytest.raises(ValueError, match="ranks"):
            hvd.ProcessSet(wrong)


@ours_only("Horovod ends the process")
def ranks_that_do_not_exist_are_refused(hvd: Hvd) -> None:
    for wrong in ([0, hvd.size()], [-1]):
        with pytest.raises(ValueError, match="rank"):
            hvd.add_process_set(wrong)
    works(hvd)


def adasum_is_for_the_world_only(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    mine, _ = _parity_sets(hvd)
    with pytest.raises(NotImplementedError):
        hvd.allreduce(torch.ones(1), op=hvd.Adasum, process_set=mine)


def _parity_sets(hvd: Hvd) -> tuple[Any, Any]:
    """Return the set of this rank and the other set, if there is one."""
    if hvd.size() == 1:
        return hvd.global_process_set, None
    both = [hvd.add_process_set(range(parity, hvd.size(), 2)) for parity in (0, 1)]
    return both[hvd.rank() % 2], both[1 - hvd.rank() % 2]


BODIES = bodies(globals())

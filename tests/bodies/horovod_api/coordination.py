"""Operations in any order, from any thread and in any number match by name."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tests.bodies.horovod_api.base import WORLD, Hvd, bodies, gather, reduced, same


def every_rank_in_an_order_of_its_own(hvd: Hvd) -> None:
    """Six rounds, so that later rounds use the request cache."""
    for number in range(6):
        names = random.Random(100 * number + hvd.rank()).sample(range(200), 200)
        handles = {i: hvd.allreduce_async(_tensor(hvd.rank(), i), op=hvd.Sum, name=f"t{i}") for i in names}
        for i in random.Random(hvd.rank()).sample(range(200), 200):
            same(hvd.synchronize(handles[i]), reduced(hvd, hvd.Sum, lambda r, i=i: _tensor(r, i)))


def thousands_in_flight(hvd: Hvd) -> None:
    count = 3000
    order = random.Random(hvd.rank()).sample(range(count), count)
    tensors = [torch.full((1 + i % 3,), float(hvd.rank() + i)) for i in range(count)]
    handles = {i: hvd.allreduce_async_(tensors[i], op=hvd.Sum, name=f"many.{i}") for i in order}
    for i in range(count):
        hvd.synchronize(handles[i])
        total = sum(r + i for r in range(hvd.size()))
        assert tensors[i].tolist() == [total] * (1 + i % 3)


def operations_of_all_kinds_in_any_order(hvd: Hvd) -> None:
    me, size = hvd.rank(), hvd.size()
    x = torch.arange(2.0 * size) + me
    operations = {
        "allreduce": lambda n: hvd.allreduce_async(x, op=hvd.Sum, name=n),
        "maximum": lambda n: hvd.allreduce_async(x, op=hvd.Max, name=n),
        "integers": lambda n: hvd.allreduce_async(x.long(), op=hvd.Sum, name=n),
        "scaled": lambda n: hvd.allreduce_async(x, op=hvd.Sum, prescale_factor=2.0, name=n),
        "allgather": lambda n: hvd.allgather_async(x, name=n),
        "broadcast": lambda n: hvd.broadcast_async(x, size - 1, name=n),
        "alltoall": lambda n: hvd.alltoall_async(x, name=n),
        "reducescatter": lambda n: hvd.reducescatter_async(x, op=hvd.Sum, name=n),
        "group": lambda n: hvd.grouped_allreduce_async([x, x + 1], op=hvd.Sum, name=n),
    }
    total = reduced(hvd, hvd.Sum, lambda r: torch.arange(2.0 * size) + r)
    expected = {
        "allreduce": total,
        "maximum": torch.arange(2.0 * size) + size - 1,
        "integers": total.long(),
        "scaled": 2 * total,
        "allgather": torch.cat([torch.arange(2.0 * size) + r for r in range(size)]),
        "broadcast": torch.arange(2.0 * size) + size - 1,
        "reducescatter": total[2 * me : 2 * me + 2],
    }
    for number in range(4):
        order = random.Random(10 * number + me).sample(list(operations), len(operations))
        handles = {name: operations[name](f"{name}") for name in order}
        found = {name: hvd.synchronize(handles[name]) for name in reversed(order)}
        for name, value in expected.items():
            same(found[name], value, name)
        same(found["alltoall"][0], torch.cat([torch.tensor([2.0 * me + r, 2 * me + 1 + r]) for r in range(size)]))
        same(found["group"][0], total)
        same(found["group"][1], total + size)


def several_threads_each_with_its_names(hvd: Hvd) -> None:
    def work(thread: int) -> None:
        for step in range(30):
            i = 1000 * thread + step
            found = hvd.allreduce(_tensor(hvd.rank(), i), op=hvd.Sum, name=f"thread {thread} step {step % 7}")
            same(found, reduced(hvd, hvd.Sum, lambda r, i=i: _tensor(r, i)))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, random.Random(hvd.rank()).sample(range(5), 5)))


def groups_in_any_order(hvd: Hvd) -> None:
    def make(rank: int, i: int) -> list[Tensor]:
        return [_tensor(rank, i), _tensor(rank, i + 1)]

    order = random.Random(hvd.rank()).sample(range(30), 30)
    handles = {i: hvd.grouped_allreduce_async(make(hvd.rank(), i), op=hvd.Sum, name=f"group {i}") for i in order}
    for i in order:
        for number, found in enumerate(hvd.synchronize(handles[i])):
            same(found, reduced(hvd, hvd.Sum, lambda r, i=i, n=number: make(r, i)[n]))


def without_names_operations_meet_in_their_order(hvd: Hvd) -> None:
    handles = [hvd.allreduce_async(_tensor(hvd.rank(), i), op=hvd.Sum) for i in range(50)]
    for i in reversed(range(50)):
        same(hvd.synchronize(handles[i]), reduced(hvd, hvd.Sum, lambda r, i=i: _tensor(r, i)))


def one_name_for_operations_one_after_another(hvd: Hvd) -> None:
    for step in range(100):
        found = hvd.allreduce(torch.tensor([float(hvd.rank() * step)]), op=hvd.Sum, name="again")
        assert found.item() == step * hvd.size() * (hvd.size() - 1) / 2


def steps_that_ask_for_the_same_in_other_shapes_now_and_then(hvd: Hvd) -> None:
    """Many small tensors, some of them empty, and a large one."""
    for step in range(9):
        sizes = {f"step.{i}": (i % 4, 7 if step < 6 else 5) for i in range(40)} | {"step.long": (9000, step // 3 + 1)}
        mine = {name: torch.full(size, float(step + hvd.rank())) for name, size in sizes.items()}
        order = random.Random(step * hvd.size() + hvd.rank()).sample(list(mine), len(mine))
        handles = [hvd.allreduce_async_(mine[name], op=hvd.Sum, name=name) for name in order]
        for handle in handles:
            hvd.synchronize(handle)
        for x in mine.values():
            same(x, torch.full_like(x, float(sum(step + r for r in range(hvd.size())))))


def names_of_any_letters(hvd: Hvd) -> None:
    for name in ("a b", "größe/µ", "x" * 5000, "with\nnewline", "%s {} \\"):
        same(hvd.allreduce(torch.ones(1), op=hvd.Sum, name=name), torch.tensor([float(hvd.size())]))


def poll_waits_for_nobody(hvd: Hvd) -> None:
    """The last rank issues its operation only after the first rank has polled."""
    x = torch.ones(2)
    if hvd.rank() == 0 and hvd.size() > 1:
        handle = hvd.allreduce_async(x, op=hvd.Sum, name="polled")
        time.sleep(0.05)
        assert not hvd.poll(handle)
        WORLD.Barrier()
    else:
        WORLD.Barrier()
        handle = hvd.allreduce_async(x, op=hvd.Sum, name="polled")
    deadline = time.monotonic() + 10
    while not hvd.poll(handle):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert hvd.poll(handle) is True
    same(hvd.synchronize(handle), torch.full((2,), float(hvd.size())))


def a_barrier_lets_nobody_pass_before_all_are_there(hvd: Hvd) -> None:
    """All ranks use the clock of one machine."""
    time.sleep(0.05 * hvd.rank())
    entered = time.monotonic()
    assert hvd.barrier() is None
    left = time.monotonic()
    assert max(gather(entered)) <= min(gather(left))


def the_tensor_may_go_while_its_reduction_is_in_flight(hvd: Hvd) -> None:
    handles = [hvd.allreduce_async(torch.full((1000,), float(i)), op=hvd.Sum, name=f"gone {i}") for i in range(50)]
    for i, handle in enumerate(handles):
        assert hvd.synchronize(handle)[0].item() == i * hvd.size()


def one_slow_rank_keeps_the_others_waiting_and_no_more(hvd: Hvd) -> None:
    if hvd.rank() == hvd.size() - 1:
        time.sleep(0.3)
    same(hvd.allreduce(torch.ones(1), op=hvd.Sum, name="slow"), torch.tensor([float(hvd.size())]))


def _tensor(rank: int, i: int) -> Tensor:
    return torch.full((1 + i % 5, 2), float(rank + 1) * (i + 1))


BODIES = bodies(globals())

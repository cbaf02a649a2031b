"""DistributedOptimizer, compared with torch's optimizer on the gradient that all ranks should see.

The loss is linear, so that the gradient of a step is the value of `_gradient`, in small integers,
and every result is exact.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.bodies.horovod_api.base import Hvd, all_same, bodies, contribution, gather, ours_only, reduced, same

SHAPES = [(3,), (2, 2), (1,), (2, 3)]
Optimizer = torch.optim.Optimizer


def steps_on_the_mean_gradient(hvd: Hvd) -> None:
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5), hvd.Average)


def steps_on_the_sum_of_gradients(hvd: Hvd) -> None:
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Sum, op=hvd.Sum)


def every_optimizer_of_torch(hvd: Hvd) -> None:
    for name in ("Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"):
        _compare(hvd, lambda p, name=name: getattr(torch.optim, name)(p, lr=0.25), hvd.Average)


def several_groups_of_parameters(hvd: Hvd) -> None:
    def build(p: Sequence[Tensor]) -> Optimizer:
        return torch.optim.SGD([{"params": p[:2], "lr": 0.5}, {"params": p[2:]}], lr=0.25, momentum=0.5)

    _compare(hvd, build, hvd.Average)


def without_names(hvd: Hvd) -> None:
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, named=False)


def a_divided_mean(hvd: Hvd) -> None:
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, gradient_predivide_factor=2.0)


def groups_by_number(hvd: Hvd) -> None:
    for count in (1, 2, 3):
        _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, groups=count)
    with pytest.warns(DeprecationWarning, match="num_groups"):
        _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, num_groups=2)


def groups_by_list(hvd: Hvd) -> None:
    """The last parameter is in no list and forms a group of its own."""
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, groups=lambda p: [[p[0], p[2]], [p[1]]])


def gradients_are_sent_as_halves(hvd: Hvd) -> None:
    _compare(hvd, lambda p: torch.optim.SGD(p, lr=0.5), hvd.Average, compression=hvd.Compression.fp16)
    p = nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], compression=hvd.Compression.fp16)
    (p * (1 + 2.0**-12)).sum().backward()
    optimizer.step()
    same(p.data, -torch.ones(2))
    assert p.grad is not None
    same(p.grad, torch.ones(2))


def several_backward_passes_a_step(hvd: Hvd) -> None:
    """Gradients of the passes add up; the average is over ranks only."""
    passes = 3
    mine, reference = _parameters(), _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine, backward_passes_per_step=passes)
    plain = torch.optim.SGD(reference, lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        for number in range(passes):
            _backward(mine, passes * step + number, hvd.rank())
        optimizer.step()
        for i, p in enumerate(reference):
            p.grad = sum((_mean(hvd, passes * step + k, i) for k in range(passes)), torch.zeros_like(p))
        plain.step()
    all_same(_data(mine), _data(reference))


def the_number_of_passes_may_change(hvd: Hvd) -> None:
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    optimizer.set_backward_passes_per_step(2)
    for number in range(2):
        _backward(mine, number, hvd.rank())
    optimizer.step()
    all_same(_data(mine), [-0.5 * (_mean(hvd, 0, i) + _mean(hvd, 1, i)) for i in range(len(mine))])


def one_backward_pass_too_many_is_refused(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    _backward(mine, 0, hvd.rank())
    with pytest.raises(AssertionError, match="backward_passes_per_step"):
        _backward(mine, 0, hvd.rank())
    optimizer.synchronize()


def clearing_gradients_in_flight_is_refused(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    _backward(mine, 0, hvd.rank())
    with pytest.raises(AssertionError, match="zero_grad"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()


def gradients_are_clipped_between_synchronize_and_step(hvd: Hvd) -> None:
    mine, reference = _parameters(), _parameters()
    optimizer, plain = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine), torch.optim.SGD(reference, lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        _backward(mine, step, hvd.rank())
        optimizer.synchronize()
        all_same([p.grad for p in mine if p.grad is not None], [_mean(hvd, step, i) for i in range(len(mine))])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nn.utils.clip_grad_norm_(mine, 0.5)
            with optimizer.skip_synchronize():
                optimizer.step()
        for i, p in enumerate(reference):
            p.grad = _mean(hvd, step, i)
        nn.utils.clip_grad_norm_(reference, 0.5)
        plain.step()
    all_same(_data(mine), _data(reference))


def a_step_after_synchronize_warns(hvd: Hvd) -> None:
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    _backward(mine, 0, hvd.rank())
    optimizer.synchronize()
    said = (
        r"optimizer\.step\(\) called without optimizer\.skip_synchronize\(\) context after optimizer\.synchronize\(\)"
    )
    with pytest.warns(UserWarning, match=said):
        optimizer.step()


def a_parameter_that_a_rank_did_not_use_counts_as_zero(hvd: Hvd) -> None:
    """Rank r does not use parameter r."""
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    for step in range(2):
        optimizer.zero_grad()
        _backward(mine, step, hvd.rank(), without=hvd.rank())
        optimizer.step()

    def used(rank: int, step: int, i: int) -> Tensor:
        return _gradient(rank, step, i) * (rank != i)

    total = [
        sum(reduced(hvd, hvd.Average, lambda r, s=s, i=i: used(r, s, i)) for s in range(2)) for i in range(len(mine))
    ]
    all_same(_data(mine), [-0.5 * torch.as_tensor(t) for t in total])


def a_frozen_parameter_stays(hvd: Hvd) -> None:
    mine = _parameters()
    mine[1].requires_grad_(False)
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    _backward(mine, 0, hvd.rank(), without=1)
    optimizer.step()
    assert mine[1].grad is None
    same(mine[1].data, torch.zeros_like(mine[1]))
    same(mine[0].data, -0.5 * _mean(hvd, 0, 0))


def a_schedule_of_the_rate(hvd: Hvd) -> None:
    def build(p: Sequence[Tensor]) -> Optimizer:
        return torch.optim.SGD(p, lr=1.0, momentum=0.5)

    mine, reference = _parameters(), _parameters()
    optimizer, plain = _wrap(hvd, build(mine), mine), build(reference)
    schedules = [torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5) for o in (optimizer, plain)]
    for step in range(5):
        _step(hvd, optimizer, mine, step)
        _reference_step(hvd, plain, reference, step, hvd.Average)
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    all_same(_data(mine), _data(reference))


def a_closure_is_called_by_step(hvd: Hvd) -> None:
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    _backward(mine, 0, hvd.rank())
    assert optimizer.step(lambda: 7.0) == 7.0
    same(mine[0].data, -0.5 * _mean(hvd, 0, 0))


def state_goes_into_a_new_optimizer(hvd: Hvd) -> None:
    """Two steps, a round trip and two more steps equal four steps."""

    def build(p: Sequence[Tensor]) -> Optimizer:
        return torch.optim.SGD(p, lr=0.5, momentum=0.5)

    mine, reference = _parameters(), _parameters()
    plain = build(reference)
    for step in range(4):
        _reference_step(hvd, plain, reference, step, hvd.Average)
    first = _wrap(hvd, build(mine), mine)
    for step in range(2):
        _step(hvd, first, mine, step)
    state, again = copy.deepcopy(first.state_dict()), [nn.Parameter(p.detach().clone()) for p in mine]
    second = _wrap(hvd, build(again), again)
    second.load_state_dict(state)
    for step in range(2, 4):
        _step(hvd, second, again, step)
    all_same(_data(again), _data(reference))
    plain_state = plain.state_dict()["state"]
    for key, values in second.state_dict()["state"].items():
        same(values["momentum_buffer"], plain_state[key]["momentum_buffer"])


def it_is_an_optimizer_of_the_same_class(hvd: Hvd) -> None:
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.AdamW(mine, lr=0.5), mine)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert type(optimizer).__name__ == "AdamW"
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in mine]


def names_of_parameters(hvd: Hvd) -> None:
    """The given names, or unique names that are equal on every rank."""
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    assert [optimizer._parameter_names[p] for p in mine] == ["p0", "p1", "p2", "p3"]
    groups = [{"params": mine[:2]}, {"params": mine[2:]}]
    nameless = hvd.DistributedOptimizer(torch.optim.SGD(groups, lr=0.5))._parameter_names
    assert len(set(nameless.values())) == len(mine)
    assert all(names == sorted(nameless.values()) for names in gather(sorted(nameless.values())))


def gradients_of_an_embedding(hvd: Hvd) -> None:
    """Sparse gradients, gathered, or reduced as dense ones."""
    for as_dense in (False, True):
        table = nn.Embedding(hvd.size() + 1, 2, sparse=True)
        nn.init.zeros_(table.weight)
        named = [("table", table.weight)]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([table.weight], lr=1.0), named, sparse_as_dense=as_dense)
        table(torch.tensor([hvd.rank(), hvd.rank() + 1])).sum().backward()
        optimizer.step()
        uses = torch.tensor([1.0] + [2.0] * (hvd.size() - 1) + [1.0])
        same(table.weight.data, -(uses / hvd.size()).unsqueeze(1).repeat(1, 2))


@ours_only("Horovod waits for ever")
def an_embedding_that_a_rank_does_not_use(hvd: Hvd) -> None:
    """Ranks without a gradient contribute zeros once another rank's sparse gradient is known.

    Before that it is an error on all ranks.
    """
    last = hvd.size() - 1

    def step(table: nn.Embedding, optimizer: Any, *, used: bool) -> None:
        optimizer.zero_grad()
        if used:
            table(torch.tensor([0])).sum().backward()
        optimizer.step()

    for before in (1, 0):
        table = nn.Embedding(2, 2, sparse=True)
        nn.init.zeros_(table.weight)
        named = [("table", table.weight)]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([table.weight], lr=1.0), named_parameters=named)
        for _ in range(before):
            step(table, optimizer, used=True)
        if before or last == 0:
            for _ in range(2):
                step(table, optimizer, used=hvd.rank() < last)
            same(table.weight.data, torch.tensor([[-before - 2.0 * last / hvd.size()] * 2, [0.0] * 2]))
        else:
            with pytest.raises(hvd.HorovodInternalError, match="mismatched operations: allgather on rank"):
                step(table, optimizer, used=hvd.rank() < last)


def a_set_of_ranks_trains_apart(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    both = [hvd.add_process_set(range(parity, hvd.size(), 2)) for parity in (0, 1)]
    ranks = both[hvd.rank() % 2].ranks
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine, process_set=both[hvd.rank() % 2])
    _step(hvd, optimizer, mine, 0)
    all_same(
        _data(mine), [-0.5 * reduced(hvd, hvd.Average, lambda r, i=i: _gradient(r, 0, i), ranks) for i in range(4)]
    )


def a_rank_outside_of_the_set_trains_alone(hvd: Hvd) -> None:
    if hvd.size() == 1:
        return
    only = hvd.add_process_set([0])
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine, process_set=only)
    _step(hvd, optimizer, mine, 0)
    all_same(_data(mine), [-0.5 * _gradient(hvd.rank(), 0, i) for i in range(4)])


def adasum_of_updates(hvd: Hvd) -> None:
    """Orthogonal updates add up, equal updates are averaged.

    Each rank's optimizer makes its update.
    """
    if hvd.size() == 1:
        return
    p, q = nn.Parameter(torch.zeros(hvd.size())), nn.Parameter(torch.zeros(3))
    inner = torch.optim.SGD([p, q], lr=0.5)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=[("p", p), ("q", q)], op=hvd.Adasum)
    for _ in range(2):
        optimizer.zero_grad()
        (p[hvd.rank()] * 2 + (q * 4).sum()).backward()
        optimizer.step()
    same(p.data, torch.full((hvd.size(),), -2.0))
    same(q.data, torch.full((3,), -4.0))
    with pytest.raises(AssertionError), optimizer.skip_synchronize():
        pass


def parameters_that_do_not_fit_are_refused(hvd: Hvd) -> None:
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    for named, said in [([p, q], "tuples"), ([("p", p), ("p", q)], "unique"), ([("p", p)], "not named")]:
        with pytest.raises(ValueError, match=said):
            hvd.DistributedOptimizer(torch.optim.SGD([p, q], lr=1.0), named_parameters=named)


def options_that_do_not_fit_are_refused(hvd: Hvd) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"backward_passes_per_step": 0}, "backward_passes_per_step"),
        ({"gradient_predivide_factor": 2.0, "op": hvd.Sum}, "gradient_predivide_factor"),
        ({"groups": [[1]]}, "torch.Tensor"),
        ({"groups": -1}, "groups"),
        ({"groups": lambda p: [[p[0]], [p[0]]]}, "once"),
    ]
    for options, said in wrong:
        mine = _parameters()
        with pytest.raises(ValueError, match=said):
            _wrap(hvd, torch.optim.SGD(mine, lr=1.0), mine, **options)


def parameters_in_another_order_on_each_rank(hvd: Hvd) -> None:
    """Backward passes complete them in opposite orders; names match them."""
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    order = range(len(mine)) if hvd.rank() % 2 else reversed(range(len(mine)))
    for i in order:
        (mine[i] * _gradient(hvd.rank(), 0, i)).sum().backward()
    optimizer.step()
    all_same(_data(mine), [-0.5 * _mean(hvd, 0, i) for i in range(len(mine))])


def optimizers_that_have_parameters_in_another_order_on_each_rank(hvd: Hvd) -> None:
    """Parameters may come from a Python set.

    Names match them in every step, with and without fusion.
    """
    for options in ({}, {"groups": 2}, {"op": hvd.Adasum}):
        _in_another_order(hvd, lambda own: own[::-1], options)
        _in_another_order(hvd, lambda own: [own[0], own[2], own[1], own[3]], options)


@ours_only("Horovod reduces a group in the order of its list, by the name of the first")
def groups_whose_lists_are_in_another_order_on_each_rank(hvd: Hvd) -> None:
    _in_another_order(hvd, lambda own: own[::-1], {"groups": lambda order: [order[1:3]]})
    _in_another_order(hvd, lambda own: [own[0], own[2], own[1], own[3]], {"groups": lambda order: [order]})


def _in_another_order(hvd: Hvd, permute: Callable[[list[Any]], list[Any]], options: dict[str, Any]) -> None:
    """Give odd ranks the parameters in the order that `permute` makes.

    All ranks have the same gradients.
    """
    mine = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    order = permute(mine) if hvd.rank() % 2 else mine
    if callable(options.get("groups")):
        options = {"groups": options["groups"](order)}
    named = [(f"p{i}", p) for i, p in enumerate(mine)]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(order, lr=0.5), named_parameters=named, **options)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([p.sum() * 2 ** (i + 1) for i, p in enumerate(mine)]).sum().backward()
        optimizer.step()
    all_same(_data(mine), [torch.full((3,), -1.5 * 2 ** (i + 1)) for i in range(4)], options)


def n_ranks_equal_one_process(hvd: Hvd) -> None:
    """A network on a part of the batch per rank, compared with one on the whole batch."""
    x, y = torch.randn(8 * hvd.size(), 6, dtype=torch.float64), torch.randn(8 * hvd.size(), 2, dtype=torch.float64)
    x, y = hvd.broadcast(x, 0), hvd.broadcast(y, 0)
    model, reference = _network(hvd.rank()), _network(0)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    mine = slice(8 * hvd.rank(), 8 * hvd.rank() + 8)
    for _ in range(5):
        for network, o, part in ((model, optimizer, mine), (reference, plain, slice(None))):
            o.zero_grad()
            nn.functional.mse_loss(network(x[part]), y[part]).backward()
            o.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert all(torch.equal(flat, other) for other in gather(flat)), "ranks differ"


def losses_are_scaled_for_half_precision(hvd: Hvd) -> None:
    """torch's GradScaler, as scripts use it."""
    mine = _parameters()
    optimizer = _wrap(hvd, torch.optim.SGD(mine, lr=0.5), mine)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = sum((p * _gradient(hvd.rank(), 0, i)).sum() for i, p in enumerate(mine))
    scaler.scale(loss).backward()
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()
    all_same(_data(mine), [-0.5 * _mean(hvd, 0, i) for i in range(len(mine))])


def two_optimizers_side_by_side(hvd: Hvd) -> None:
    """Two optimizers, as for a generator and a discriminator, with different names."""
    first, second = _parameters(), _parameters()
    a = _wrap(hvd, torch.optim.SGD(first, lr=0.5), first, prefix="a")
    b = _wrap(hvd, torch.optim.SGD(second, lr=0.5), second, prefix="b")
    for step in range(2):
        _backward(first, step, hvd.rank())
        _backward(second, step + 10, hvd.rank())
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad()
    all_same(_data(first), [-0.5 * (_mean(hvd, 0, i) + _mean(hvd, 1, i)) for i in range(4)])
    all_same(_data(second), [-0.5 * (_mean(hvd, 10, i) + _mean(hvd, 11, i)) for i in range(4)])


def parameters_that_another_hand_changes(hvd: Hvd) -> None:
    """Between steps a checkpoint is loaded, and weights are copied."""
    model = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters())
    for start in (torch.ones(2, 3), torch.full((2, 3), 2.0)):
        model.load_state_dict({"weight": start})
        optimizer.zero_grad()
        model(torch.full((1, 3), float(hvd.rank()))).sum().backward()
        optimizer.step()
        same(model.weight.data, start - (hvd.size() - 1) / 2)


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def _data(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.data for p in parameters]


def _gradient(rank: int, step: int, i: int) -> Tensor:
    return contribution(1000 * step + 10 * i + rank, SHAPES[i], torch.float32)


def _mean(hvd: Hvd, step: int, i: int) -> Tensor:
    return reduced(hvd, hvd.Average, lambda r: _gradient(r, step, i))


def _backward(parameters: Sequence[nn.Parameter], step: int, rank: int, without: int | None = None) -> None:
    used = [(i, p) for i, p in enumerate(parameters) if i != without]
    torch.stack([(p * _gradient(rank, step, i)).sum() for i, p in used]).sum().backward()


def _wrap(hvd: Hvd, inner: Optimizer, parameters: Sequence[nn.Parameter], prefix: str = "p", **options: Any) -> Any:
    named = [(f"{prefix}{i}", p) for i, p in enumerate(parameters)]
    if callable(options.get("groups")):
        options["groups"] = options["groups"](parameters)
    return hvd.DistributedOptimizer(inner, named_parameters=named, **options)


def _step(hvd: Hvd, optimizer: Any, parameters: Sequence[nn.Parameter], step: int) -> None:
    optimizer.zero_grad()
    _backward(parameters, step, hvd.rank())
    optimizer.step()


def _reference_step(hvd: Hvd, plain: Optimizer, parameters: Sequence[nn.Parameter], step: int, op: Any) -> None:
    for i, p in enumerate(parameters):
        p.grad = reduced(hvd, op, lambda r, i=i: _gradient(r, step, i))
    plain.step()


def _compare(
    hvd: Hvd, build: Callable[[Sequence[Tensor]], Optimizer], reduction: Any, *, named: bool = True, **options: Any
) -> None:
    """Compare four steps of `build`'s optimizer, wrapped, with it on the reduced gradients."""
    mine, reference = _parameters(), _parameters()
    optimizer = _wrap(hvd, build(mine), mine, **options) if named else hvd.DistributedOptimizer(build(mine))
    plain = build(reference)
    for step in range(4):
        _step(hvd, optimizer, mine, step)
        _reference_step(hvd, plain, reference, step, reduction)
        all_same(_data(mine), _data(reference), step)


def _network(rank: int) -> nn.Module:
    torch.manual_seed(rank)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


BODIES = bodies(globals())

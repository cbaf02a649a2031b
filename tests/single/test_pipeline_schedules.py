"""Schedules, layouts and cuts: pure functions, by tables and by properties."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hvd_train.compute.parallel import stages, tensor
from hvd_train.compute.parallel.layout import layout
from hvd_train.compute.parallel.optimizer import check
from hvd_train.compute.parallel.pipeline import roles
from hvd_train.compute.parallel.schedules import SCHEDULES, Action, bubble
from hvd_train.config import plugins
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError

TABLE = {
    ("gpipe", 0, 2, 3): "F0 F1 F2 B0 B1 B2",
    ("gpipe", 1, 2, 3): "F0 F1 F2 B0 B1 B2",
    ("1f1b", 0, 1, 3): "F0 B0 F1 B1 F2 B2",
    ("1f1b", 0, 2, 1): "F0 B0",
    ("1f1b", 0, 4, 2): "F0 F1 B0 B1",
    ("1f1b", 0, 2, 3): "F0 F1 B0 F2 B1 B2",
    ("1f1b", 1, 2, 3): "F0 B0 F1 B1 F2 B2",
    ("1f1b", 1, 4, 5): "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
    ("1f1b", 3, 4, 0): "",
}
SIZES = {"pipeline": st.integers(1, 8), "micro_batches": st.integers(0, 12), "name": st.sampled_from(sorted(SCHEDULES))}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_schedules(case: tuple[str, int, int, int]) -> None:
    name, *sizes = case
    assert " ".join(f"{kind[0].upper()}{i}" for kind, i in SCHEDULES[name](*sizes)) == TABLE[case]


@given(**SIZES)
def test_every_micro_batch_runs_forward_and_then_backward_in_order(
    name: str, pipeline: int, micro_batches: int
) -> None:
    for stage in range(pipeline):
        actions = SCHEDULES[name](stage, pipeline, micro_batches)
        for kind in ("forward", "backward"):
            assert [a.micro_batch for a in actions if a.kind == kind] == list(range(micro_batches))
        for i in range(micro_batches):
            assert actions.index(Action("forward", i)) < actions.index(Action("backward", i))


@given(**SIZES)
def test_stages_never_deadlock(name: str, pipeline: int, micro_batches: int) -> None:
    """With passes that take 1 and 2, a stage is idle for as long as the formula says."""
    end = duration(name, pipeline, micro_batches)
    if micro_batches:
        assert (end - 3 * micro_batches) / end == pytest.approx(bubble(pipeline, micro_batches))


def duration(name: str, pipeline: int, micro_batches: int) -> int:
    """Return the end of the last stage, if forward takes 1, backward 2 and sending no time."""
    waiting = [SCHEDULES[name](stage, pipeline, micro_batches) for stage in range(pipeline)]
    free, done = [0] * pipeline, dict[tuple[int, Action], int]()
    while any(waiting):
        moved = False
        for stage, actions in enumerate(waiting):
            while actions and (ready := ready_at(stage, pipeline, actions[0], done)) is not None:
                action = actions.pop(0)
                free[stage] = max(free[stage], ready) + (1 if action.kind == "forward" else 2)
                done[stage, action] = free[stage]
                moved = True
        assert moved, f"{waiting} wait for one another"
    return max(free)


def ready_at(stage: int, pipeline: int, action: Action, done: dict[tuple[int, Action], int]) -> int | None:
    """Return when the input of `action` was sent, None if it was not."""
    source = stage - 1 if action.kind == "forward" else stage + 1
    return done.get((source, action)) if 0 <= source < pipeline else 0


@given(**SIZES)
def test_activations_that_are_kept(name: str, pipeline: int, micro_batches: int) -> None:
    for stage in range(pipeline):
        live = most = 0
        for kind, _ in SCHEDULES[name](stage, pipeline, micro_batches):
            live += 1 if kind == "forward" else -1
            most = max(most, live)
        assert most == min(micro_batches, pipeline - stage if name == "1f1b" else micro_batches)


@pytest.mark.parametrize(
    ("costs", "groups", "starts"),
    [
        ([1], 1, [0]),
        ([1, 1, 1, 1], 2, [0, 2]),
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
        ([9, 1, 1, 1], 2, [0, 1]),
        ([1, 1, 1, 9], 3, [0, 1, 3]),
        ([2, 3, 4, 5, 6], 3, [0, 2, 4]),
        ([0, 0, 5], 2, [0, 1]),
    ],
)
def test_balanced(costs: list[int], groups: int, starts: list[int]) -> None:
    assert [group.start for group in stages.balanced(costs, groups)] == starts


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_no_cut_is_better_than_the_balanced_one(costs: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(costs)))
    groups = stages.balanced(costs, number)
    assert [i for group in groups for i in group] == list(range(len(costs)))
    assert len(groups) == number
    assert all(groups)
    cuts = ([0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), number - 1))
    best = min(max(sum(costs[a:b]) for a, b in pairwise(cut)) for cut in cuts)
    assert max(sum(costs[i] for i in group) for group in groups) == best


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), st.integers(1, 3))
def test_parts_of_a_tensor_join_to_the_whole(groups: int, size: int, each: int, dim: int, other: int) -> None:
    shape = [other, other]
    shape[dim] = groups * size * each
    x = torch.arange(float(shape[0] * shape[1])).view(shape)
    cut = tensor.Cut(dim, groups)
    parts = [cut.part(x, rank, size) for rank in range(size)]
    assert all(part.numel() * size == x.numel() for part in parts)
    assert torch.equal(cut.join(parts), x)


def test_ranks_of_a_stage_are_consecutive() -> None:
    positions = [tuple(layout(8, 2, 2).position(rank)) for rank in range(8)]
    assert positions[:5] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    assert layout(8, 2, 2).ranks(1, 0) == range(4, 6)
    assert len(set(positions)) == 8


@pytest.mark.parametrize(
    ("ranks", "pipeline", "tensor", "words"),
    [
        (6, 2, 2, ["= 4 ranks", "np = 6", "start 4 or 8 ranks", "1, 2, 3, 6"]),
        (3, 4, 1, ["start 4 ranks", "1, 3"]),
        (1, 1, 2, ["start 2 ranks"]),
    ],
)
def test_ranks_that_are_not_whole_copies_are_refused(ranks: int, pipeline: int, tensor: int, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        layout(ranks, pipeline, tensor)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("sizes", "micro_batches", "text"),
    [
        ((4, 2, 2), 4, "4 ranks: stage 1 on ranks 0-1, stage 2 on ranks 2-3; stages idle for 20% of a step"),
        (
            (4, 2, 1),
            1,
            "4 ranks: 2 copies of the model; in the first, stage 1 on rank 0, stage 2 on rank 1; stages idle for 50% of a step",
        ),
        ((2, 1, 2), 1, "2 ranks: stage 1 on ranks 0-1"),
    ],
)
def test_the_first_line_says_who_does_what(sizes: tuple[int, int, int], micro_batches: int, text: str) -> None:
    assert roles(layout(*sizes), micro_batches) == text


def mlp(*hidden: int) -> nn.Module:
    return plugins.create("hvd_train.models.zoo", "mlp", DataSpec((6,), 3, "classification"), hidden=list(hidden))


def transformer(**options: int) -> nn.Module:
    return plugins.create("hvd_train.models.zoo", "transformer", DataSpec((5,), 11, "language"), width=12, **options)


TOKENS, ROWS = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 6)


@pytest.mark.parametrize(
    ("model", "sample", "count", "first_of"),
    [
        (mlp(6, 6, 6), ROWS, 2, [0, 7]),
        (mlp(6, 6, 6), ROWS, 4, [0, 4, 7, 10]),
        (nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 6)), ROWS, 2, [0, 2]),
        (transformer(layers=4), TOKENS, 2, [0, 3]),
        (transformer(layers=4), TOKENS, 1, [0]),
    ],
)
def test_stages(model: nn.Module, sample: torch.Tensor, count: int, first_of: list[int]) -> None:
    """A stage begins with a layer that has parameters; other layers join the previous one."""
    assert [part.start for part in stages.stages(model, sample, count)] == first_of


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def plan(model: nn.Module, size: int) -> tensor.Plan:
    return tensor.plan(model, [stages.layers(model)], size)


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [
        (nn.Linear(6, 3), 2, ["parallel.pipeline", "Linear", "nn.Sequential", "transformer", "pipeline=1"]),
        (mlp(6), 3, ["parallel.pipeline: 3 stages", "2"]),
        (nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)), 2, ["only 1", "trained"]),
        (shared(), 2, ["'2.weight' in stage 2", "'0.weight' in stage 1"]),
    ],
)
def test_models_without_enough_stages_are_refused(model: nn.Module, count: int, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        stages.stages(model, ROWS, count)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (mlp(6, 9), 2, ["parallel.tensor: 2 ranks cannot share layer '7', 9 values to 3", "multiple of 2"]),
        (mlp(9), 2, ["the 9 neurons of layer '1'", "multiple of 2", "1, 3, 9"]),
        (transformer(heads=3), 2, ["the 3 heads of attention 'blocks.0.attention.1'", "1, 3"]),
        (nn.Linear(6, 4), 2, ["no nn.Linear within an nn.Sequential", "parallel.tensor to 1"]),
    ],
)
def test_models_that_cannot_be_shared_are_refused(model: nn.Module, size: int, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        plan(model, size)
    assert all(word in str(raised.value) for word in words), raised.value


def test_layers_are_split_in_pairs_or_singly() -> None:
    split = tensor.LinearSplit
    assert plan(mlp(4, 4), 2).linear == {"1": split("outputs"), "4": split("inputs"), "7": split("inputs", single=True)}
    odd = nn.Sequential(nn.Linear(5, 4), nn.Softmax(-1), nn.Linear(4, 3))
    assert plan(odd, 2).linear == {"0": split("outputs", single=True), "2": split("inputs", single=True)}
    assert not plan(mlp(3), 1).linear
    assert plan(shared().append(nn.Linear(6, 3)), 2).linear == {"3": split("inputs", single=True)}


def test_noise_differs_between_parts_only() -> None:
    def drawn(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        module = nn.Dropout(0.5)
        tensor._draw_own_noise(module, rank)
        return module(torch.ones(200)), torch.rand(5)

    (mine, after), (yours, too), (again, _) = drawn(0), drawn(1), drawn(0)
    assert torch.equal(mine, again)
    assert not torch.equal(mine, yours)
    assert torch.equal(after, too)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [("LBFGS", 1, ["LBFGS", "AdamW"]), ("Muon", 2, ["Muon", "parallel.tensor to 1"])],
)
def test_optimizers_that_need_whole_state_are_refused(name: str, tensor: int, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        check(name, tensor)
    assert all(word in str(raised.value) for word in words), raised.value
    check("Muon", 1)
    check("AdamW", 2)

"""Aggregates of updates: worked examples, and the effect of f poisoned updates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.sync.servers.aggregate import AGGREGATORS, LEAST, check, distances, nearest

NOT_FINITE = [math.nan, math.inf, -math.inf]
STACK = [[1.0, 40.0], [2.0, 30.0], [4.0, 20.0], [9.0, -1000.0]]


@pytest.mark.parametrize(
    ("name", "f", "rows", "expected"),
    [
        ("mean", 1, 4, [4.0, -227.5]),
        ("median", 1, 4, [3.0, 25.0]),
        ("median", 1, 3, [2.0, 30.0]),
        ("trimmed_mean", 0, 4, [4.0, -227.5]),
        ("trimmed_mean", 1, 4, [3.0, 25.0]),
        ("trimmed_mean", 1, 3, [2.0, 30.0]),
        ("krum", 1, 4, [1.0, 40.0]),
    ],
)
def test_worked_examples(name: str, f: int, rows: int, expected: list[float]) -> None:
    result = AGGREGATORS[name](torch.tensor(STACK[:rows]), f)
    torch.testing.assert_close(result, torch.tensor(expected))


def test_krum_counts_as_many_neighbours_as_the_paper() -> None:
    """With f = 1 the two nearest updates count: 26 for 0, 17 for 1, 7.25 for 5, 3.25 for 6."""
    line = torch.tensor([[0.0], [1.0], [5.0], [6.0], [7.5]])
    assert AGGREGATORS["krum"](line, 1).item() == 6
    # With f = 0 the three nearest count: 62 for 0, 42 for 1, 23.25 for 5, 28.25 for 6.
    assert AGGREGATORS["krum"](line, 0).item() == 5


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_too_few_updates_are_refused_with_the_least_number(name: str, f: int) -> None:
    least = LEAST[name](f)
    check(name, least, f)
    if least == 1:
        return
    with pytest.raises(
        UserError,
        match=rf"sync.aggregate: {name} withstands {f} Byzantine workers? among at least {least}, and .*lower sync.byzantine",
    ):
        AGGREGATORS[name](torch.zeros(least - 1, 2), f)


@st.composite
def poisoned(draw: st.DrawFn, name: str) -> tuple[Tensor, Tensor, int]:
    """Return honest updates, all updates with f attackers at random places, and f."""
    f = draw(st.integers(1, 3))
    n = draw(st.integers(LEAST[name](f), LEAST[name](f) + 3))
    width = draw(st.integers(1, 4))
    honest = [draw(_row(width, st.floats(-10, 10, width=32))) for _ in range(n - f)]
    free = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from(NOT_FINITE))
    attacks = st.one_of(_row(width, free), st.sampled_from(honest))
    rows = draw(st.permutations([*honest, *(draw(attacks) for _ in range(f))]))
    return torch.tensor(honest), torch.tensor(rows), f


def _row(width: int, numbers: Any) -> Any:
    return st.lists(numbers, min_size=width, max_size=width)


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_each_coordinate_stays_between_honest_ones(name: str, data: Any) -> None:
    honest, stack, f = data.draw(poisoned(name))
    result = AGGREGATORS[name](stack, f)
    assert (result >= honest.amin(0) - 1e-5).all()
    assert (result <= honest.amax(0) + 1e-5).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_krum_stays_as_near_to_an_honest_update_as_those_are_to_one_another(data: Any) -> None:
    honest, stack, f = data.draw(poisoned("krum"))
    result = AGGREGATORS["krum"](stack, f)
    spread = float(distances(honest).max().sqrt())
    nearest_honest = float(torch.linalg.vector_norm(honest - result, dim=1).min())
    assert nearest_honest <= math.sqrt(len(stack) - f - 2) * spread + 1e-4


@pytest.mark.parametrize("name", ["krum", "median", "trimmed_mean"])
@pytest.mark.parametrize("poison", [1e30, *NOT_FINITE])
def test_one_of_four_changes_nothing_much_where_the_mean_is_lost(name: str, poison: float) -> None:
    honest = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(1))
    stack = torch.cat([honest[:1], torch.full((1, 40_000), poison), honest[1:]])
    assert (AGGREGATORS[name](stack, 1) - honest.mean(0)).abs().max() < 6
    assert not AGGREGATORS["mean"](stack, 1).abs().max() < 1e20


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 8), st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**31))
def test_distances_of_parts_add_up_and_choose_the_same(n: int, parts: int, width: int, seed: int) -> None:
    stack = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    table = sum((distances(part) for part in stack.tensor_split(parts, 1)), torch.zeros(n, n))
    torch.testing.assert_close(table, torch.cdist(stack, stack).square(), rtol=1e-9, atol=1e-9)
    assert torch.equal(stack[nearest(table, 0)], AGGREGATORS["krum"](stack, 0))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_order_statistics_are_those_of_sort(n: int, seed: int) -> None:
    stack = torch.randn(n, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ordered = stack.sort(0).values
    f = (n - 1) // 2
    torch.testing.assert_close(AGGREGATORS["trimmed_mean"](stack, f), ordered[f : n - f].mean(0))
    torch.testing.assert_close(AGGREGATORS["median"](stack, f), stack.quantile(0.5, 0))

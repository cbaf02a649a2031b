"""Gossip graphs, and the other pure functions of strategies of replicas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.sync.replicas.topology import DIRECTED, UNDIRECTED, Round, exponential, ring, weights
from hvd_train.sync.strategies.adaptive import period
from hvd_train.sync.strategies.diloco import outer_step

SIZES, STEPS, SEEDS = st.integers(1, 17), st.integers(0, 40), st.integers(0, 9)
ROUNDS = SIZES.flatmap(lambda n: st.lists(st.permutations(range(n)).map(tuple), min_size=1, max_size=3))


@pytest.mark.parametrize("topology", [*UNDIRECTED.values(), *DIRECTED.values()], ids=lambda f: f.__name__)
@given(size=SIZES, step=STEPS, seed=SEEDS)
def test_every_round_permutes_the_ranks(topology: object, size: int, step: int, seed: int) -> None:
    assert callable(topology)
    rounds = topology(size, step, seed)
    assert rounds == topology(size, step, seed)
    assert all(sorted(to) == list(range(size)) for to in rounds)


@pytest.mark.parametrize("name", UNDIRECTED)
@given(size=SIZES, step=STEPS, seed=SEEDS)
def test_weights_are_doubly_stochastic(name: str, size: int, step: int, seed: int) -> None:
    w = weights(UNDIRECTED[name](size, step, seed))
    assert bool((w >= 0).all())
    torch.testing.assert_close(w.sum(0), torch.ones(size, dtype=torch.float64))
    torch.testing.assert_close(w.sum(1), torch.ones(size, dtype=torch.float64))


@given(ROUNDS)
def test_columns_sum_to_one_whatever_the_rounds(rounds: list[Round]) -> None:
    w = weights(rounds)
    torch.testing.assert_close(w.sum(0), torch.ones(len(w), dtype=torch.float64))


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([(0,)], [[1]]),
        ([(1, 0)], [[1 / 2, 1 / 2], [1 / 2, 1 / 2]]),
        ([(1, 2, 0)], [[1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2]]),
        ([(1, 2, 0), (0, 2, 1)], [[1 / 2, 0, 1 / 3], [1 / 2, 1 / 3, 1 / 3], [0, 2 / 3, 1 / 3]]),
    ],
)
def test_a_rank_gives_equal_parts_to_itself_and_to_whom_it_sends(
    rounds: list[Round], expected: list[list[float]]
) -> None:
    torch.testing.assert_close(weights(rounds), torch.tensor(expected, dtype=torch.float64))


def test_rings_and_pairs() -> None:
    assert ring(2, 0, 0) == [(1, 0)]
    assert ring(4, 9, 0) == [(1, 2, 3, 0), (3, 0, 1, 2)]
    assert [exponential(5, step, 0)[0][0] for step in range(4)] == [1, 2, 4, 1]
    assert exponential(1, 3, 0) == [(0,)]
    for step in range(20):
        (to,) = UNDIRECTED["random"](5, step, 1)
        assert [to[partner] for partner in to] == list(range(5)), "whom I send to sends to me"
        assert sum(to[rank] == rank for rank in range(5)) == 1
    assert len({tuple(UNDIRECTED["random"](5, step, 1)) for step in range(20)}) > 5
    assert any(bool((weights(DIRECTED["random"](4, step, 0)).sum(1) != 1).any()) for step in range(9)), (
        "push-sum matters"
    )


def spread(x: Tensor) -> float:
    return float((x - x.mean()).norm())


@pytest.mark.parametrize("size", [2, 3, 4, 7, 16])
def test_consensus_contracts_at_the_second_eigenvalue(size: int) -> None:
    """W of a ring is symmetric: the second eigenvalue is the slowest rate of contraction."""
    w = weights(ring(size, 0, 0))
    values, vectors = torch.linalg.eigh(w)
    second = int(values.abs().argsort()[-2])
    rate = float(values[second].abs())
    assert rate == pytest.approx(abs(1 + 2 * math.cos(2 * math.pi / size)) / 3 if size > 2 else 0, abs=1e-9)
    assert spread(w @ vectors[:, second]) == pytest.approx(rate * spread(vectors[:, second]))
    start = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert spread(w @ start) <= rate * spread(start) + 1e-12


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_exponential_graph_reaches_the_mean_in_log2_steps(size: int) -> None:
    x = torch.arange(size, dtype=torch.float64) ** 2
    mean = x.mean()
    for step in range((size - 1).bit_length()):
        assert spread(x) > 0.1
        x = weights(exponential(size, step, 0)) @ x
    torch.testing.assert_close(x, mean.expand(size))


@pytest.mark.parametrize("name", DIRECTED)
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_push_sum_reaches_the_mean_on_directed_graphs(name: str, size: int) -> None:
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, mass = x.mean(), torch.ones(size, dtype=torch.float64)
    for step in range(300):
        w = weights(DIRECTED[name](size, step, 0))
        x, mass = w @ x, w @ mass
    torch.testing.assert_close(x / mass, mean.expand(size))


@pytest.mark.parametrize(
    ("communication", "computation", "progress", "expected"),
    [
        (0.0, 1.0, 1.0, 1),  # a free network
        (0.1, 1.0, 1.0, 1),
        (0.8, 1.0, 1.0, 8),  # 8 steps of a second make 0.8 s a tenth
        (0.8, 1.0, 0.25, 4),  # the root of the loss
        (0.8, 1.0, 0.01, 1),
        (0.8, 1.0, 2.0, 12),  # rounded up
        (0.8, 2.0, 1.0, 4),
        (99.0, 1.0, 1.0, 64),  # bounded
    ],
)
def test_period(communication: float, computation: float, progress: float, expected: int) -> None:
    assert period(communication, computation, progress, 0.1, 64) == expected


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(1e-3, 1e3), st.floats(1, 10))
def test_the_period_falls_with_the_loss_and_with_faster_networks(
    c: float, s: float, progress: float, factor: float
) -> None:
    assert 1 <= period(c, s, progress / factor, 0.1, 64) <= period(c, s, progress, 0.1, 64) <= 64
    assert period(c / factor, s, progress, 0.1, 64) <= period(c, s, progress, 0.1, 64)


def test_outer_step() -> None:
    start, mean, velocity = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([10.0])
    assert outer_step(start, mean, velocity, 0.5, 0.25).item() == 2 - 0.5 * (1 + 0.25 * 3.5)
    assert velocity.item() == 3.5
    awkward = torch.tensor([0.1, 1e-9, 3.3], dtype=torch.float64)
    assert torch.equal(outer_step(-awkward / 3, awkward, torch.zeros(3, dtype=torch.float64), 1.0, 0.0), awkward)

"""Advantages and returns of rollouts against slow reference loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.agents.base import Rollout
from hvd_train.agents.returns import discounted, gae, vtrace

Case = tuple[Rollout, Tensor, Tensor, Tensor]


def rollout(rewards: Tensor, terminated: Tensor, ended: Tensor) -> Rollout:
    nothing = torch.zeros((*rewards.shape, 1))
    return Rollout(nothing, torch.zeros(rewards.shape).long(), nothing, rewards, nothing, terminated, ended)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a rollout, values of its observations and of what followed, and ratios of probabilities."""
    steps, rows, seed = draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(0, 2**30))
    generator = torch.Generator().manual_seed(seed)
    size = steps, rows
    ended = torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    terminated = ended & (torch.rand(size, generator=generator) < 0.5)
    rewards, values, apart, logarithms = (torch.randn(size, generator=generator).double() for _ in range(4))
    following = values.roll(-1, 0)
    following[-1] = apart[-1]
    following[ended] = apart[ended]
    return rollout(rewards, terminated, ended), values, following, logarithms.exp()


def episodes(found: Rollout, row: int) -> list[range]:
    """Return the steps of each episode of a row, or of its part in the rollout."""
    ends = [t for t in range(len(found.rewards)) if found.ended[t, row] or t == len(found.rewards) - 1]
    starts = [0, *(t + 1 for t in ends[:-1])]
    return [range(first, last + 1) for first, last in zip(starts, ends, strict=True)]


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_weighted_sum_of_later_errors(case: Case, gamma: float, lam: float) -> None:
    found, values, following, _ = case
    expected = torch.zeros_like(values)
    for row in range(values.shape[1]):
        for part in episodes(found, row):
            for t in part:
                for later in range(t, part.stop):
                    after = 0.0 if found.terminated[later, row] else following[later, row]
                    error = found.rewards[later, row] + gamma * after - values[later, row]
                    expected[t, row] += (gamma * lam) ** (later - t) * error
    torch.testing.assert_close(gae(found, values, following, gamma, lam), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(0, 1))
def test_gae_of_all_rewards_is_the_discounted_return_less_the_value(case: Case, gamma: float) -> None:
    found, values, following, _ = case
    expected = torch.zeros_like(values)
    for row in range(values.shape[1]):
        for part in episodes(found, row):
            end = part.stop - 1
            returned = 0.0 if found.terminated[end, row] else float(following[end, row])
            for t in reversed(part):
                returned = float(found.rewards[t, row]) + gamma * returned
                expected[t, row] = returned
    advantages = gae(found, values, following, gamma, 1.0)
    torch.testing.assert_close(advantages + values, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.7, 1.0]))
def test_vtrace_is_the_sum_of_the_paper(case: Case, gamma: float, weight: float, trace: float) -> None:
    found, values, following, ratios = case
    returns, advantages = values.clone(), torch.zeros_like(values)
    for row in range(values.shape[1]):
        for part in episodes(found, row):
            for t in part:
                product = 1.0
                for later in range(t, part.stop):
                    after = 0.0 if found.terminated[later, row] else following[later, row]
                    rho = min(weight, float(ratios[later, row]))
                    error = rho * (found.rewards[later, row] + gamma * after - values[later, row])
                    returns[t, row] += gamma ** (later - t) * product * error
                    product *= min(trace, float(ratios[later, row]))
            for t in part:
                after = following[t, row] if t == part.stop - 1 else returns[t + 1, row]
                after = 0.0 if found.terminated[t, row] else after
                rho = min(weight, float(ratios[t, row]))
                advantages[t, row] = rho * (found.rewards[t, row] + gamma * after - values[t, row])
    traced = vtrace(found, values, following, ratios, gamma, largest_weight=weight, largest_trace=trace)
    torch.testing.assert_close(traced, (advantages, returns), rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(cases(), st.floats(0, 1))
def test_vtrace_of_the_acting_policy_has_the_returns_of_gae_of_all_rewards(case: Case, gamma: float) -> None:
    found, values, following, _ = case
    advantages, returns = vtrace(found, values, following, torch.ones_like(values), gamma)
    expected = gae(found, values, following, gamma, 1.0)
    torch.testing.assert_close(returns, expected + values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(advantages, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=8))
def test_discounted_sums(steps: list[tuple[float, float]]) -> None:
    values, weights = (torch.tensor(part, dtype=torch.float64).unsqueeze(1) for part in zip(*steps, strict=True))
    expected = []
    for t in range(len(steps)):
        total, factor = 0.0, 1.0
        for later in range(t, len(steps)):
            total += factor * steps[later][0]
            factor *= steps[later][1]
        expected.append(total)
    assert discounted(values, weights).squeeze(1).tolist() == pytest.approx(expected, abs=1e-9)


def test_an_episode_that_was_cut_off_is_worth_more_than_one_that_terminated() -> None:
    """Worked by hand: the value 10 of the last observation counts after a limit, and not after a terminal state."""
    flags = torch.tensor([[False], [True]])
    cut = rollout(torch.ones(2, 1, dtype=torch.float64), torch.zeros_like(flags), flags)
    terminal = dataclasses.replace(cut, terminated=flags)
    values, following = torch.tensor([[3.0], [2.0]]).double(), torch.tensor([[2.0], [10.0]]).double()
    same = torch.ones(2, 1, dtype=torch.float64)
    for found, expected in ((cut, [1 + 0.5 * 6, 1 + 0.5 * 10]), (terminal, [1 + 0.5 * 1, 1.0])):
        assert (gae(found, values, following, 0.5, 1.0) + values).flatten().tolist() == expected
        assert vtrace(found, values, following, same, 0.5)[1].flatten().tolist() == expected

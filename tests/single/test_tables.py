"""Agents with a table: the values of value iteration, and equal tables on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from hvd_train.agents.algorithms import q_learning, sarsa
from hvd_train.agents.base import AgentContext, Rollout
from hvd_train.agents.exploration import Boltzmann, EpsilonGreedy, Linear
from hvd_train.agents.noise import draw
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.data.environments.base import Actions
from hvd_train.errors import UserError
from tests.bodies import action_values
from tests.bodies import training as body
from tests.bodies.action_values import Alone, walk
from tests.engines import threads

GAMMA = 0.9


def optimal_values(env: str, arguments: Mapping[str, Any]) -> Tensor:
    """Return the value of each state and action, by value iteration over the transitions of `env`."""
    made: Any = gymnasium.make(env, **arguments).unwrapped
    values = np.zeros((made.observation_space.n, made.action_space.n))
    for _ in range(500):
        best = values.max(1)
        for state, actions in made.P.items():
            for action, outcomes in actions.items():
                values[state, action] = sum(
                    p * (reward + GAMMA * best[after] * (not over)) for p, after, reward, over in outcomes
                )
    return torch.from_numpy(values)


def table(trained: dict[str, Tensor]) -> Tensor:
    return trained["weight"].T


def of_lake(size: int = 1, **options: Any) -> Any:
    agent = {"name": "q_learning", "gamma": GAMMA, "rate": 1.0, "first_exploration": 1.0, "final_exploration": 1.0}
    data = {**action_values.LAKE, "envs": 8 // size, "steps": 8, "batch_size": 64 // size}
    return action_values.configuration({**agent, **options}, {"name": "table", "initial": 0.5}, data, env_steps=6400)


def test_q_learning_finds_the_values_of_value_iteration() -> None:
    learned = table(body.trained(SingleCommunicator(), of_lake()))
    wanted = optimal_values(action_values.LAKE["env"], action_values.LAKE["arguments"])
    reached = [s for s in range(16) if s not in {5, 7, 11, 12, 15}]  # no agent acts in a hole
    torch.testing.assert_close(learned[reached], wanted[reached], rtol=0, atol=1e-3)


def test_sarsa_without_exploration_walks_the_shortest_way_along_the_cliff() -> None:
    agent = {"name": "sarsa", "gamma": 1.0, "rate": 1.0, "first_exploration": 0.0, "final_exploration": 0.0}
    data = {"env": "CliffWalking-v1", "max_steps": 100, "envs": 8, "steps": 3, "batch_size": 24}
    job = body.trainer(
        SingleCommunicator(), action_values.configuration(agent, {"name": "table"}, data, env_steps=8000)
    )
    job.run()
    assert job.evaluation.metrics["return"] == -13


@pytest.mark.parametrize("name", ["q_learning", "sarsa"])
@pytest.mark.parametrize("batch_size", [64, 24])
def test_any_number_of_ranks_learns_one_table(name: str, batch_size: int) -> None:
    """Rates fall with the visits on all ranks; a batch may be the whole rollout, or end within one."""

    def config(size: int) -> Any:
        made = of_lake(size, name=name, rate=0.7, visit_power=0.5)
        made.data.batch_size, made.train.env_steps = batch_size // size, 640
        return made

    alone = body.trained(SingleCommunicator(), config(1))
    assert len(table(alone).unique()) > 5
    for size in (2, 4):
        of_ranks = threads.run(size, lambda comm: body.trained(comm, config(comm.size)))
        for found in of_ranks:
            body.assert_close(found, alone, 1e-12)


def test_the_size_of_a_batch_does_not_change_a_table() -> None:
    def learned(batch_size: int) -> dict[str, Tensor]:
        config = of_lake()
        config.data.batch_size, config.train.env_steps = batch_size, 640
        return body.trained(SingleCommunicator(), config)

    body.assert_close(learned(10), learned(64), 1e-12)


def test_ranks_whose_rollouts_differ_in_length_learn_the_mean_too() -> None:
    """Rank 0 has two visits and rank 1 one, with batches of one sample: in the second step rank 1 has none."""

    class OfRank(Alone):
        batch_size = 1

        def __init__(self, comm: Communicator) -> None:
            super().__init__(WEIGHTS)
            self.comm = comm

        def sum(self, values: Tensor) -> Tensor:
            self.comm.all_reduce_(values, "sum")
            return values

    def moved_by(comm: Communicator) -> float:
        agent = q_learning.create(context(), gamma=0.0, rate=1.0)
        rewards = [[4.0, 6.0], [11.0]][comm.rank]
        lesson = agent.learn(walk(WEIGHTS, [0] * (len(rewards) + 1), [1] * len(rewards), rewards), OfRank(comm))
        samples = torch.tensor([2.0, 1.0])[: len(rewards)]  # of both ranks in each step
        return float((lesson.targets["moves"] / samples).sum())

    assert sum(threads.run(2, moved_by)) == pytest.approx((4 + 6 + 11) / 3 - 2)


def context(states: int = 3, choices: int = 2) -> AgentContext:
    return AgentContext(Actions(choices), (states,), states=states)


WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 4.0]], dtype=torch.float64)


def moved(agent: Any, rollout: Rollout) -> Tensor:
    """Return how far one step of SGD with lr 1.0 moves each entry of the table."""
    lesson = agent.learn(rollout, Alone(WEIGHTS))
    weights = WEIGHTS.clone().requires_grad_()
    loss = agent.loss(lesson.inputs.double() @ weights, lesson.targets) / len(lesson.inputs)
    loss.backward()
    assert weights.grad is not None
    return -weights.grad


@pytest.mark.parametrize(("cut", "expected"), [("terminated", 1 - 2), ("truncated", 1 + 0.5 * 5 - 2)])
def test_what_follows_a_cut_episode_counts_and_nothing_follows_a_terminal_state(cut: str, expected: float) -> None:
    agent = q_learning.create(context(), gamma=0.5, rate=1.0)
    rollout = walk(WEIGHTS, [0, 1], [1], [1.0], terminated=[cut == "terminated"], ended=[True])
    assert float(moved(agent, rollout)[0, 1]) == pytest.approx(expected)


def test_an_entry_moves_by_the_mean_error_of_its_visits_as_often_as_it_was_visited() -> None:
    agent = q_learning.create(context(), gamma=0.0, rate=0.5, visit_power=1.0)
    rollout = walk(WEIGHTS, [0, 0, 1, 2], [1, 1, 0], [4.0, 6.0, 1.0])
    found = moved(agent, rollout)
    assert float(found[0, 1]) == pytest.approx((1 - 0.5**2) * (5.0 - 2.0))
    assert float(found[1, 0]) == pytest.approx(0.5 * (1.0 - 3.0))
    again = moved(agent, rollout)  # two earlier visits, and one
    assert float(again[0, 1]) == pytest.approx((1 - (1 - 0.5 / 3) ** 2) * (5.0 - 2.0))
    assert float(again[1, 0]) == pytest.approx(0.25 * (1.0 - 3.0))
    assert float(again[2].abs().sum()) == 0


def test_sarsa_takes_the_value_of_the_action_that_follows_also_in_the_next_epoch() -> None:
    agent = sarsa.create(context(), gamma=0.5, rate=1.0)
    first = moved(agent, walk(WEIGHTS, [0, 1, 2], [1, 0], [1.0, 1.0]))
    assert float(first[0, 1]) == pytest.approx(1 + 0.5 * 3 - 2)
    assert float(first[1].abs().sum()) == 0, "the action after it is not known yet"
    second = moved(agent, walk(WEIGHTS, [2, 0], [1], [0.0]))
    assert float(second[1, 0]) == pytest.approx(1 + 0.5 * 4 - 3)
    resumed = sarsa.create(context(), gamma=0.5, rate=1.0)
    resumed.load(agent.state())
    assert float(moved(resumed, walk(WEIGHTS, [0, 1], [0], [0.0]))[2, 1]) == pytest.approx(0.5 * 1 - 4)


def test_sarsa_expects_the_value_of_its_policy_where_an_episode_is_cut_off() -> None:
    agent = sarsa.create(context(), gamma=0.5, rate=1.0, first_exploration=0.2)
    rollout = walk(WEIGHTS, [0, 1, 1], [1, 0], [1.0, 0.0], ended=[True, False])
    assert float(moved(agent, rollout)[0, 1]) == pytest.approx(1 + 0.5 * (0.9 * 5 + 0.1 * 3) - 2)


@pytest.mark.parametrize("made", [EpsilonGreedy(3, Linear(0.4, 0.0, 0.5)), Boltzmann(3, Linear(0.4, 0.0, 0.5))])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_actions_are_as_frequent_as_their_probabilities(made: EpsilonGreedy | Boltzmann, share: float) -> None:
    values = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
    drawn = draw(made.noise, 1, 0, [0], 20_000)[:, 0]
    chosen = made.choose(values.expand(20_000, 3), drawn, share)
    found = torch.bincount(chosen, minlength=3) / 20_000
    torch.testing.assert_close(found.double(), made.probabilities(values, share), rtol=0, atol=0.015)


def test_a_schedule_is_linear_and_then_constant() -> None:
    schedule = Linear(1.0, 0.2, 0.5)
    assert [schedule.at(share) for share in (0, 0.25, 0.5, 1)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert Linear(1.0, 0.2, 0.0).at(0.0) == 0.2


@pytest.mark.parametrize("module", [q_learning, sarsa])
def test_refusals(module: Any) -> None:
    with pytest.raises(UserError, match=r"observations have the shape \(4,\).*one of n states.*take dqn or ppo"):
        module.create(AgentContext(Actions(2), (4,)))
    with pytest.raises(UserError, match="an action of the environment is a number; take ppo or sac"):
        module.create(AgentContext(Actions(low=(0.0,), high=(1.0,)), (4,), states=4))


def test_sarsa_needs_two_steps_in_the_first_epoch() -> None:
    with pytest.raises(UserError, match=r"data\.steps: .* expected 2 or more"):
        moved(sarsa.create(context()), walk(WEIGHTS, [0, 1], [0], [0.0]))

"""DQN: n-step returns and replay against slow reference loops, targets, and resume with its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvd_train.agents.algorithms import dqn
from hvd_train.agents.base import AgentContext, Rollout
from hvd_train.agents.replay import SMALLEST_PRIORITY, Memory, Prioritised, Uniform
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.data.environments.base import Actions
from hvd_train.errors import UserError
from tests.bodies import action_values
from tests.bodies import training as body
from tests.bodies.action_values import Alone, walk
from tests.engines import threads


@st.composite
def histories(draw: Any) -> tuple[list[Rollout], int]:
    """Return the rollouts of some epochs, whose observations are their numbers, and a limit of the memory."""
    rows = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    number, rollouts = 0, []
    for steps in lengths:
        ended = torch.tensor(draw(st.lists(st.booleans(), min_size=steps * rows, max_size=steps * rows)))
        terminal = torch.tensor(draw(st.lists(st.booleans(), min_size=steps * rows, max_size=steps * rows)))
        seen = torch.arange(number, number + steps * rows, dtype=torch.float64).reshape(steps, rows)
        number += steps * rows
        rollouts.append(
            Rollout(
                seen.unsqueeze(-1),
                seen.long(),
                torch.zeros(steps, rows, 2),
                seen**2 + 1,
                seen.unsqueeze(-1) + 0.5,
                (ended & terminal).reshape(steps, rows),
                ended.reshape(steps, rows),
            )
        )
    return rollouts, draw(st.integers(1, 14)) * rows


def reference(rollouts: list[Rollout], row: int, kept: int, n: int, gamma: float) -> dict[float, tuple[float, ...]]:
    """Return by observation what follows: rewards, last observation, whether it is terminal, discount."""
    steps = [(r, t) for r in rollouts for t in range(r.size[0])][-kept:]
    found = {}
    for start in range(len(steps)):
        rewards, discount, end = 0.0, 1.0, start
        for end in range(start, min(start + n, len(steps))):
            rollout, t = steps[end]
            rewards += discount * float(rollout.rewards[t, row])
            discount *= gamma
            if rollout.ended[t, row]:
                break
        rollout, t = steps[end]
        first, at = steps[start]
        found[float(first.observations[at, row, 0])] = (
            float(first.actions[at, row]),
            rewards,
            float(rollout.following[t, row, 0]),
            float(rollout.terminated[t, row]),
            discount,
        )
    return found


@settings(max_examples=60)
@given(histories(), st.integers(1, 4), st.sampled_from([0.5, 0.9, 1.0]))
def test_transitions_are_those_of_a_loop_over_the_last_steps(
    history: tuple[list[Rollout], int], n: int, gamma: float
) -> None:
    rollouts, most = history
    memory = Memory(most)
    for rollout in rollouts:
        memory.add(rollout, 1)
    resumed = Memory(1)
    resumed.load(memory.state())
    rows = rollouts[0].size[1]
    expected = {}
    for row in range(rows):
        expected |= reference(rollouts, row, most // rows, n, gamma)
    assert memory.size == len(expected) <= most
    for one in (memory, resumed):
        found = one.transitions(torch.arange(memory.size), n, gamma)
        for i, observation in enumerate(found.observations[:, 0].tolist()):
            parts = (found.actions, found.rewards, found.following[:, 0], found.terminated, found.discounts)
            assert [float(part[i]) for part in parts] == pytest.approx(expected[observation])


def test_ranks_share_the_memory() -> None:
    memory = Memory(60)
    memory.add(walk(torch.eye(2, dtype=torch.float64), [0] * 41, [0] * 40, [0.0] * 40), workers=4)
    assert memory.size == memory.capacity == 15


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=12),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_prioritised_samples_are_those_of_a_loop(
    errors: list[float], size: int, power: float, correction: float, share: float
) -> None:
    sampling = Prioritised(power, correction)
    number = len(errors)
    sampling.add(torch.arange(number), number + 3)
    sampling.update(torch.arange(number), torch.tensor(errors, dtype=torch.float64))
    resumed = Prioritised(power, correction)
    resumed.load(sampling.state())
    positions, weights = sampling.draw(2, size, number, share, torch.Generator().manual_seed(1))
    again = resumed.draw(2, size, number, share, torch.Generator().manual_seed(1))
    assert torch.equal(positions, again[0])
    assert torch.equal(weights, again[1])

    priorities = [(error + SMALLEST_PRIORITY) ** power for error in errors]
    total, beta = sum(priorities), correction + (1 - correction) * share
    of_all = [(number * p / total) ** -beta for p in priorities]
    drawn = torch.rand(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for batch in range(2):
        for part in range(size):
            left, position = (part + float(drawn[batch, part])) / size * total, 0
            while position < number - 1 and left >= priorities[position]:
                left -= priorities[position]
                position += 1
            found = int(positions[batch * size + part])
            if priorities[position] != pytest.approx(priorities[found]):
                # Rounding may move a point over the border of two steps.
                assert abs(found - position) == 1
                assert min(left, abs(priorities[position] - left)) < 1e-9 * total
            weight = float(weights[batch * size + part])
            assert weight == pytest.approx(of_all[found] / max(of_all))


def test_new_steps_have_the_largest_priority_so_far() -> None:
    sampling = Prioritised(1.0, 0.0)
    sampling.add(torch.tensor([0, 1]), 4)
    sampling.update(torch.tensor([0, 1]), torch.tensor([9.0, 0.0]))
    sampling.add(torch.tensor([2]), 4)
    positions, _ = sampling.draw(1, 1000, 3, 0.0, torch.Generator().manual_seed(1))
    assert torch.bincount(positions, minlength=3).tolist() == [500, 0, 500]


CONTEXT = AgentContext(Actions(2), (3,))
WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 4.0]], dtype=torch.float64)


def learned(weights: Tensor, rollout: Rollout, **options: Any) -> dict[float, float]:
    """Return the target by the state of a sample."""
    agent = dqn.create(CONTEXT, warmup=0, updates=20.0, gamma=0.5, **options)
    lesson = agent.learn(rollout, Alone(weights))
    assert len(lesson.inputs) == 20 * len(rollout.rewards) * Alone.batch_size
    return dict(zip(lesson.inputs.argmax(-1).tolist(), lesson.targets["values"].tolist(), strict=True))


@pytest.mark.parametrize(("cut", "expected"), [("terminated", 1.0), ("truncated", 1 + 0.5 * 5)])
def test_an_episode_that_was_cut_off_goes_on(cut: str, expected: float) -> None:
    rollout = walk(WEIGHTS, [0, 1], [1], [1.0], terminated=[cut == "terminated"], ended=[True])
    assert learned(WEIGHTS, rollout) == {0: pytest.approx(expected)}


def test_the_rewards_of_n_steps_are_summed() -> None:
    rollout = walk(WEIGHTS, [0, 1, 2], [1, 0], [1.0, 4.0])
    assert learned(WEIGHTS, rollout, n_step=2)[0] == pytest.approx(1 + 0.5 * 4 + 0.25 * 7)


@pytest.mark.parametrize(("double", "expected"), [(True, 3.0), (False, 5.0)])
def test_the_double_estimate_takes_the_models_choice_at_the_targets_value(double: bool, expected: float) -> None:
    """The model prefers action 0 in state 1, the target network, which is older, action 1."""
    agent = dqn.create(CONTEXT, warmup=0, updates=1.0, gamma=1.0, double=double, target_interval=10**6)
    rollout = walk(WEIGHTS, [0, 1], [1], [0.0])
    agent.learn(rollout, Alone(WEIGHTS))
    lesson = agent.learn(rollout, Alone(WEIGHTS.flip(1)))
    assert set(lesson.targets["values"].tolist()) == {expected}


def test_the_target_network_is_renewed_after_the_updates_of_the_interval() -> None:
    agent = dqn.create(CONTEXT, warmup=0, updates=1.0, gamma=1.0, double=False, target_interval=2)
    rollout = walk(WEIGHTS, [0, 1], [1], [0.0])
    targets = [agent.learn(rollout, Alone(WEIGHTS * factor)).targets["values"] for factor in (1, 2, 3, 4, 5)]
    assert [float(t[0]) for t in targets] == [5, 5, 15, 15, 25]


def test_a_duelling_network_adds_advantages_to_a_value() -> None:
    agent = dqn.create(CONTEXT, duelling=True)
    assert agent.outputs == 3
    outputs = torch.tensor([[10.0, -1.0, 3.0]], requires_grad=True)
    batch = {name: torch.zeros(1) for name in ("values", "weights")}
    loss = agent.loss(
        outputs, {**batch, "weights": torch.ones(1), "actions": torch.tensor([0]), "positions": torch.tensor([0])}
    )
    assert isinstance(loss, Tensor)
    assert float(loss.detach()) == pytest.approx(10 - 2 - 0.5)  # the value is 8, the Huber loss |8| - 0.5
    assert agent.best(outputs).tolist() == [1]


def test_updates_are_those_of_the_environment_steps_after_the_warmup() -> None:
    agent = dqn.create(CONTEXT, warmup=6, updates=0.4, n_step=1)
    learner = Alone(WEIGHTS)
    first = agent.learn(walk(WEIGHTS, [0] * 11, [0] * 10, [0.0] * 10), learner)
    numbers = [len(first.inputs) // learner.batch_size]
    for _ in range(4):
        lesson = agent.learn(walk(WEIGHTS, [0] * 5, [0] * 4, [0.0] * 4), learner)
        numbers.append(len(lesson.inputs) // learner.batch_size)
    assert numbers == [1, 2, 1, 2, 2]  # 0.4 times 4, 8, 12, 16 and 20


def of_cartpole(size: int, env_steps: int, **options: Any) -> Any:
    agent = {"name": "dqn", "warmup": 16, "updates": 0.5, "target_interval": 12, "buffer": 80, **options}
    data = {"env": "CartPole-v1", "envs": 4 // size, "steps": 4, "batch_size": 8 // size}
    model = {"name": "mlp", "hidden": [8]}
    config = action_values.configuration(agent, model, data, lr=0.05, env_steps=env_steps)
    config.train.precision = "fp32"
    return config


VARIANTS: list[dict[str, Any]] = [{}, {"prioritised": True, "duelling": True, "n_step": 3, "exploration": "boltzmann"}]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [1, 2])
def test_resume_in_the_middle_of_an_epoch_is_bitwise(tmp_path: Path, size: int, options: dict[str, Any]) -> None:
    def run(comm: Communicator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config = of_cartpole(size, 160, **options)
        through, second = action_values.resumed(comm, tmp_path, config, 35)  # the fifth epoch has steps 33 to 40
        return body.parameters(through), body.parameters(second)

    for through, second in threads.run(size, run):
        for name, value in through.items():
            assert torch.equal(value, second[name]), name


def test_ranks_make_as_many_updates_as_one_process() -> None:
    def updates(comm: Communicator) -> int:
        job = body.trainer(comm, of_cartpole(comm.size, 96))
        job.run()
        return job.progress.step

    assert updates(SingleCommunicator()) == 40  # half of 96 - 16
    assert threads.run(2, updates) == [40, 40]


def test_uniform_samples_follow_from_the_generator() -> None:
    drawn = [Uniform().draw(2, 3, 5, 0.0, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"'dqn' learns a value for each of several choices.*a number; take ppo or sac"):
        dqn.create(AgentContext(Actions(low=(0.0,), high=(1.0,)), (3,)))
    agent = dqn.create(CONTEXT, warmup=0, updates=0.1)
    with pytest.raises(
        UserError, match=r"agent\.updates: 0\.1 for each of the 4 .* raise data\.steps or agent\.updates"
    ):
        agent.learn(walk(WEIGHTS, [0] * 5, [0] * 4, [0.0] * 4), Alone(WEIGHTS))

"""Environments of several agents: rows that share a model or have one each, and values that see all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hvd_train.agents.actor_critic import normalised
from hvd_train.agents.algorithms import ppo
from hvd_train.agents.base import ACTIVE, AgentContext, Learner, Lesson, Rollout
from hvd_train.agents.loss import AgentLoss
from hvd_train.agents.rewards import RewardScale
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.data.batch import Batch
from hvd_train.data.environments.copies import Copies
from hvd_train.data.environments.parallel import Perceived
from hvd_train.data.sources import pettingzoo as source
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from tests.bodies import agents as body
from tests.bodies import training
from tests.engines import threads

MEET = "tests.bodies.environments:Meet"
TEAM = {"name": "pettingzoo", "env": MEET, "steps": 8, "identify": True, "state": True}


def test_an_observation_has_the_number_the_own_part_and_the_state_in_this_order() -> None:
    observed = np.array([[[1.0, 2.0]], [[3.0, 4.0]]], np.float32)
    both = Perceived(2, (1, 2), identify=True, state=True)
    assert both(observed).tolist() == [[1, 0, 1, 2, 1, 2, 3, 4], [0, 1, 3, 4, 1, 2, 3, 4]]
    assert (both.shape, both.policy_inputs) == ((8,), 4)
    own = Perceived(2, (1, 2), identify=False, state=False)
    assert own(observed) is observed
    assert (own.shape, own.policy_inputs) == ((1, 2), 0)
    named = Perceived(2, (1, 2), identify=True, state=False)
    assert (named(observed).tolist()[1], named.shape, named.policy_inputs) == ([0, 1, 3, 4], (4,), 0)


def test_the_agents_of_a_copy_are_rows_with_rewards_of_their_own_and_equal_ends() -> None:
    made = source.create(env=MEET, arguments={"max_cycles": 2}, identify=True).train
    assert (made.agents, made.rows, made.most_steps) == (2, 16, 2)
    copies = Copies(made, [0, 1])
    copies.start(lambda copy: copy)
    assert copies.observations[:, :2].tolist() == [[1, 0], [0, 1]] * 2
    for ended in (False, True):
        steps = copies.step(np.array([1, 1, 1, 1]), lambda copy: 9)
        assert steps.rewards[0] == steps.rewards[1] == float(steps.following[0, 2] == steps.following[1, 2])
        assert steps.ended.tolist() == [ended] * 4
        assert not steps.terminated.any()
    assert [episode.length for episode in copies.finished] == [2, 2]


@pytest.mark.parametrize("name", ["actor_critic", "per_agent"])
def test_a_policy_sees_its_own_part_only_and_the_value_the_state(name: str) -> None:
    torch.manual_seed(0)
    spec = DataSpec((6,), 4, "control", agents=2, policy_inputs=3)
    model = plugins.create("hvd_train.models.zoo", name, spec)
    x = torch.tensor([[1.0, 0.0, 0.3, 0.1, 0.2, 0.4]], requires_grad=True)
    outputs = model(x)
    (of_policy,) = torch.autograd.grad(outputs[0, :3].square().sum(), x, retain_graph=True)
    (of_value,) = torch.autograd.grad(outputs[0, 3], x)
    assert of_policy[0, 2] != 0
    assert not of_policy[0, 3:].any()
    assert of_value[0, 2:].all()


def test_each_agent_trains_its_own_model() -> None:
    torch.manual_seed(0)
    model = plugins.create("hvd_train.models.zoo", "per_agent", DataSpec((3,), 4, "control", agents=2))
    x = torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, 0.3]])
    own = torch.stack([model.models[row](x)[row] for row in range(2)])
    torch.testing.assert_close(model(x), own, rtol=0, atol=0)
    torch.testing.assert_close(model((x - 0.5) * 3), torch.stack([model.models[r]((x - 0.5) * 3)[r] for r in range(2)]))
    model(x)[1].sum().backward()
    assert not any(p.grad.any() for p in model.models[0].parameters())
    assert all(p.grad.any() for p in model.models[1].parameters())


def test_models_of_agents_need_their_numbers() -> None:
    with pytest.raises(UserError, match=r"observations do not name their agent; set data\.identify to true"):
        plugins.create("hvd_train.models.zoo", "per_agent", DataSpec((3,), 4, "control"))


def test_a_shared_trunk_is_refused_with_a_state() -> None:
    spec = DataSpec((6,), 4, "control", policy_inputs=3)
    with pytest.raises(UserError, match=r"model\.shared: the value sees what the policy must not"):
        plugins.create("hvd_train.models.zoo", "actor_critic", spec, shared=True)


REFUSED: dict[str, dict[str, Any]] = {
    r"no module 'rps_v3' in package 'pettingzoo\.classic'; did you mean 'rps_v2'": {"env": "pettingzoo.classic.rps_v3"},
    r"importing '.*pistonball_v6' failed: ModuleNotFoundError.*pymunk": {"env": "pettingzoo.butterfly.pistonball_v6"},
    r"returned Walk, expected a pettingzoo\.ParallelEnv": {"env": "tests.bodies.environments:Walk"},
    r"with {'length': 3}: TypeError": {"env": MEET, "arguments": {"length": 3}},
    r"agent 'left' .* one of 3 choices, agent 'right' .* one of 4 choices; expected equal ones": {
        "env": MEET,
        "arguments": {"unlike": True},
    },
    r"data\.identify: agents of .* perceive pictures, expected vectors": {
        "env": "pettingzoo.butterfly.cooperative_pong_v6",
        "identify": True,
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_one_sentence(sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        source.create(**REFUSED[sentence])


@pytest.mark.parametrize("model", ["actor_critic", "per_agent"])
def test_ranks_with_several_agents_equal_one_process(model: str) -> None:
    def trained(comm: Communicator) -> dict[str, torch.Tensor]:
        given = {"model": {"name": model}, "data": TEAM, "agent": body.NORMALISED}
        return training.trained(comm, body.configuration(comm.size, **given, train={"epochs": 3}))

    expected = trained(SingleCommunicator())
    for found in threads.run(2, trained):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_a_game_of_pettingzoo_is_played_and_evaluated() -> None:
    """Rock, paper, scissors: what one agent gains the other loses, and both are rows of one policy."""
    data = {"name": "pettingzoo", "env": "pettingzoo.classic.rps_v2", "steps": 20, "arguments": {"max_cycles": 10}}
    job = training.trainer(SingleCommunicator(), body.configuration(1, data=data, train={"epochs": 2}))
    job.run()
    assert job.data.spec.input_shape == (4,)
    assert job.progress.env_steps == 2 * 20 * body.COPIES
    assert job.evaluation.metrics["return"] == 0
    assert job.evaluation.metrics["episode_length"] == 10


LEAVES = {"leaves": True, "max_cycles": 5}


def test_an_agent_that_leaves_perceives_zeros_and_is_not_active_until_all_have_ended() -> None:
    made = source.create(env=MEET, arguments=LEAVES).train
    copies = Copies(made, [0])
    copies.start(lambda copy: 3)
    found = [copies.step(np.array([1, 1]), lambda copy: 3) for _ in range(6)]
    left, right = ([[bool(x) for x in (s.active[r], s.terminated[r], s.ended[r])] for s in found] for r in range(2))
    goes_on, gone = [True, False, False], [False, True, True]
    assert left == [goes_on, goes_on, [True, True, True], gone, gone, goes_on]
    assert right == [goes_on, goes_on, goes_on, goes_on, [True, False, True], goes_on]
    assert [float(s.following[0, 0]) for s in found[3:5]] == [0.0, 0.0]
    assert [float(s.rewards[0]) for s in found[3:5]] == [0.0, 0.0]
    assert copies.finished[0].length == 5


def test_samples_of_agents_that_have_left_are_not_in_the_loss() -> None:
    context = AgentContext(source.create(env=MEET).train.actions, (1,))
    loss = AgentLoss(ppo.create(context))
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets = {
        "actions": torch.tensor([0, 1, 2, 0, 1, 2]),
        "log_probabilities": torch.full((6,), -1.0),
        "advantages": torch.arange(6.0),
        "returns": torch.ones(6),
    }
    active = torch.tensor([True, False, True, True, False, False])

    def total(outputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = loss(outputs, Batch(None, targets, torch.arange(len(outputs)), torch.arange(len(outputs))))
        assert isinstance(parts, dict)
        return torch.stack(list(parts.values())).sum()

    masked = total(outputs, {**targets, ACTIVE: active})
    torch.testing.assert_close(masked, total(outputs[active], {n: v[active] for n, v in targets.items()}))
    (gradient,) = torch.autograd.grad(masked, outputs)
    assert gradient[active].any(1).all()
    assert not gradient[~active].any()
    assert total(outputs, {**targets, ACTIVE: torch.zeros(6, dtype=torch.bool)}) == 0


def test_what_is_normalised_is_that_of_active_agents() -> None:
    values = torch.tensor([[1.0, 100.0], [3.0, 100.0]], dtype=torch.float64)
    active = torch.tensor([[True, False], [True, False]])
    learner = SimpleNamespace(active=active, sum=lambda tensor: tensor)
    assert normalised(values, learner)[:, 0].tolist() == pytest.approx([-1, 1])  # type: ignore[arg-type]
    scale = RewardScale(1.0, 0.0)
    ended = torch.tensor([[False, True], [False, True]])
    assert scale.scaled(values, ended, lambda tensor: tensor, active)[:, 0].tolist() == pytest.approx([1, 3])


def test_ranks_equal_one_process_though_agents_leave() -> None:
    def trained(comm: Communicator) -> dict[str, torch.Tensor]:
        data = {**TEAM, "arguments": LEAVES}
        config = body.configuration(comm.size, data=data, agent=body.NORMALISED, train={"epochs": 3})
        job = training.trainer(comm, config)
        job.run()
        assert job.collector is not None
        assert job.collector.active is not None
        return training.parameters(job)

    expected = trained(SingleCommunicator())
    for found in threads.run(2, trained):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


class InOrder(ppo.PPO):
    """Keeps the order of its samples, as one that draws from a replay buffer does."""

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        return replace(super().learn(rollout, learner), in_order=True)


def in_order(context: AgentContext) -> Any:
    made = ppo.create(context)
    made.__class__ = InOrder
    return made


def test_an_agent_that_orders_its_samples_itself_needs_agents_that_stay() -> None:
    agent = {
        "target": "tests.single.test_pettingzoo:in_order",
        "name": None,
        "passes": None,
        "gamma": None,
        "lam": None,
    }

    def train(arguments: dict[str, Any]) -> None:
        config = body.configuration(1, data={**TEAM, "arguments": arguments}, agent=agent, train={"epochs": 1})
        training.trainer(SingleCommunicator(), config).run()

    train({})
    with pytest.raises(UserError, match=r"agent: agents of .* end their episodes before others"):
        train(LEAVES)


def test_a_copy_whose_agent_has_left_is_played_to_its_end_in_an_evaluation() -> None:
    made = source.create(
        env=MEET, arguments={"leaves": True}, variants=[{"max_cycles": 4}, {"max_cycles": 6}], max_steps=9
    ).train
    copies = Copies(made, [0, 1])
    copies.start(lambda copy: copy)
    rows = []
    while copies.playing:
        steps = copies.step(np.ones(len(copies.observations), int), None)
        rows.append((len(steps.rewards), copies.playing))
    assert rows == [(4, [0, 1])] * 3 + [(4, [1]), (2, [1]), (2, [])]
    assert [(episode.copy, episode.length) for episode in copies.finished] == [(0, 4), (1, 6)]

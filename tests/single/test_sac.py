"""Soft actor-critic: which parameters each loss trains, the targets, and the temperature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hvd_train.agents.algorithms import sac
from hvd_train.agents.base import Agent, AgentContext
from hvd_train.compute.calling import caller
from hvd_train.data.environments.base import Actions
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.zoo import soft_actor_critic
from tests.bodies.learners import Alone, step

NUMBERS = Actions(low=(-2.0, 0.0), high=(2.0, 10.0))
PARTS = ("policy", "critics", "log_temperature")


@pytest.fixture
def model() -> soft_actor_critic.SoftActorCritic:
    torch.manual_seed(3)
    made = soft_actor_critic.create(DataSpec((3,), 4, "control"), hidden=[16])
    assert isinstance(made, soft_actor_critic.SoftActorCritic)
    with torch.no_grad():
        made.log_temperature.fill_(0.5)
    return made


@pytest.fixture
def agent() -> Agent:
    return sac.create(AgentContext(NUMBERS, (3,)))


def inputs(rows: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"observation": 3, "action": 2, "noise": 2}
    return {name: torch.randn(rows, size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("loss", "trained"), [("critic", "critics"), ("actor", "policy"), ("temperature", "log_temperature")]
)
def test_each_loss_trains_its_own_parameters_only(
    model: soft_actor_critic.SoftActorCritic, agent: Agent, loss: str, trained: str
) -> None:
    losses = agent.loss(caller(model)(inputs()), {"returns": torch.ones(32)})
    assert isinstance(losses, dict)
    losses[loss].backward()  # type: ignore[no-untyped-call]
    for name, value in model.named_parameters():
        size = 0.0 if value.grad is None else float(value.grad.abs().sum())
        assert (size > 0) == (name.split(".")[0] == trained), name


def test_the_actor_loss_has_the_gradient_of_the_paper(model: soft_actor_critic.SoftActorCritic, agent: Agent) -> None:
    """Against a second computation with torch's own distributions, whose critics are not frozen."""
    given = inputs()
    losses = agent.loss(caller(model)(given), {"returns": torch.ones(32)})
    assert isinstance(losses, dict)
    found = torch.autograd.grad(losses["actor"], list(model.policy.parameters()), retain_graph=True)
    mean, deviation = model.policy(given["observation"]).chunk(2, dim=1)
    normal = torch.distributions.Normal(mean, deviation.exp())
    before = mean + deviation.exp() * given["noise"]
    action = before.tanh()
    density = (normal.log_prob(before) - torch.log(1 - action.square())).sum(1)
    loss = (math.exp(0.5) * density - model.critics(given["observation"], action).min(1).values).sum()
    for one, other in zip(found, torch.autograd.grad(loss, list(model.policy.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("deviation", [-3.0, 1.0])
def test_the_temperature_moves_the_entropy_towards_its_target(
    model: soft_actor_critic.SoftActorCritic, agent: Agent, deviation: float
) -> None:
    """It rises while the entropy is below the target of -2 nats, and falls above it."""
    with torch.no_grad():
        last = list(model.policy.parameters())[-2:]
        last[0].zero_()
        last[1].copy_(torch.tensor([0.0, 0.0, deviation, deviation]))
    outputs = caller(model)(inputs(1000))
    losses = agent.loss(outputs, {"returns": torch.ones(1000)})
    assert isinstance(losses, dict)
    losses["temperature"].backward()  # type: ignore[no-untyped-call]
    assert model.log_temperature.grad is not None
    entropy = -float(outputs[:, 4].detach().mean())
    assert (float(model.log_temperature.grad) < 0) == (entropy < -2)
    assert (deviation < 0) == (entropy < -2)


def test_actions_fill_the_range_of_the_environment(agent: Agent) -> None:
    outputs = torch.tensor([[50.0, -50.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert agent.best(outputs).tolist() == [[2.0, 0.0], [0.0, 5.0]]
    torch.testing.assert_close(agent.act(outputs, torch.zeros(2, 2), 0.0), agent.best(outputs))


def test_the_model_alone_returns_the_policy(model: soft_actor_critic.SoftActorCritic) -> None:
    observation = inputs()["observation"]
    assert torch.equal(model(observation), model.policy(observation))


@pytest.mark.parametrize(("terminated", "expected"), [(True, 1.0), (False, 1 + 0.5 * (3 - 2 * -4))])
def test_what_follows_a_step_counts_unless_the_state_was_terminal(terminated: bool, expected: float) -> None:
    """Target critics say 3 and 7, the log-density is -4 and the temperature 2."""
    agent = sac.create(AgentContext(NUMBERS, (1,)), gamma=0.5, warmup=0)
    columns = torch.tensor([0.0, 0.0, 3.0, 7.0, -4.0, 2.0])
    columns[-1] = columns[-1].log()
    learner = Alone(lambda given, _: columns.expand(len(given["observation"]), -1))
    lesson = agent.learn(step(1, torch.zeros(4), torch.zeros(2), terminated=terminated), learner)
    assert lesson.targets["returns"].tolist() == pytest.approx([expected])
    assert lesson.inputs["observation"].tolist() == [[0.0]]
    assert lesson.inputs["action"].tolist() == [[0.0, -1.0]], "actions are learned in units of half their range"


def test_target_critics_follow_by_tau_for_each_update() -> None:
    """2 updates an epoch. The critics are 1 at first and 2 then, and the policy is never a target."""
    seen = []

    def model(given: dict[str, Tensor], parameters: dict[str, Tensor]) -> Tensor:
        seen.append({name: float(value) for name, value in parameters.items()})
        return torch.zeros(len(given["observation"]), 6)

    agent = sac.create(AgentContext(NUMBERS, (1,)), warmup=0, updates=2, tau=0.1)
    for value in (1.0, 2.0):
        own = {"critics.first": torch.tensor(value), "policy": torch.tensor(value)}
        lesson = agent.learn(step(1, torch.zeros(4), torch.zeros(2)), Alone(model, own))
    assert len(lesson.targets["returns"]) == 2
    assert seen[0] == {"critics.first": 1.0, "policy": 1.0}
    assert seen[1] == {"critics.first": pytest.approx(2 - 0.9**2), "policy": 2.0}


def test_updates_are_due_after_the_warm_up_and_none_is_an_error() -> None:
    agent = sac.create(AgentContext(NUMBERS, (1,)), warmup=3, updates=1)
    learner = Alone(lambda given, _: torch.zeros(len(given["observation"]), 6))
    with pytest.raises(UserError, match="less than one update"):
        agent.learn(step(1, torch.zeros(4), torch.zeros(2)), learner)

"""REINFORCE, A2C, PPO and IMPALA: ranks equal one process, and runs are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_train.agents.algorithms import impala
from hvd_train.agents.base import AgentContext
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.config.schema import Config
from hvd_train.data.environments.base import Actions
from hvd_train.errors import Stopped, UserError
from hvd_train.monitor.base import Sink
from hvd_train.training import checkpoint
from tests.bodies import training as body
from tests.bodies.learners import Alone, step
from tests.engines import threads

ALONE = SingleCommunicator()
AGENTS: dict[str, dict[str, Any]] = {
    "a2c": {"name": "a2c", "normalise_advantages": True},
    "reinforce": {"name": "reinforce"},
    "impala": {"name": "impala", "replayed": 2, "normalise_advantages": True},
    "ppo": {"name": "ppo", "passes": 2, "clip": 0.02, "clip_schedule": "linear"},
    "sac": {"name": "sac", "warmup": 6, "updates": 0.25, "buffer": 80},
}


def configuration(name: str, envs: int = 4, **train: Any) -> Config:
    """Return a run of `envs` environments a rank; an epoch has two batches of 8 environments, or more."""
    numbers = name == "sac"
    values: dict[str, Any] = {
        "model": {"name": "soft_actor_critic" if numbers else "actor_critic", "hidden": [8]},
        "data": {
            "name": "gymnasium",
            "env": "Pendulum-v1" if numbers else "CartPole-v1",
            "envs": envs,
            "steps": 8,
            "batch_size": 4 * envs,
            "episodes": 0,
        },
        "agent": AGENTS[name],
        "optimizer": {"name": "Adam", "lr": 0.01},
        "train": {"log_every": 1, **train},
    }
    return resolve(Document(values, "test"))


class Signal(Sink):
    """Asks a run to stop after `at` steps."""

    def __init__(self, at: int) -> None:
        self._at, self._step = at, 0

    def step(self, step: int) -> None:
        self._step = step

    def stop(self) -> bool:
        return self._step >= self._at


@pytest.mark.parametrize("name", ["a2c", "reinforce", "impala", "ppo"])
def test_ranks_equal_one_process(name: str) -> None:
    exact = {"epochs": 4, "precision": "fp64"}
    expected = body.trained(ALONE, configuration(name, **exact))
    shared = configuration(name, envs=2, **exact)
    for found in threads.run(2, lambda comm: body.trained(comm, shared)):
        body.assert_close(found, expected, tolerance=1e-12)


def test_ranks_of_sac_learn_from_experience_of_their_own_and_stay_equal() -> None:
    shared = configuration("sac", envs=2, epochs=2)
    first, second = threads.run(2, lambda comm: body.trained(comm, shared))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["impala", "ppo", "sac"])
def test_resumed_in_the_middle_of_an_epoch_is_bitwise_equal(name: str, tmp_path: Path) -> None:
    config = configuration(name, env_steps=128)
    through = body.trained(ALONE, config)
    signal = Signal(6)
    first = body.trainer(ALONE, config, checkpoints=tmp_path / "checkpoints", sinks=[signal], stop=signal.stop)
    with pytest.raises(Stopped):
        first.run()
    assert 0 < first.progress.step_in_epoch < (first.progress.steps_of_epoch or 0)
    torch.manual_seed(999)
    second = body.trainer(ALONE, config)
    second.restore(checkpoint.load(tmp_path, ALONE, print))
    second.run()
    assert second.progress.epoch == 4
    assert all(torch.equal(value, through[part]) for part, value in body.parameters(second).items())


def test_the_policy_lag_counts_the_batches_since_the_policy_acted() -> None:
    """Epochs of 2, 4 and 6 batches. Permutations differ, so that the sums over epochs are exact."""
    log = body.Log()
    body.trainer(ALONE, configuration("impala", epochs=3, log_every=1), sinks=[log]).run()
    lags = [record["policy_lag"] for record in log.trained]
    assert lags[:2] == [0, 1]
    assert sum(lags[2:6]) == pytest.approx(4 * 1 + (0 + 1 + 2 + 3))
    assert sum(lags[6:]) == pytest.approx(6 * (6 + 4 + 0) / 3 + sum(range(6)))


def test_impala_learns_from_an_older_rollout_by_the_ratio_of_probabilities() -> None:
    """The model changes between two rollouts, so that the ratios of the first one are no longer 1."""
    agent = impala.create(AgentContext(Actions(choices=2), (1,)), gamma=0.5, replayed=1)
    acted, now = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 3.0])
    for outputs in (acted, now):
        learner = Alone(lambda observations, _, outputs=outputs: outputs.expand(len(observations), -1))
        lesson = agent.learn(step(5, outputs, torch.tensor(1)), learner)
    ratio = float(now[:2].softmax(0)[1]) / 0.5
    assert lesson.targets["advantages"].tolist() == pytest.approx([ratio * 2, 2])
    assert lesson.targets["returns"].tolist() == pytest.approx([3 + ratio * 2, 5])


def test_agents_that_do_not_fit_are_refused() -> None:
    for name, section, options, text in (
        ("sac", "data", {"env": "CartPole-v1"}, "one of 2 choices; take 'ppo' or 'dqn'"),
        ("sac", "model", {"name": "mlp"}, "does not take \\(observation, action, noise\\)"),
        ("a2c", "model", {"name": "soft_actor_critic"}, "for the agent 'sac'"),
    ):
        values = configuration(name).model_dump(exclude_unset=True)
        values[section] = {**values[section], **options} if section == "data" else options
        with pytest.raises(UserError, match=text):
            body.trainer(ALONE, resolve(Document(values, "test")))

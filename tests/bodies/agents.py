"""Bodies of tests of agents, for every engine: functions of a communicator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.config.schema import Config
from hvd_train.training import checkpoint
from tests.bodies import training as body

COPIES = 8
"""Copies of the environment on all ranks."""


def configuration(size: int, **sections: Any) -> Config:
    """Return PPO on CartPole in float64 with the same copies and batches on any `size`, a divisor of `COPIES`."""
    values: dict[str, Any] = {
        "seed": 3,
        "model": {"name": "actor_critic", "hidden": [8]},
        "data": {
            "name": "gymnasium",
            "env": "CartPole-v1",
            "envs": COPIES // size,
            "steps": 16,
            "batch_size": 32 // size,
            "episodes": 3,
        },
        "agent": {"name": "ppo", "passes": 2, "gamma": 0.98, "lam": 0.8},
        "optimizer": {"name": "Adam", "lr": 0.01},
        "train": {"epochs": 4, "precision": "fp64", "clip_norm": 0.5, "log_every": 3},
    }
    for name, fields in sections.items():
        merged = {**values.get(name, {}), **fields}
        values[name] = {word: value for word, value in merged.items() if value is not None}
    with body.ONE_AT_A_TIME:
        return resolve(Document(values, "test"))


NORMALISED = {"normalise_observations": True, "normalise_rewards": True}


def equals_one_process(comm: Communicator) -> None:
    """N ranks with 1 / N of the copies each end with the parameters of one process."""
    with body.alone(comm):
        expected = body.trained(SingleCommunicator(), configuration(1, agent=NORMALISED))
    found = body.trained(comm, configuration(comm.size, agent=NORMALISED))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def resumed_is_bitwise_equal(comm: Communicator, folder: Path, **sections: Any) -> None:
    """A run that resumes in the middle of an epoch, and of episodes, equals one that was not stopped."""

    def config(steps: int) -> Config:
        given = {**sections, "train": {**sections.get("train", {}), "epochs": None, "steps": steps}}
        return configuration(comm.size, **{**given, "checkpoint": {"every": 11}})

    through = body.trainer(comm, config(27))
    through.run()
    body.trainer(comm, config(11), checkpoints=folder / "checkpoints").run()
    second = body.trainer(comm, config(27))
    second.restore(checkpoint.load(folder, comm, print))
    second.run()
    assert second.progress.env_steps == through.progress.env_steps
    for name, value in body.parameters(through).items():
        assert torch.equal(value, body.parameters(second)[name]), name


def every_strategy_counts_steps_and_learns(comm: Communicator) -> None:
    """Each strategy moves the parameters, and collects what was asked for."""
    wanted = 3 * COPIES * 16
    for strategy in plugins.names("hvd_train.sync.strategies"):
        train = {"epochs": None, "env_steps": wanted}
        config = configuration(comm.size, sync={"strategy": strategy}, train=train)
        if config.sync.asynchronous and type(comm).__module__.endswith("horovod"):
            continue  # Horovod's engine has no mailbox
        job = body.trainer(comm, config)
        before = body.parameters(job)
        job.run()
        after = body.parameters(job)
        assert any(_moved(value, after[name]) for name, value in before.items()), strategy
        served = job.strategy.members.share(0) is None
        assert served or wanted <= job.progress.env_steps < wanted + COPIES * 16 * comm.size, strategy
        if job.group.observes:
            assert math.isfinite(float(job.evaluation.metrics["return"])), strategy  # type: ignore[arg-type]


ONCE = {"passes": None, "lam": None}
MEMORY = {**ONCE, "buffer": 400, "warmup": 32, "updates": 0.1}
TABLE = {
    "agent": {**ONCE, "rate": 0.5},
    "model": {"name": "table", "initial": 1.0, "hidden": None},
    "data": {"env": "FrozenLake-v1", "max_steps": 20},
    "optimizer": {"name": "SGD", "lr": 1.0},
    "train": {"clip_norm": None},
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "a2c": {"agent": ONCE},
    "impala": {"agent": ONCE},
    "reinforce": {"agent": ONCE},
    "dqn": {"agent": MEMORY, "model": {"name": "mlp"}},
    "sac": {"agent": MEMORY, "model": {"name": "soft_actor_critic"}, "data": {"env": "Pendulum-v1"}},
    "q_learning": TABLE,
    "sarsa": TABLE,
}
"""Sections of a run of each algorithm, beside those of `configuration`."""


def every_algorithm_learns(comm: Communicator) -> None:
    """The parameters move, and are equal on all ranks."""
    for name in plugins.names("hvd_train.agents.algorithms"):
        sections = ALGORITHMS[name]
        agent = {**sections.get("agent", {}), "name": name}
        job = body.trainer(comm, configuration(comm.size, **sections | {"agent": agent}))
        before = body.parameters(job)
        job.run()
        after = body.parameters(job)
        assert any(_moved(value, after[part]) for part, value in before.items()), name
        flat = torch.cat([value.flatten() for value in after.values()])
        assert all(torch.equal(flat, other) for other in comm.all_gather(flat)), name


def _moved(before: Tensor, after: Tensor) -> bool:
    assert bool(after.isfinite().all())
    return not torch.equal(before, after)


BODIES = [equals_one_process, every_algorithm_learns, every_strategy_counts_steps_and_learns]

"""Configurations of agents for tests: small environments, few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.agents.base import Rollout
from hvd_train.comm.communicator import Communicator
from hvd_train.config.schema import Config
from hvd_train.errors import Stopped
from hvd_train.monitor.base import Sink
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body

LAKE = {"env": "FrozenLake-v1", "arguments": {"is_slippery": False}}


def configuration(
    agent: dict[str, Any], model: dict[str, Any], data: dict[str, Any], lr: float = 1.0, **train: Any
) -> Config:
    return body.configuration(
        agent=agent,
        model={"target": None, **model},
        data={"name": "gymnasium", "target": None, "partition": None, "episodes": 2, **data},
        optimizer={"lr": lr, "momentum": None, "weight_decay": None},
        train={"epochs": None, "eval_env_steps": 10**6, **train},
        sync={"fusion_mb": None},
    )


class _StopsAfter(Sink):
    def __init__(self, last: int) -> None:
        self._last, self.is_reached = last, False

    def step(self, step: int) -> None:
        self.is_reached = step >= self._last


def resumed(comm: Communicator, folder: Path, config: Config, step: int) -> tuple[Trainer, Trainer]:
    """Return a whole run, and one that was stopped after `step` and resumed."""
    through = body.trainer(comm, config)
    through.run()
    stop = _StopsAfter(step)
    first = body.trainer(comm, config, checkpoints=folder / "checkpoints", sinks=[stop], stop=lambda: stop.is_reached)
    with pytest.raises(Stopped):
        first.run()
    second = body.trainer(comm, config)
    second.restore(checkpoint.load(folder, comm, print))
    assert step <= second.progress.step <= step + 2
    second.run()
    return through, second


class Alone:
    """A learner of one rank whose model is a table."""

    share, workers, batch_size = 0.0, 1, 64

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def predict(self, observations: Tensor, parameters: Any = None) -> Tensor:
        return observations.double() @ (self.weights if parameters is None else parameters[""])

    def sum(self, values: Tensor) -> Tensor:
        return values

    def parameters(self) -> dict[str, Tensor]:
        return {"": self.weights}

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)


def walk(weights: Tensor, states: list[int], actions: list[int], rewards: list[float], **flags: list[bool]) -> Rollout:
    """Return a rollout of one row that visits `states`; the last one is the state that follows."""
    observations = torch.eye(len(weights))[states].unsqueeze(1)
    nothing = [False] * len(actions)
    return Rollout(
        observations[:-1],
        torch.tensor(actions).unsqueeze(1),
        observations[:-1].double() @ weights,
        torch.tensor(rewards, dtype=torch.float64).unsqueeze(1),
        observations[1:],
        torch.tensor(flags.get("terminated", nothing)).unsqueeze(1),
        torch.tensor(flags.get("ended", nothing)).unsqueeze(1),
    )

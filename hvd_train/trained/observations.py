"""What an agent observes in held-out episodes, as samples of the actions that it takes there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from math import prod

import torch
from torch import Tensor

from hvd_train.agents.base import Agent
from hvd_train.agents.greedy import Greedy, within
from hvd_train.agents.player import Player
from hvd_train.comm.agree import together
from hvd_train.comm.communicator import Communicator
from hvd_train.compute import loss
from hvd_train.compute.acting import Acting
from hvd_train.compute.metrics import build as metrics
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset, tensor_split
from hvd_train.data.batch import divide
from hvd_train.data.environments.base import Episodes
from hvd_train.data.environments.copies import Copies
from hvd_train.data.spec import DataSpec
from hvd_train.rank.build import Built
from hvd_train.state import packing

EPISODES = 4
"""Episodes that are played at the same time."""
OBSERVATIONS = 2048
VALUES = 2**24
"""Bounds of the samples of a split, and of the numbers in them: 64 MB."""


def observed(built: Built, agent: Agent, config: Config, comm: Communicator) -> Built:
    """Return the policy of the best actions of `agent` as a model, and samples for it; collective.

    A sample is an observation of a held-out episode and the action of the agent: a class if it is a
    choice, otherwise numbers. Rank 0 plays. The training samples are of other episodes.
    """
    actions = built.data.train.actions
    played = packing.broadcast(comm, together(comm, partial(_played, built, agent, comm.rank)))
    train, test = (tensor_split(played[f"{name}.x"], played[f"{name}.y"]) for name in ("train", "test"))
    shape = built.data.spec.input_shape
    of_choices, of_numbers = (
        DataSpec(shape, actions.choices, "classification"),
        DataSpec(shape, actions.numbers, "regression"),
    )
    spec = of_choices if actions.choices else of_numbers
    data = Dataset(train, test, spec, preprocessing=built.data.preprocessing)
    for split in (train, test):
        built.loader.prepare(split)
    sample = divide(train.batch(torch.arange(1)), None)
    return replace(
        built,
        data=data,
        model=Greedy(built.model, agent, actions).to(built.device).eval(),
        loss=loss.build(config.train, data, built.device, None),
        sample=sample,
        meters=metrics.build(config.train, spec, built.device, sample.targets),
        agent=None,
    )


def _played(built: Built, agent: Agent, rank: int) -> dict[str, Tensor] | None:
    """Return observations and actions of training and of held-out samples; None on ranks that do not play."""
    if rank:
        return None
    player, held_out = Player(agent, Acting(built.model, built.precision)), built.data.test
    splits = {"train": replace(held_out, seed=held_out.seed + 1), "test": held_out}
    found: dict[str, Tensor] = {}
    for name, split in splits.items():
        found[f"{name}.x"], taken = _samples(player, split)
        found[f"{name}.y"] = within(taken, held_out.environments.actions)
    return found


def _samples(player: Player, split: Episodes) -> tuple[Tensor, Tensor]:
    """Return the first observations and actions of as many episodes as it takes."""
    most = max(1, min(OBSERVATIONS, VALUES // prod(split.environments.observed)))
    observations: list[Tensor] = []
    actions: list[Tensor] = []
    number = 0
    for first in count(0, EPISODES):
        copies = Copies(split.environments, range(first, first + EPISODES))
        try:
            for seen, taken in player.moves(split, copies):
                observations.append(torch.from_numpy(seen))
                actions.append(taken)
                number += len(seen)
                if number >= most:
                    return torch.cat(observations)[:most], torch.cat(actions)[:most]
        finally:
            copies.close()
    raise AssertionError("every episode has a step")

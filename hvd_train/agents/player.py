"""Plays the episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.agents import noise
from hvd_train.agents.base import Agent
from hvd_train.compute.acting import Acting
from hvd_train.data.batch import Batch
from hvd_train.data.environments.base import Array, Episodes
from hvd_train.data.environments.copies import Copies, episode_seed

TOGETHER = 32
"""Episodes that are played at the same time."""
_EVALUATION, _PLAYING = 1, 3
"""Streams of seeds."""

Observe = Callable[[Any, Batch], None]
Seen = Callable[[Array, Tensor], None]
"""Takes the observations of a step, `(rows, *shape)`, and the actions of the agent."""


class Player:
    """Lets an agent play, by its best actions or, if it `explores`, as in training."""

    def __init__(self, agent: Agent, acting: Acting, explores: bool = False) -> None:
        self._agent, self._acting, self._explores = agent, acting, explores

    def evaluate(self, split: Episodes, indices: Tensor, observe: Observe, size: int = TOGETHER) -> None:
        """Call `observe` with the results of the episodes at `indices`, `size` of them at a time.

        A result is a row of return, length and success, which is NaN if nobody knows it.
        """
        self._acting.begin()
        for part in indices.split(size) if len(indices) else ():
            found = self.play(split, part.tolist())
            observe(found, Batch(None, None, part, part))

    def play(self, split: Episodes, numbers: list[int], seen: Seen | None = None) -> Tensor:
        """Play the episodes `numbers` and return their results, float64 `(episodes, 3)`."""
        results = torch.full((len(numbers), 3), float("nan"), dtype=torch.float64)
        copies = Copies(split.environments, numbers)
        try:
            for position, result in self._results(split, copies, numbers, seen):
                results[position] = result
        finally:
            copies.close()
        return results

    def _results(
        self, split: Episodes, copies: Copies, numbers: list[int], seen: Seen | None
    ) -> Iterator[tuple[int, Tensor]]:
        seed_of = partial(episode_seed, split.seed, _EVALUATION)
        copies.start(seed_of)
        agents, left, step = split.environments.agents, set(range(len(numbers))), 0
        rows = [number * agents + agent for number in numbers for agent in range(agents)]
        while left:
            outputs = self._acting.outputs(torch.from_numpy(copies.observations))
            actions = self._actions(outputs, split.seed, rows, step)
            if seen is not None:
                seen(copies.observations, actions)
            copies.step(np.asarray(actions), seed_of)
            step += 1
            for episode in copies.finished:
                if episode.copy in left:
                    left.remove(episode.copy)
                    success = float("nan") if episode.success is None else episode.success
                    yield episode.copy, torch.tensor([episode.returned, episode.length, success], dtype=torch.float64)
            copies.finished.clear()

    def _actions(self, outputs: Tensor, seed: int, rows: list[int], step: int) -> Tensor:
        if not self._explores:
            return self._agent.best(outputs)
        drawn = noise.draw(self._agent.noise, seed + _PLAYING, step, rows, 1)
        return self._agent.act(outputs, drawn[0], 1.0)

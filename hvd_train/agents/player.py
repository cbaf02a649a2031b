"""Plays the episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvd_train.agents import noise
from hvd_train.agents.base import Agent
from hvd_train.compute.acting import Acting
from hvd_train.data.batch import Batch
from hvd_train.data.environments.base import Array, Episodes
from hvd_train.data.environments.copies import Copies, Finished, episode_seed

TOGETHER = 32
"""Episodes that are played at the same time."""
ROWS = 16
"""Observations that the model is called with. With equally many in every call, the digits of an
output depend neither on the other observations nor on the number of threads."""
_EVALUATION, _PLAYING = 1, 3
"""Streams of seeds."""

Observe = Callable[[Any, Batch], None]


class Player:
    """Lets an agent play, by its best actions or, if it `explores`, as in training.

    What happens in an episode depends neither on the episodes that are played beside it nor on the
    number of ranks.
    """

    def __init__(self, agent: Agent, acting: Acting, explores: bool = False) -> None:
        self._agent, self._acting, self._explores = agent, acting, explores
        self._copies: Copies | None = None
        """Copies of the last episodes, for the next evaluation of the same ones."""

    def evaluate(self, split: Episodes, indices: Tensor, observe: Observe, size: int = TOGETHER) -> None:
        """Call `observe` with the results of the episodes at `indices`, `size` of them at a time.

        A result is a row of return, length and success, which is NaN if nobody knows it.
        """
        for part in indices.split(size) if len(indices) else ():
            found = self.play(split, part.tolist())
            observe(found, Batch(None, None, part, part))

    def play(self, split: Episodes, numbers: list[int]) -> Tensor:
        """Play the episodes `numbers` and return their results, float64 `(episodes, 3)`."""
        copies = self._copies_of(split, numbers)
        for _ in self.moves(split, copies):
            pass
        results = torch.empty(len(numbers), 3, dtype=torch.float64)
        for episode in copies.finished:
            results[episode.copy] = torch.tensor(_result(episode), dtype=torch.float64)
        return results

    def moves(self, split: Episodes, copies: Copies) -> Iterator[tuple[Array, Tensor]]:
        """Play one episode in each of `copies`, and yield observations and actions before each step.

        Both have a row for each agent whose episode is not over. Afterwards `copies.finished` has the
        results.
        """
        self._acting.begin()
        agents = split.environments.agents
        copies.finished.clear()
        copies.start(partial(seed_of, split))
        step = 0
        while copies.playing:
            numbers = [copies.numbers[position] for position in copies.playing]
            rows = [number * agents + agent for number in numbers for agent in range(agents)]
            actions = self._actions(self._outputs(copies.observations), split.seed, rows, step)
            yield copies.observations, actions
            copies.step(actions.numpy(), None)
            step += 1

    def close(self) -> None:
        """Release the environments."""
        if self._copies is not None:
            self._copies.close()
            self._copies = None

    def _copies_of(self, split: Episodes, numbers: list[int]) -> Copies:
        """Return the copies that play the episodes `numbers`; those of the last call if they fit."""
        if self._copies is None or not self._copies.fits(split.environments, numbers):
            self.close()
            self._copies = Copies(split.environments, numbers)
        return self._copies

    def _outputs(self, observations: Array) -> Tensor:
        found = torch.from_numpy(observations)
        filling = found.new_zeros(-len(found) % ROWS, *found.shape[1:])
        parts = torch.cat((found, filling)).split(ROWS)
        return torch.cat([self._acting.outputs(part) for part in parts])[: len(found)]

    def _actions(self, outputs: Tensor, seed: int, rows: Sequence[int], step: int) -> Tensor:
        if not self._explores:
            return self._agent.best(outputs)
        drawn = noise.draw(self._agent.noise, seed + _PLAYING, step, rows, 1)
        return self._agent.act(outputs, drawn[0], 1.0)


def seed_of(split: Episodes, number: int) -> int:
    """Return the seed of the held-out episode `number`."""
    return episode_seed(split.seed, _EVALUATION, number)


def _result(episode: Finished) -> tuple[float, int, float]:
    success = float("nan") if episode.success is None else episode.success
    return episode.returned, episode.length, success

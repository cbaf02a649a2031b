"""Copies of an environment, stepped together, whose episodes can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.environments.base import Array, Environment, Environments, finite
from hvd_train.data.seeding import sample_seed
from hvd_train.errors import UserError

T = TypeVar("T")
SEEDS = 2**31
"""Environments take seeds below this number."""


SeedOf = Callable[[int], int]
"""From the number of a copy: the seed of its next episode."""


class Finished(NamedTuple):
    """An episode that is over."""

    copy: int
    """The position of its copy."""
    returned: float
    """The sum of its rewards, the mean over its agents."""
    length: int
    success: float | None
    """1 if it reached its goal, 0 if not, None if nobody knows."""


class Steps(NamedTuple):
    """What followed one step of all copies, for each row; a row is one agent of one copy."""

    rewards: Array
    """float64 `(rows,)`."""
    following: Array
    """What is perceived after the step, before a new episode begins; float32 `(rows, *shape)`."""
    terminated: Array
    ended: Array
    """True if the episode is over, be it terminated or cut off."""
    active: Array
    """False for an agent whose episode had ended before the step, while that of others went on."""


@dataclass
class _Episode:
    """The present episode of one copy. It follows from its seed and its actions."""

    seed: int
    active: Array
    """The agents whose episode goes on."""
    actions: list[Array] = field(default_factory=list)
    returned: float = 0.0

    def end(self, terminated: Any, cut: Any) -> tuple[Array, Array]:
        """Return the agents whose episode is terminated and ended after a step, given its flags.

        What is gone stays so.
        """
        gone = ~self.active
        ended = gone | terminated | cut
        self.active = ~ended
        return gone | terminated, ended


class Copies:
    """The copies `numbers` of `environments`. A row of all arrays is one agent of one copy."""

    def __init__(self, environments: Environments, numbers: Sequence[int], *, pictures: bool = False) -> None:
        """`pictures`: the copies can render."""
        self._of, self._numbers = environments, numbers
        self._agents = environments.agents
        whole = (self._agents, *environments.observed)
        self._shapes = (whole, whole[1:]) if self._agents == 1 else (whole,)
        self._made = [self._guarded(n, -1, partial(environments.make, n, pictures=pictures)) for n in numbers]
        self._episodes: list[_Episode] = []
        self.playing: list[int] = []
        """The positions of the copies whose episode goes on; rows are those of these copies."""
        self.observations: Array = self._blank()
        """What each row perceives now."""
        self.finished: list[Finished] = []
        """The episodes that are over; the caller empties the list."""

    @property
    def numbers(self) -> Sequence[int]:
        return self._numbers

    @property
    def made(self) -> Sequence[Environment]:
        return self._made

    def fits(self, environments: Environments, numbers: Sequence[int]) -> bool:
        """Return True if these are the copies `numbers` of `environments`."""
        return environments is self._of and numbers == self._numbers

    def start(self, seed_of: SeedOf) -> None:
        """Begin an episode in each copy."""
        self._episodes = [self._episode(0) for _ in self._made]
        self.playing, self.observations = list(range(len(self._made))), self._blank()
        for position, number in enumerate(self._numbers):
            self._begin(position, seed_of(number))

    def step(self, actions: Array, seed_of: SeedOf | None) -> Steps:
        """Act in each copy that plays.

        A copy whose episode ends begins one with the seed of its number; without `seed_of` it plays no more.
        """
        agents, rows = self._agents, len(self.observations)
        rewards = np.empty(rows)
        terminated, ended, active = np.zeros(rows, bool), np.zeros(rows, bool), np.ones(rows, bool)
        following = np.empty_like(self.observations)
        over = []
        for place, position in enumerate(self.playing):
            episode = self._episodes[position]
            part = slice(place * agents, (place + 1) * agents)
            action = actions[part] if agents > 1 else actions[place]
            observed, reward, is_terminal, is_cut = self._step(position, action)
            following[part], rewards[part] = observed, reward
            episode.actions.append(action)
            capped = len(episode.actions) >= self._of.most_steps
            if agents > 1:
                episode.returned += float(rewards[part].mean())
                active[part] = episode.active
                terminated[part], ended[part] = episode.end(is_terminal, np.logical_or(is_cut, capped))
                is_over = bool(ended[part].all())
            else:
                episode.returned += float(reward)
                is_over = is_terminal or is_cut or capped
                terminated[place], ended[place] = is_terminal, is_over
            if is_over:
                over.append(position)
        if not (finite(following) and finite(rewards)):
            raise self._not_finite(following, rewards)
        self.observations = following if not over else following.copy()
        for position in over:
            self._end(position)
            if seed_of is not None:
                self._begin(position, seed_of(self._numbers[position]))
        if over and seed_of is None:
            goes_on = [position not in over for position in self.playing]
            self.playing = [position for position in self.playing if position not in over]
            self.observations = following[np.repeat(goes_on, agents)]
        return Steps(rewards, following, terminated, ended, active)

    def close(self) -> None:
        for environment in self._made:
            environment.close()

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes the episodes from."""
        actions = [action for episode in self._episodes for action in episode.actions]
        return {
            "seeds": torch.tensor([episode.seed for episode in self._episodes]),
            "lengths": torch.tensor([len(episode.actions) for episode in self._episodes]),
            "actions": torch.from_numpy(np.array(actions)) if actions else torch.zeros(0),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Resume the episodes of `state`: begin them with their seeds, and repeat their actions.

        An environment that ends such an episode earlier than it did begins it anew.
        """
        self.start(dict(zip(self._numbers, state["seeds"].tolist(), strict=True)).__getitem__)
        taken = iter(state["actions"].numpy())
        for position, length in enumerate(state["lengths"].tolist()):
            part = slice(position * self._agents, (position + 1) * self._agents)
            for action in list(islice(taken, length)):
                observed, reward, is_terminal, is_cut = self._step(position, action)
                episode = self._episodes[position]
                if episode.end(is_terminal, is_cut)[1].all():
                    self._begin(position, episode.seed)
                    break
                self.observations[part] = observed
                episode.actions.append(action)
                episode.returned += float(np.mean(reward))

    def _blank(self) -> Array:
        return np.zeros((len(self._made) * self._agents, *self._of.observed), np.float32)

    def _episode(self, seed: int) -> _Episode:
        return _Episode(seed, np.ones(self._agents, bool))

    def _step(self, position: int, action: Array) -> tuple[Array, Any, Any, Any]:
        episode = self._episodes[position]
        number, at = self._numbers[position], len(episode.actions) + 1
        try:
            followed = self._made[position].step(action)
        except Exception as error:
            raise self._failed(number, episode.seed, at, error) from error
        if np.shape(followed[0]) not in self._shapes:
            raise self._misshapen(number, episode.seed, at, followed[0])
        return followed

    def _begin(self, position: int, seed: int) -> None:
        number, environment = self._numbers[position], self._made[position]
        self._episodes[position] = self._episode(seed)
        part = slice(position * self._agents, (position + 1) * self._agents)
        observed = self._guarded(number, seed, lambda: environment.reset(seed))
        if np.shape(observed) not in self._shapes:
            raise self._misshapen(number, seed, 0, observed)
        if not finite(np.asarray(observed)):
            raise self._problem(number, seed, 0, "returned an observation that is not finite")
        self.observations[part] = observed

    def _end(self, position: int) -> None:
        episode, environment = self._episodes[position], self._made[position]
        success = environment.success
        if success is None and self._of.threshold is not None:
            success = episode.returned >= self._of.threshold
        found = None if success is None else float(success)
        self.finished.append(Finished(position, episode.returned, len(episode.actions), found))

    def _guarded(self, number: int, seed: int, call: Callable[[], T]) -> T:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            raise self._failed(number, seed, 0, error) from error

    def _failed(self, number: int, seed: int, step: int, error: Exception) -> UserError:
        return self._problem(number, seed, step, f"raised {type(error).__name__}: {error}")

    def _not_finite(self, following: Array, rewards: Array) -> UserError:
        flat = following.reshape(len(following), -1)
        row = next(r for r in range(len(flat)) if not (np.isfinite(flat[r]).all() and np.isfinite(rewards[r])))
        what = "an observation" if np.isfinite(rewards[row]) else f"the reward {rewards[row]}, which"
        position = self.playing[row // self._agents]
        episode = self._episodes[position]
        text = f"returned {what} {'that ' if what == 'an observation' else ''}is not finite"
        return self._problem(self._numbers[position], episode.seed, len(episode.actions), text)

    def _misshapen(self, number: int, seed: int, step: int, observed: Array) -> UserError:
        text = f"returned an observation of shape {np.shape(observed)}, expected {self._shapes[-1]}"
        return self._problem(number, seed, step, text)

    def _problem(self, number: int, seed: int, step: int, text: str) -> UserError:
        at = f", {f'in step {step}' if step else 'at the start'} of the episode with seed {seed}," if seed >= 0 else ""
        return UserError(f"data: copy {number} of the environment '{self._of.name}'{at} {text}")


def episode_seed(*key: int) -> int:
    """Return the seed of an episode that begins at `key`, such as copy and time."""
    return sample_seed(*key) % SEEDS

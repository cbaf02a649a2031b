"""Environments of tests: small, and each with one property that a test is about."""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

Array = NDArray[Any]


class Walk(gymnasium.Env[Any, Any]):
    """A walk on the places 0 to 4 from 2: left or right, with a slip at random. The reward is 1 at 4.

    An episode is terminated at both ends, and truncated after `limit` steps.
    """

    def __init__(self, *, slip: float = 0.2, limit: int = 9, goal: float = 1.0, fails: str = "", at: int = 3) -> None:
        """`fails`: what goes wrong in step `at` of an episode."""
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._steps = 0
        self._slip, self._limit, self._goal, self._fails, self._at = slip, limit, goal, fails, at

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        # Where a walk that leaks begins depends on the episode before.
        self._place, self._steps = 3 if self._fails == "leaks" and self._steps else 2, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        slips = (random.random() if self._fails == "unseeded" else self.np_random.random()) < self._slip
        self._place += 1 if bool(action) != slips else -1
        self._steps += 1
        observed, reward = self._seen(), self._goal * (self._place == 4)
        if self._steps == self._at:
            if self._fails == "raises":
                raise OSError("the simulator is gone")
            observed = {"nan": observed * np.nan, "shape": observed[:1]}.get(self._fails, observed)
            reward = {"reward": float("nan")}.get(self._fails, reward)
        return observed, reward, self._place in (0, 4), self._steps >= self._limit, {}

    def _seen(self) -> Array:
        return np.array([self._place / 4, self._steps / self._limit], np.float32)


class Slow(Walk):
    """A walk that takes `seconds` a step."""

    def __init__(self, *, seconds: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        return super().step(action)


class Meet(ParallelEnv[str, Any, Any]):
    """Two agents on a line of `size` places are rewarded while they stand in one place.

    Each sees its own place only. Agents go left, stay or go right, the second one the other way
    round. `leaves`: the first agent's episode ends in step 3. `unlike`: agents have different actions.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "meet"}
    possible_agents: ClassVar[list[str]] = ["left", "right"]

    def __init__(self, *, size: int = 4, max_cycles: int = 8, leaves: bool = False, unlike: bool = False) -> None:
        self.agents = list(self.possible_agents)
        self.max_cycles = max_cycles
        self._size, self._leaves, self._unlike = size, leaves, unlike

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0, 1, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(4 if self._unlike and agent == "right" else 3)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents = list(self.possible_agents)
        places = np.random.default_rng(seed).integers(self._size, size=2).tolist()
        self._places, self._steps = dict(zip(self.agents, places, strict=True)), 0
        return self._seen(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        for name, way in zip(self.possible_agents, (1, -1), strict=True):
            if name not in self.agents:
                continue
            self._places[name] = min(max(self._places[name] + way * (int(actions[name]) - 1), 0), self._size - 1)
        self._steps += 1
        left, right = self._places.values()
        rewards = {name: float(left == right) for name in self.possible_agents}
        were, over = self.agents, self._steps >= self.max_cycles
        ended = {name: self._leaves and name == "left" and self._steps == 3 for name in were}
        cut = dict.fromkeys(were, over)
        self.agents = [name for name in were if not (ended[name] or over)]
        seen, rewards = self._seen(), {name: rewards[name] for name in were}
        return {name: seen[name] for name in were}, rewards, ended, cut, {name: {} for name in were}

    def _seen(self) -> dict[str, Any]:
        return {name: np.array([place / (self._size - 1)], np.float32) for name, place in self._places.items()}

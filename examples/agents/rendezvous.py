"""A cooperative game of two agents: they are rewarded while they stand in one place."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Rendezvous(ParallelEnv[str, Any, Any]):
    """Two agents on a line of `size` places. Each sees its own place only, and goes left or right or stays."""

    metadata: ClassVar[dict[str, Any]] = {"name": "rendezvous"}
    possible_agents: ClassVar[list[str]] = ["first", "second"]

    def __init__(self, size: int = 5, max_cycles: int = 12) -> None:
        self.agents = list(self.possible_agents)
        self.size, self.max_cycles = size, max_cycles

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0, 1, (self.size,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents = list(self.possible_agents)
        self.places = np.random.default_rng(seed).integers(self.size, size=2)
        self.steps = 0
        return self._seen(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        moves = np.array([int(actions[name]) - 1 for name in self.possible_agents])
        self.places = (self.places + moves).clip(0, self.size - 1)
        self.steps += 1
        together = float(self.places[0] == self.places[1])
        rewards = dict.fromkeys(self.possible_agents, together)
        terminated = dict.fromkeys(self.possible_agents, False)
        truncated = dict.fromkeys(self.possible_agents, self.steps >= self.max_cycles)
        return self._seen(), rewards, terminated, truncated, {name: {} for name in self.possible_agents}

    def _seen(self) -> dict[str, Any]:
        rows = np.eye(self.size, dtype=np.float32)
        return {name: rows[place] for name, place in zip(self.possible_agents, self.places, strict=True)}

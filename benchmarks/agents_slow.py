"""CartPole whose steps take a given time, for `benchmarks.agents`."""

from __future__ import annotations

import time
from typing import Any

from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class SlowPole(CartPoleEnv):
    def __init__(self, milliseconds: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = milliseconds / 1e3

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return super().step(action)

"""CartPole with a pole of another length."""

from __future__ import annotations

from typing import Any

from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class LongPole(CartPoleEnv):
    def __init__(self, length: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.length = length
        self.polemass_length = self.masspole * length

"""Independent random values (Bergstra and Bengio, 2012)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class Random:
    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed + trials)

    def pruner(self) -> Pruner | None:
        return None


def create() -> Random:
    return Random()

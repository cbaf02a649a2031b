"""Tree-structured Parzen estimator (Bergstra et al., 2011): prefers values near those of good trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class TPE:
    def optuna(self, space: Space, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)

    def pruner(self) -> Pruner | None:
        return None


def create() -> TPE:
    return TPE()

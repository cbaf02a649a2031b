"""Population based training (Jaderberg et al., 2017): bad members copy good ones while they train, and vary the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.population import Population
from hvd_train.config.options import Annotated, Field, PositiveInt

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class PBT:
    def __init__(self, population: Population) -> None:
        self._population = population

    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        """Return the sampler of the first generation."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed + trials)

    def pruner(self) -> Pruner | None:
        return self._population


def create(
    *,
    population: Annotated[Annotated[int, Field(ge=2)], "members that train at a time"] = 8,
    every: Annotated[PositiveInt, "evaluations of a member between two comparisons with the others"] = 1,
    quantile: Annotated[
        Annotated[float, Field(gt=0, le=0.5)], "part of the members that copy, and that are copied"
    ] = 0.25,
    factor: Annotated[Annotated[float, Field(gt=1)], "copied numbers are multiplied or divided by this"] = 1.2,
    resample: Annotated[Annotated[float, Field(ge=0, le=1)], "probability that a copied value is drawn anew"] = 0.25,
) -> PBT:
    return PBT(Population(population, every, quantile, factor, resample))

"""A trial ends if its best value is below a percentile of the complete trials at the same evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.ending import EndingPruner
from hvd_train.config.options import Annotated, Field, NonNegativeInt

if TYPE_CHECKING:
    import optuna


def create(
    *,
    percentile: Annotated[Annotated[float, Field(gt=0, lt=100)], "share of the trials that go on, in percent"] = 25.0,
    startup: Annotated[NonNegativeInt, "complete trials before the first that ends early"] = 5,
    warmup: Annotated[NonNegativeInt, "evaluations of a trial before the first after which it may end"] = 0,
) -> EndingPruner:
    def make() -> optuna.pruners.BasePruner:
        from optuna.pruners import PercentilePruner

        return PercentilePruner(percentile, n_startup_trials=startup, n_warmup_steps=warmup)

    return EndingPruner(make)

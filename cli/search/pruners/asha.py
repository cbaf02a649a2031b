"""Asynchronous successive halving (Li et al., 2020): few evaluations for most trials, eta times as many for the best."""

from __future__ import annotations

from cli.search.halving_pruner import HalvingPruner
from hvd_train.config.options import Annotated, Field, PositiveInt


def create(
    *,
    eta: Annotated[
        Annotated[int, Field(ge=2)], "the best 1/eta of the trials go on to eta times as many evaluations"
    ] = 3,
    first: Annotated[PositiveInt, "evaluations of every trial, before the first ones end"] = 1,
) -> HalvingPruner:
    return HalvingPruner(eta, lambda study: lambda number: first)

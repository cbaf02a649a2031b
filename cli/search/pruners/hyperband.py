"""Hyperband (Li et al., 2018): brackets of asha, of which each spares its trials eta times as long as the one before."""

from __future__ import annotations

import binascii
import math
from typing import TYPE_CHECKING

from cli.search.halving_pruner import FirstRung, HalvingPruner
from hvd_train.config.options import Annotated, Field, PositiveInt

if TYPE_CHECKING:
    import optuna


def shares(count: int, eta: int) -> list[int]:
    """Return how many trials each of `count` brackets gets in turn, as in Optuna."""
    return [math.ceil(count * eta**s / (s + 1)) for s in reversed(range(count))]


def count_brackets(first: int, last: int, eta: int) -> int:
    """Return how many of `first` * `eta`^k are at most `last`, at least 1."""
    count = 1
    while first * eta**count <= last:
        count += 1
    return count


def bracket_of(study_name: str, number: int, budgets: list[int]) -> int:
    """Return the bracket of the configuration with `number`, which a hash chooses as in Optuna."""
    place = binascii.crc32(f"{study_name}_{number}".encode()) % sum(budgets)
    return next(b for b in range(len(budgets)) if place < sum(budgets[: b + 1]))


def _length(study: optuna.Study) -> int | None:
    """Return the evaluations of the trial that completed first, None if none has."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and t.last_step is not None]
    if not complete:
        return None
    return min(complete, key=lambda t: (t.datetime_complete, t.number)).last_step


def create(
    *,
    eta: Annotated[
        Annotated[int, Field(ge=2)], "the best 1/eta of the trials go on to eta times as many evaluations"
    ] = 3,
    first: Annotated[PositiveInt, "evaluations of every trial of the first bracket, before the first ones end"] = 1,
    last: Annotated[
        PositiveInt | None, "evaluations of a whole trial; by default those of the first trial that completes"
    ] = None,
) -> HalvingPruner:
    def first_rungs(study: optuna.Study) -> FirstRung | None:
        whole = last or _length(study)
        if whole is None:
            return None
        budgets = shares(count_brackets(first, whole, eta), eta)
        return lambda number: first * eta ** bracket_of(study.study_name, number, budgets)

    return HalvingPruner(eta, first_rungs)

"""Pruners that halve successively, in one bracket or in several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli.search.configurations import Configuration, configurations, first_number
from cli.search.halving import Halving, at_rung
from cli.search.pruner import Continuation

if TYPE_CHECKING:
    import optuna

    from cli.search.space import Space

FirstRung = Callable[[int], int]
"""The first rung of the configuration that begins with the trial of a number."""


class HalvingPruner:
    """Halves successively among the configurations with the same first rung.

    A configuration that was pruned is promoted when it is among the best of its rung later. A
    decision is made at each rung, so `stops` has to be asked after every evaluation.
    """

    def __init__(self, eta: int, first_rungs: Callable[[optuna.Study], FirstRung | None]) -> None:
        """`first_rungs` returns None for a study in which no trial can be pruned yet."""
        self._eta, self._first_rungs = eta, first_rungs

    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step, first_rung = trial.last_step, self._first_rungs(study)
        if step is None or first_rung is None:
            return False
        own = first_number(study.get_trials(deepcopy=False), trial)
        rule = self._rule(study, first_rung(own))
        if step != rule.rung_within(step):
            return False
        others = [c.curve for c in configurations(study) if c.number != own and first_rung(c.number) == rule.first]
        value = trial.intermediate_values[step]
        return math.isnan(value) or not rule.goes_on(value, [*at_rung(others, step), value])

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        first_rung = self._first_rungs(study)
        if first_rung is None:
            return None
        groups: dict[int, list[Configuration]] = {}
        for one in configurations(study):
            groups.setdefault(first_rung(one.number), []).append(one)
        candidates = [c for first, group in groups.items() for c in self._rule(study, first).promotable(group)]
        if not candidates:
            return None
        newest = max(candidates, key=lambda c: c[:3])[3].newest
        return Continuation(newest.number, newest.params)

    def _rule(self, study: optuna.Study, first: int) -> Halving:
        return Halving(self._eta, first, sign=1 if study.direction.name == "MAXIMIZE" else -1)

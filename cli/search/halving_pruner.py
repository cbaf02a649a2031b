"""Pruners that halve successively, in one bracket or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cli.search.configurations import Configuration, configurations
from cli.search.halving import Halving, at_rung
from cli.search.pruner import Continuation

if TYPE_CHECKING:
    import optuna

    from cli.search.space import Space

Bracket = Callable[[int], int]
"""The first rung of the configuration with a number."""


class HalvingPruner:
    """Halves successively among the configurations with the same first rung.

    A configuration that was pruned is promoted when it is among the best of its rung later. `bracket`
    returns the brackets of a study, None as long as there are none and nothing is pruned.
    """

    def __init__(self, eta: int, bracket: Callable[[optuna.Study], Bracket | None]) -> None:
        self._eta, self._bracket = eta, bracket

    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step, bracket = trial.last_step, self._bracket(study)
        if step is None or bracket is None:
            return False
        groups = self._groups(study, bracket)
        rule, group = next((r, g) for r, g in groups.items() if any(trial.number in _numbers(c) for c in g))
        if not rule.is_rung(step):
            return False
        value = trial.intermediate_values[step]
        others = [one for one in group if trial.number not in _numbers(one)]
        return math.isnan(value) or not rule.goes_on(value, [*at_rung(others, step), value])

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        bracket = self._bracket(study)
        groups = self._groups(study, bracket) if bracket else {}
        candidates = [c for rule, group in groups.items() for c in rule.promotable(group)]
        if not candidates:
            return None
        newest = max(candidates, key=lambda c: c[:3])[3].newest
        return Continuation(newest.number, newest.params)

    def _groups(self, study: optuna.Study, bracket: Bracket) -> Mapping[Halving, list[Configuration]]:
        sign = 1 if study.direction.name == "MAXIMIZE" else -1
        groups: dict[Halving, list[Configuration]] = {}
        for one in configurations(study):
            groups.setdefault(Halving(self._eta, bracket(one.number), sign), []).append(one)
        return groups


def _numbers(one: Configuration) -> set[int]:
    return {trial.number for trial in one.trials}

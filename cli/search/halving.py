"""Asynchronous successive halving (ASHA; Li et al., 2020, arXiv 1810.05934), the rule of several pruners."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cli.search.configurations import Configuration

Candidate = tuple[int, float, int, Configuration]
"""A configuration to promote after its rung, a number of evaluations. The largest candidate is the best."""


@dataclass(frozen=True)
class Halving:
    """At rungs of `first` * `eta`^k evaluations, the best 1/`eta` of the configurations go on.

    `sign` is 1 if larger values are better, else -1.
    """

    eta: int
    first: int
    sign: int

    def is_rung(self, evaluations: int) -> bool:
        return evaluations > 0 and self.rung_before(evaluations) == evaluations

    def rung_before(self, evaluations: int) -> int | None:
        """Return the last rung within `evaluations`."""
        rung = None
        step = self.first
        while step <= evaluations:
            rung, step = step, step * self.eta
        return rung

    def goes_on(self, value: float, values: Sequence[float]) -> bool:
        """Return True if `value` is in the top 1/eta of all `values` of a rung, which include it.

        As in Optuna, the best goes on while there are fewer than eta values.
        """
        place = max(len(values) // self.eta, 1)
        return self.sign * value >= sorted((self.sign * v for v in values), reverse=True)[place - 1]

    def promotable(self, group: Sequence[Configuration]) -> Iterator[Candidate]:
        """Yield the configurations of `group` whose newest trial is pruned but would go on by now."""
        from optuna.trial import TrialState

        for one in group:
            curve = one.curve
            rung = self.rung_before(max(curve, default=0)) if one.newest.state == TrialState.PRUNED else None
            if rung is not None and rung in curve and not math.isnan(curve[rung]):
                if self.goes_on(curve[rung], at_rung(group, rung)):
                    yield rung, self.sign * curve[rung], -one.number, one


def at_rung(group: Sequence[Configuration], rung: int) -> list[float]:
    """Return the value of each configuration after `rung` evaluations that is a number."""
    values = (one.curve.get(rung, math.nan) for one in group)
    return [v for v in values if not math.isnan(v)]

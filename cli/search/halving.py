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

    def rung_within(self, evaluations: int) -> int | None:
        """Return the last rung among the first `evaluations`."""
        rung = None
        step = self.first
        while step <= evaluations:
            rung, step = step, step * self.eta
        return rung

    def goes_on(self, value: float, values: Sequence[float]) -> bool:
        """Return True if `value` is in the top 1/eta of all `values` of a rung, which include it."""
        return self.sign * value >= self._least(values)

    def _least(self, values: Sequence[float]) -> float:
        """Return the least value, larger if better, that goes on: as in Optuna, the best of fewer than eta does."""
        place = max(len(values) // self.eta, 1)
        return sorted((self.sign * v for v in values), reverse=True)[place - 1]

    def promotable(self, group: Sequence[Configuration]) -> Iterator[Candidate]:
        """Yield the configurations of `group` whose newest trial is pruned but would go on by now."""
        curves = [one.curve for one in group]
        least: dict[int, float] = {}
        for one, curve in zip(group, curves, strict=True):
            rung = self.rung_within(max(curve, default=0)) if one.newest.state.name == "PRUNED" else None
            if rung is None or math.isnan(curve.get(rung, math.nan)):
                continue
            if rung not in least:
                least[rung] = self._least(at_rung(curves, rung))
            if self.sign * curve[rung] >= least[rung]:
                yield rung, self.sign * curve[rung], -one.number, one


def at_rung(curves: Sequence[dict[int, float]], rung: int) -> list[float]:
    """Return the values of `curves` after `rung` evaluations that are numbers."""
    values = (curve.get(rung, math.nan) for curve in curves)
    return [v for v in values if not math.isnan(v)]

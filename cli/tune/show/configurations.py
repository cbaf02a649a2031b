"""The configurations of a search, which of them are best, and how well the slots were used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cli.search.records import Record
from cli.tune.objectives import Objective

STATES = ("complete", "running", "pruned", "failed", "waiting")


@dataclass(frozen=True)
class Configuration:
    """The trials with the same values, of which each but the first continues one before it."""

    trials: tuple[Record, ...]

    @property
    def number(self) -> int:
        """The number of the first trial."""
        return self.trials[0].number

    @property
    def newest(self) -> Record:
        return self.trials[-1]

    @property
    def state(self) -> str:
        return self.newest.state

    @property
    def values(self) -> dict[str, Any]:
        return self.trials[0].values

    @property
    def objectives(self) -> tuple[float, ...]:
        return self.newest.objectives

    @property
    def curve(self) -> dict[int, float]:
        """The first objective after each evaluation of all trials, by the number of the evaluation."""
        return dict(sorted((at, value) for trial in self.trials for at, value in trial.curve.items()))

    @property
    def last(self) -> float | None:
        """The first objective, or its newest value if the configuration is not complete; None without one."""
        if self.objectives:
            return self.objectives[0]
        return next((value for value in reversed(self.curve.values()) if math.isfinite(value)), None)

    @property
    def spans(self) -> list[tuple[float, float, list[str]]]:
        return [span for trial in self.trials for span in trial.spans]

    @property
    def seconds(self) -> float:
        """Seconds during which at least one run was running."""
        return covered(self.spans)


def configurations(records: Iterable[Record]) -> list[Configuration]:
    """Join trials, in the order of their numbers, with those that continue them with the same values."""
    chains: dict[int, list[Record]] = {}
    first_of: dict[int, int] = {}
    for record in records:
        first = record.number if record.continues is None else first_of.get(record.continues, record.number)
        if first in chains and chains[first][0].values != record.values:
            first = record.number
        first_of[record.number] = first
        chains.setdefault(first, []).append(record)
    return [Configuration(tuple(chain)) for chain in chains.values()]


def ranked(found: Sequence[Configuration], objectives: Sequence[Objective]) -> list[Configuration]:
    """Return the configurations, best first: the complete ones, then the others by their newest value.

    Of several objectives the Pareto front comes first, and the first objective orders the rest.
    """
    ahead = {configuration.number for configuration in best(found, objectives)}

    def key(configuration: Configuration) -> tuple[Any, ...]:
        value = configuration.last
        cost = math.inf if value is None else _cost(value, objectives[0])
        state = STATES.index(configuration.state)
        return configuration.number not in ahead, state > 0, cost, state, configuration.number

    return sorted(found, key=key)


def best(found: Iterable[Configuration], objectives: Sequence[Objective]) -> list[Configuration]:
    """Return the best complete configuration, or the Pareto front of several objectives; empty without one.

    Of equal values of a single objective the first configuration is the best.
    """
    complete = [configuration for configuration in found if configuration.objectives]
    if len(objectives) == 1:
        return [min(complete, key=lambda c: _cost(c.objectives[0], objectives[0]))] if complete else []
    return [complete[i] for i in front([c.objectives for c in complete], objectives)]


def front(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Return the indices of the points that no other point dominates, the best first objective first."""
    costs = [tuple(map(_cost, point, objectives)) for point in points]
    found: list[int] = []
    # A point that dominates another precedes it in this order, so earlier points decide.
    for i in sorted(range(len(points)), key=lambda i: (costs[i], i)):
        if not any(_dominates(costs[j], costs[i]) for j in found):
            found.append(i)
    return found


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _cost(value: float, objective: Objective) -> float:
    return value if objective.mode == "min" else -value


def history(found: Iterable[Configuration], objective: Objective, index: int = 0) -> list[tuple[int, float]]:
    """Return the number and the value of each complete configuration that was better than all before it."""
    improving: list[tuple[int, float]] = []
    for configuration in found:
        if configuration.objectives:
            value = configuration.objectives[index]
            if not improving or objective.is_better(value, improving[-1][1]):
                improving.append((configuration.number, value))
    return improving


def counts(found: Iterable[Configuration]) -> dict[str, int]:
    """Return the number of configurations in each state that occurs."""
    states = Counter(configuration.state for configuration in found)
    return {state: states[state] for state in STATES if states[state]}


@dataclass(frozen=True)
class SlotUse:
    """How many slots ran trials, for how many seconds, and the share of these slot-seconds that was used."""

    slots: int
    seconds: float
    share: float


def slot_use(records: Iterable[Record]) -> SlotUse | None:
    """Return the use of slots from the first start to the last end of a run; None if no run has ended.

    Pauses of the whole search, such as between an end and a resumption, do not count.
    """
    spans = [span for record in records for span in record.spans]
    by_slot: dict[str, list[tuple[float, float, list[str]]]] = {}
    for span in spans:
        for slot in span[2]:
            by_slot.setdefault(slot, []).append(span)
    seconds = covered(spans)
    if not by_slot or not seconds:
        return None
    return SlotUse(len(by_slot), seconds, sum(map(covered, by_slot.values())) / (len(by_slot) * seconds))


def covered(spans: Iterable[tuple[float, float, list[str]]]) -> float:
    """Return the seconds that lie in at least one of the spans."""
    total, until = 0.0, -math.inf
    for start, end, _ in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total

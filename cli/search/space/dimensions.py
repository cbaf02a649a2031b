"""The dimensions of a search, and what a trial gets from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.search.space import constraints
from cli.search.space.domains import Choice, Domain, same
from cli.search.space.words import override

if TYPE_CHECKING:
    import optuna

JOB_FIELDS = ("np", "strategy")
"""Names in a space that are no fields of the YAML file: the number of ranks, and an entry of `--strategies`."""


@dataclass(frozen=True)
class Condition:
    """Holds if `field` is varied in the trial and has one of `values`."""

    field: str
    values: tuple[Any, ...]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return True if the condition holds in a trial with `values`."""
        return self.field in values and any(same(values[self.field], v) for v in self.values)


@dataclass(frozen=True)
class Dimension:
    """The `domain` of `field`. The field is varied only where `when` holds."""

    field: str
    domain: Domain
    when: Condition | None = None
    place: str = ""
    """Where the user wrote it, for messages: `file:line`, or the option."""

    def varies(self, values: Mapping[str, Any]) -> bool:
        """Return True if a trial with `values` of earlier dimensions varies the field."""
        return self.when is None or self.when.holds(values)


@dataclass(frozen=True)
class Space:
    """The dimensions of a search; the field of a condition comes before the fields that depend on it."""

    dimensions: tuple[Dimension, ...]
    constraints: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The fields that are not varied, for constraints."""

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask `trial` for the value of each field that its conditions admit. Return values of YAML by field."""
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.varies(values):
                param: Any = dimension.domain.suggest(trial, dimension.field)
                values[dimension.field] = dimension.domain.value(param)
        return values

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of YAML of parameters of Optuna."""
        return {d.field: d.domain.value(params[d.field]) for d in self.dimensions if d.field in params}

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of Optuna of values of YAML."""
        return {d.field: d.domain.param(values[d.field]) for d in self.dimensions if d.field in values}

    def admits(self, values: Mapping[str, Any]) -> bool:
        """Return True if `values` satisfy the constraints.

        A constraint with a field that is not varied in this trial holds. UserError if a constraint
        compares or adds what it cannot, such as a text and a number.
        """
        varied = {d.field for d in self.dimensions}
        known = {**{k: v for k, v in self.fixed.items() if k not in varied}, **values}
        return all(constraints.holds(text, known) for text in self.constraints)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return `values` as overrides of `ddl run`, without the fields of the job (`JOB_FIELDS`)."""
        return [override(field, value) for field, value in values.items() if field not in JOB_FIELDS]

    def size(self) -> int | None:
        """Return the number of points without regard to constraints, None if a domain has no end."""
        counts = [self._count(d) for d in self.dimensions if d.when is None]
        finite = [c for c in counts if c is not None]
        return math.prod(finite) if len(finite) == len(counts) else None

    def _count(self, dimension: Dimension) -> int | None:
        """Return the number of points of `dimension` and of the dimensions that depend on it."""
        below = [(d.when, self._count(d)) for d in self.dimensions if d.when and d.when.field == dimension.field]
        count = dimension.domain.count()
        if count is None or any(c is None for _, c in below):
            return None
        named: list[Any] = []
        for condition, _ in below:
            named += [v for v in condition.values if not any(same(v, n) for n in named)]
        field = dimension.field
        return count - len(named) + sum(math.prod(c or 1 for w, c in below if w.holds({field: v})) for v in named)

    def describe(self) -> dict[str, Any]:
        """Return the space as JSON, equal for equal spaces, for the comparison at `--resume`."""
        return {"dimensions": [_described(d) for d in self.dimensions], "constraints": list(self.constraints)}


def _described(dimension: Dimension) -> dict[str, Any]:
    when = dimension.when and {"field": dimension.when.field, "values": list(dimension.when.values)}
    return {"field": dimension.field, "domain": dimension.domain.describe(), "when": when}


def first(domain: Domain) -> Any:
    """Return one value of `domain`."""
    return domain.values[0] if isinstance(domain, Choice) else domain.low

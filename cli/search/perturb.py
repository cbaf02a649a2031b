"""Values near those of a good trial."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from cli.search.space import Space
from cli.search.space.domains import Choice, Domain, Integer, Uniform


def perturbed(
    space: Space, values: Mapping[str, Any], chance: random.Random, factor: float, resample: float
) -> dict[str, Any]:
    """Return a point of `space` near `values`.

    A value is drawn anew with the probability `resample`, or if `values` have none. Otherwise numbers
    are multiplied or divided by `factor` within their range, and choices become a neighbour in the list.
    """
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        field, domain = dimension.field, dimension.domain
        if dimension.varies(point):
            is_new = field not in values or chance.random() < resample
            point[field] = draw(domain, chance) if is_new else _moved(domain, values[field], chance, factor)
    return point


def draw(domain: Domain, chance: random.Random) -> Any:
    """Return a random value of `domain`, on its scale."""
    if isinstance(domain, Choice):
        return chance.choice(domain.values)
    if domain.log:
        value = math.exp(chance.uniform(math.log(domain.low), math.log(domain.high)))
        return _nearest(domain, value)
    count = domain.count()
    return chance.uniform(domain.low, domain.high) if count is None else domain.at(chance.randrange(count))


def _moved(domain: Domain, value: Any, chance: random.Random, factor: float) -> Any:
    if isinstance(domain, Choice):
        place = domain.index(value)
        return chance.choice(
            domain.values[max(0, place - 1) : place] + domain.values[place + 1 : place + 2] or (value,)
        )
    if value == 0:
        return draw(domain, chance)  # a factor would keep it
    up = chance.random() < 0.5
    moved = _nearest(domain, value * factor if up else value / factor)
    if moved != value or domain.count() is None:
        return moved
    assert domain.step is not None
    return _nearest(domain, value + domain.step if up == (value > 0) else value - domain.step)


def _nearest(domain: Uniform | Integer, value: float) -> Any:
    """Return the number of `domain` nearest to `value`."""
    clipped = min(max(value, domain.low), domain.last)
    return clipped if domain.step is None else domain.at(round((clipped - domain.low) / domain.step))

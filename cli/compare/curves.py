"""The curve of a metric over several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cli.runs.statistics import Numbers


@dataclass(frozen=True)
class Curve:
    """Mean, lowest and highest value of runs at the places `x`."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def curve(runs: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """Return the curve of `runs`, whose points are in the order of x. Runs without points do not count.

    Its places are those of all points from where every run has begun. A run has values on the
    straight lines between its points, and keeps the last one after its end.
    """
    parts = [np.array(points, np.float64).T for points in runs if points]
    if len(parts) == 1:
        (x, y), *_ = parts
        return Curve(x, y, y, y)
    if not parts:
        return curve([[(np.nan, np.nan)]])
    begin = max(x[0] for x, _ in parts)
    places = np.unique(np.concatenate([x for x, _ in parts]))
    places = places[places >= begin]
    values = np.stack([np.interp(places, x, y) for x, y in parts])
    return Curve(places, values.mean(0), values.min(0), values.max(0))

"""ROC and precision-recall curves of scores that are counted in bins.

The memory does not depend on the number of samples. A point of a curve is exact: it is the point at
the threshold of a bin. The order of the scores within a bin is lost, so each area has a bound of its
error, which follows from the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.trained.evaluating.report import summed

LIMIT = 32.0
"""The log-odds from which the probability is 0 or 1 up to 1.3e-14. Larger ones are in the last bin."""
FEWEST, MOST = 2**12, 2**16
"""Limits of the number of bins, which have equal width over the log-odds from -LIMIT to LIMIT."""
ALL = 2**20
"""Bins of all columns together, if they have more than the fewest each: 16 MiB."""
POINTS = 300
"""The largest number of points of a curve in the result."""


class ScoreBins:
    """Counts the scores of positive and of negative targets of each column."""

    def __init__(self, columns: int) -> None:
        self._bins = min(MOST, max(FEWEST, ALL // columns))
        self._counts = torch.zeros(2, columns, self._bins, dtype=torch.int64)

    def update(self, log_odds: Tensor, positive: Tensor, counted: Tensor | None = None) -> None:
        """Count scores `log_odds` (m, columns); `positive` and `counted` are bool of the same shape."""
        bins = ((log_odds + LIMIT) * (self._bins / (2 * LIMIT))).nan_to_num().clamp(0, self._bins - 1).long()
        columns = log_odds.shape[1]
        places = (positive.long() * columns + torch.arange(columns, device=bins.device)) * self._bins + bins
        flat = places.reshape(-1) if counted is None else places[counted]
        self._counts.view(-1).index_add_(0, flat.cpu(), torch.ones(1, dtype=torch.int64).expand(flat.numel()))

    def compute(self, comm: Communicator) -> list[Curve]:
        """Return the curve of each column over the samples of all ranks; collective."""
        negative, positive = summed(comm, self._counts)
        return [Curve(p, n) for p, n in zip(positive, negative, strict=True)]


def log_odds(log_probabilities: Tensor) -> Tensor:
    """Return log p - log(1 - p) of each of the probabilities (m, classes), in float64."""
    wide = log_probabilities.double()
    return wide - torch.log1p(-wide.exp())


@dataclass(frozen=True)
class Area:
    """An area under a curve, and the largest difference to that of the scores themselves."""

    value: float
    error: float


@dataclass(frozen=True)
class Curve:
    """The counts of positive and negative targets in each bin, int64 `(bins,)`, by rising score."""

    positive: Tensor
    negative: Tensor

    def _falling(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the bins with scores by falling score: numbers, positives, negatives, and their sums up to each."""
        bins = (self.positive + self.negative).nonzero().flatten().flip(0)
        positive, negative = self.positive[bins].double(), self.negative[bins].double()
        return bins, positive, negative, positive.cumsum(0), negative.cumsum(0)

    def roc_area(self) -> Area | None:
        """Return the area under the ROC curve; None unless there are positive and negative targets."""
        _, positive, negative, found, _false = self._falling()
        total = float(positive.sum() * negative.sum())
        if not total:
            return None
        value = float((negative * (found - positive / 2)).sum()) / total
        return Area(value, float((positive * negative).sum()) / (2 * total))

    def average_precision(self) -> Area | None:
        """Return the sum of precisions over the steps of recall; None without positive targets.

        All scores of a bin count as equal.
        """
        _, positive, negative, found, false = self._falling()
        total = float(positive.sum())
        if not total:
            return None
        value = positive * found / (found + false)
        before, false_before = found - positive, false - negative
        best = positive * found / (found + false_before)
        worst = positive * (before + 1) / (before + 1 + false)
        mixed = (positive > 0) & (negative > 0)
        gap = torch.maximum(best - value, value - worst)[mixed].sum()
        return Area(float(value.sum()) / total, float(gap) / total)

    def points(self) -> dict[str, list[float]] | None:
        """Return the points of both curves by falling threshold; None unless there are both kinds of targets.

        At most `POINTS` points, at equal distances along the ROC curve.
        """
        bins, positive, negative, found, false = self._falling()
        if not positive.sum() or not negative.sum():
            return None
        recall, false_rate = found / found[-1], false / false[-1]
        way = (recall + false_rate).contiguous()
        wanted = torch.linspace(0, 2, POINTS, dtype=torch.float64)
        kept = torch.searchsorted(way, wanted).clamp(max=len(way) - 1).unique()
        return {
            "threshold": torch.sigmoid(bins[kept].double() * (2 * LIMIT / len(self.positive)) - LIMIT).tolist(),
            "recall": recall[kept].tolist(),
            "false_positive_rate": false_rate[kept].tolist(),
            "precision": (found / (found + false))[kept].tolist(),
        }


def area_row(curve: Curve) -> dict[str, Any]:
    """Return the areas of a curve as entries of a row, with bounds of their errors."""
    row: dict[str, Any] = {}
    for name, area in (("auroc", curve.roc_area()), ("average_precision", curve.average_precision())):
        row |= {name: area and area.value, f"{name}_error": area and area.error}
    return row

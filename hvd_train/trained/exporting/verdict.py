"""Decides which export is kept, and says why in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvd_train.trained.exporting.latency import Latency

SAME = 0.05
"""Ratios of time or bytes within 5 % count as equal."""
NOTHING = 0.005
"""Points below which two values of a metric count as equal."""


@dataclass(frozen=True)
class Row:
    """One model in the table of an export: the original, or what was written and read back."""

    label: str
    bytes: int
    """0 for the original."""
    metrics: Mapping[str, Any]
    latency: Sequence[Latency]
    difference: float | None = None
    """The largest absolute difference of an output to the original; None for the original itself."""
    magnitude: float | None = None
    """The largest absolute output of the original; None for the original itself."""
    agreement: float | None = None
    """The share of classes that are those of the original; None if the targets are no classes."""


@dataclass(frozen=True)
class Metric:
    """The metric that decides."""

    name: str
    higher_is_better: bool

    def points_lost(self, before: float, after: float) -> float:
        """Return by how many points `after` is worse; below 0 if it is better.

        A point is a hundredth of the accuracy, and a percent of any other metric.
        """
        lost = before - after if self.higher_is_better else after - before
        if self.name == "accuracy":
            return 100 * lost
        return 100 * lost / abs(before) if before else (0.0 if not lost else math.copysign(math.inf, lost))


@dataclass(frozen=True)
class Verdict:
    """What becomes of the exports."""

    kept: str | None
    """The label of the export that is kept; None if none is."""
    text: str


def judge(rows: Sequence[Row], metric: Metric | None, max_loss: float | None) -> Verdict:
    """Return the verdict on the original, its export and perhaps a quantized export, in this order.

    The last export is kept, unless it loses more than `max_loss` points against the original. The
    plain export is kept in place of a quantized one that is not smaller, faster or better, and,
    without `max_loss`, of one that is slower and worse.
    """
    original, *exports = rows
    last = exports[-1]
    against = exports[0] if len(exports) > 1 else original
    ratio, lost = slowdown(last, against), points(against, last, metric)
    facts = _facts(last, against, ratio, lost, metric)
    total = points(original, last, metric)
    if total is not None and max_loss is not None and not total <= max_loss:
        return Verdict(None, f"{facts}, which is more than --max-loss {max_loss:g}: nothing is written")
    is_no_smaller = last.bytes > against.bytes * (1 - SAME)
    is_useless = is_no_smaller and _is_no_faster(ratio) and _is_no_better(lost)
    costs_too_much = max_loss is None and _is_slower(ratio) and _is_worse(lost)
    kept = against if against.bytes and (is_useless or costs_too_much) else last
    return Verdict(kept.label, f"{facts}: kept {kept.label}")


def slowdown(row: Row, other: Row) -> float | None:
    """Return the time of `row` over that of `other`: the geometric mean over the cases measured."""
    ratios = [a.p50 / b.p50 for a, b in zip(row.latency, other.latency, strict=True) if b.p50 > 0]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def points(original: Row, row: Row, metric: Metric | None) -> float | None:
    """Return the points that `row` loses against the original; None without a metric."""
    if metric is None:
        return None
    return metric.points_lost(original.metrics[metric.name], row.metrics[metric.name])


def _is_no_faster(ratio: float | None) -> bool:
    return ratio is None or ratio >= 1 - SAME


def _is_slower(ratio: float | None) -> bool:
    return ratio is not None and ratio > 1 + SAME


def _is_worse(lost: float | None) -> bool:
    return lost is not None and lost >= NOTHING


def _is_no_better(lost: float | None) -> bool:
    return lost is None or lost >= 0


def _facts(row: Row, against: Row, ratio: float | None, lost: float | None, metric: Metric | None) -> str:
    size = [_size(row.bytes / against.bytes)] if against.bytes else []
    speed = [] if ratio is None else [_speed(ratio)]
    *first, last = [*size, *speed, _quality(row, lost, metric)]
    other = against.label if against.bytes else f"the {against.label} model"
    return f"against {other}, {row.label} is {' and '.join(filter(None, [', '.join(first), last]))}"


def _size(ratio: float) -> str:
    if abs(ratio - 1) <= SAME:
        return f"not smaller ({ratio:.2f}x)"
    return f"{1 / ratio:.1f}x smaller" if ratio < 1 else f"{ratio:.1f}x larger"


def _speed(ratio: float) -> str:
    if abs(ratio - 1) <= SAME:
        return f"not faster here ({ratio:.2f}x)"
    return f"faster here ({1 / ratio:.1f}x)" if ratio < 1 else f"slower here ({ratio:.1f}x)"


def _quality(row: Row, lost: float | None, metric: Metric | None) -> str:
    if lost is None or metric is None:
        return f"different by at most {row.difference:.1e}"
    if abs(lost) < NOTHING:
        return f"equal in {metric.name}"
    return f"{abs(lost):.2g} points {'worse' if lost > 0 else 'better'} in {metric.name}"

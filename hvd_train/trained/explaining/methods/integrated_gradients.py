"""Integral of the gradients on the line from the baseline; its values add up to the change of the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvd_train.data.files import import_extra
from hvd_train.trained.explaining.completeness import total
from hvd_train.trained.explaining.method import Attribution, Features, Method, Question

POINTS = 32
"""Points of the Gauss-Legendre rule on a segment of the line."""
SEGMENTS = 64
"""The most segments of a line."""
TOLERANCE = 0.01


@dataclass(frozen=True)
class Segment:
    """The line from the share `start` of the sample to the share `end`."""

    start: float
    end: float
    values: Features
    error: float
    """|sum of `values` - change of the score between the ends|."""


class IntegratedGradients:
    """Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017.

    The values of a line are the sums of those of its segments, and each segment has to be complete
    by itself. The segment with the largest error is halved until the errors of all, which cannot
    cancel here, are at most 1 % of the change of the score. Normalisation layers change their
    output in a short segment beside a baseline of zeros, which equal steps do not resolve.
    """

    completes, signed = True, True

    def __call__(self, question: Question) -> Attribution:
        integrate = import_extra("captum.attr", "explain").IntegratedGradients(question.score)
        allowed = TOLERANCE * abs(question.difference())
        segments = [_segment(integrate, question, 0.0, 1.0)]
        while sum(segment.error for segment in segments) > allowed and len(segments) < SEGMENTS:
            worst = max(segments, key=lambda segment: segment.error)
            middle = (worst.start + worst.end) / 2
            segments = [s for s in segments if s is not worst]
            segments += [_segment(integrate, question, *ends) for ends in ((worst.start, middle), (middle, worst.end))]
        ordered = sorted(segments, key=lambda segment: segment.start)
        values = tuple(torch.stack(parts).sum(0) for parts in zip(*(s.values for s in ordered), strict=True))
        return Attribution(values, POINTS * len(segments))


def _segment(integrate: Any, question: Question, start: float, end: float) -> Segment:
    first, last = _point(question, start), _point(question, end)
    values = integrate.attribute(last, first, n_steps=POINTS, method="gausslegendre", internal_batch_size=question.rows)
    with torch.no_grad():
        change = float(question.score(*last) - question.score(*first))
    return Segment(start, end, tuple(value.detach() for value in values), abs(total(values) - change))


def _point(question: Question, share: float) -> Features:
    """Return the features of the line at `share`; those of the sample itself at 1."""
    pairs = zip(question.baselines, question.features, strict=True)
    return tuple(feature if share == 1 else torch.lerp(absent, feature, share) for absent, feature in pairs)


def create() -> Method:
    return IntegratedGradients()

"""Random changes of square windows that lower the margin; sees scores alone, no gradients (black box)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.compute.attacking import Attack, Problem, margins, per_sample
from hvd_train.config.options import Annotated, Fraction, PositiveInt

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10 000 after which the share of changed values is halved."""


class Square(Attack):
    """Andriushchenko et al., arXiv 1912.00049.

    Inputs that are not images count as one row of pixels. Under l2, a window takes over what norm
    another one had, with values of equal size in place of the paper's pyramids.
    """

    def __init__(self, queries: int, share: float) -> None:
        self._queries, self._share = queries, share

    def __call__(self, problem: Problem) -> Tensor:
        planes = as_planes(problem.inputs.shape[1:])
        draws = problem.uniform(0, (self._queries, 4 + planes[0]))
        best = problem.project(_stripes(problem, planes))
        lowest = _margins(problem, best)
        for query in range(1, self._queries):
            rows = torch.nonzero(lowest >= 0)[:, 0]
            if not len(rows):
                break
            side = share_of_window(self._share, query, self._queries)
            part = problem.select(rows)
            change = _window if problem.norm == "linf" else _exchange
            tried = part.project(change(best[rows], planes, side, draws[rows, query], problem.epsilon))
            found = _margins(part, tried)
            better = rows[found < lowest[rows]]
            best[better], lowest[better] = tried[found < lowest[rows]], found[found < lowest[rows]]
        return best


def as_planes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the channels, height and width of an input; one row of pixels if it is no image."""
    channels, height, width = shape if len(shape) == 3 else (1, 1, math.prod(shape))
    return channels, height, width


def share_of_window(initial: float, query: int, queries: int) -> float:
    """Return the share of the values that the window of `query` has."""
    scaled = query * 10_000 // queries
    return float(initial / 2 ** sum(scaled > bound for bound in HALVED_AT))


def _margins(problem: Problem, delta: Tensor) -> Tensor:
    """Return the margin of each sample, negative where the class is wrong."""
    found = problem.scores(delta)
    is_wrong = found.argmax(1) != problem.targets
    return margins(found, problem.targets).where(~is_wrong, -torch.inf)


def _stripes(problem: Problem, planes: tuple[int, int, int]) -> Tensor:
    """Return columns of values +-epsilon, the start of the paper for linf; under l2 of norm epsilon."""
    channels, _, width = planes
    signs = _sign(problem.uniform(1, (channels, 1, width)))
    delta: Tensor = signs.expand(-1, *planes).reshape(problem.inputs.shape)
    return problem.epsilon * (delta if problem.norm == "linf" else problem.direction(delta))


def _window(delta: Tensor, planes: tuple[int, int, int], share: float, drawn: Tensor, epsilon: float) -> Tensor:
    """Return `delta` with a random sign of epsilon for each channel of a random window."""
    inside = _inside(planes, share, drawn[:, 0], drawn[:, 1])
    values = epsilon * _sign(drawn[:, 4:])[:, :, None, None]
    return values.where(inside, delta.reshape(-1, *planes)).reshape(delta.shape)


def _exchange(delta: Tensor, planes: tuple[int, int, int], share: float, drawn: Tensor, epsilon: float) -> Tensor:
    """Return `delta` without one random window, and with its norm and what is left of epsilon in another."""
    flat = delta.reshape(-1, *planes)
    to, source = (_inside(planes, share, drawn[:, i], drawn[:, i + 1]) for i in (0, 2))
    kept = flat.masked_fill(to | source, 0)
    left = (epsilon**2 - kept.flatten(1).square().sum(1)).clamp(min=0).sqrt()
    values = _sign(drawn[:, 4:])[:, :, None, None] * to
    values = values / values.flatten(1).norm(dim=1).clamp(min=1)[:, None, None, None]
    found: Tensor = kept + per_sample(left, flat) * values
    return found.reshape(delta.shape)


def _inside(planes: tuple[int, int, int], share: float, down: Tensor, across: Tensor) -> Tensor:
    """Return the mask (n, 1, height, width) of a window at a random place of each sample."""
    _, height, width = planes
    rows = min(height, max(1, round(math.sqrt(share * height * width))))
    columns = min(width, max(1, round(share * height * width / rows)))
    top = (down * (height - rows + 1)).long()[:, None]
    left = (across * (width - columns + 1)).long()[:, None]
    y, x = torch.arange(height, device=down.device), torch.arange(width, device=down.device)
    vertical, horizontal = (y >= top) & (y < top + rows), (x >= left) & (x < left + columns)
    return (vertical[:, :, None] & horizontal[:, None, :])[:, None]


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform)


def create(
    *,
    queries: Annotated[PositiveInt, "forward passes for each sample"] = 1000,
    share: Annotated[Fraction, "share of the values that the first windows change"] = 0.8,
) -> Attack:
    return Square(queries, share)

"""Gradient steps with momentum, whose length is halved where progress stalls (Auto-PGD)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvd_train.compute.attacking import Attack, Problem, Strongest, class_scores, cross_entropy, per_sample
from hvd_train.config.options import Annotated, Literal, PositiveInt

MOMENTUM = 0.75
"""The weight of the new direction; the rest is that of the previous step."""
PROGRESS = 0.75
"""The share of steps that must increase the loss between two checkpoints."""


class APGD(Attack):
    """Croce and Hein, arXiv 2003.01690, algorithm 1, for each sample by itself."""

    def __init__(self, losses: Callable[[Any, Problem], Tensor], steps: int, restarts: int) -> None:
        self._losses, self._steps, self._restarts = losses, steps, restarts

    def __call__(self, problem: Problem) -> Tensor:
        found = Strongest(problem)
        for number in range(self._restarts):
            rows = found.survivors
            if len(rows):
                self._climb(problem.select(rows), number, partial(found.offer, rows))
        return found.delta

    def _climb(self, problem: Problem, number: int, see: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """Show each point, with its scores and losses, to `see`."""
        point = before = problem.start(number)
        climb: _Climb | None = None
        for step in range(self._steps + 1):
            gradient, losses, outputs = problem.ascent(point, self._losses)
            see(point, class_scores(outputs).detach(), losses)
            if climb is None:
                climb = _Climb(self._steps, 2 * problem.epsilon, point, gradient, losses)
            else:
                climb.note(step, point, gradient, losses)
            if step in climb.halved_at and climb.restarted.any():
                stalled = per_sample(climb.restarted, point)
                point, gradient = climb.best.where(stalled, point), climb.gradient.where(stalled, gradient)
            length = per_sample(climb.length, point)
            ahead = problem.project(point + length * problem.direction(gradient))
            weight = MOMENTUM if step else 1.0
            point, before = problem.project(point + weight * (ahead - point) + (1 - weight) * (point - before)), point


class _Climb:
    """The best point of each sample, and the length of its next step."""

    def __init__(self, steps: int, length: float, point: Tensor, gradient: Tensor, losses: Tensor) -> None:
        self.best, self.gradient, self._highest = point, gradient, losses
        self.length = torch.full_like(losses, length)
        self.halved_at = checkpoints(steps)
        """The steps after which lengths may be halved."""
        self.restarted = torch.zeros_like(losses, dtype=torch.bool)
        """The samples whose length was halved at the last checkpoint; they continue at `best`."""
        self._previous, self._increases, self._last = losses, torch.zeros_like(losses), 0
        self._highest_then = losses

    def note(self, step: int, point: Tensor, gradient: Tensor, losses: Tensor) -> None:
        """Record the point after `step`, and halve lengths if it is a checkpoint."""
        self._increases += losses > self._previous
        self._previous = losses
        better = losses > self._highest
        self._highest = losses.where(better, self._highest)
        self.best = point.where(per_sample(better, point), self.best)
        self.gradient = gradient.where(per_sample(better, point), self.gradient)
        if step in self.halved_at:
            self._check(step)

    def _check(self, step: int) -> None:
        few = self._increases < PROGRESS * (step - self._last)
        stands = ~self.restarted & (self._highest == self._highest_then)
        self.restarted = few | stands
        self.length = self.length.where(~self.restarted, self.length / 2)
        self._increases, self._last, self._highest_then = torch.zeros_like(self._increases), step, self._highest


def checkpoints(steps: int) -> set[int]:
    """Return the steps at which progress is checked: w_j = ceil(p_j steps), p_1 = 0.22.

    p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(round(share * steps, 6)) for share in shares[1:-1]}  # 0.41 * 100 is above 41


def difference_of_logits_ratio(outputs: Any, problem: Problem) -> Tensor:
    """Return -(z_y - max_(i != y) z_i) / (z_(1) - z_(3)) for scores z, sorted z_(1) >= z_(2) >= ...

    The ratio is equal for scores that are scaled or shifted, so the size of the scores cannot make
    gradients vanish. It needs three classes.
    """
    found, targets = class_scores(outputs), problem.targets
    ordered, order = found.sort(dim=1, descending=True)
    other = ordered[:, 1].where(order[:, 0] == targets, ordered[:, 0])
    own = found.gather(1, targets[:, None])[:, 0]
    ratio: Tensor = (other - own) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
    return ratio


LOSSES = {"cross_entropy": cross_entropy, "dlr": difference_of_logits_ratio}


def create(
    *,
    loss: Annotated[
        Literal["cross_entropy", "dlr"],
        "what is increased; dlr: the difference of logits ratio, which needs three classes",
    ] = "cross_entropy",
    steps: Annotated[PositiveInt, "steps along the gradient"] = 100,
    restarts: Annotated[PositiveInt, "random starts, of which the strongest counts"] = 1,
) -> Attack:
    return APGD(LOSSES[loss], steps, restarts)

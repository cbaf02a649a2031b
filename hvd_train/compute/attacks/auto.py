"""Auto-PGD with two losses, then the square attack, each on the samples that survived (as AutoAttack)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.compute.attacking import Attack, Problem, cross_entropy, wrong
from hvd_train.compute.attacks.apgd import APGD, difference_of_logits_ratio
from hvd_train.compute.attacks.square import Square
from hvd_train.config.options import Annotated, PositiveInt


class Auto(Attack):
    """Croce and Hein, arXiv 2003.01690, without its targeted attacks.

    With fewer than three classes the difference of logits ratio is not defined, and its attack is
    left out.
    """

    def __init__(self, cross: Attack, ratio: Attack, black_box: Attack) -> None:
        self._cross, self._ratio, self._black_box = cross, ratio, black_box

    def __call__(self, problem: Problem) -> Tensor:
        delta = problem.zero
        found = problem.scores(delta)
        rows = torch.nonzero(~wrong(found, problem.targets))[:, 0]
        for attack in self._members(found.shape[1]):
            if len(rows):
                part = problem.select(rows)
                delta[rows] = tried = attack(part)
                rows = rows[~wrong(part.scores(tried), part.targets)]
        return delta

    def _members(self, classes: int) -> Sequence[Attack]:
        return (self._cross, self._ratio, self._black_box) if classes > 2 else (self._cross, self._black_box)


def create(
    *,
    steps: Annotated[PositiveInt, "steps along the gradient with each loss"] = 100,
    restarts: Annotated[PositiveInt, "random starts with each loss"] = 1,
    queries: Annotated[PositiveInt, "forward passes of the square attack for each sample"] = 1000,
) -> Attack:
    cross, ratio = (APGD(loss, steps, restarts) for loss in (cross_entropy, difference_of_logits_ratio))
    return Auto(cross, ratio, Square(queries, 0.8))

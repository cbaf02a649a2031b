"""One step along the gradient's sign (fast gradient sign method), of the size epsilon."""

from __future__ import annotations

from torch import Tensor

from hvd_train.compute.attacking import Attack, Problem
from hvd_train.config.options import Annotated

TRAINS = True
"""The attack needs gradients of the training loss alone, so `train.adversarial` can use it."""


class FGSM(Attack):
    """Goodfellow et al., arXiv 1412.6572. Under l2, the step is along the gradient of norm 1.

    With a random start, the step is 1.25 epsilon long (Wong et al., arXiv 2001.03994).
    """

    def __init__(self, *, random_start: bool) -> None:
        self._random_start = random_start

    def __call__(self, problem: Problem) -> Tensor:
        start = problem.start(0) if self._random_start else problem.zero
        size = 1.25 * problem.epsilon if self._random_start else problem.epsilon
        gradient, _, _ = problem.ascent(start)
        return problem.project(start + size * problem.direction(gradient))


def create(*, random_start: Annotated[bool, "begin at a random point within epsilon"] = False) -> Attack:
    return FGSM(random_start=random_start)

"""Steps along the gradient from a random start, each projected to epsilon (projected gradient descent)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hvd_train.compute.attacking import Attack, Problem, Strongest, class_scores
from hvd_train.config.options import Annotated, PositiveFloat, PositiveInt

TRAINS = True
"""The attack needs gradients of the training loss alone, so `train.adversarial` can use it."""


class PGD(Attack):
    """Madry et al., arXiv 1706.06083. The result is the strongest of all points, in training the last one."""

    def __init__(self, steps: int, step_size: float | None, restarts: int) -> None:
        """`step_size` None is 2.5 epsilon / steps, with which the steps reach every point of the ball."""
        self._steps, self._step_size, self._restarts = steps, step_size, restarts

    def __call__(self, problem: Problem) -> Tensor:
        if not problem.judged:
            return self._climb(problem, 0, lambda *_: None)
        found = Strongest(problem)
        for number in range(self._restarts):
            rows = found.survivors
            if len(rows):
                part, see = problem.select(rows), partial(_see, found, rows)
                last = self._climb(part, number, see)
                outputs = part.scores(last)
                see(last, outputs, part.losses(outputs, part))
        return found.delta

    def _climb(self, problem: Problem, number: int, see: Callable[[Tensor, Any, Tensor], None]) -> Tensor:
        """Return the point at the end; `see` gets each point before it, its outputs and its losses."""
        size = 2.5 * problem.epsilon / self._steps if self._step_size is None else self._step_size
        delta = problem.start(number)
        for _ in range(self._steps):
            gradient, losses, outputs = problem.ascent(delta)
            see(delta, outputs, losses)
            delta = problem.project(delta + size * problem.direction(gradient))
        return delta


def _see(found: Strongest, rows: Tensor, delta: Tensor, outputs: Any, losses: Tensor) -> None:
    found.offer(rows, delta, class_scores(outputs).detach(), losses)


def create(
    *,
    steps: Annotated[PositiveInt, "steps along the gradient"] = 10,
    step_size: Annotated[PositiveFloat | None, "length of a step; by default 2.5 epsilon / steps"] = None,
    restarts: Annotated[PositiveInt, "random starts, of which the strongest counts; 1 in training"] = 1,
) -> Attack:
    return PGD(steps, step_size, restarts)

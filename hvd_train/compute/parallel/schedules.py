"""The order in which a stage computes the micro-batches of a step, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Action(NamedTuple):
    """The forward or backward pass of one micro-batch through a stage."""

    kind: Literal["forward", "backward"]
    micro_batch: int


Schedule = Callable[[int, int, int], list[Action]]
"""Takes a stage, the number of stages and the number of micro-batches."""


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """Return all forward passes, then all backward passes (Huang et al., arXiv 1811.06965).

    A stage keeps the activations of all micro-batches.
    """
    numbers = range(micro_batches)
    return [Action("forward", i) for i in numbers] + [Action("backward", i) for i in numbers]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Action]:
    """Return each backward pass as early as possible.

    A stage keeps the activations of at most `stages - stage` micro-batches. PipeDream-flush
    (Narayanan et al., arXiv 2006.09503), after the steady state of arXiv 1806.03377.
    """
    ahead = min(stages - stage - 1, micro_batches)
    actions = [Action("forward", i) for i in range(ahead)]
    for i in range(micro_batches - ahead):
        actions += [Action("forward", ahead + i), Action("backward", i)]
    return actions + [Action("backward", i) for i in range(micro_batches - ahead, micro_batches)]


def bubble(stages: int, micro_batches: int) -> float:
    """Return the idle share of a stage's step, in either schedule, for stages of equal duration."""
    return (stages - 1) / (micro_batches + stages - 1)


SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}

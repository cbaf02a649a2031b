"""A step without communication: the floor."""

from __future__ import annotations

from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class Local(Stepper):
    communicates = False


def create(world: World, task: Task) -> Stepper:
    return Local(task, task.batch(world.rank))

"""Our MPI engine."""

from __future__ import annotations

from hvd_train.bench.step._strategy import Strategy
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World
from hvd_train.comm import mpi


def create(world: World, task: Task) -> Stepper:
    return Strategy(world, task, mpi.create())

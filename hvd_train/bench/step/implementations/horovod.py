"""Horovod's DistributedOptimizer."""

from __future__ import annotations

import horovod.torch as hvd

from hvd_train.bench.horovod import HorovodBackend
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class Horovod(Stepper):
    def __init__(self, world: World, task: Task) -> None:
        self.backend = HorovodBackend()
        self.backend.resume()
        super().__init__(task, task.batch(world.rank))
        self.optimizer = hvd.DistributedOptimizer(self.optimizer, named_parameters=self.model.named_parameters())


def create(world: World, task: Task) -> Stepper:
    return Horovod(world, task)

"""The DistributedOptimizer of hvd_train.torch: Horovod's API on ddl's MPI engine."""

from __future__ import annotations

import hvd_train.torch as hvd
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class Torch(Stepper):
    def __init__(self, world: World, task: Task) -> None:
        hvd.init()
        super().__init__(task, task.batch(world.rank))
        self.optimizer = hvd.DistributedOptimizer(self.optimizer, named_parameters=self.model.named_parameters())

    def close(self) -> None:
        hvd.shutdown()


def create(world: World, task: Task) -> Stepper:
    return Torch(world, task)

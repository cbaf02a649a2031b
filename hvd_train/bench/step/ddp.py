"""DistributedDataParallel over gloo."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel

from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class Ddp(Stepper):
    def __init__(self, world: World, task: Task) -> None:
        super().__init__(task, task.batch(world.rank))
        self.forward = DistributedDataParallel(
            self.model, process_group=world.process_group, gradient_as_bucket_view=True, static_graph=True
        )


def create(world: World, task: Task) -> Stepper:
    return Ddp(world, task)

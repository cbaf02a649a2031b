"""DistributedDataParallel over gloo with ZeroRedundancyOptimizer."""

from __future__ import annotations

from typing import Any

from torch.distributed.optim import ZeroRedundancyOptimizer

from hvd_train.bench.step.base import Task
from hvd_train.bench.step.ddp import Ddp
from hvd_train.bench.world import World


class DdpZero(Ddp):
    def __init__(self, world: World, task: Task) -> None:
        super().__init__(world, task)
        self.optimizer: Any = ZeroRedundancyOptimizer(
            self.model.parameters(),
            task.optimizer_class,
            process_group=world.process_group,
            parameters_as_bucket_view=True,
            **task.optimizer_options,
        )


def create(world: World, task: Task) -> DdpZero:
    return DdpZero(world, task)

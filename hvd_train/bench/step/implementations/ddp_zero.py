"""DistributedDataParallel over gloo with ZeroRedundancyOptimizer."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.step.implementations.ddp import Ddp
from hvd_train.bench.world import World


def create(world: World, task: Task) -> Stepper:
    def sharded(model: nn.Module) -> torch.optim.Optimizer:
        return ZeroRedundancyOptimizer(
            model.parameters(),
            task.optimizer_class,
            process_group=world.process_group,
            parameters_as_bucket_view=True,
            **task.optimizer_options,
        )

    return Ddp(world, task, sharded)

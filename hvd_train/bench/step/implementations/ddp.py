"""DistributedDataParallel over gloo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class Ddp(Stepper):
    def __init__(
        self, world: World, task: Task, optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    ) -> None:
        """`optimizer` makes the optimizer of the model, if it is not the one of `task`."""
        super().__init__(task, task.batch(world.rank))
        if optimizer:
            self.optimizer = optimizer(self.model)
        self.forward = DistributedDataParallel(
            self.model, process_group=world.process_group, gradient_as_bucket_view=True, static_graph=True
        )


def create(world: World, task: Task) -> Stepper:
    return Ddp(world, task)

"""torch.distributed over gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.world import World


class Gloo(AllReduceVariant):
    def __init__(self, world: World, numel: int) -> None:
        self._group = world.process_group
        self.x = torch.zeros(numel)

    def run(self) -> None:
        dist.all_reduce(self.x, group=self._group)


def create(world: World, numel: int) -> AllReduceVariant:
    return Gloo(world, numel)

"""MPI_Allreduce in place."""

from __future__ import annotations

import torch
from mpi4py import MPI

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.world import World


class MpiAllreduce(AllReduceVariant):
    def __init__(self, world: World, numel: int) -> None:
        self._mpi = world.mpi
        self.x = torch.zeros(numel)

    def run(self) -> None:
        self._mpi.Allreduce(MPI.IN_PLACE, self.x.numpy())


def create(world: World, numel: int) -> AllReduceVariant:
    return MpiAllreduce(world, numel)

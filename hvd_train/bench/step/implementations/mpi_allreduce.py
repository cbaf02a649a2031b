"""One MPI_Allreduce of all gradients in a flat buffer, after backward."""

from __future__ import annotations

import torch
from mpi4py import MPI

from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World


class MpiAllreduce(Stepper):
    def __init__(self, world: World, task: Task) -> None:
        super().__init__(task, task.batch(world.rank))
        self._mpi, self._parameters = world.mpi, list(self.model.parameters())
        sizes = [p.numel() for p in self._parameters]
        self._flat = torch.zeros(sum(sizes))
        views = zip(self._flat.split(sizes), self._parameters, strict=True)
        self._means = [piece.view(p.shape) for piece, p in views]

    def average(self) -> None:
        torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None], out=self._flat)
        self._mpi.Allreduce(MPI.IN_PLACE, self._flat.numpy())
        self._flat /= self._mpi.size
        for p, mean in zip(self._parameters, self._means, strict=True):
            p.grad = mean


def create(world: World, task: Task) -> Stepper:
    return MpiAllreduce(world, task)

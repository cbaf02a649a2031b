"""Our MPI engine, an ordinary tensor."""

from __future__ import annotations

import torch

from hvd_train.bench.allreduce._engine import Engine
from hvd_train.bench.world import World
from hvd_train.comm import mpi


def create(world: World, numel: int) -> Engine:
    return Engine(mpi.create(), torch.zeros(numel))

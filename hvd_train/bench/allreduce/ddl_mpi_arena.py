"""Our MPI engine, a tensor in the memory that it allocates."""

from __future__ import annotations

import torch

from hvd_train.bench.allreduce._engine import Engine
from hvd_train.bench.world import World
from hvd_train.comm import mpi


def create(world: World, numel: int) -> Engine:
    comm = mpi.create()
    return Engine(comm, comm.allocate(numel, torch.float32))

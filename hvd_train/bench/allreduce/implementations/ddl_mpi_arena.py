"""ddl's MPI engine on a tensor in memory that the communicator allocates."""

from __future__ import annotations

import torch

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.allreduce.communicator import CommunicatorReducer
from hvd_train.bench.world import World
from hvd_train.comm.engines import mpi


def create(world: World, numel: int) -> AllReduceVariant:
    comm = mpi.create()
    return CommunicatorReducer(comm, comm.allocate(numel, torch.float32))

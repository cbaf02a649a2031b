"""ddl's Horovod engine."""

from __future__ import annotations

import torch

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.allreduce.communicator import CommunicatorReducer
from hvd_train.bench.horovod import HorovodBackend
from hvd_train.bench.world import World
from hvd_train.comm.engines import horovod


def create(world: World, numel: int) -> AllReduceVariant:
    return CommunicatorReducer(horovod.create(), torch.zeros(numel), HorovodBackend("dynamic"))

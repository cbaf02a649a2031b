"""Our Horovod engine."""

from __future__ import annotations

import torch

from hvd_train.bench.allreduce._engine import Engine
from hvd_train.bench.horovod import OnHorovod
from hvd_train.bench.world import World
from hvd_train.comm import horovod


class HorovodEngine(OnHorovod, Engine):
    process_sets = "dynamic"


def create(world: World, numel: int) -> Engine:
    return HorovodEngine(horovod.create(), torch.zeros(numel))

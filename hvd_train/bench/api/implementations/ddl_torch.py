"""hvd_train.torch: Horovod's API on ddl's MPI engine."""

from __future__ import annotations

import hvd_train.torch as hvd
from hvd_train.bench.api.base import Calls
from hvd_train.bench.world import World


class Torch(Calls):
    def __init__(self, world: World, count: int) -> None:
        hvd.init()
        super().__init__(hvd, world, count)

    def close(self) -> None:
        hvd.shutdown()


def create(world: World, count: int) -> Calls:
    return Torch(world, count)

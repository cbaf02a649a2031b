"""The real Horovod."""

from __future__ import annotations

import horovod.torch as hvd

from hvd_train.bench.api.base import Calls
from hvd_train.bench.horovod import HorovodBackend
from hvd_train.bench.world import World


class Horovod(Calls):
    def __init__(self, world: World, count: int) -> None:
        self.backend = HorovodBackend()
        self.backend.resume()
        super().__init__(hvd, world, count)


def create(world: World, count: int) -> Calls:
    return Horovod(world, count)

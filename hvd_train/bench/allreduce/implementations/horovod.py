"""Horovod's own API."""

from __future__ import annotations

import horovod.torch as hvd
import torch

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.horovod import HorovodBackend
from hvd_train.bench.world import World


class Horovod(AllReduceVariant):
    def __init__(self, numel: int) -> None:
        self.backend = HorovodBackend()
        self.backend.resume()
        self.x = torch.zeros(numel)

    def run(self) -> None:
        hvd.allreduce_(self.x, op=hvd.Sum, name="x")


def create(world: World, numel: int) -> AllReduceVariant:
    return Horovod(numel)

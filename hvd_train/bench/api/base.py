"""The contract of an implementation of Horovod's API in the bench.

A variant is a file in `implementations` whose `create(world, count)` returns `Calls`. `ddl bench
horovod` times it.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hvd_train.bench.base import Variant
from hvd_train.config import plugins

if TYPE_CHECKING:
    from hvd_train.bench.world import World

IMPLEMENTATIONS = "hvd_train.bench.api.implementations"
NUMEL = 256
ORDERS = 64
"""Number of random orders that a rank cycles through. They are drawn before anything is timed."""


class Calls(Variant):
    """A variant whose `run` sums `count` named tensors of 1 KiB with `hvd`, all in flight.

    Each rank issues them in a different order.
    """

    def __init__(self, hvd: Any, world: World, count: int) -> None:
        self._hvd = hvd
        self.tensors = {f"tensor.{i}": torch.zeros(NUMEL) for i in range(count)}
        shuffle = random.Random(world.rank)
        self._orders = itertools.cycle([shuffle.sample(list(self.tensors), count) for _ in range(ORDERS)])

    def run(self) -> None:
        hvd, tensors = self._hvd, self.tensors
        handles = [hvd.allreduce_async_(tensors[name], op=hvd.Sum, name=name) for name in next(self._orders)]
        for handle in handles:
            hvd.synchronize(handle)


@dataclass(frozen=True)
class NamedSums:
    """All-reduces of `count` tensors at a time.

    They are timed on zeros, which any number of sums leaves unchanged.
    """

    count: int

    def __str__(self) -> str:
        return f"{self.count} named all-reduces of 1 KiB at a time"

    def create(self, name: str, world: World) -> Calls:
        calls: Calls = plugins.create(IMPLEMENTATIONS, name, world, self.count)
        return calls

    def check(self, variant: Calls, world: World) -> str | None:
        for number, x in enumerate(variant.tensors.values()):
            x.fill_((number + 1) * (world.rank + 1))
        variant.run()
        total = world.size * (world.size + 1) // 2
        wrong = [name for k, (name, x) in enumerate(variant.tensors.items()) if bool((x != (k + 1) * total).any())]
        for x in variant.tensors.values():
            x.zero_()
        return f"{len(wrong)} of {self.count} sums are wrong, the first {wrong[0]}" if wrong else None


def case(name: str, world: World) -> NamedSums:
    """Return the case `name`: its number of tensors."""
    return NamedSums(int(name))

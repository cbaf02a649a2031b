"""The contract of an all-reduce in the bench.

A member is a file in this package whose `create(world, numel)` returns a `Reducer`; `ddl bench allreduce` finds it there.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hvd_train import plugins
from hvd_train.bench.base import Variant

if TYPE_CHECKING:
    from hvd_train.bench.world import World


class Reducer(Variant):
    """`run` replaces `x`, flat and of float32, by its sum over ranks."""

    x: Tensor
    reduces: bool = True

    @abstractmethod
    def run(self) -> None: ...


@dataclass(frozen=True)
class AllReduce:
    """All-reduces of `nbytes`, timed on zeros: they stay what they are however often they are summed."""

    nbytes: int

    def __str__(self) -> str:
        return f"all-reduce of {self.nbytes} bytes"

    def create(self, name: str, world: World) -> Reducer:
        reducer: Reducer = plugins.create(__package__, name, world, self.nbytes // 4)
        return reducer

    def check(self, variant: Reducer, world: World) -> str | None:
        if not variant.reduces:
            return None
        numel = variant.x.numel()
        pattern = torch.arange(251.0).repeat(numel // 251 + 1)[:numel]
        variant.x.copy_(pattern * (world.rank + 1))
        variant.run()
        wrong = int((variant.x != pattern * (world.size * (world.size + 1) // 2)).sum())
        variant.x.zero_()
        return f"{wrong} of {numel} sums are wrong" if wrong else None


def case(name: str, world: World) -> AllReduce:
    return AllReduce(int(name))

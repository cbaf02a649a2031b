"""The contract of an all-reduce in the bench.

A variant is a file in `implementations` whose `create(world, numel)` returns an `AllReduceVariant`. `ddl
bench allreduce` times it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hvd_train.bench.base import Variant
from hvd_train.config import plugins

if TYPE_CHECKING:
    from hvd_train.bench.world import World


IMPLEMENTATIONS = "hvd_train.bench.allreduce.implementations"


class AllReduceVariant(Variant):
    """A variant whose `run` replaces `x`, a flat float32 tensor, with its sum over ranks."""

    x: Tensor
    reduces: bool = True
    """False for a floor, whose result is not checked."""

    @abstractmethod
    def run(self) -> None: ...


@dataclass(frozen=True)
class AllReduceCase:
    """All-reduces of `nbytes` bytes.

    They are timed on zeros, which any number of sums leaves unchanged.
    """

    nbytes: int

    def __str__(self) -> str:
        return f"all-reduce of {self.nbytes} bytes"

    def create(self, name: str, world: World) -> AllReduceVariant:
        reducer: AllReduceVariant = plugins.create(IMPLEMENTATIONS, name, world, self.nbytes // 4)
        return reducer

    def check(self, variant: AllReduceVariant, world: World) -> str | None:
        if not variant.reduces:
            return None
        numel = variant.x.numel()
        pattern = torch.arange(251.0).repeat(numel // 251 + 1)[:numel]
        variant.x.copy_(pattern * (world.rank + 1))
        variant.run()
        wrong = int((variant.x != pattern * (world.size * (world.size + 1) // 2)).sum())
        variant.x.zero_()
        return f"{wrong} of {numel} sums are wrong" if wrong else None


def case(name: str, world: World) -> AllReduceCase:
    """Return the case `name`: its size in bytes."""
    return AllReduceCase(int(name))

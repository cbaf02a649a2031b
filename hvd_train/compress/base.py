"""The contract of a compressor: how few bytes the sum of a bucket of gradients takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, Work


@dataclass(frozen=True)
class Layout:
    """A flat bucket: gradients of these `shapes`, then a flag for each, 1 where this rank has a gradient and 0 where not.

    `seed` is of this rank and this bucket alone.
    """

    shapes: Sequence[torch.Size]
    device: torch.device
    seed: int

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the gradients and of the flags."""
        gradients, flags = flat.split([sum(self.sizes), len(self.shapes)])
        return gradients, flags


class Reducer(Protocol):
    """Sums one bucket over ranks, step after step."""

    def sum_async_(self, flat: Tensor) -> Work:
        """Replace the gradients in `flat` by about their sum, bitwise equal on every rank, once `wait` returns.

        A flag is then 0 exactly where no rank had a gradient. Reducers are issued and waited for in one order on all ranks.
        """

    def state(self) -> dict[str, Tensor]:
        """What later sums depend on; who overwrites these tensors restores it."""


class Compressor(Protocol):
    """Makes a `Reducer` for each bucket. A member is a file in this package whose `create(**options)` returns one.

    `whole` says that it makes use of a parameter's shape: it is not to be given parts of them. `per_bucket` says that what it
    sends of a gradient depends on the others in the bucket.
    """

    whole: bool
    per_bucket: bool

    def reducer(self, layout: Layout, comm: Communicator) -> Reducer:
        """A reducer of buckets of floating point gradients, laid out as `layout` says."""

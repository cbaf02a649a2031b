"""The contract of a compressor: how the sum of a bucket of gradients is sent in fewer bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work


@dataclass(frozen=True)
class BucketLayout:
    """The layout of a flat bucket: gradients of these `shapes`, then a flag for each.

    A flag is 1 if this rank has a gradient, else 0. `seed` differs for every rank and bucket.
    """

    shapes: Sequence[torch.Size]
    device: torch.device
    seed: int

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of the gradients and of the flags."""
        gradients, flags = flat.split([sum(self.sizes), len(self.shapes)])
        return gradients, flags


class Reducer(Protocol):
    """Sums one bucket over ranks in every step."""

    def sum_async_(self, flat: Tensor) -> Work:
        """Start to replace the gradients in `flat` by about their sum, bitwise equal on every rank.

        Once `wait` has returned, a flag is 0 if no rank had a gradient. All ranks issue and wait
        for reducers in one order.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the tensors on which later sums depend. Overwriting them restores the state."""


@runtime_checkable
class Compressor(Protocol):
    """Makes a `Reducer` for each bucket.

    A file in `gradients/compressors` whose `create(**options)` returns one is a member. `whole`:
    the compressor uses the shapes of parameters, so that buckets must hold whole parameters.
    `per_bucket`: what it sends of a gradient depends on the other gradients in the bucket.
    """

    whole: bool
    per_bucket: bool

    def reducer(self, layout: BucketLayout, comm: Communicator) -> Reducer:
        """Return a reducer of a bucket of floating point gradients with this `layout`."""

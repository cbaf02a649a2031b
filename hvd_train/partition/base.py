"""The contract of a partitioner: which samples a rank trains on in one epoch.

A partitioner is a file in this package whose `create(**options)` returns a `Partitioner`. It is pure: the
same arguments give the same indices on every rank, shards are disjoint and together cover the data (those of
`balanced`, which re-samples, do not).
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor


class Partitioner(Protocol):
    keeps: ClassVar[bool] = False
    """A rank has the same samples in every epoch."""

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        """Positions (int64) of the samples of `rank` among `size` ranks, in the order of training.

        `labels` has one entry a sample; its length is the number of samples. UserError where they cannot be dealt so.
        """

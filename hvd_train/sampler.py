"""Which samples a rank takes in which step, agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.partition.base import Partitioner

Shares = Callable[[int], tuple[int, int] | None]
"""For an epoch: which worker this rank is, of how many; None where it is to have no samples."""


@dataclass(frozen=True)
class Epoch:
    """One rank's part of a pass over the data, cut into steps of `accumulate` micro-batches of `batch_size` samples.

    `lengths[r]` is the number of samples of rank r. All ranks have the same number of steps; a rank whose samples have
    run out takes part with none.
    """

    indices: Tensor
    lengths: tuple[int, ...]
    batch_size: int
    accumulate: int

    @property
    def per_step(self) -> int:
        """Samples of one rank in a full step."""
        return self.batch_size * self.accumulate

    @property
    def steps(self) -> int:
        return -(-max(self.lengths) // self.per_step)

    def samples(self, step: int) -> int:
        """Samples of all ranks in `step`."""
        return sum(min(max(n - step * self.per_step, 0), self.per_step) for n in self.lengths)

    def micro_batches(self, step: int) -> list[Tensor]:
        """This rank's positions in `step`, one tensor a micro-batch; none where its samples have run out."""
        mine = self.indices[step * self.per_step : (step + 1) * self.per_step]
        return list(mine.split(self.batch_size)) if len(mine) else []


@dataclass(frozen=True)
class Sampler:
    """Epochs of a data set of which `labels` has one entry a sample; `comm` joins the ranks that take their steps together."""

    labels: Tensor
    partitioner: Partitioner
    share: Shares
    comm: Communicator
    batch_size: int
    accumulate: int
    seed: int

    def epoch(self, number: int) -> Epoch:
        """The plan of epoch `number`; collective."""
        share = self.share(number)
        indices = torch.empty(0, dtype=torch.int64)
        if share:
            worker, workers = share
            indices = self.partitioner.indices(self.labels, worker, workers, epoch=number, seed=self.seed)
        lengths = self.comm.all_gather(torch.tensor([len(indices)]))
        return Epoch(indices, tuple(int(n) for n in lengths), self.batch_size, self.accumulate)

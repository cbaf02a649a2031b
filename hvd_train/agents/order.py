"""The order in which the samples of an epoch are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hvd_train.agents import noise
from hvd_train.data.partitioning.base import WorkerSamples


@dataclass
class RolloutOrder:
    """A partitioner of what each worker has collected itself; the `Collector` sets its fields.

    `labels`, the workers and their speeds do not matter: the samples of other workers are elsewhere.
    """

    rows: Sequence[int] = ()
    """The numbers of this rank's agents."""
    steps: int = 0
    """Steps of each of them in this epoch; 0 before the first one, whose samples then count `labels`."""
    planned: int = 0
    """What `steps` would be if the rollout was not cut."""
    passes: int = 1
    in_order: int = 0
    """Samples that are trained on in their order; 0: `passes` permutations of all."""
    fixed: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def check(self, workers: int) -> None:
        """Accept any number of workers."""

    def share(
        self,
        labels: Tensor,
        worker: int,
        workers: int,
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        speeds: Sequence[float] = (),
    ) -> WorkerSamples:
        if self.in_order or not self.steps:
            return WorkerSamples(torch.arange(self.in_order or len(labels)), batch_size)
        order = noise.order(seed, epoch, self.rows, self.steps, self.passes)
        batches = -(-self.planned * len(self.rows) * self.passes // batch_size)
        # Workers take as many steps with what a cut has left, in smaller batches.
        return WorkerSamples(order, batch_size if self.steps == self.planned else -(-len(order) // batches))

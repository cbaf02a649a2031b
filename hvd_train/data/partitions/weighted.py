"""Gives workers shares and batches in proportion to given weights or measured speeds.

The samples are shuffled in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field
from hvd_train.data.partitioning.apportion import apportion
from hvd_train.data.partitioning.base import Arrange, WorkerSamples
from hvd_train.data.partitioning.order import Array, shuffled
from hvd_train.errors import UserError


class Weighted:
    """Gives each worker its part of every global batch of `random`.

    `weights` has one weight for each worker; None: the measured speeds. Shares are equal as long as
    nothing is measured, and after the loss of a worker.
    """

    fixed: ClassVar[bool] = False

    def __init__(self, weights: Sequence[float] | None, arrange: Arrange | None = None) -> None:
        self.weights = weights
        self.adaptive = weights is None
        self.arrange = arrange

    def arranged(self, arrange: Arrange) -> Weighted:
        return Weighted(self.weights, arrange)

    def check(self, workers: int) -> None:
        """Raise UserError if there is not one weight for each worker."""
        if self.weights is not None and len(self.weights) != workers:
            raise UserError(
                f"data.partition.weights: {len(self.weights)} weights for {workers} workers, expected one for each, or auto"
            )

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
        weights = speeds if self.weights is None else self.weights
        fitting = weights if len(weights) == workers else [1.0] * workers
        batches = apportion(batch_size * workers, fitting, minimum=1)
        order = shuffled(len(labels), epoch=epoch, seed=seed)
        if self.arrange is not None:
            order = self.arrange(order, batch_size * workers, epoch)
        return WorkerSamples(divide(order, worker, batches), batches[worker])


def divide(order: Array, worker: int, batches: Sequence[int]) -> Tensor:
    """Return positions (int64): `batches[worker]` from every block of `sum(batches)` of `order`.

    The last block may be shorter and is divided in the same proportions. Workers together take one
    block in a step, so the global batches do not depend on `batches`.
    """
    block = max(1, sum(batches))
    whole = len(order) - len(order) % block
    own = order[:whole].reshape(-1, block)[:, spread(batches, worker)].reshape(-1)
    rest = order[whole:][spread(apportion(len(order) - whole, batches), worker)]
    return torch.from_numpy(np.concatenate([own, rest]))


def spread(sizes: Sequence[int], worker: int) -> Array:
    """Return the `sizes[worker]` positions of a worker in a block of `sum(sizes)`, evenly spread.

    In a block that is sorted by length, every worker gets samples of all lengths.
    """
    places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(places, kind="stable")]
    return np.flatnonzero(owners == worker)


def create(
    *,
    weights: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | Literal["auto"],
        "one weight for each worker, in proportion to its speed; auto: measured in every epoch, for the next epoch",
    ] = "auto",
) -> Weighted:
    return Weighted(None if weights == "auto" else weights)

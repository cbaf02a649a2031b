"""Shares and batches proportional to weights, given or measured, for workers of unequal speed; shuffled anew every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.options import Annotated, Field
from hvd_train.partition._apportion import apportion
from hvd_train.partition._order import shuffled


class Weighted:
    """The permutations of `random`, dealt in blocks of which each worker has its part.

    `weights` is None where speeds are to be measured: equal until somebody has, which is the sampler.
    """

    keeps: ClassVar[bool] = False

    def __init__(self, weights: Sequence[float] | None) -> None:
        self.weights = weights

    def of(self, size: int) -> Sequence[float]:
        """The weights of `size` workers; UserError where those given are not as many."""
        if self.weights is None:
            return [1.0] * size
        if len(self.weights) != size:
            raise UserError(
                f"data.partition.weights: {len(self.weights)} weights for {size} workers, expected one for each, or auto"
            )
        return self.weights

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        return deal(len(labels), rank, apportion(len(labels), self.of(size)), epoch=epoch, seed=seed)


def deal(samples: int, rank: int, batches: Sequence[int], *, epoch: int, seed: int) -> Tensor:
    """Positions (int64) of which `rank` has `batches[rank]` in every block of `sum(batches)`.

    The last block, which may be shorter, is dealt in the same proportions. All ranks together have the permutation of `random`
    block by block: the batches of all ranks do not depend on who has which part of them.
    """
    order = shuffled(samples, epoch=epoch, seed=seed)
    block = max(1, sum(batches))
    whole = samples - samples % block
    mine = order[:whole].reshape(-1, block)[:, _part(batches, rank)].reshape(-1)
    rest = order[whole:][_part(apportion(samples - whole, batches), rank)]
    return torch.from_numpy(np.concatenate([mine, rest]))


def _part(sizes: Sequence[int], rank: int) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def create(
    *,
    weights: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | Literal["auto"],
        "one a worker, in proportion to its speed; auto: measured in every epoch, for the next",
    ] = "auto",
) -> Weighted:
    return Weighted(None if weights == "auto" else weights)

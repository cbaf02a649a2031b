"""Samples sorted by class and cut into equal blocks, some of them for each worker (FedAvg's non-IID split); fixed for the run."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvd_train.errors import UserError
from hvd_train.options import Annotated, PositiveInt
from hvd_train.partition._classes import Fixed, by_class
from hvd_train.partition._order import Array
from hvd_train.partition.base import Partitioner


def split(labels: Array, size: int, generator: np.random.Generator, *, shards: int) -> list[Array]:
    """`shards` of `size * shards` blocks for each worker, at random (McMahan et al., arXiv 1602.05629, section 3).

    Blocks differ by one sample at most, and where they are no longer than a class, a worker has at most `2 * shards` classes.
    UserError where there are more blocks than samples.
    """
    if len(labels) < size * shards:
        raise UserError(
            f"data.partition: by_label cuts {len(labels)} samples into {size * shards} blocks, {shards} for each of "
            f"{size} workers; use fewer shards or workers"
        )
    blocks = np.array_split(by_class(labels, generator), size * shards)
    dealt = generator.permutation(len(blocks)).reshape(size, shards)
    return [np.concatenate([blocks[i] for i in mine]) for mine in dealt]


def create(
    *,
    shards: Annotated[PositiveInt, "blocks of sorted samples that each worker has: the fewer, the fewer classes"] = 2,
) -> Partitioner:
    return Fixed(partial(split, shards=shards))

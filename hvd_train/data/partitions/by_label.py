"""Gives each worker some blocks of the samples sorted by class (non-IID split of FedAvg); fixed."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.data.partitioning.base import EqualBatches
from hvd_train.data.partitioning.classes import by_class, fixed
from hvd_train.data.partitioning.order import Array
from hvd_train.errors import UserError


def split(labels: Array, workers: int, generator: np.random.Generator, *, shards: int) -> list[Array]:
    """Give each worker `shards` of `workers * shards` blocks at random.

    McMahan et al., arXiv 1602.05629, section 3.

    The sizes of two blocks differ by at most one sample. If blocks are no longer than a class, a
    worker has at most `2 * shards` classes. Raise UserError if there are more blocks than samples.
    """
    if len(labels) < workers * shards:
        raise UserError(
            f"data.partition: by_label cuts {len(labels)} samples into {workers * shards} blocks, {shards} for each of "
            f"{workers} workers; use fewer shards or workers"
        )
    blocks = np.array_split(by_class(labels, generator), workers * shards)
    assigned = generator.permutation(len(blocks)).reshape(workers, shards)
    return [np.concatenate([blocks[i] for i in own]) for own in assigned]


def create(
    *,
    shards: Annotated[PositiveInt, "blocks of sorted samples of each worker; fewer blocks mean fewer classes"] = 2,
) -> EqualBatches:
    return fixed(partial(split, shards=shards))

"""Divides every class among workers by a Dirichlet draw (non-IID); fixed for the run."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvd_train.config.options import Annotated, Field
from hvd_train.data.partitioning.base import EqualBatches
from hvd_train.data.partitioning.classes import by_class, fixed
from hvd_train.data.partitioning.order import Array, grouped
from hvd_train.errors import UserError

ATTEMPTS = 100
"""Draws after which a split that leaves some worker without samples is an error."""


def split(labels: Array, workers: int, generator: np.random.Generator, *, alpha: float) -> list[Array]:
    """Give worker i the part p_i of each class, where p ~ Dir(alpha).

    Yurochkin et al., arXiv 1905.12022.

    Draw again until every worker has a sample; raise UserError after `ATTEMPTS` draws.
    """
    sizes = _sizes(np.bincount(labels), workers, generator, alpha)
    owners = np.repeat(np.tile(np.arange(workers), len(sizes)), sizes.reshape(-1))
    positions = by_class(labels, generator)[grouped(owners)]
    return np.split(positions, np.cumsum(sizes.sum(0))[:-1])


def _sizes(counts: Array, workers: int, generator: np.random.Generator, alpha: float) -> Array:
    """Return the number of samples of each class (row) of each worker (column).

    Each is within one of the share drawn.
    """
    for _ in range(ATTEMPTS if counts.sum() >= workers else 0):
        shares = generator.dirichlet(np.full(workers, alpha), len(counts))
        ends = np.floor(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
        ends[:, -1] = counts
        sizes = np.diff(ends, axis=1, prepend=0)
        if sizes.sum(0).all():
            return sizes
    raise UserError(
        f"data.partition: dirichlet with alpha {alpha:g} leaves one of {workers} workers without any of {counts.sum()} "
        "samples; use a larger alpha, or fewer workers"
    )


def create(
    *,
    alpha: Annotated[
        float, Field(gt=0, le=1e6), "concentration: 0.1 gives each worker few classes, 100 nearly equal shares"
    ] = 0.5,
) -> EqualBatches:
    return fixed(partial(split, alpha=alpha))

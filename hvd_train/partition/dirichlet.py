"""Every class spread over workers by a Dirichlet draw, non-IID the more the smaller `alpha`; fixed for the run."""

from __future__ import annotations

from functools import partial

import numpy as np

from hvd_train.errors import UserError
from hvd_train.options import Annotated, Field
from hvd_train.partition._classes import Fixed, by_class
from hvd_train.partition._order import Array, grouped
from hvd_train.partition.base import Partitioner

ATTEMPTS = 100
"""Draws before a split in which some worker has no sample is given up."""


def split(labels: Array, size: int, generator: np.random.Generator, *, alpha: float) -> list[Array]:
    """Of each class, worker i has the part p_i, where p ~ Dir(alpha) (Yurochkin et al., arXiv 1905.12022).

    Drawn again until every worker has a sample; UserError where that does not come about.
    """
    sizes = _sizes(np.bincount(labels), size, generator, alpha)
    owners = np.repeat(np.tile(np.arange(size), len(sizes)), sizes.reshape(-1))
    dealt = by_class(labels, generator)[grouped(owners)]
    return np.split(dealt, np.cumsum(sizes.sum(0))[:-1])


def _sizes(counts: Array, size: int, generator: np.random.Generator, alpha: float) -> Array:
    """Samples of each class (row) that each worker (column) has, all within one of the shares drawn."""
    for _ in range(ATTEMPTS if counts.sum() >= size else 0):
        shares = generator.dirichlet(np.full(size, alpha), len(counts))
        ends = np.floor(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
        ends[:, -1] = counts
        sizes = np.diff(ends, axis=1, prepend=0)
        if sizes.sum(0).all():
            return sizes
    raise UserError(
        f"data.partition: dirichlet with alpha {alpha:g} leaves one of {size} workers without any of {counts.sum()} samples; "
        "use a larger alpha, or fewer workers"
    )


def create(
    *,
    alpha: Annotated[
        float, Field(gt=0, le=1e6), "concentration: 0.1 gives workers few classes, 100 nearly equal shares"
    ] = 0.5,
) -> Partitioner:
    return Fixed(partial(split, alpha=alpha))

"""Aggregates of the workers' updates.

Most of them withstand `f` Byzantine workers, which send anything at all. An update that is not
finite counts as infinitely far away, and is outvoted like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvd_train.errors import UserError

Aggregator = Callable[[Tensor, int], Tensor]
"""(stack of n updates [n, d], f) -> their aggregate [d]; UserError if n is too small for f."""

COLUMNS = 1 << 14
"""The number of coordinates that are sorted at a time, so that they stay in the cache."""


def mean(stack: Tensor, f: int = 0) -> Tensor:
    """Return the mean. A single update can move it anywhere."""
    return stack.mean(0)


def krum(stack: Tensor, f: int) -> Tensor:
    """Return the update that is nearest to its n - f - 2 nearest others.

    Blanchard et al., arXiv 1703.02757. If n >= 2 f + 2, one of these others is honest, so that the
    result is near the honest updates. The paper's proof of convergence needs one worker more.
    """
    check("krum", len(stack), f)
    return stack[nearest(distances(stack), f)]


def median(stack: Tensor, f: int) -> Tensor:
    """Return the median of each coordinate: it lies between honest values.

    Yin et al., arXiv 1803.01498.
    """
    check("median", len(stack), f)
    middle = (len(stack) - 1) // 2
    return _mean_of_ranks(stack, slice(middle, len(stack) - middle))


def trimmed_mean(stack: Tensor, f: int) -> Tensor:
    """Return the mean of each coordinate without its f least and f greatest values.

    Yin et al., arXiv 1803.01498.
    """
    check("trimmed_mean", len(stack), f)
    return _mean_of_ranks(stack, slice(f, len(stack) - f))


def distances(stack: Tensor) -> Tensor:
    """Return the squared distances between all updates, [n, n] in float64.

    The distances of parts of the updates add up to the distances of the whole updates.
    """
    table = torch.zeros(len(stack), len(stack), dtype=torch.float64)
    for i, one in enumerate(stack):
        for j, other in enumerate(stack[:i]):
            table[i, j] = table[j, i] = torch.linalg.vector_norm(one - other).double().square()
    return table


def nearest(table: Tensor, f: int) -> int:
    """Return the number of the update that krum chooses, given the `distances`."""
    known = table.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(-torch.inf)
    others = known.sort(1).values[:, 1:]
    return int(others[:, : len(table) - f - 2].sum(1).argmin())


LEAST: dict[str, Callable[[int], int]] = {
    "mean": lambda f: 1,
    "krum": lambda f: max(2 * f + 2, 3),
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
}
"""The least number of updates with which an aggregator withstands f Byzantine ones."""

AGGREGATORS: dict[str, Aggregator] = {"mean": mean, "krum": krum, "median": median, "trimmed_mean": trimmed_mean}


def check(name: str, n: int, f: int) -> None:
    """Raise UserError if `n` updates are too few for aggregator `name` to withstand `f`."""
    least = LEAST[name](f)
    if n < least:
        raise UserError(
            f"sync.aggregate: {name} withstands {f} Byzantine worker{'s' * (f != 1)} among at least {least}, and there "
            f"{'is' if n == 1 else 'are'} {n}: start more workers, or lower sync.byzantine"
        )


def _mean_of_ranks(stack: Tensor, ranks: slice) -> Tensor:
    """Return the mean of each coordinate over the positions `ranks` in ascending order."""
    return torch.cat([torch.stack(_ascending(part)[ranks]).mean(0) for part in stack.split(COLUMNS, 1)])


def _ascending(stack: Tensor) -> list[Tensor]:
    """Sort each coordinate over the rows in ascending order, with NaN last.

    Odd-even transposition of all coordinates at once is ten times faster than `sort` for few rows.
    """
    rows = list(stack.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf))
    for pass_ in range(len(rows)):
        for i in range(pass_ % 2, len(rows) - 1, 2):
            rows[i : i + 2] = torch.minimum(rows[i], rows[i + 1]), torch.maximum(rows[i], rows[i + 1])
    return rows

"""Aggregates of the workers' updates, most of which withstand `f` workers that send anything at all (Byzantine ones).

An update that is not finite counts as infinitely far away: it is outvoted like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvd_train.errors import UserError

Aggregator = Callable[[Tensor, int], Tensor]
"""(stack of n updates [n, d], f) -> their aggregate [d]; UserError where n is too small for f."""

COLUMNS = 1 << 14
"""Coordinates that are put in order at a time, so that they stay in the cache."""


def mean(stack: Tensor, f: int = 0) -> Tensor:
    """The mean, which one update alone can carry anywhere."""
    return stack.mean(0)


def krum(stack: Tensor, f: int) -> Tensor:
    """The update that is nearest to its n - f - 2 nearest others (Blanchard et al., arXiv 1703.02757).

    One of those is honest if n >= 2 f + 2, which keeps the result near the honest updates; the paper's proof of convergence
    asks for one worker more.
    """
    check("krum", len(stack), f)
    return stack[nearest(distances(stack), f)]


def median(stack: Tensor, f: int) -> Tensor:
    """The median of each coordinate, which lies between honest values (Yin et al., arXiv 1803.01498)."""
    check("median", len(stack), f)
    middle = (len(stack) - 1) // 2
    return _mean_of_ranks(stack, slice(middle, len(stack) - middle))


def trimmed_mean(stack: Tensor, f: int) -> Tensor:
    """The mean of each coordinate without its f least and f greatest values (Yin et al., arXiv 1803.01498)."""
    check("trimmed_mean", len(stack), f)
    return _mean_of_ranks(stack, slice(f, len(stack) - f))


def distances(stack: Tensor) -> Tensor:
    """Squared distances between all updates, [n, n] in float64: those of parts of the updates add up to those of the whole."""
    table = torch.zeros(len(stack), len(stack), dtype=torch.float64)
    for i, one in enumerate(stack):
        for j, other in enumerate(stack[:i]):
            table[i, j] = table[j, i] = torch.linalg.vector_norm(one - other).double().square()
    return table


def nearest(table: Tensor, f: int) -> int:
    """Which update krum chooses, from the `distances` of all."""
    known = table.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(-torch.inf)
    others = known.sort(1).values[:, 1:]
    return int(others[:, : len(table) - f - 2].sum(1).argmin())


LEAST: dict[str, Callable[[int], int]] = {
    "mean": lambda f: 1,
    "krum": lambda f: max(2 * f + 2, 3),
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
}
"""How many updates an aggregator needs to withstand f."""

AGGREGATORS: dict[str, Aggregator] = {"mean": mean, "krum": krum, "median": median, "trimmed_mean": trimmed_mean}


def check(name: str, n: int, f: int) -> None:
    """UserError where `n` updates are too few for aggregator `name` to withstand `f`."""
    least = LEAST[name](f)
    if n < least:
        raise UserError(
            f"sync.aggregate: {name} withstands {f} Byzantine worker{'s' * (f != 1)} among at least {least}, and there "
            f"{'is' if n == 1 else 'are'} {n}: start more workers, or lower sync.byzantine"
        )


def _mean_of_ranks(stack: Tensor, ranks: slice) -> Tensor:
    """Of each coordinate the mean of those of its values that have `ranks` in ascending order."""
    return torch.cat([torch.stack(_ascending(part)[ranks]).mean(0) for part in stack.split(COLUMNS, 1)])


def _ascending(stack: Tensor) -> list[Tensor]:
    """Rows in which each coordinate ascends, what is not a number last.

    Neighbours change places n times (odd-even transposition), all coordinates at once: for few rows ten times faster than `sort`.
    """
    rows = list(stack.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf))
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            rows[i : i + 2] = torch.minimum(rows[i], rows[i + 1]), torch.maximum(rows[i], rows[i + 1])
    return rows

"""Adds synthetic rows of rare classes to a table, each between two neighbours of the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field, PositiveInt
from hvd_train.data.base import Split
from hvd_train.data.nesting import shown
from hvd_train.data.transform import Transform, TransformContext
from hvd_train.errors import UserError

ROWS = 1024
"""Rows whose distances are computed at once, which bounds the memory."""


@dataclass(frozen=True)
class GrownSplit:
    """The samples of `split`, followed by the inputs `x` of the classes `y`."""

    split: Split
    x: Tensor
    y: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.cat([self.split.labels, self.y])

    def __len__(self) -> int:
        return len(self.split) + len(self.y)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        added = indices >= len(self.split)
        x, y = self.x.new_empty(len(indices), self.x.shape[1]), self.y.new_empty(len(indices))
        x[added], y[added] = self.x[indices[added] - len(self.split)], self.y[indices[added] - len(self.split)]
        if not added.all():
            x[~added], y[~added] = self.split.batch(indices[~added])
        return x, y


@dataclass(frozen=True)
class Smote(Transform):
    """Gives each class at least `ratio` times the rows of the largest one. Chawla et al., 2002.

    A synthetic row is a uniform random point between a row and one of its `neighbours` nearest rows
    of the class, by the Euclidean distance of the inputs.
    """

    neighbours: int
    ratio: float
    seed: int

    def grow(self, split: Split) -> Split:
        x, y = self._table(split)
        counts = torch.bincount(y)
        wanted = (self.ratio * counts.max()).round().long()
        generator = torch.Generator().manual_seed(self.seed)
        grown = [(c, int(wanted - n)) for c, n in enumerate(counts.tolist()) if 0 < n < wanted]
        rows = [self._rows(x[y == c], number, c, generator) for c, number in grown]
        classes = [torch.full((number,), c) for c, number in grown]
        return GrownSplit(split, torch.cat(rows), torch.cat(classes)) if rows else split

    def _table(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return all inputs and classes; UserError for samples that are no rows of numbers."""
        whole = split.batch(torch.arange(len(split))) if isinstance(split, Split) else split
        if isinstance(whole, tuple) and len(whole) == 2:
            x, y = whole
            if x.dim() == 2 and x.is_floating_point() and y.dim() == 1 and not y.is_floating_point():
                return x, y
        raise UserError(
            f"data.transforms: smote: the samples are {shown(whole)}, expected rows of numbers with a class, as of a table"
        )

    def _rows(self, x: Tensor, number: int, name: int, generator: torch.Generator) -> Tensor:
        if len(x) == 1:
            raise UserError(
                f"data.transforms: smote: class {name} has one training sample, expected at least two; leave the class out"
            )
        near = nearest_rows(x, min(self.neighbours, len(x) - 1))
        rounds = [torch.randperm(len(x), generator=generator) for _ in range(-(-number // len(x)))]
        start = torch.cat(rounds)[:number]
        end = near[start, torch.randint(near.shape[1], (number,), generator=generator)]
        return x[start].lerp(x[end], torch.rand(number, 1, generator=generator, dtype=x.dtype))


def nearest_rows(x: Tensor, neighbours: int) -> Tensor:
    """Return positions (n, neighbours) of the nearest other rows of each row, nearest first."""
    found = []
    for rows in torch.arange(len(x)).split(ROWS):
        distances = torch.cdist(x[rows], x, compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(rows)), rows] = torch.inf
        found.append(distances.topk(neighbours, largest=False).indices)
    return torch.cat(found)


def create(
    context: TransformContext,
    *,
    neighbours: Annotated[PositiveInt, "nearest rows of the class that a synthetic row can be between"] = 5,
    ratio: Annotated[
        float, Field(gt=0, le=1), "rows that each class has at least, as a part of those of the largest"
    ] = 1.0,
) -> Smote:
    return Smote(neighbours, ratio, context.seed)

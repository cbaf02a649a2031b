"""Samples of a table of ratings: ratings to predict, or items to rank before others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.ratings.seen import Pairs, Unseen, draws
from hvd_train.data.samples import EVALUATION
from hvd_train.data.seeding import sample_seed
from hvd_train.data.value_checks import Array

IGNORED = -100.0
"""The target of items that are no candidates: those of training, and the unknown item."""


@dataclass(frozen=True)
class RatingSplit:
    """Ratings. Inputs are users and items (n,), and targets ratings (n, 1)."""

    users: MappedArray
    items: MappedArray
    ratings: MappedArray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    @property
    def groups(self) -> Tensor:
        return _integers(self.users.values)

    def batch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        at = indices.numpy()
        inputs = {"user": _integers(self.users.values.take(at)), "item": _integers(self.items.values.take(at))}
        return inputs, torch.from_numpy(self.ratings.values.take(at)[:, None])


@dataclass(frozen=True)
class PairSplit:
    """Pairs of a user and an item of it, each with `negatives` items that the user has not.

    Inputs are users (n,) and items (n, 1 + negatives), of which the first is the user's. Targets are 1
    for it and 0 for the others. Negatives are uniform over all items that the user has not in training,
    and depend on seed, epoch and position only.
    """

    users: MappedArray
    items: MappedArray
    starts: MappedArray
    keys: MappedArray
    catalogue: int
    """The number of items."""
    negatives: int
    seed: int = 0
    epoch: int = EVALUATION

    def __len__(self) -> int:
        return len(self.users)

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    @property
    def groups(self) -> Tensor:
        return _integers(self.users.values)

    def seeded(self, seed: int) -> PairSplit:
        """Return the samples with negatives of another seed."""
        return replace(self, seed=seed)

    def at(self, epoch: int) -> PairSplit:
        """Return the samples with the negatives of `epoch`."""
        return replace(self, epoch=epoch)

    def batch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        at = indices.numpy()
        users = self.users.values.take(at).astype(np.int64)
        free = self._unseen.free(users)[:, None].astype(np.uint64)
        ranks = (draws(self._start, at, self.negatives) * free) >> np.uint64(32)
        items = np.empty((len(at), 1 + self.negatives), np.int64)
        items[:, 0] = self.items.values.take(at)
        items[:, 1:] = self._unseen.at(users, ranks.astype(np.int64))
        targets = torch.zeros(items.shape)
        targets[:, 0] = 1
        return {"user": torch.from_numpy(users), "item": torch.from_numpy(items)}, targets

    @cached_property
    def _start(self) -> int:
        return sample_seed(self.seed, self.epoch)

    @cached_property
    def _unseen(self) -> Unseen:
        return Unseen(self.starts.values, self.keys.values, self.catalogue)


@dataclass(frozen=True)
class UserSplit:
    """Users with held-out items. The input is the user, and the model scores all items.

    Targets (n, items) are 1 for held-out items, `IGNORED` for those of training and 0 for all others.
    """

    users: MappedArray
    """The users with at least one held-out item."""
    held_out: tuple[MappedArray, MappedArray]
    """`Pairs` of all users."""
    seen: tuple[MappedArray, MappedArray]
    items: int
    """The number of scores: of items, and of the unknown one."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    @property
    def groups(self) -> Tensor:
        return _integers(self.users.values)

    def batch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        users = self.users.values.take(indices.numpy()).astype(np.int64)
        targets = np.zeros((len(users), self.items), np.float32)
        targets[:, 0] = IGNORED
        for pairs, value in ((self.seen, IGNORED), (self.held_out, 1.0)):
            targets[Pairs(pairs[0].values, pairs[1].values).of(users)] = value
        return {"user": torch.from_numpy(users)}, torch.from_numpy(targets)


def _integers(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))

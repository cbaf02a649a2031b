"""A fold of samples by position, for a source that does not divide them itself: a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvd_train.config.fold_section import FoldSection, names_test_samples
from hvd_train.config.section import PluginSection
from hvd_train.data.base import Dataset, Items, Stream
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.samples import CheckedItems, at
from hvd_train.errors import UserError

S = TypeVar("S", bound=PluginSection)


@dataclass(frozen=True)
class Chosen:
    """The samples of `whole` at the positions `rows` (int64)."""

    whole: Any
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        labels: Tensor = self.whole.labels[self.rows]
        return labels

    @property
    def groups(self) -> Tensor | None:
        return self._of_each("groups")

    @property
    def lengths(self) -> Tensor | None:
        return self._of_each("lengths")

    def at(self, epoch: int) -> Chosen:
        """Return the samples as they are in `epoch`."""
        return replace(self, whole=at(self.whole, epoch))

    def seeded(self, seed: int) -> Chosen:
        """Return the samples drawn with the seed of the run."""
        return replace(self, whole=self.whole.seeded(seed)) if hasattr(self.whole, "seeded") else self

    def _of_each(self, name: str) -> Tensor | None:
        values = getattr(self.whole, name, None)
        return None if values is None else torch.as_tensor(values)[self.rows]


@dataclass(frozen=True)
class ChosenSplit(Chosen):
    """Some samples of a `Split`."""

    def batch(self, indices: Tensor) -> Any:
        return self.whole.batch(self.rows[indices])


@dataclass(frozen=True)
class ChosenItems(Chosen):
    """Some samples of `Items`."""

    @property
    def name(self) -> str:
        return str(self.whole.name)

    @property
    def damage(self) -> str | None:
        return getattr(self.whole, "damage", None)

    def item(self, index: int) -> Any:
        return self.whole.item(int(self.rows[index]))

    def checked(self, batch: Any, positions: Sequence[int]) -> Any:
        """Return the batch of the samples at `positions`; UserError for a wrong value."""
        if not isinstance(self.whole, CheckedItems):
            return batch
        return self.whole.checked(batch, self.rows[torch.tensor(positions)].tolist())


def folded(data: Dataset, fold: FoldSection, where: str) -> Dataset:
    """Return `data` with a fold of its training samples as its test samples.

    Samples are stratified if all of their classes are known, and grouped by the attribute `groups` of
    the training samples. Given test samples are left out. Raise UserError, which names `where`, if the
    samples cannot be divided.
    """
    whole, labels = data.train, data.train.labels
    known = labels if len(labels) and bool((labels >= 0).all()) else None
    groups = None if fold.group is not None else getattr(whole, "groups", None)
    kind = ChosenItems if isinstance(whole, Items) else ChosenSplit
    train, test = (kind(whole, rows) for rows in HoldOut(0.0, 0, fold).rows(len(whole), where, known, groups))
    return replace(data, train=train, test=test, others={})


def without_tests(section: S) -> S:
    """Return the section of a source without its given test samples."""
    given = [name for name in type(section).model_fields if names_test_samples(name)]
    return section.model_copy(update=dict.fromkeys(given))


def check_positions(data: Dataset, where: str) -> None:
    """Raise UserError, which names `where`, for a stream and for environments: a fold cannot divide them."""
    if isinstance(data.train, Stream):
        raise UserError(f"data.fold: {where} is a stream without positions, which has no folds; leave data.fold out")
    if data.spec.task == "control":
        raise UserError(f"data.fold: {where} has environments, and only samples have folds; leave data.fold out")

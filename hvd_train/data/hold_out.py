"""Which samples of a source are held out: a random part, or one fold of a cross-validation.

A source that divides its own samples asks `HoldOut` for the rows of both parts, and fits what it fits
on the training rows. It gets the section `data.fold` as the positional parameter `fold` of `create`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvd_train.config.fold_section import FoldSection
from hvd_train.data.files import import_extra
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

Groups = Sequence[Any] | Array | Tensor
"""The group of each sample: integers or texts."""


class Block(NamedTuple):
    """The part of a long row from `start` to `end` is held out; what precedes it and what is from `after` on trains."""

    start: int
    end: int
    after: int


@dataclass(frozen=True)
class HoldOut:
    """What is held out: `fold` if it is given, otherwise a random `fraction`."""

    fraction: float
    seed: int
    fold: FoldSection | None = None
    stratify: bool = False
    """Hold out the same fraction of each class."""

    @property
    def group(self) -> str | None:
        """The name of the column with the groups of the samples; None if they are not needed."""
        return None if self.fold is None else self.fold.group

    def rows(
        self, samples: int, where: str, labels: Tensor | None = None, groups: Groups | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of training and held-out samples. Equal arguments give equal positions.

        `labels` are classes, int64 `(n,)`; None in a regression. Raise UserError, which names `where`, if
        no training samples are left, or if the samples cannot be divided into the folds.
        """
        if self.fold is not None:
            return fold_rows(samples, self.fold, self.seed, where, labels, groups)
        if self.stratify and labels is not None:
            train, test = stratified_rows(labels, self.fraction, self.seed)
        else:
            train, test = held_out_rows(samples, self.fraction, self.seed)
        if samples and not len(train):
            raise none_left(self.fraction, samples, where)
        return train, test

    def block(self, length: int) -> Block:
        """Return the held-out part of a row that is not shuffled, such as a text: its end, or a fold.

        Raise UserError for a fold that needs classes, groups or a random order.
        """
        if self.fold is None:
            return Block(length - round(length * self.fraction), length, length)
        folds, part, kind = self.fold.folds, self.fold.part, self.fold.kind
        if kind not in {"auto", "plain", "time"} or self.fold.repeats > 1:
            what = "repeats" if self.fold.repeats > 1 else f"kind: {kind}"
            raise UserError(f"data.fold: a text is divided into consecutive parts, which have no {what}; leave it out")
        if kind == "time":
            size = length // (folds + 1)
            start = length - (folds - part) * size
            return Block(start, start + size, length)
        start, end = (length * number // folds for number in (part, part + 1))
        return Block(start, end, end)


def none_left(fraction: float, samples: int, where: str) -> UserError:
    """Return the error for a held-out fraction that leaves no training samples."""
    return UserError(f"{where}: test_fraction {fraction} leaves none of {samples} samples for training")


def held_out_rows(samples: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return random positions of training and test samples. Equal seeds give equal positions."""
    order = _shuffled(samples, torch.Generator().manual_seed(seed))
    cut = samples - round(samples * fraction)
    return order[:cut], order[cut:]


def stratified_rows(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return random positions of training and test samples with the same `fraction` of each class.

    `labels` are classes, int64 `(n,)`. Each class keeps a training sample. Equal seeds give equal
    positions.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, order = (_shuffled(len(labels), generator) for _ in range(2))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for number in labels.unique().tolist():
        of_class = chosen[labels[chosen] == number]
        is_test[of_class[: min(round(len(of_class) * fraction), len(of_class) - 1)]] = True
    return order[~is_test[order]], order[is_test[order]]


def fold_rows(
    samples: int, fold: FoldSection, seed: int, where: str, labels: Tensor | None = None, groups: Groups | None = None
) -> tuple[Tensor, Tensor]:
    """Return the positions of training and held-out samples of `fold`: those of scikit-learn's splitters.

    Positions are in random order, but for the kind `time`. Repetition r has the seed `seed` + r. Raise
    UserError, which names `where`, for more folds than samples, groups or members of a class.
    """
    kind = fold.kind
    if kind == "auto":
        kind = "plain" if labels is None else "stratified"
    if kind == "stratified" and labels is None:
        raise UserError(f"{where}: data.fold.kind: stratified needs classes, and the targets are none; take plain")
    if kind == "grouped" and groups is None:
        raise _without_groups(fold, where)
    targets = np.zeros(samples, np.int64) if labels is None else labels.numpy()
    smallest = int(np.unique(targets, return_counts=True)[1].min(initial=samples))
    of_groups = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    counted = {"stratified": smallest, "grouped": 0 if of_groups is None else int(of_groups.max(initial=-1)) + 1}
    _check_enough(fold, kind, counted.get(kind, samples), where)
    if kind == "grouped" and smallest < fold.folds:
        targets = np.zeros_like(targets)  # only the sizes of the parts can be balanced
    splitters, seed = import_extra("sklearn.model_selection"), seed + fold.repetition
    shuffled = {"shuffle": True, "random_state": seed % 2**32}
    splitter = {
        "plain": lambda: splitters.KFold(fold.folds, **shuffled),
        "stratified": lambda: splitters.StratifiedKFold(fold.folds, **shuffled),
        "grouped": lambda: splitters.StratifiedGroupKFold(fold.folds, **shuffled),
        "time": lambda: splitters.TimeSeriesSplit(fold.folds),
    }[kind]()
    parts = splitter.split(targets, targets, of_groups if kind == "grouped" else None)
    train, test = next(islice(parts, fold.part, None))
    if kind == "time":
        return torch.from_numpy(train), torch.from_numpy(test)
    generator = torch.Generator().manual_seed(seed)
    train, test = (torch.from_numpy(rows)[_shuffled(len(rows), generator)] for rows in (train, test))
    return train, test


def _check_enough(fold: FoldSection, kind: str, number: int, where: str) -> None:
    """Raise UserError if there are fewer samples, groups or members of the smallest class than folds need."""
    needed = fold.folds + (kind == "time")
    if number < needed:
        what = {"stratified": "samples in the smallest class", "grouped": "groups"}.get(kind, "samples")
        other = ", or data.fold.kind: plain" if kind == "stratified" else ""
        raise UserError(
            f"{where}: {fold.folds} folds of kind {kind} need {needed} {what}, found {number}; expected fewer "
            f"data.fold.folds{other}"
        )


def _without_groups(fold: FoldSection, where: str) -> UserError:
    if fold.group is None:
        return UserError("data.fold.group: is missing; name the column with the group of each sample")
    return UserError(f"data.fold.group: '{fold.group}' is no column of {where}, which has no named columns")


def _shuffled(samples: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(samples, generator=generator)

"""Batches of samples that are made one at a time, and of transformed samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hvd_train.data.base import Items, Split, Stream
from hvd_train.data.nesting import first_sample, shown
from hvd_train.data.seeding import kept_generators, sample_seed, seed_globals
from hvd_train.data.transform import Transform
from hvd_train.errors import UserError

Collate = Callable[[list[Any]], Any]
"""Makes a batch of samples."""


@runtime_checkable
class CheckedItems(Items, Protocol):
    """Items whose values are checked in batches, which is faster."""

    def checked(self, batch: Any, positions: Sequence[int]) -> Any:
        """Return the batch of the samples at `positions`; UserError for a wrong value."""


@runtime_checkable
class FileItems(Items, Protocol):
    """Items of files, which messages name."""

    @property
    def remedy(self) -> str:
        """What makes samples of different shapes fit into one batch."""

    def file(self, index: int) -> str:
        """Return the file of the sample at `index`."""


EVALUATION = -1
"""The epoch of samples that are held out."""


def ignore(position: int) -> None:
    """Take note of no sample."""


@dataclass(frozen=True)
class SampleSplit:
    """Batches of `items`, collated and transformed.

    With `skips`, batches leave out damaged samples, and are None without any sample left.
    """

    items: Items
    collate: Collate
    transforms: Sequence[Transform] = ()
    seed: int = 0
    skips: bool = False
    epoch: int = EVALUATION
    seeds: bool = True
    """True: each sample finds the global generators with a seed of its own."""
    note: Callable[[int], None] = ignore
    """Is called with the position of each sample before it is made."""
    lengths: Tensor | None = None
    """The length of each sample (int64), if batches have samples of similar length."""

    @property
    def labels(self) -> Tensor:
        return self.items.labels

    @property
    def groups(self) -> Tensor | None:
        return getattr(self.items, "groups", None)

    def __len__(self) -> int:
        return len(self.items)

    def at(self, epoch: int) -> SampleSplit:
        """Return the samples as they are in `epoch`."""
        return replace(self, epoch=epoch)

    def batch(self, indices: Tensor) -> Any:
        positions = indices.tolist()
        with kept_generators() if self.seeds else nullcontext():
            samples = [sample for i in positions for sample in self._sample(i)]
        if not samples:
            return None
        batch = self._collated(samples, positions)
        return _transformed(batch, self.transforms, (self.seed, self.epoch, positions[0]))

    def _collated(self, samples: list[Any], positions: list[int]) -> Any:
        try:
            batch = self.collate(samples)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise self._uneven(samples, positions, error) from error
        return self.items.checked(batch, positions) if isinstance(self.items, CheckedItems) else batch

    def _uneven(self, samples: list[Any], positions: list[int], error: Exception) -> UserError:
        """Return the error for samples that `collate` cannot put into one batch."""
        kinds = [shown(sample) for sample in samples]
        other = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None)
        first = self._named(positions[0])
        if other is None or len(samples) < len(positions):
            return UserError(f"{first} is {kinds[0]}, which makes no batch: {error}")
        remedy = self.items.remedy if isinstance(self.items, FileItems) else error
        return UserError(f"{self._named(positions[other])} is {kinds[other]}, expected {kinds[0]} as {first}; {remedy}")

    def _named(self, index: int) -> str:
        return self.items.file(index) if isinstance(self.items, FileItems) else f"{self.items.name}[{index}]"

    def _sample(self, index: int) -> Iterator[Any]:
        """Yield the sample, nothing if it is damaged and skipped."""
        self.note(index)
        seed = sample_seed(self.seed, self.epoch, index)
        if self.seeds:
            seed_globals(seed)
        try:
            sample = self.items.item(index)
        except UserError as error:
            if not self.skips:
                raise
            print(f"ddl: skipped a damaged sample: {error}", file=sys.stderr, flush=True)
            return
        if self.transforms:
            generator = torch.Generator().manual_seed(seed)
            for transform in self.transforms:
                sample = transform.sample(sample, generator)
        yield sample


@dataclass(frozen=True)
class RowItems:
    """The rows of a split of arrays, one at a time: for transforms of single samples, and mixtures."""

    split: Split
    name: str = "data"

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    @property
    def lengths(self) -> Tensor | None:
        """The length of each sample, if the split knows them."""
        return getattr(self.split, "lengths", None)

    @property
    def groups(self) -> Tensor | None:
        """The client of each sample, if the split knows them."""
        return getattr(self.split, "groups", None)

    def __len__(self) -> int:
        return len(self.split)

    def item(self, index: int) -> Any:
        return first_sample(self.split.batch(torch.tensor([index])))


@dataclass(frozen=True)
class TransformedSplit:
    """The batches of `split`, transformed as whole batches, or as the rows of arrays before that."""

    split: Split
    transforms: Sequence[Transform]
    seed: int
    epoch: int = EVALUATION

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    @property
    def lengths(self) -> Tensor | None:
        """The length of each sample, if the split knows them."""
        return getattr(self.split, "lengths", None)

    @property
    def groups(self) -> Tensor | None:
        """The client of each sample, if the split knows them."""
        return getattr(self.split, "groups", None)

    def __len__(self) -> int:
        return len(self.split)

    def at(self, epoch: int) -> TransformedSplit:
        """Return the samples as they are in `epoch`."""
        return replace(self, split=at(self.split, epoch), epoch=epoch)

    def batch(self, indices: Tensor) -> Any:
        batch = self.split.batch(indices)
        of_rows = [transform for transform in self.transforms if transform.of_rows]
        if of_rows:
            seeds = [sample_seed(self.seed, self.epoch, index) for index in indices.tolist()]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            for transform in of_rows:
                batch = transform.rows(batch, generators)
        return _transformed(batch, self.transforms, (self.seed, self.epoch, int(indices[0])))


@dataclass(frozen=True)
class StreamSplit:
    """Batches of a stream, collated and transformed.

    A batch is made of a list of (position, raw sample). The other fields are those of `SampleSplit`.
    """

    stream: Stream
    collate: Collate
    transforms: Sequence[Transform] = ()
    seed: int = 0
    skips: bool = False
    epoch: int = EVALUATION
    seeds: bool = True
    note: Callable[[int], None] = ignore

    @property
    def labels(self) -> Tensor:
        """No sample of a stream has a position, nor a class for partitioners."""
        return torch.empty(0, dtype=torch.int64)

    def at(self, epoch: int) -> StreamSplit:
        """Return the samples as they are in `epoch`."""
        return replace(self, epoch=epoch)

    def raw(self, part: int, parts: int, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Yield the raw samples of one of `parts` parts from number `start` on.

        Each has a position that no sample of another part has.
        """
        numbered = zip(count(part, parts), self.stream.raw(part, parts, self.epoch), strict=False)
        return islice(numbered, start, None)

    def batch(self, raw: Sequence[tuple[int, Any]]) -> Any:
        named = _Raw(self.stream, dict(raw))
        options = self.collate, self.transforms, self.seed, self.skips, self.epoch, self.seeds, self.note
        return SampleSplit(named, *options).batch(torch.tensor([position for position, _ in raw]))


@dataclass(frozen=True)
class _Raw:
    """Raw samples of a stream, as items by position."""

    stream: Stream
    raw: dict[int, Any]

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self.raw),), -1)

    def __len__(self) -> int:
        return len(self.raw)

    def item(self, index: int) -> Any:
        return self.stream.sample(self.raw[index])


def first_batch(split: Any) -> Any:
    """Return a batch of the first sample that is not damaged; None if there is none."""
    if isinstance(split, StreamSplit):
        entries: Iterable[Any] = ([raw] for raw in split.at(0).raw(0, 1))
    else:
        entries = (torch.tensor([position]) for position in range(len(split)))
    return next((batch for entry in entries if (batch := split.batch(entry)) is not None), None)


def at(split: Any, epoch: int) -> Any:
    """Return the samples of `split` as they are in `epoch`. Most are the same in every epoch."""
    return split.at(epoch) if hasattr(split, "at") else split


def equally_spaced(length: int, most: int | None) -> Tensor:
    """Return positions of at most `most` of `length` samples, at equal distances, int64."""
    number = length if most is None else min(most, length)
    return torch.arange(number) * length // max(number, 1)


def skips(split: Any) -> bool:
    """Return True if a batch of `split` can have fewer samples than positions."""
    return bool(getattr(split, "skips", False))


def _transformed(batch: Any, transforms: Sequence[Transform], key: tuple[int, int, int]) -> Any:
    for number, transform in enumerate(transforms):
        if type(transform).batch is not Transform.batch:
            batch = transform.batch(batch, torch.Generator().manual_seed(sample_seed(*key, number)))
    return batch

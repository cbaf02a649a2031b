"""Samples of several sources as one split, as items or as one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data import default_collate

from hvd_train.data.base import Items, Split, Stream
from hvd_train.data.nesting import first_sample
from hvd_train.data.samples import CheckedItems
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Blocks:
    """Positions of samples of several parts: `counts[i]` positions of part i follow those of part i - 1.

    If a part has fewer samples than positions, its samples repeat in their order.
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    ends: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", torch.tensor(self.counts).cumsum(0))

    def find(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of each position, and the position of its sample in the part."""
        parts = torch.bucketize(positions, self.ends, right=True)
        starts = self.ends - torch.tensor(self.counts)
        return parts, (positions - starts[parts]) % torch.tensor(self.lengths)[parts]

    def labels(self, parts: Sequence[Any]) -> Tensor:
        """Return the class at each position; -1 everywhere if a part has no classes."""
        repeated = [p.labels[torch.arange(n) % len(p)] for p, n in zip(parts, self.counts, strict=True) if n]
        labels = torch.cat(repeated) if repeated else torch.empty(0, dtype=torch.int64)
        return labels if (labels >= 0).all() else torch.full_like(labels, -1)


def mixture_counts(lengths: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Return the samples of each part in an epoch, in proportion to `weights`.

    The epoch is the shortest in which every sample occurs. Without weights, every sample occurs once.
    """
    if not weights:
        return tuple(lengths)
    scale = max(n / w for n, w in zip(lengths, weights, strict=True))
    return tuple(max(n, round(scale * w)) for n, w in zip(lengths, weights, strict=True))


@dataclass(frozen=True)
class MixedSplit:
    """The samples of `parts`, whose batches have the same nesting and dtypes."""

    parts: tuple[Split, ...]
    blocks: Blocks
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Any:
        parts, positions = self.blocks.find(indices)
        order = parts.argsort(stable=True)
        chosen = parts.unique().tolist()
        batches = [self.parts[i].batch(positions[parts == i]) for i in chosen or [0]]
        return _joined(batches, order.argsort()) if len(batches) > 1 else batches[0]


def _joined(batches: Sequence[Any], order: Tensor) -> Any:
    """Return the samples of all `batches`, of which the result has number `order[i]` at i."""
    leaves, specs = zip(*map(_pytree.tree_flatten, batches), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise UserError("data.sources: the batches of the sources are nested differently, expected equal nestings")
    return _pytree.tree_unflatten([torch.cat(same)[order] for same in zip(*leaves, strict=True)], specs[0])


def first_damage(parts: Sequence[Any]) -> str | None:
    """Return the message for the first damaged sample that one of `parts` knows of."""
    return next((message for part in parts if (message := getattr(part, "damage", None))), None)


@dataclass(frozen=True)
class MixedItems:
    """The samples of `parts`, one at a time."""

    parts: tuple[Items, ...]
    blocks: Blocks
    labels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def damage(self) -> str | None:
        return first_damage(self.parts)

    def item(self, index: int) -> Any:
        part, position = map(int, self.blocks.find(torch.tensor(index)))
        items = self.parts[part]
        sample = items.item(position)
        if isinstance(items, CheckedItems):
            return first_sample(items.checked(default_collate([sample]), [position]))
        return sample


@dataclass(frozen=True)
class MixedStream:
    """The samples of `streams` one after another, or in proportion to `weights`.

    With weights, the stream whose share is most behind gives the next sample (smooth weighted round
    robin). A stream that ends begins again, until each of them has ended once.
    """

    streams: tuple[Stream, ...]
    weights: tuple[float, ...]
    name: str

    @property
    def damage(self) -> str | None:
        return first_damage(self.streams)

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[tuple[int, Any]]:
        numbers = range(len(self.streams))
        if not self.weights:
            return chain.from_iterable(self._numbered(i, part, parts, epoch) for i in numbers)
        return self._interleaved(part, parts, epoch)

    def sample(self, raw: tuple[int, Any]) -> Any:
        number, inner = raw
        return self.streams[number].sample(inner)

    def _numbered(self, number: int, part: int, parts: int, epoch: int) -> Iterator[tuple[int, Any]]:
        return ((number, raw) for raw in self.streams[number].raw(part, parts, epoch))

    def _interleaved(self, part: int, parts: int, epoch: int) -> Iterator[tuple[int, Any]]:
        running = {i: self._numbered(i, part, parts, epoch) for i in range(len(self.streams))}
        ahead = {i: raw for i, samples in running.items() if (raw := next(samples, None)) is not None}
        credit, ended, total = dict.fromkeys(ahead, 0.0), set[int](), sum(self.weights[i] for i in ahead)
        while not ended.issuperset(ahead):
            for i in ahead:
                credit[i] += self.weights[i]
            chosen = max(ahead, key=lambda i: credit[i])
            credit[chosen] -= total
            yield ahead[chosen]
            raw = next(running[chosen], None)
            if raw is None:
                ended.add(chosen)
                running[chosen] = self._numbered(chosen, part, parts, epoch)
                raw = next(running[chosen])
            ahead[chosen] = raw

"""Samples of tar shards, as a stream for training and as items for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.records.decode import MediaDecoder, ShardRecord
from hvd_train.data.records.fields import Fields, pick
from hvd_train.data.records.sample_format import SampleFormat
from hvd_train.data.records.shards import Damage, ShardSample, deal_shards, read_shard, shuffled
from hvd_train.errors import UserError


@dataclass(frozen=True)
class ShardDecoder:
    """Makes a sample of the files of a shard that belong to it."""

    form: SampleFormat
    media: MediaDecoder

    @property
    def facts(self) -> dict[str, Any]:
        """How new samples are read, as JSON for `data.json`."""
        return {**self.form.facts, "media": self.media.document}

    def __call__(self, raw: ShardSample | Damage) -> Any:
        """Return the sample; UserError, which names shard and key, for a damaged one."""
        if isinstance(raw, Damage):
            raise UserError(raw.message)
        return self.form.sample(ShardRecord(raw, self.media), lambda: raw.place)


@dataclass(frozen=True)
class ShardStream:
    """Samples of the tar files `shards`. Each part has whole shards, in an order of its epoch.

    `buffer` is the number of samples among which the next one is drawn; 0 keeps the order of a shard.
    """

    shards: tuple[str, ...]
    decode: ShardDecoder
    buffer: int
    seed: int
    damage: str | None = None
    """The message for the first shard that has no sample."""

    @property
    def name(self) -> str:
        return "webdataset"

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[ShardSample | Damage]:
        """Yield the samples of one part; UserError if there are fewer shards than parts."""
        order = deal_shards(len(self.shards), part, parts, np.random.default_rng([self.seed, epoch]))
        samples = chain.from_iterable(read_shard(self.shards[number]) for number in order)
        return (
            shuffled(samples, self.buffer, np.random.default_rng([self.seed, epoch, part])) if self.buffer else samples
        )

    def sample(self, raw: ShardSample | Damage) -> Any:
        return self.decode(raw)


@dataclass(frozen=True)
class ShardItems:
    """Samples of tar files, whose headers were read."""

    samples: Sequence[ShardSample | Damage]
    decode: ShardDecoder

    @property
    def name(self) -> str:
        return "webdataset"

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    @property
    def damage(self) -> str | None:
        return next((raw.message for raw in self.samples if isinstance(raw, Damage)), None)

    def __len__(self) -> int:
        return len(self.samples)

    def item(self, index: int) -> Any:
        return self.decode(self.samples[index])


def survey(shards: Sequence[str]) -> dict[str, Any]:
    """Return the number of the first shard with a sample, and the message for the first without one.

    Raise UserError if no shard has a sample.
    """
    first, damage = None, None
    for number, shard in enumerate(shards):
        raw = next(read_shard(shard))
        if isinstance(raw, Damage):
            damage = damage or raw.message
        elif first is None:
            first = number
    if first is None:
        raise UserError(str(damage))
    return {"first": first, "damage": damage}


def first_sample(shard: str) -> ShardSample:
    """Return the first sample of a shard that `survey` found one in."""
    raw = next(read_shard(shard))
    assert isinstance(raw, ShardSample)
    return raw


def read_items(shards: Sequence[str], decode: ShardDecoder) -> ShardItems:
    """Return all samples of `shards`."""
    return ShardItems([raw for shard in shards for raw in read_shard(shard)], decode)


def texts(shards: Sequence[str], fields: Fields, media: MediaDecoder) -> Iterator[str]:
    """Yield the texts of the inputs of all samples that are not damaged."""
    for raw in chain.from_iterable(map(read_shard, shards)):
        if isinstance(raw, ShardSample):
            with contextlib.suppress(UserError):
                values = [pick(ShardRecord(raw, media), key, str) for key in fields.keys]
                yield from (value for value in values if isinstance(value, str))

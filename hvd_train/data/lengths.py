"""The lengths of samples, for length bucketing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.memory.node import Node
from hvd_train.data.samples import SampleSplit, StreamSplit
from hvd_train.data.seeding import kept_generators, sample_seed, seed_globals
from hvd_train.errors import UserError

SLOW = 2.0
"""Seconds of measuring that are worth a warning."""


def length(sample: Any) -> int:
    """Return the number of values in the largest tensor, array or list of numbers in `sample`."""
    if isinstance(sample, Mapping):
        return max(map(length, sample.values()), default=0)
    if isinstance(sample, tuple | list):
        plain = isinstance(sample, list) and all(isinstance(value, int | float) for value in sample)
        return len(sample) if plain else max(map(length, sample), default=0)
    return int(np.prod(sample.shape)) if hasattr(sample, "shape") else 1


def with_lengths(data: Dataset, node: Node, seed: int) -> Dataset:
    """Return `data` whose splits know the lengths of their samples; collective.

    Raise UserError if the training samples are arrays of one shape, or have no positions.
    """
    if not isinstance(data.train, SampleSplit):
        if getattr(data.train, "lengths", None) is not None:
            return data
        kind = "have no positions" if isinstance(data.train, StreamSplit) else "are arrays of one shape"
        raise UserError(f"data.bucket: the samples of this source {kind}; leave bucket out")
    splits = {"train": data.train, "test": data.test, **data.others}
    found = {name: lengths(s, node, seed) for name, s in splits.items() if isinstance(s, SampleSplit)}
    measured = {name: replace(splits[name], lengths=of) for name, (of, _) in found.items()}
    return replace(
        data,
        train=measured["train"],
        test=measured.get("test", data.test),
        others={name: measured.get(name, split) for name, split in data.others.items()},
        warnings=(*data.warnings, *(warning for _, warning in found.values() if warning)),
    )


def by_length(split: Any, indices: Tensor) -> Tensor:
    """Return `indices` in the order of the lengths of their samples, if `split` knows them."""
    return indices[torch.argsort(known_lengths(split, indices), stable=True)]


def known_lengths(split: Any, indices: Tensor) -> Tensor:
    """Return the lengths of the samples at `indices`, 1 for each if `split` does not know them."""
    known = getattr(split, "lengths", None)
    found: Tensor = torch.ones_like(indices) if known is None else known[indices]
    return found


def lengths(split: SampleSplit, node: Node, seed: int) -> tuple[Tensor, str | None]:
    """Return the length of each sample (int64), and a warning if this takes long; collective.

    They are the attribute `lengths` of the items. Without it, every sample is made once, each rank
    of the node makes its share, and a damaged sample that is skipped has the length 0.
    """
    items = split.items
    given = getattr(items, "lengths", None)
    if given is not None:
        known = torch.as_tensor(given, dtype=torch.int64)
        if len(known) != len(items):
            raise UserError(f"{items.name}: {len(known)} lengths, expected one for each of {len(items)} samples")
        return known, None
    start = time.monotonic()
    with kept_generators():
        own = [_measured(split, index, seed) for index in range(node.rank, len(items), node.size)]
    measured = torch.empty(len(items), dtype=torch.int64)
    for rank, part in enumerate(node.gather(own)):
        measured[rank :: node.size] = torch.tensor(part, dtype=torch.int64)
    seconds = time.monotonic() - start
    if seconds < SLOW:
        return measured, None
    return measured, (
        f"data.bucket: {items.name}: the lengths of {len(items)} samples took {seconds:.0f} s at this start; an attribute "
        "'lengths' of the data set saves that"
    )


def _measured(split: SampleSplit, index: int, seed: int) -> int:
    seed_globals(sample_seed(seed, 0, index))
    try:
        return length(split.items.item(index))
    except UserError:
        if not split.skips:
            raise
        return 0

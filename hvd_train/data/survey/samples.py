"""Samples of a split, as named fields."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.batch import label_key
from hvd_train.data.samples import StreamSplit

Fields = dict[str, Any]
"""The tensors, arrays, numbers and texts of a sample. Names of nested fields are joined by a point."""

MOST = 1000
SECONDS = 5.0
BYTES = 2**26
"""The survey reads samples until one of these limits."""
MOST_SHUFFLED = 10**6
TARGET = "target"


def read(split: Any, seed: int) -> tuple[list[Fields], int]:
    """Return samples of a split and their bytes."""
    found: list[Fields] = []
    size, end = 0, time.monotonic() + SECONDS
    for entry in itertools.islice(entries(split, 1, seed), MOST):
        batch = split.batch(entry)
        if batch is not None:
            found.append(fields(_first(batch)))
            size += sum(map(nbytes, found[-1].values()))
        if size > BYTES or time.monotonic() > end:
            break
    return found, size


def entries(split: Any, samples: int, seed: int) -> Iterator[Any]:
    """Yield arguments of `split.batch` for `samples` at a time: random positions, or the start of a stream."""
    if isinstance(split, StreamSplit):
        raw = split.raw(0, 1)
        yield from iter(lambda: list(itertools.islice(raw, samples)), [])
    else:
        yield from _positions(len(split), seed).split(samples)


def _positions(samples: int, seed: int) -> Tensor:
    """Return all positions in random order; of many samples, random ones."""
    generator = torch.Generator().manual_seed(seed)
    if samples <= MOST_SHUFFLED:
        return torch.randperm(samples, generator=generator)
    return torch.randint(samples, (MOST_SHUFFLED,), generator=generator)


def fields(sample: Any) -> Fields:
    """Return the fields of a sample. In a tuple, the last is the target and the others are inputs."""
    if isinstance(sample, tuple | list) and len(sample) > 1:
        inputs = ["input"] if len(sample) == 2 else [f"input {number}" for number in range(len(sample) - 1)]
        return dict(_leaves("", dict(zip([*inputs, TARGET], sample, strict=True))))
    return dict(_leaves("", sample)) if isinstance(sample, dict) else dict(_leaves("input", sample))


def target_name(sample: Fields, label: str | None) -> str | None:
    """Return the name of the field with the target; None if the sample has none."""
    return TARGET if TARGET in sample else label_key(sample, label)


def nbytes(leaf: Any) -> int:
    """Return the size of a tensor, an array or a text; 8 for a number."""
    if isinstance(leaf, Tensor | np.ndarray):
        return int(leaf.nbytes)
    return len(leaf.encode(errors="replace")) if isinstance(leaf, str) else 8


def _first(batch: Any) -> Any:
    """Return the sample of a batch of one."""
    if isinstance(batch, dict):
        return {key: _first(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return _first(batch[0])
    if isinstance(batch, tuple | list):
        return tuple(_first(value) for value in batch)
    return batch[0] if isinstance(batch, Tensor) and batch.dim() and len(batch) == 1 else batch


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}".lstrip("."), inner)
    elif isinstance(value, tuple | list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{name}.{number}", inner)
    else:
        yield name, value

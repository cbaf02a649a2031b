"""Samples for benchmarks/data_loading.py. Worker processes import this module."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import Dataset

SECONDS = 0.003
"""What one sample takes."""
WIDTH = 1000
"""Values of a sample."""
CLASSES = 10


class Waiting(Dataset[Any]):
    """Samples that take `SECONDS` of waiting, as for a disk."""

    def __init__(self, length: int) -> None:
        self.targets = torch.arange(length) % CLASSES

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        time.sleep(SECONDS)
        return torch.full((WIDTH,), index / len(self)), index % CLASSES


class Computing(Waiting):
    """Samples that take `SECONDS` of Python."""

    def __getitem__(self, index: int) -> Any:
        end, total = time.thread_time() + SECONDS, 0
        while time.thread_time() < end:
            total += 1
        return torch.full((WIDTH,), index / len(self)), index % CLASSES


class Fetched(Dataset[Any]):
    """The items of a source of ddl, as a data set of torch."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items.item(index)


def waiting(*, length: int) -> Dataset[Any]:
    """Return samples for the target of a YAML file."""
    return Waiting(length)


def computing(*, length: int) -> Dataset[Any]:
    """Return samples for the target of a YAML file."""
    return Computing(length)

"""Data for tests of loaders. Worker processes import this module, so it imports no test package."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate


def ignore(sample: int) -> None:
    """Take note of no sample."""


class Squares:
    """Sample i is `(i * values, i * i, "i")`."""

    name = "squares"

    def __init__(self, length: int = 40) -> None:
        self.labels = torch.full((length,), -1)
        self.values = torch.arange(2000.0)

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Any:
        return {"x": index * self.values, "square": index * index, "text": str(index)}


class Fatal(Squares):
    """Sample 5 kills its process, sample 6 raises what cannot be unpickled, sample 7 never comes."""

    name = "fatal"

    def item(self, index: int) -> Any:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 6:
            raise Unpicklable("a", "b")
        if index == 7:
            time.sleep(3600)
        return super().item(index)


class Unpicklable(ValueError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Endless(Squares):
    """A sample never comes. The worker prints its process and its parent."""

    def item(self, index: int) -> Any:
        print(os.getpid(), os.getppid(), flush=True)
        time.sleep(3600)


class Probe(Squares):
    """A sample tells of the process that makes it."""

    def item(self, index: int) -> Any:
        mpi4py = importlib.import_module("mpi4py")
        return {
            "threads": torch.get_num_threads(),
            "tasks": len(os.listdir("/proc/self/task")),
            "mpi": str(mpi4py.rc.initialize),
            "path": repr(sys.path),
        }


class Homeless(Squares):
    """Samples that no other process can read."""

    def __reduce__(self) -> Any:
        return _refuse, (os.getpid(),)


def _refuse(process: int) -> None:
    raise LookupError("this process has no such data")


@dataclass(frozen=True)
class Batches:
    """Batches of `items`, with the epoch and the process that made them."""

    items: Any
    epoch: int = 0
    note: Callable[[int], None] = ignore

    @property
    def labels(self) -> Tensor:
        return self.items.labels  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.items)

    def at(self, epoch: int) -> Batches:
        return replace(self, epoch=epoch)

    def batch(self, indices: Tensor) -> Any:
        samples = []
        for index in indices.tolist():
            self.note(index)
            samples.append(self.items.item(index))
        return {**default_collate(samples), "epoch": self.epoch, "process": os.getpid()}

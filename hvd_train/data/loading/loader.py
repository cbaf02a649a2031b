"""Loads batches beside training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import torch

from hvd_train.data.loading.processes import Processes
from hvd_train.data.loading.threads import Threads
from hvd_train.data.nesting import map_tensors
from hvd_train.errors import UserError

Kind = Literal["processes", "threads"]
T = TypeVar("T")

MOST_WORKERS = 8
"""The largest number of workers that `auto` chooses."""
WORTHWHILE = 0.005
"""Seconds in which a batch is made, from which `auto` chooses workers. Their start takes a second."""
BUSY = 0.8
"""The share of that time from which samples are made by the processor, and not waited for."""
MEASURED = 8
"""Samples that `auto` makes at once to measure their time."""


class Pool(Protocol):
    """Makes batches, in the order of a plan."""

    def prepare(self, split: Any) -> None:
        """Raise UserError if the batches of `split` cannot be made by this pool."""

    def load(self, split: Any, plan: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of `split` at the positions of `plan`, in this order."""

    def close(self) -> None:
        """End workers."""


class Inline:
    """Makes a batch when it is asked for, in the thread that asks."""

    def prepare(self, split: Any) -> None:
        """Do nothing: the calling thread can use any split."""

    def load(self, split: Any, plan: Iterable[Any]) -> Iterator[Any]:
        return map(split.batch, plan)

    def close(self) -> None:
        """Do nothing."""


class Loader:
    """Makes batches by `workers` of a `kind`, up to `prefetch` for each of them ahead.

    Without workers, the calling thread makes them. Order and content of the batches are equal for any
    number and kind of workers. With `pin`, a thread moves the batches of workers to pinned memory.
    """

    def __init__(self, workers: int, kind: Kind = "processes", prefetch: int = 2, pin: bool = False) -> None:
        self._pin = pin and workers > 0
        kinds: dict[Kind, Callable[[int, int], Pool]] = {"processes": Processes, "threads": Threads}
        self._pool: Pool = kinds[kind](workers, prefetch) if workers else Inline()

    def prepare(self, split: Any) -> None:
        """Raise UserError if the workers cannot use `split`."""
        self._pool.prepare(split)

    def load(self, split: Any, plan: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator of `split.batch(positions)` for each entry of `plan`, in this order.

        Workers begin at once. Exceptions of `split` pass. Raise LoadingError if a worker process ends before its time.
        """
        batches = self._pool.load(split, plan)
        return ahead(batches, _pinned, torch.cuda.current_device()) if self._pin else batches

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def chosen(workers: int | Literal["auto"], split: Any, batch_size: int) -> int:
    """Return the number of workers that make batches of `split`.

    `auto` is 0 for arrays, for samples of which a batch is made in less than `WORTHWHILE` seconds, and
    for samples that keep the only processor of this rank busy. Else it is half of the processors, which
    are the threads of torch, at least 1 and at most `MOST_WORKERS`.
    """
    if workers != "auto":
        return workers
    processors, (seconds, busy) = torch.get_num_threads(), seconds_per_sample(split)
    if batch_size * seconds < WORTHWHILE or (processors == 1 and busy > BUSY * seconds):
        return 0
    return min(MOST_WORKERS, max(1, processors // 2))


def seconds_per_sample(split: Any) -> tuple[float, float]:
    """Return the time in which a sample of `split` is made, and its time of a processor; 0 for arrays as they are.

    They are measured on the first samples. Several are made at once, since a batch has costs of its own,
    unless one alone takes long.
    """
    if hasattr(split, "stream"):
        samples = split.at(0).raw(0, 1)
    else:
        changed = any(transform.of_rows for transform in getattr(split, "transforms", ()))
        samples = iter(range(len(split))) if hasattr(split, "items") or changed else iter(())
    measured = 0.0, 0.0
    for number in (1, MEASURED):
        if len(entry := list(islice(samples, number))) < number:
            break
        begin, busy = time.perf_counter(), time.process_time()
        with contextlib.suppress(UserError):  # a damaged sample
            split.batch(entry if hasattr(split, "stream") else torch.tensor(entry))
            measured = (time.perf_counter() - begin) / number, (time.process_time() - busy) / number
        if measured[0] > WORTHWHILE:
            break
    return measured


def ahead(batches: Iterator[T], finish: Callable[[T], T], device: int) -> Iterator[T]:
    """Yield `finish(batch)` for each batch; a thread makes the next one while the caller uses one.

    The thread works on the CUDA `device`, which is a property of each thread.
    """

    def following() -> list[T]:
        return [finish(batch) for batch in islice(batches, 1)]

    with ThreadPoolExecutor(1, "ddl-pin", initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        coming = thread.submit(following)
        while made := coming.result():
            coming = thread.submit(following)
            yield made[0]


def _pinned(batch: Any) -> Any:
    return map_tensors(lambda tensor: tensor.pin_memory(), batch)

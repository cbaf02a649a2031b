"""Batches from threads of the rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any


class Threads:
    """Makes up to `workers * prefetch` batches ahead, in `workers` threads.

    Threads share the global random generators of the process, so no sample can have a seed in them.
    Data that draw from global generators need processes to be the same in every run.
    """

    def __init__(self, workers: int, prefetch: int) -> None:
        self._ahead = workers * prefetch
        self._pool = ThreadPoolExecutor(workers, "ddl-data")

    def prepare(self, split: Any) -> None:
        """Do nothing: threads can use any split."""

    def load(self, split: Any, plan: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of `split` at the positions of `plan`, in this order; begin to make them."""
        batches = self._batches(split, iter(plan))
        next(batches)
        return batches

    def _batches(self, split: Any, plan: Iterator[Any]) -> Iterator[Any]:
        """Yield once the first batches are under way, and then each batch."""
        coming: deque[Future[Any]] = deque()
        try:
            coming.extend(self._pool.submit(split.batch, entry) for entry in islice(plan, self._ahead))
            yield
            while coming:
                batch = coming.popleft().result()
                coming.extend(self._pool.submit(split.batch, entry) for entry in islice(plan, 1))
                yield batch
        finally:
            for future in coming:
                future.cancel()

    def close(self) -> None:
        """Cancel the batches that no thread has begun, and wait for the others."""
        self._pool.shutdown(cancel_futures=True)

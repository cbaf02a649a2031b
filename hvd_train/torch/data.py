"""The API of `horovod.data`: data loaders that read ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Any

_POLL = 0.1
"""Interval in seconds at which a blocked reader checks if it has been closed."""


class BaseDataLoader:
    """The contract of a loader.

    `_iterate` yields the batches of an epoch, and `_process_batch` adapts each of them.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def _iterate(self) -> Iterator[Any]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        for batch in self._iterate():
            yield self._process_batch(batch)

    def _process_batch(self, batch: Any) -> Any:
        return batch


class AsyncDataLoaderMixin:
    """A mixin that precedes a loader's class and reads batches ahead in a thread.

    The thread reads up to `async_loader_queue_size` batches; 0 turns it off. The iteration raises
    the exceptions of `_iterate`. `close_async_loader` ends the thread.
    """

    def __init__(
        self, async_loader_queue_size: int = 64, debug_data_loader: bool = False, *args: Any, **kwargs: Any
    ) -> None:
        self.async_loader_queue_size = async_loader_queue_size
        self.debug_data_loader = debug_data_loader
        self._reader: _Reader | None = None
        super().__init__(*args, **kwargs)

    def close_async_loader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __iter__(self) -> Iterator[Any]:
        self.close_async_loader()
        batches = self._iterate()  # type: ignore[attr-defined]
        if self.async_loader_queue_size > 0:
            batches = self._reader = _Reader(batches, self.async_loader_queue_size)
        try:
            for batch in batches:
                yield self._process_batch(batch)  # type: ignore[attr-defined]
        finally:
            self.close_async_loader()


class _Reader:
    """Reads the items of an iterator ahead in a thread."""

    def __init__(self, items: Iterator[Any], ahead: int) -> None:
        self._queue: Queue[tuple[Any, BaseException | None]] = Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(items,), name="data loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while not self._closed.is_set():
            try:
                item, end = self._queue.get(timeout=_POLL)
            except Empty:
                continue
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _read(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # the consumer raises it
            self._put(None, error)

    def _put(self, item: Any, end: BaseException | None) -> bool:
        """Queue an item, and return False if the reader has been closed."""
        while not self._closed.is_set():
            try:
                self._queue.put((item, end), timeout=_POLL)
                return True
            except Full:
                continue
        return False

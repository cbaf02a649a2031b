"""Dynamic batches: records of several requests go through the model together.

A batch starts as soon as the model is idle and the batch is due: it is full, or its oldest record
has waited long enough. Records keep the order of their arrival. A request of many records is divided
into several batches.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Record = Any
Answer = Any
"""The answer to one record, or the exception that stands for it."""


@dataclass(frozen=True)
class Policy:
    """When a batch is due."""

    max_batch: int
    """The most records of a batch."""
    max_wait: float
    """The longest time in seconds that a record waits for others."""


@dataclass(eq=False)
class Request:
    """Records that arrived together, at the time `arrived`."""

    records: Sequence[Record]
    arrived: float
    answers: list[Answer] = field(default_factory=list)
    """The answers to the first of `records`."""
    taken: int = 0
    """The number of records that batches have taken."""


Part = tuple[Request, int]
"""A request and how many of its next records are in a batch."""


class Queue:
    """Requests in the order of their arrival. It knows no clock: times are arguments."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._waiting = policy, deque[Request]()
        self._records = 0

    def __len__(self) -> int:
        """Return the number of records that wait."""
        return self._records

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self._records += len(request.records)

    def due(self) -> float:
        """Return the time at which the next batch starts; infinity if no record waits."""
        if self._records >= self._policy.max_batch:
            return -math.inf
        return self._waiting[0].arrived + self._policy.max_wait if self._waiting else math.inf

    def take(self) -> list[Part]:
        """Remove and return the records of the next batch."""
        parts, room = [], self._policy.max_batch
        while room and self._waiting:
            request = self._waiting[0]
            count = min(room, len(request.records) - request.taken)
            request.taken += count
            if request.taken == len(request.records):
                self._waiting.popleft()
            parts.append((request, count))
            room -= count
        self._records -= self._policy.max_batch - room
        return parts


class Batcher:
    """Passes batches of records to `predict` on one thread, and the answers back to the requests.

    `predict` returns one answer for each record. An exception of `predict` is the answer to all
    records of the batch. `observe` is called with the number of records of each batch and the
    seconds that it took. All methods are called on the event loop.
    """

    def __init__(
        self,
        predict: Callable[[list[Record]], list[Answer]],
        policy: Policy,
        observe: Callable[[int, float], None] = lambda records, seconds: None,
    ) -> None:
        self._predict, self._observe = predict, observe
        self._queue = Queue(policy)
        self._thread = ThreadPoolExecutor(1, "model")
        self._done: dict[Request, asyncio.Future[list[Answer]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_busy = False

    @property
    def waiting(self) -> int:
        """The number of records that wait for the model."""
        return len(self._queue)

    async def answers(self, records: Sequence[Record]) -> list[Answer]:
        """Return the answers to `records`, at least one, in their order."""
        loop = asyncio.get_running_loop()
        request = Request(records, loop.time())
        done: asyncio.Future[list[Answer]] = loop.create_future()
        self._done[request] = done
        self._queue.add(request)
        self._schedule(loop)
        return await done

    def close(self) -> None:
        """Wait for the batch that runs, and end the thread."""
        self._thread.shutdown()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next batch, or set the timer for it; a batch that runs does so at its end."""
        if self._is_busy:
            return
        due = self._queue.due()
        if due <= loop.time():
            self._start(loop)
        elif self._timer is None and due < math.inf:
            self._timer = loop.call_at(due, self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_busy = True
        parts, started = self._queue.take(), loop.time()
        running = self._thread.submit(self._predict, list(_records(parts)))
        end = partial(self._end, loop, parts, started)
        running.add_done_callback(lambda future: loop.call_soon_threadsafe(end, future))

    def _end(
        self, loop: asyncio.AbstractEventLoop, parts: Sequence[Part], started: float, ran: Future[list[Answer]]
    ) -> None:
        self._is_busy = False
        records = sum(count for _, count in parts)
        self._observe(records, loop.time() - started)
        error = ran.exception()
        answers = iter([error] * records if error else ran.result())
        for request, count in parts:
            request.answers += [next(answers) for _ in range(count)]
            if len(request.answers) == len(request.records):
                self._resolve(request)
        self._schedule(loop)

    def _resolve(self, request: Request) -> None:
        done = self._done.pop(request)
        if not done.done():  # the server cancels requests if it must end
            done.set_result(request.answers)


def _records(parts: Sequence[Part]) -> Iterator[Record]:
    """Return the records of a batch that `take` has just returned."""
    for request, count in parts:
        yield from request.records[request.taken - count : request.taken]

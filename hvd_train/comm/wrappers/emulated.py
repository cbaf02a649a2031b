"""Emulates a slower network and a slower rank: operations take as long as they would take there.

Every rank has a link of its own to a switch with unlimited capacity. Only times change: data and
errors are those of the wrapped engine. Ranks share no memory, so that everything passes the
network.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.comm.messages import Mailbox, Message
from hvd_train.comm.ops import Op
from hvd_train.comm.wrappers.base import Wrapper

T = TypeVar("T")
_DELAY, _END = "emulated_delay", "end of the emulation"


@dataclass(frozen=True)
class EmulatedNetwork:
    """Links of `latency` seconds and `bandwidth` bytes per second in each direction.

    Methods return seconds. Collectives are those of rings, as `Traffic` counts their bytes. A
    message of n bytes takes alpha + n beta (Thakur et al., Optimization of Collective Communication
    Operations in MPICH, 2005).
    """

    latency: float = 0.0
    bandwidth: float = math.inf

    def transfer(self, nbytes: float) -> float:
        """Return how long `nbytes` occupy a link."""
        return nbytes / self.bandwidth

    def reduce_scatter(self, ranks: int, nbytes: int) -> float:
        """N - 1 turns, in each of which every rank sends an N-th of its bytes."""
        return (ranks - 1) * (self.latency + self.transfer(nbytes / ranks))

    def all_reduce(self, ranks: int, nbytes: int) -> float:
        """A reduce-scatter and an all-gather of its result."""
        return 2 * self.reduce_scatter(ranks, nbytes)

    def all_gather(self, sizes: Sequence[int]) -> float:
        """N - 1 turns, each as long as the largest tensor takes."""
        return (len(sizes) - 1) * (self.latency + self.transfer(max(sizes)))

    def broadcast(self, ranks: int, nbytes: int) -> float:
        """A pipeline through all ranks."""
        return (ranks - 1) * self.latency + self.transfer(nbytes if ranks > 1 else 0)

    def exchange(self, sent: int, received: int) -> float:
        """Simultaneous messages to and from any number of ranks; 0 if there are none."""
        largest = max(sent, received)
        return self.latency + self.transfer(largest) if largest else 0.0

    def barrier(self, ranks: int) -> float:
        """Dissemination: log2(N) turns of empty messages."""
        return math.ceil(math.log2(ranks)) * self.latency


class Uplink:
    """A rank's link to the network, which carries one transfer after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = 0.0

    def carry(self, seconds: float) -> float:
        """Start a transfer of `seconds` as soon as the link is free.

        Return when it ends, by `time.monotonic`.
        """
        with self._lock:
            self._free = max(time.monotonic(), self._free) + seconds
            return self._free


class Pace:
    """Makes one thread compute `factor` times slower: it sleeps before it communicates."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._thread: int | None = None
        self._since: float | None = None

    def start(self) -> None:
        """Slow the calling thread from now on. Only the first call has an effect."""
        if self._thread is None:
            self._thread, self._since = threading.get_ident(), time.monotonic()

    def catch_up(self) -> None:
        """Sleep `factor` - 1 times the seconds that this thread has computed since the last call.

        Time in `communicating` does not count as computing.
        """
        if self._since is not None:
            time.sleep((self._factor - 1) * (time.monotonic() - self._since))
            self._since = time.monotonic()

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Catch up first; time within the block is not slowed.

        Blocks may be nested, and have no effect in other threads.
        """
        if self._since is None or threading.get_ident() != self._thread:
            yield
            return
        self.catch_up()
        self._since = None
        try:
            yield
        finally:
            self._since = time.monotonic()


class EmulationState:
    """The network, uplink and pace that all groups and mailboxes of one rank share."""

    def __init__(self, network: EmulatedNetwork, pace: Pace) -> None:
        self.network, self.uplink, self.pace = network, Uplink(), pace
        self.is_aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let operations within the block take no time, and do not slow the thread in it."""
        self.pace.start()
        before, self.is_aside = self.is_aside, True
        try:
            with self.pace.communicating():
                yield
        finally:
            self.is_aside = before

    def run(self, operation: Callable[[], T], seconds: float) -> T:
        """Run `operation` and return its result. It takes `seconds` on the network."""
        with self.pace.communicating():
            result = operation()
            _sleep_until(self.end_of(seconds))
        return result

    def end_of(self, seconds: float) -> float:
        """Return when a collective of `seconds` that begins now ends."""
        return time.monotonic() if self.is_aside else self.uplink.carry(seconds)


class _Late:
    """A `Work` that ends at `due` at the earliest."""

    def __init__(self, work: Work, due: float, pace: Pace) -> None:
        self._work, self._due, self._pace = work, due, pace

    def wait(self) -> None:
        with self._pace.communicating():
            self._work.wait()
            _sleep_until(self._due)


class EmulatedCommunicator(Wrapper):
    """`inner` with the times of `emulation`."""

    def __init__(self, inner: Communicator, emulation: EmulationState) -> None:
        super().__init__(inner)
        self._emulation = emulation
        self.network, self.pace = emulation.network, emulation.pace

    @contextmanager
    def aside(self) -> Iterator[None]:
        with super().aside(), self._emulation.aside():
            yield

    def barrier(self) -> None:
        self._emulation.run(self._inner.barrier, self.network.barrier(self.size))

    def split(self, color: int, key: int = 0) -> Communicator:
        return EmulatedCommunicator(self._inner.split(color, key), self._emulation)

    def mailbox(self) -> Mailbox:
        return EmulatedMailbox(self._inner.mailbox(), self._emulation)

    def submit(self, task: Callable[[], object]) -> Work:
        return self._inner.submit(task)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        with self.pace.communicating():
            work = self._inner._all_reduce(flat, op)
            due = self._emulation.end_of(self.network.all_reduce(self.size, flat.nbytes))
        return _Late(work, due, self.pace)

    def _reduce_scatter(self, flat: Tensor, counts: list[int], op: Op) -> Tensor:
        seconds = self.network.reduce_scatter(self.size, flat.nbytes)
        return self._emulation.run(lambda: self._inner._reduce_scatter(flat, counts, op), seconds)

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        return self._emulation.run(lambda: self._inner._all_gather(flat, sizes), self.network.all_gather(sizes))

    def _broadcast(self, flat: Tensor, root: int) -> None:
        seconds = self.network.broadcast(self.size, flat.nbytes)
        self._emulation.run(lambda: self._inner._broadcast(flat, root), seconds)

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        sent = sum(f.nbytes for f in flats) - flats[self.rank].nbytes
        seconds = self.network.exchange(sent, sum(sizes) - sizes[self.rank])
        return self._emulation.run(lambda: self._inner._all_to_all(flats, sizes), seconds)

    # Exchanging lengths takes no time: programs on other engines know them in advance.

    def _lengths(self, length: int) -> list[int]:
        with self.pace.communicating():
            return self._inner._lengths(length)

    def _swap_lengths(self, lengths: list[int]) -> list[int]:
        with self.pace.communicating():
            return self._inner._swap_lengths(lengths)


class Arrivals:
    """Messages on their way to a rank.

    Its link carries one after another, in the order of their first bytes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._coming: list[tuple[float, int, float, Message]] = []
        self._number = count()
        self._last: dict[int, float] = {}
        self._free = -math.inf
        self._error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Let `get` raise `error`."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def put(self, message: Message, delay: float, seconds: float) -> None:
        """Add `message`, which occupies the link for `seconds` from `delay` seconds on.

        It does not overtake the previous message of its sender.
        """
        with self._changed:
            first = max(time.monotonic() + delay, self._last.get(message.source, -math.inf))
            self._last[message.source] = first
            heappush(self._coming, (first, next(self._number), seconds, message))
            self._changed.notify()

    def get(self, timeout: float | None) -> Message | None:
        """Return the next complete message; None if there is none within `timeout` seconds."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                now, due = time.monotonic(), self._due()
                if due <= now:
                    self._free = due
                    return heappop(self._coming)[-1]
                if now >= end:
                    return None
                until = min(due, end)
                self._changed.wait(None if until == math.inf else until - now)

    def _due(self) -> float:
        """Return when the next message will have arrived."""
        if not self._coming:
            return math.inf
        first, _, seconds, _ = self._coming[0]
        return max(first, self._free) + seconds


class EmulatedMailbox:
    """`inner` with the times of `emulation`.

    Every message contains the delay of its first bytes.
    """

    def __init__(self, inner: Mailbox, emulation: EmulationState) -> None:
        self.rank = inner.rank
        self._inner, self._emulation = inner, emulation
        self._arrivals = Arrivals()
        self._listener = threading.Thread(target=self._listen, name="ddl-late-mail", daemon=True)
        self._listener.start()

    def send(self, dst: int, kind: str, *tensors: Tensor, **values: Any) -> None:
        with self._emulation.pace.communicating():
            delay = 0.0 if dst == self.rank else self._delay(tensors)
            self._inner.send(dst, kind, *tensors, **values, **{_DELAY: delay})

    def receive(self, timeout: float | None = None) -> Message | None:
        with self._emulation.pace.communicating():
            return self._arrivals.get(timeout)

    def close(self) -> None:
        self._inner.send(self.rank, _END)
        self._inner.close()
        self._listener.join()

    def hang_up(self) -> None:
        self._inner.send(self.rank, _END)
        self._inner.hang_up()
        self._listener.join()

    def _delay(self, tensors: Sequence[Tensor]) -> float:
        """Return the seconds until the first bytes of a message that is sent now arrive."""
        network = self._emulation.network
        seconds = network.transfer(_nbytes(tensors))
        return self._emulation.uplink.carry(seconds) - seconds + network.latency - time.monotonic()

    def _listen(self) -> None:
        while True:
            try:
                message = self._inner.receive()
            except ConnectionError as error:
                self._arrivals.fail(error)
                return
            assert message is not None
            if message.kind == _END:
                return
            delay = message.values.pop(_DELAY, 0.0)
            seconds = self._emulation.network.transfer(_nbytes(message.tensors))
            if message.source == self.rank:
                self._arrivals.put(message, -math.inf, 0.0)
            else:
                self._arrivals.put(message, delay, seconds)


def emulated(
    comm: Communicator, latency_ms: float = 0.0, gbps: float | None = None, factor: float = 1.0
) -> EmulatedCommunicator:
    """Return `comm` with links of this latency and bandwidth (None: unlimited).

    This rank computes `factor` times slower from the first `aside` on.
    """
    bandwidth = math.inf if gbps is None else gbps * 1e9 / 8
    return EmulatedCommunicator(comm, EmulationState(EmulatedNetwork(latency_ms / 1e3, bandwidth), Pace(factor)))


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def _sleep_until(due: float) -> None:
    time.sleep(max(0.0, due - time.monotonic()))

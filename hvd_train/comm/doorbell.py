"""Rounds in which all ranks exchange messages, and which any rank can start.

A rank with something to send enters the next round. This notifies ("rings") the others, which enter
the round too, with an empty message if need be. Between rounds a rank's thread is parked and uses
no CPU. One thread of a rank drives rounds at a time: its background thread, or a foreground thread
that waits for a result and so needs no switch of threads.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

from hvd_train.comm.futex import ROUNDS, reached, wait, wake

BACKGROUND, FOREGROUND = 1, 2
"""The parked thread that other ranks notify.

The value 0 stands for none: the driver is awake and checks for rounds before it parks.
"""

SLOT = 64 * 1024
"""Bytes of a message that fit into shared memory at a time."""

_SPINS = 60
"""Reads of a neighbour's word before a rank sleeps."""
_SLEEP_SECONDS = 1e-3
"""Longest sleep before the word is read again."""
_POLL_SECONDS = (5e-5, 2e-3)
"""Seconds between two polls for messages of other hosts: at first, and at most."""


class Doorbell(ABC):
    """One rank's side of the rounds. Only `enter` and `close` are collective."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claimed = False

    @abstractmethod
    def enter(self, message: bytes) -> list[bytes]:
        """Send `message` in the next round and return the messages of all ranks, in rank order."""

    @property
    @abstractmethod
    def rung(self) -> bool:
        """True if another rank has entered the next round."""

    @abstractmethod
    def close(self) -> None:
        """Free what the ranks share."""

    def claim(self) -> None:
        """Let the calling foreground thread drive."""
        with self._lock:
            self._claimed = True
            self._notify_next(0)

    def leave(self) -> None:
        """End `claim`: the background thread drives again and is notified of rounds."""
        with self._lock:
            self._claimed = False
            self._notify_next(BACKGROUND)

    def park(self, who: int, seconds: float, idle: Callable[[], bool]) -> None:
        """Sleep until notified or woken, or for `seconds`; return at once unless `idle`.

        The background thread also sleeps while a foreground thread drives.
        """
        ticket = self._ticket(who)
        with self._lock:
            drives = who == FOREGROUND or not self._claimed
            if drives:
                self._notify_next(who)
        if not drives or (idle() and not self.rung):
            self._sleep(who, ticket, seconds, idle)
        if who == FOREGROUND:
            self._notify_next(0)

    @abstractmethod
    def wake(self, who: int | None = None) -> None:
        """End the sleep of thread `who`, by default of the thread that other ranks would notify."""

    @abstractmethod
    def _notify_next(self, who: int) -> None:
        """Let other ranks notify thread `who` of the next round."""

    @abstractmethod
    def _ticket(self, who: int) -> int:
        """Return a number that changes when thread `who` is notified."""

    @abstractmethod
    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None: ...


class SharedDoorbell(Doorbell):
    """Rounds among ranks of one host, in shared memory.

    The words of each rank, in separate cache lines: the round that it has entered, the thread to
    notify, a bell per thread, whether it sleeps, and the lengths of its messages.
    """

    _ROUND, _DRIVER, _BELL, _ASLEEP, _LENGTH = 0, 16, 32, 64, 80
    _WORDS = 96

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()
        self._rank, self._size = comm.rank, comm.size
        self._others = [r for r in range(comm.size) if r != comm.rank]
        nbytes = 4 * self._WORDS + 2 * SLOT
        self._window = MPI.Win.Allocate_shared(nbytes, 1, comm=comm)
        parts: list[Any] = [self._window.Shared_query(r)[0] for r in range(comm.size)]
        self._memory = [memoryview(part).cast("B")[:nbytes] for part in parts]
        self._words = [part[: 4 * self._WORDS].cast("i") for part in self._memory]
        self._start = [ctypes.addressof(ctypes.c_char.from_buffer(part)) for part in self._memory]
        self._mine = self._words[self._rank]
        self._mine[:] = memoryview(bytes(4 * self._WORDS)).cast("i")
        self._round = 0
        self._calls = itertools.count(1)
        comm.Barrier()

    def enter(self, message: bytes) -> list[bytes]:
        whole = [b""] * self._size
        while True:
            parts = self._swap(message[:SLOT], len(message) > SLOT)
            message = message[SLOT:]
            whole = [a + b for a, (b, _) in zip(whole, parts, strict=True)]
            if not any(more for _, more in parts):
                return whole

    def _swap(self, message: bytes, more: bool) -> list[tuple[bytes, bool]]:
        """Exchange one slot; `more` announces another one.

        Two slots are used in turn, so that none is overwritten while a neighbour still reads it.
        """
        round_ = self._round = (self._round + 1) & ROUNDS
        turn = round_ & 1
        start = 4 * self._WORDS + turn * SLOT
        self._memory[self._rank][start : start + len(message)] = message
        self._mine[self._LENGTH + turn] = len(message) | more << 30
        self._window.Sync()
        self._mine[self._ROUND] = round_
        self._window.Sync()
        if any(self._words[r][self._ASLEEP] for r in self._others):
            wake(self._address(self._rank, self._ROUND))
        for r in self._others:
            if not reached(self._words[r][self._ROUND], round_):
                self._ring(r, self._words[r][self._DRIVER], round_ * self._size + self._rank)
        for r in self._others:
            self._await(r, round_)
        self._window.Sync()
        lengths = [words[self._LENGTH + turn] for words in self._words]
        return [
            (bytes(part[start : start + (n & ~(1 << 30))]), bool(n >> 30))
            for part, n in zip(self._memory, lengths, strict=True)
        ]

    @property
    def rung(self) -> bool:
        return any(self._words[r][self._ROUND] != self._round for r in self._others)

    def wake(self, who: int | None = None) -> None:
        self._ring(self._rank, who or self._mine[self._DRIVER], -next(self._calls))

    def close(self) -> None:
        """Free the memory, and the views of it first."""
        self._words.clear()
        self._memory.clear()
        self._window.Free()

    def _notify_next(self, who: int) -> None:
        self._mine[self._DRIVER] = who
        self._window.Sync()

    def _ticket(self, who: int) -> int:
        return self._mine[self._BELL + who]

    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None:
        wait(self._address(self._rank, self._BELL + who), ticket, min(seconds, 0.9))

    def _ring(self, r: int, who: int, call: int) -> None:
        """Notify thread `who` of rank `r`.

        `call` differs from the last one, so that a thread about to sleep notices it.
        """
        if who:
            self._words[r][self._BELL + who] = ctypes.c_int32(call).value
            wake(self._address(r, self._BELL + who))

    def _await(self, r: int, round_: int) -> None:
        """Return once rank `r` has entered the round. It may have entered the next one already."""
        words = self._words[r]
        for _ in range(_SPINS):
            if reached(words[self._ROUND], round_):
                return
        self._mine[self._ASLEEP] = 1
        self._window.Sync()
        while not reached(seen := words[self._ROUND], round_):
            wait(self._address(r, self._ROUND), seen, _SLEEP_SECONDS)
        self._mine[self._ASLEEP] = 0

    def _address(self, r: int, word: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._start[r] + 4 * word)


class MessageDoorbell(Doorbell):
    """Rounds among ranks of any hosts, by messages over `comm`, which this object frees.

    A single rank sends none.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()
        self._comm = comm
        self._others = [r for r in range(comm.size) if r != comm.rank]
        self._round = 0
        self._bells = {BACKGROUND: threading.Event(), FOREGROUND: threading.Event()}
        self._driver = BACKGROUND

    def enter(self, message: bytes) -> list[bytes]:
        self._round += 1
        tag = self._round & 1
        sends = [self._comm.Isend((message, MPI.BYTE), r, tag) for r in self._others]
        received = {r: self._receive(r, tag) for r in self._others}
        MPI.Request.Waitall(sends)
        return [received.get(r, message) for r in range(self._comm.size)]

    @property
    def rung(self) -> bool:
        return bool(self._others) and self._comm.Iprobe(MPI.ANY_SOURCE, (self._round + 1) & 1)

    def wake(self, who: int | None = None) -> None:
        who = who or self._driver
        if who:
            self._bells[who].set()

    def close(self) -> None:
        self._comm.Free()

    def _notify_next(self, who: int) -> None:
        self._driver = who

    def _ticket(self, who: int) -> int:
        self._bells[who].clear()
        return 0

    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None:
        """Poll for messages while `who` drives.

        Other ranks notify by a message, of which nothing else informs this one.
        """
        end = time.monotonic() + seconds
        pause, longest = _POLL_SECONDS
        while (left := end - time.monotonic()) > 0:
            polls = self._others and self._driver == who
            if self._bells[who].wait(min(pause, left) if polls else left) or (polls and self.rung):
                return
            pause = min(2 * pause, longest)

    def _receive(self, source: int, tag: int) -> bytes:
        pause, longest = _POLL_SECONDS
        while (message := self._comm.Improbe(source, tag, status := MPI.Status())) is None:
            time.sleep(pause)
            pause = min(2 * pause, longest)
        data = bytearray(status.Get_count(MPI.BYTE))
        message.Recv((data, MPI.BYTE))
        return bytes(data)


def doorbell(comm: MPI.Intracomm, *, one_host: bool) -> Doorbell:
    """Return the doorbell of this rank of `comm`.

    It uses shared memory on `one_host`, else messages over a duplicate of `comm`.
    """
    return SharedDoorbell(comm) if one_host else MessageDoorbell(comm.Dup())

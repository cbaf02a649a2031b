"""Rounds: every rank says something, all hear what all said, and who says nothing is rung for.

A rank that has something to say enters the next round; that rings the others, which enter it too, if with nothing to
say. Between rounds a rank's thread is parked without using the CPU. One thread drives at a time: the rank's own
background thread, or one in the foreground that waits for a result and so saves being told by another thread.
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

from hvd_train.comm._node import _WAIT, _WAKE, _futex, _reached

BACKGROUND, FOREGROUND = 1, 2
"""Who is parked, and is to be rung. 0 is nobody: a driver is awake, and will look before it parks."""

SLOT = 64 * 1024
"""Bytes of a message that lie in shared memory at a time."""

_LOOKS = 60
_NAP = 1e-3
_NAPS = (5e-5, 2e-3)
"""Seconds between two looks for messages of other hosts: at first, and at most."""


class Rounds(ABC):
    """All methods but `enter` and `close`, which are collective, are this rank's own affair."""

    def __init__(self) -> None:
        self._seat = threading.Lock()
        self._driven = False

    @abstractmethod
    def enter(self, message: bytes) -> list[bytes]:
        """The messages of all ranks for this round, in rank order."""

    @property
    @abstractmethod
    def rung(self) -> bool:
        """Whether another rank has entered the next round."""

    @abstractmethod
    def close(self) -> None:
        """Free what the ranks share."""

    def claim(self) -> None:
        """The calling thread drives from now on."""
        with self._seat:
            self._driven = True
            self._duty(0)

    def leave(self) -> None:
        """The calling thread drives no longer: the background thread is to be rung."""
        with self._seat:
            self._driven = False
            self._duty(BACKGROUND)

    def park(self, who: int, seconds: float, idle: Callable[[], bool]) -> None:
        """Sleep until rung or woken, while `idle`, and for `seconds` at most; the background also while another drives."""
        ticket = self._ticket(who)
        with self._seat:
            mine = who == FOREGROUND or not self._driven
            if mine:
                self._duty(who)
        if not mine or (idle() and not self.rung):
            self._sleep(who, ticket, seconds, idle)
        if who == FOREGROUND:
            self._duty(0)

    @abstractmethod
    def wake(self, who: int | None = None) -> None:
        """End the sleep of `who`; by default of the one who would be rung."""

    @abstractmethod
    def _duty(self, who: int) -> None:
        """Who is to be rung from now on."""

    @abstractmethod
    def _ticket(self, who: int) -> int:
        """A number that changes when `who` is rung."""

    @abstractmethod
    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None: ...


class SharedRounds(Rounds):
    """Ranks of one host. Each has words in shared memory: the round it has entered, who is on duty, two bells, ..."""

    _ROUND, _DUTY, _BELL, _ASLEEP, _LENGTH = 0, 16, 32, 64, 80
    """Where they are, in words; cache lines apart."""
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
        """Of two places in turn, so that none is written while a neighbour still reads."""
        round_ = self._round = (self._round + 1) & 0x3FFFFFFF
        turn = round_ & 1
        start = 4 * self._WORDS + turn * SLOT
        self._memory[self._rank][start : start + len(message)] = message
        self._mine[self._LENGTH + turn] = len(message) | more << 30
        self._window.Sync()
        self._mine[self._ROUND] = round_
        self._window.Sync()
        if any(self._words[r][self._ASLEEP] for r in self._others):
            _futex(self._address(self._rank, self._ROUND), _WAKE, 0x7FFFFFFF, 0)
        for r in self._others:
            if not _reached(self._words[r][self._ROUND], round_):
                self._ring(r, self._words[r][self._DUTY], round_ * self._size + self._rank)
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
        self._ring(self._rank, who or self._mine[self._DUTY], -next(self._calls))

    def close(self) -> None:
        """The views must go first: the memory is unmapped with the window."""
        self._words.clear()
        self._memory.clear()
        self._window.Free()

    def _duty(self, who: int) -> None:
        self._mine[self._DUTY] = who
        self._window.Sync()

    def _ticket(self, who: int) -> int:
        return self._mine[self._BELL + who]

    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None:
        _futex(self._address(self._rank, self._BELL + who), _WAIT, ticket, min(seconds, 0.9))

    def _ring(self, r: int, who: int, call: int) -> None:
        """`call` is another number each time, so that whoever is about to sleep notices."""
        if who:
            self._words[r][self._BELL + who] = ctypes.c_int32(call).value
            _futex(self._address(r, self._BELL + who), _WAKE, 0x7FFFFFFF, 0)

    def _await(self, r: int, round_: int) -> None:
        """Return once rank `r` has entered the round; it may have entered the next one by now."""
        words = self._words[r]
        for _ in range(_LOOKS):
            if _reached(words[self._ROUND], round_):
                return
        self._mine[self._ASLEEP] = 1
        self._window.Sync()
        while not _reached(seen := words[self._ROUND], round_):
            _futex(self._address(r, self._ROUND), _WAIT, seen, _NAP)
        self._mine[self._ASLEEP] = 0

    def _address(self, r: int, word: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._start[r] + 4 * word)


class MessageRounds(Rounds):
    """Ranks anywhere, by messages over `comm`, which belongs to this object; one rank alone needs none."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()
        self._comm = comm
        self._others = [r for r in range(comm.size) if r != comm.rank]
        self._round = 0
        self._bells = {BACKGROUND: threading.Event(), FOREGROUND: threading.Event()}
        self._on_duty = BACKGROUND

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
        who = who or self._on_duty
        if who:
            self._bells[who].set()

    def close(self) -> None:
        self._comm.Free()

    def _duty(self, who: int) -> None:
        self._on_duty = who

    def _ticket(self, who: int) -> int:
        self._bells[who].clear()
        return 0

    def _sleep(self, who: int, ticket: int, seconds: float, idle: Callable[[], bool]) -> None:
        """Look for messages only while on duty; a ring is a message, and nothing else tells of it."""
        end = time.monotonic() + seconds
        nap, longest = _NAPS
        while (left := end - time.monotonic()) > 0:
            looking = self._others and self._on_duty == who
            if self._bells[who].wait(min(nap, left) if looking else left) or (looking and self.rung):
                return
            nap = min(2 * nap, longest)

    def _receive(self, source: int, tag: int) -> bytes:
        nap, longest = _NAPS
        while (message := self._comm.Improbe(source, tag, status := MPI.Status())) is None:
            time.sleep(nap)
            nap = min(2 * nap, longest)
        data = bytearray(status.Get_count(MPI.BYTE))
        message.Recv((data, MPI.BYTE))
        return bytes(data)


def rounds(comm: MPI.Intracomm, *, one_host: bool) -> Rounds:
    """Rounds among the ranks of `comm`, which belongs to the result where they are by messages."""
    return SharedRounds(comm) if one_host else MessageRounds(comm.Dup())

"""Memory that the ranks of one host share, and a barrier there that sends no message.

A rank waits by looking at a word of its neighbour's memory. Where ranks have cores to themselves it looks for a while, since
that answers within a microsecond; then, and at once where ranks outnumber cores, it sleeps in the kernel on that word (a
futex), and the neighbour wakes it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import Tensor

from hvd_train.comm.base import _HALVES, Op, reduce_in_order, shares
from hvd_train.errors import UserError

LINE = 64
"""Bytes of a cache line: words of different ranks lie further apart, so that they do not slow each other down."""

CHUNK = 256 * 1024
"""Bytes that a rank sums at a time."""

STAGING = 512 * 1024
"""Bytes of an ordinary tensor that are in shared memory at a time."""

SMALL = 32 * 1024
"""Bytes up to which every rank sums all of it: that takes one barrier less than dealing it out."""

BACKING = "/dev/shm"
"""Where MPI libraries put the memory that ranks share, on Linux."""

MARGIN = 64 * 1024
"""Bytes a rank takes there beside what it asks for: rounding to pages, and MPI's own words."""

SPIN_SECONDS = 1e-3
_LOOKS = 200
"""Looks between two questions about the time."""

_WAIT, _WAKE = 0, 1
_NAP = 1e-3
"""Seconds a sleeper goes without looking: a wake-up that crossed its falling asleep costs no more than this."""


@dataclass(frozen=True)
class Segment:
    """Memory of every rank of the node, in rank order; all of it can be read and written by each.

    `alike` says that all parts have the same size, so that a place in one corresponds to a place in each.
    """

    of: list[Tensor]
    window: MPI.Win
    alike: bool


class Node:
    """The ranks of `comm`, which all run on one host."""

    def __init__(self, comm: MPI.Comm) -> None:
        assert isinstance(comm, MPI.Intracomm), "the ranks of a node are one group"
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self._segments: list[Segment] = []
        lines = self.allocate(LINE)
        self._words = [line.numpy().data.cast("i") for line in lines]
        self._addresses = [ctypes.c_void_p(line.data_ptr()) for line in lines]
        self._round = 0
        self._spin = SPIN_SECONDS if self.size <= _cores(comm) else 0.0
        self._thread = threading.get_ident()
        staging = self.allocate(2 * STAGING)
        self._staging = [[part[i * STAGING : (i + 1) * STAGING] for part in staging] for i in range(2)]
        self._staged = 0

    def allocate(self, nbytes: int) -> list[Tensor]:
        """Zeroed bytes of every rank, `nbytes` of this one's, each aligned to pages; collective.

        UserError on every rank of the node where there is no room for them: Open MPI tells the first rank alone, and the
        others would wait in it.
        """
        sizes = self._comm.allgather(nbytes)
        needed, room = sum(sizes) + self.size * MARGIN, self._comm.bcast(_room())
        if room < needed:
            raise UserError(
                f"{BACKING} on {socket.gethostname()} has room for {room >> 10} KiB, and the {self.size} ranks there need "
                f"{needed >> 10} KiB to share; remove what is left in it, or mount it larger"
            )
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        try:
            window = MPI.Win.Allocate_shared(nbytes, 1, info, self._comm)
        except MPI.Exception as error:
            raise UserError(f"MPI cannot make {nbytes} bytes that ranks of this node share ({error})") from None
        finally:
            info.Free()
        parts = [_bytes(window.Shared_query(r)[0], sizes[r]) for r in range(self.size)]
        parts[self.rank].zero_()
        self._comm.Barrier()
        self._segments.append(Segment(parts, window, len(set(sizes)) == 1))
        return parts

    def all_reduce_(self, flat: Tensor, op: Op) -> None:
        """Reduce in rank order: in place where `flat` is memory of this node, else by way of such memory."""
        places = self._find(flat)
        if places is not None:
            self.barrier()
            self._reduce(places, op)
            self.barrier()
        elif flat.numel() * flat.element_size() <= SMALL:
            places = self._stage(flat)
            self.barrier()
            flat.copy_(reduce_in_order(places, op))
        else:
            for block in flat.split(STAGING // flat.element_size()):
                places = self._stage(block)
                self.barrier()
                self._reduce(places, op)
                self.barrier()
                block.copy_(places[self.rank])

    def all_reduce_across_(self, flat: Tensor, op: Op, owners: int, across: Callable[[Tensor], None]) -> None:
        """Reduce over several nodes: the first `owners` ranks each reduce a shard here, then by `across` over the nodes.

        `across` is called once, with the whole shard. Nodes thus exchange the same messages, wherever their tensors lie.
        """
        mine = _share(flat.numel(), owners, self.rank) if self.rank < owners else slice(0, 0)
        places = self._find(flat)
        if places is None:
            self._across_by_staging(flat, op, owners, mine, across)
            return
        self.barrier()
        if self.rank < owners:
            total = reduce_in_order([place[mine] for place in places], op)
            across(total)
            for place in places:
                place[mine] = total
        self.barrier()

    def _across_by_staging(
        self, flat: Tensor, op: Op, owners: int, mine: slice, across: Callable[[Tensor], None]
    ) -> None:
        """Every owner's shard is summed into that owner's `flat`, some of each shard at a time, and goes back that way."""
        each = STAGING // flat.element_size() // owners
        rounds = -(-max(shares(flat.numel(), owners)) // each)
        steps = [[_part(flat.numel(), owners, r, n * each, each) for r in range(owners)] for n in range(rounds)]
        own = self.rank if self.rank < owners else None
        for parts in steps:
            places = self._stage(*(flat[part] for part in parts))
            self.barrier()
            if own is not None:
                at = _within(parts, own)
                flat[parts[own]] = reduce_in_order([place[at] for place in places], op)
        if own is not None:
            across(flat[mine])
        for parts in steps:
            places = self._stage(flat[parts[own]] if own is not None else flat[:0], length=each)
            self.barrier()
            for part, place in zip(parts, places, strict=False):
                flat[part] = place[: part.stop - part.start]

    def _stage(self, *blocks: Tensor, length: int = 0) -> list[Tensor]:
        """Copy `blocks`, one after another, to where all ranks of the node can read them.

        Returns every rank's place, of `length` elements or as many as `blocks` have. Two places are used in turn, so that
        none is written while a neighbour still reads it.
        """
        self._staged ^= 1
        width, sizes = blocks[0].element_size(), [block.numel() for block in blocks]
        nbytes = (length or sum(sizes)) * width
        places = [part[:nbytes].view(blocks[0].dtype) for part in self._staging[self._staged]]
        for own, block in zip(places[self.rank][: sum(sizes)].split(sizes), blocks, strict=True):
            own.copy_(block)
        return places

    def _reduce(self, places: list[Tensor], op: Op) -> None:
        """Reduce this rank's shard of every place, piece by piece while it stays in the cache, into all of them."""
        length = CHUNK // places[0].element_size()
        mine = _share(places[0].numel(), self.size, self.rank)
        for at in range(mine.start, mine.stop, length):
            part = slice(at, min(at + length, mine.stop))
            reduce_into([place[part] for place in places], op)

    def _find(self, flat: Tensor) -> list[Tensor] | None:
        """The memory of every rank that corresponds to `flat`, where `flat` lies in memory of this node."""
        address, nbytes = flat.data_ptr(), flat.numel() * flat.element_size()
        for segment in self._segments:
            start = address - segment.of[self.rank].data_ptr()
            if segment.alike and start >= 0 and start + nbytes <= segment.of[self.rank].numel():
                return [part[start : start + nbytes].view(flat.dtype) for part in segment.of]
        return None

    def barrier(self) -> None:
        """Return once every rank of the node is here; what they wrote to shared memory before can be read."""
        window = self._segments[0].window
        window.Sync()
        self._round = (self._round + 1) & 0x3FFFFFFF
        self._words[self.rank][0] = self._round
        if any(word[1] for word in self._words):
            _futex(self._addresses[self.rank], _WAKE, 0x7FFFFFFF, 0)
        for r in range(self.size):
            if r != self.rank:
                self._await(r, self._round)
        window.Sync()

    def close(self) -> None:
        """Free all memory; collective, and nobody may touch any of it again."""
        self._words.clear()
        for segment in self._segments:
            segment.of.clear()
            segment.window.Free()
        self._comm.Free()

    def _patience(self) -> float:
        """Seconds to look on; none for another thread than the maker's, since it would keep that one from its core."""
        return self._spin if threading.get_ident() == self._thread else 0.0

    def _await(self, r: int, round_: int) -> None:
        word = self._words[r]
        end = 0.0
        while True:
            for _ in range(_LOOKS):
                if _reached(word[0], round_):
                    return
            now = time.perf_counter()
            end = end or now + self._patience()
            if now >= end:
                break
        mine = self._words[self.rank]
        mine[1] = 1
        while not _reached(seen := word[0], round_):
            _futex(self._addresses[r], _WAIT, seen, _NAP)
        mine[1] = 0


def _room() -> int:
    """Free bytes in `BACKING`; no limit where there is none."""
    try:
        return shutil.disk_usage(BACKING).free
    except OSError:
        return sys.maxsize


def _bytes(memory: MPI.buffer, size: int) -> Tensor:
    """The first `size` bytes of memory that was rounded up to pages."""
    return torch.frombuffer(memory, dtype=torch.uint8, count=size) if size else torch.empty(0, dtype=torch.uint8)


def _share(total: int, parts: int, number: int) -> slice:
    counts = shares(total, parts)
    start = sum(counts[:number])
    return slice(start, start + counts[number])


def _part(total: int, parts: int, number: int, start: int, length: int) -> slice:
    """At most `length` elements from `start` of share `number`."""
    share = _share(total, parts, number)
    first = min(share.start + start, share.stop)
    return slice(first, min(first + length, share.stop))


def _within(parts: list[slice], number: int) -> slice:
    """Where slice `number` lies once all `parts` follow one another."""
    before = sum(part.stop - part.start for part in parts[:number])
    return slice(before, before + parts[number].stop - parts[number].start)


def _reached(seen: int, round_: int) -> bool:
    """Whether a counter that wraps around has got to `round_`; ranks are never more than one round apart."""
    return (seen - round_) & 0x3FFFFFFF < 0x20000000


def _cores(comm: MPI.Intracomm) -> int:
    """Different processors that the ranks of `comm` may run on, together."""
    return len(set().union(*comm.allgather(sorted(os.sched_getaffinity(0)))))


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


_NUMBERS = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "s390x": 238}
_NUMBER = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
_syscall = ctypes.CDLL(None, use_errno=True).syscall


def _futex(address: ctypes.c_void_p, operation: int, value: int, seconds: float) -> None:
    """Sleep while the word at `address` is `value`, or wake those who do; elsewhere than on Linux, sleep a moment."""
    if _NUMBER is None:
        time.sleep(0 if operation == _WAKE else 1e-4)
        return
    timeout = _Timespec(0, int(seconds * 1e9))
    _syscall(_NUMBER, address, operation, value, ctypes.byref(timeout), None, 0)


def reduce_into(parts: list[Tensor], op: Op) -> None:
    """Replace every one of `parts` by their reduction."""
    first, *others = parts
    if first.dtype in _HALVES or op not in ("mean", "sum"):
        first.copy_(reduce_in_order(parts, op))
    else:
        for other in others:
            first.add_(other)
        if op == "mean":
            first.div_(len(parts))
    for other in others:
        other.copy_(first)

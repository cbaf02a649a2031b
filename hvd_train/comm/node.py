"""Reductions in memory that the ranks of one host share, and a barrier there that sends no message.

A rank waits for a word in its neighbour's memory. If every rank has a core of its own, it spins for
a while first, since that returns within a microsecond. Then, or at once if ranks outnumber cores,
it sleeps in the kernel on that word (`futex.py`), and the neighbour wakes it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import Tensor

from hvd_train.comm.futex import ROUNDS, reached, wait, wake
from hvd_train.comm.ops import Op, reduce_in_order, reduce_into, shares
from hvd_train.errors import UserError

STAGING = 512 * 1024
"""Bytes of an ordinary tensor that are copied to shared memory at a time."""

_LINE = 64
"""Bytes of a cache line. Words of different ranks are further apart, so that they share none."""

_BLOCK = 256 * 1024
"""Bytes that a rank reduces at a time."""

_SMALL = 32 * 1024
"""Bytes up to which every rank reduces the whole tensor, which takes one barrier less."""

_BACKING = "/dev/shm"
"""The file system in which MPI libraries allocate shared memory on Linux."""

_MARGIN = 64 * 1024
"""Bytes per rank that MPI takes there beyond the request, for pages and words of its own."""

_SPIN_SECONDS = 1e-3
_SPINS = 200
"""Reads of a word between two reads of the clock."""
_SLEEP_SECONDS = 1e-3
"""Longest sleep before the word is read again, in case a wake-up came just before the sleep."""


@dataclass(frozen=True)
class Segment:
    """One allocation: the memory of every rank of the node, in rank order.

    All ranks can read and write it. `alike`: all ranks have the same size, so that an offset in one
    memory corresponds to the same offset in each.
    """

    of: list[Tensor]
    window: MPI.Win
    alike: bool


class Node:
    """The ranks of `comm`, which all run on one host; a `SharedMemory`."""

    def __init__(self, comm: MPI.Comm) -> None:
        assert isinstance(comm, MPI.Intracomm), "the ranks of a node are one group"
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self._segments: list[Segment] = []
        lines = self.allocate(_LINE)
        self._words = [line.numpy().data.cast("i") for line in lines]
        """Of every rank: the round it has entered, and 1 while it sleeps."""
        self._addresses = [ctypes.c_void_p(line.data_ptr()) for line in lines]
        self._round = 0
        self._spin = _SPIN_SECONDS if self.size <= _cores(comm) else 0.0
        self._thread = threading.get_ident()
        staging = self.allocate(2 * STAGING)
        self._staging = [[part[i * STAGING : (i + 1) * STAGING] for part in staging] for i in range(2)]
        self._staged = 0

    def allocate(self, nbytes: int) -> list[Tensor]:
        """Return zeroed bytes of every rank, `nbytes` of this rank, aligned to pages; collective.

        UserError on every rank of the node if there is no room. Without this check, Open MPI
        reports an error to the first rank only, and the others wait in the call.
        """
        sizes = self._comm.allgather(nbytes)
        needed, room = sum(sizes) + self.size * _MARGIN, self._comm.bcast(_room())
        if room < needed:
            raise UserError(
                f"{_BACKING} on {socket.gethostname()} has room for {room >> 10} KiB, and the {self.size} ranks there need "
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
        """Reduce in rank order: in place in memory of this node, else through staging memory."""
        tensors = self._corresponding(flat)
        if tensors is not None:
            self.barrier()
            self._reduce(tensors, op)
            self.barrier()
        elif flat.numel() * flat.element_size() <= _SMALL:
            tensors = self._stage(flat)
            self.barrier()
            flat.copy_(reduce_in_order(tensors, op))
        else:
            for block in flat.split(STAGING // flat.element_size()):
                tensors = self._stage(block)
                self.barrier()
                self._reduce(tensors, op)
                self.barrier()
                block.copy_(tensors[self.rank])

    def all_reduce_across_(self, flat: Tensor, op: Op, owners: int, across: Callable[[Tensor], None]) -> None:
        """Reduce over several nodes.

        Each of the first `owners` ranks reduces a shard here, then over the nodes by `across`.
        `across` is called once, with the whole shard, so that messages do not depend on where a
        node's tensors lie.
        """
        own = _share(flat.numel(), owners, self.rank) if self.rank < owners else slice(0, 0)
        tensors = self._corresponding(flat)
        if tensors is None:
            self._across_by_staging(flat, op, owners, own, across)
            return
        self.barrier()
        if self.rank < owners:
            total = reduce_in_order([tensor[own] for tensor in tensors], op)
            across(total)
            for tensor in tensors:
                tensor[own] = total
        self.barrier()

    def _across_by_staging(
        self, flat: Tensor, op: Op, owners: int, own: slice, across: Callable[[Tensor], None]
    ) -> None:
        """Collect every shard block by block in its owner's `flat`.

        The reduced shards are distributed the same way.
        """
        each = STAGING // flat.element_size() // owners
        rounds = -(-max(shares(flat.numel(), owners)) // each)
        steps = [[_part(flat.numel(), owners, r, n * each, each) for r in range(owners)] for n in range(rounds)]
        number = self.rank if self.rank < owners else None
        for parts in steps:
            tensors = self._stage(*(flat[part] for part in parts))
            self.barrier()
            if number is not None:
                at = _within(parts, number)
                flat[parts[number]] = reduce_in_order([tensor[at] for tensor in tensors], op)
        if number is not None:
            across(flat[own])
        for parts in steps:
            tensors = self._stage(flat[parts[number]] if number is not None else flat[:0], length=each)
            self.barrier()
            for part, tensor in zip(parts, tensors, strict=False):
                flat[part] = tensor[: part.stop - part.start]

    def all_gather(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes of every rank, of which rank r has `sizes[r]`, in new memory."""
        received = torch.empty(sum(sizes), dtype=torch.uint8).split_with_sizes(list(sizes))
        for at in range(0, max(sizes), STAGING):
            tensors = self._stage(flat[at : at + STAGING], length=STAGING)
            self.barrier()
            for part, tensor in zip(received, tensors, strict=True):
                piece = part[at : at + STAGING]
                piece.copy_(tensor[: len(piece)])
        return list(received)

    def _stage(self, *blocks: Tensor, length: int = 0) -> list[Tensor]:
        """Copy `blocks` to this rank's staging memory, and return that of every rank.

        The tensors have `length` elements, by default as many as `blocks`. There are two staging
        areas, used in turn, so that none is overwritten while a neighbour still reads it.
        """
        self._staged ^= 1
        width, sizes = blocks[0].element_size(), [block.numel() for block in blocks]
        nbytes = (length or sum(sizes)) * width
        tensors = [part[:nbytes].view(blocks[0].dtype) for part in self._staging[self._staged]]
        for own, block in zip(tensors[self.rank][: sum(sizes)].split(sizes), blocks, strict=True):
            own.copy_(block)
        return tensors

    def _reduce(self, tensors: list[Tensor], op: Op) -> None:
        """Reduce this rank's shard into all `tensors`, in blocks that stay in the cache."""
        length = _BLOCK // tensors[0].element_size()
        own = _share(tensors[0].numel(), self.size, self.rank)
        for at in range(own.start, own.stop, length):
            part = slice(at, min(at + length, own.stop))
            reduce_into([tensor[part] for tensor in tensors], op)

    def _corresponding(self, flat: Tensor) -> list[Tensor] | None:
        """Return every rank's tensor at the offset of `flat`; None if it lies in other memory."""
        address, nbytes = flat.data_ptr(), flat.numel() * flat.element_size()
        for segment in self._segments:
            start = address - segment.of[self.rank].data_ptr()
            if segment.alike and start >= 0 and start + nbytes <= segment.of[self.rank].numel():
                return [part[start : start + nbytes].view(flat.dtype) for part in segment.of]
        return None

    def barrier(self) -> None:
        """Return once every rank of the node has called it.

        Earlier writes to shared memory are then visible.
        """
        window = self._segments[0].window
        window.Sync()
        self._round = (self._round + 1) & ROUNDS
        self._words[self.rank][0] = self._round
        if any(word[1] for word in self._words):
            wake(self._addresses[self.rank])
        for r in range(self.size):
            if r != self.rank:
                self._await(r, self._round)
        window.Sync()

    def close(self) -> None:
        """Free all memory; collective. No rank may use any of it afterwards."""
        self._words.clear()
        for segment in self._segments:
            segment.of.clear()
            segment.window.Free()
        self._comm.Free()

    def _spin_seconds(self) -> float:
        """Return the seconds to spin.

        A background thread does not spin: it would keep the main thread from its core.
        """
        return self._spin if threading.get_ident() == self._thread else 0.0

    def _await(self, r: int, round_: int) -> None:
        word = self._words[r]
        end = 0.0
        while True:
            for _ in range(_SPINS):
                if reached(word[0], round_):
                    return
            now = time.perf_counter()
            end = end or now + self._spin_seconds()
            if now >= end:
                break
        own = self._words[self.rank]
        own[1] = 1
        while not reached(seen := word[0], round_):
            wait(self._addresses[r], seen, _SLEEP_SECONDS)
        own[1] = 0


def _room() -> int:
    """Return the free bytes in `_BACKING`; a huge number if it does not exist."""
    try:
        return shutil.disk_usage(_BACKING).free
    except OSError:
        return sys.maxsize


def _bytes(memory: MPI.buffer, size: int) -> Tensor:
    """Return the first `size` bytes of memory whose size MPI has rounded up to pages."""
    return torch.frombuffer(memory, dtype=torch.uint8, count=size) if size else torch.empty(0, dtype=torch.uint8)


def _share(total: int, parts: int, number: int) -> slice:
    """Return the elements of share `number` when `total` elements are split into `parts`."""
    counts = shares(total, parts)
    start = sum(counts[:number])
    return slice(start, start + counts[number])


def _part(total: int, parts: int, number: int, start: int, length: int) -> slice:
    """Return at most `length` elements of share `number`, from its element `start`."""
    share = _share(total, parts, number)
    first = min(share.start + start, share.stop)
    return slice(first, min(first + length, share.stop))


def _within(parts: list[slice], number: int) -> slice:
    """Return where slice `number` lies in the concatenation of `parts`."""
    before = sum(part.stop - part.start for part in parts[:number])
    return slice(before, before + parts[number].stop - parts[number].start)


def _cores(comm: MPI.Intracomm) -> int:
    """Return the number of distinct CPUs in the affinity masks of all ranks of `comm`."""
    return len(set().union(*comm.allgather(sorted(os.sched_getaffinity(0)))))

"""All-reduce between ranks that share no memory, with 2 (N - 1) / N bytes sent for each byte, like a ring.

The first half is a pairwise exchange: in turn n every rank sends its shard to the rank n further on, and adds what the rank n
before it sent. A ring would round partial sums at every hop; here halves add up in float32 and are rounded once, and the order
of the terms is the same in every run. The second half passes the sums on (Thakur et al., doi 10.1177/1094342005051521). Blocks
follow one another closely, so that the wire is busy while sums are computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hvd_train.comm.base import _COMBINE, _HALVES, Op, shares

BLOCK = 4 << 20
"""Bytes of the tensor that are exchanged together."""

Wait = Callable[[list[MPI.Request]], None]


def all_reduce_(flat: Tensor, op: Op, comm: MPI.Comm, wait: Wait) -> None:
    """Replace `flat` by its reduction, bitwise equal on every rank; `wait` returns once requests are complete."""
    blocks = [_Block(part, comm) for part in flat.split(max(comm.size, BLOCK // flat.element_size()))]
    for block in blocks:
        block.exchange()
    for block in blocks:
        wait(block.under_way)
        block.reduce(op)
        block.pass_on()
    for block in blocks:
        wait(block.under_way)


class _Block:
    """Some of a tensor: a shard for every rank, of which this rank reduces its own."""

    def __init__(self, flat: Tensor, comm: MPI.Comm) -> None:
        self._comm, self._rank, self._size = comm, comm.rank, comm.size
        self._shards = flat.split_with_sizes(shares(flat.numel(), comm.size))
        self._mine = self._shards[self._rank]
        self._arrived = [torch.empty_like(self._mine) for _ in range(self._size - 1)]
        self.under_way: list[MPI.Request] = []

    def exchange(self) -> None:
        """Send everybody its shard of this rank's tensor, and receive the others' of its own."""
        for turn, place in enumerate(self._arrived, 1):
            target = (self._rank + turn) % self._size
            self.under_way += (
                self._receive(place, (self._rank - turn) % self._size),
                self._send(self._shards[target], target),
            )

    def reduce(self, op: Op) -> None:
        """Reduce this rank's shard; what was under way is complete."""
        self.under_way = []
        wide = torch.float32 if self._mine.dtype in _HALVES else self._mine.dtype
        total = self._mine.to(wide)
        for part in self._arrived:
            _COMBINE[op](total, part, out=total)
        if op == "mean":
            total /= self._size
        if total is not self._mine:
            self._mine.copy_(total)

    def pass_on(self) -> None:
        """Send everybody the reduced shard, and receive theirs."""
        for turn in range(1, self._size):
            source, target = (self._rank - turn) % self._size, (self._rank + turn) % self._size
            self.under_way += self._receive(self._shards[source], source), self._send(self._mine, target)

    def _send(self, part: Tensor, target: int) -> MPI.Request:
        return self._comm.Isend(memory(part), target)

    def _receive(self, part: Tensor, source: int) -> MPI.Request:
        return self._comm.Irecv(memory(part), source)


def memory(flat: Tensor) -> tuple[MPI.buffer, int, MPI.Datatype]:
    """A contiguous tensor as MPI takes it, in bytes."""
    nbytes = flat.numel() * flat.element_size()
    return MPI.buffer.fromaddress(flat.data_ptr(), nbytes), nbytes, MPI.BYTE

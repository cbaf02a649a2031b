"""All-reduce by pairwise exchange between ranks that share no memory.

A rank sends 2 (N - 1) / N bytes for each byte. In turn n of the first half, every rank sends a
shard to the rank n places above, and receives its own shard from the rank n places below. A ring
sends as many bytes but rounds partial sums at every hop. Here halves are summed in float32 and
rounded once, in the same order in every run. The second half distributes the sums (Thakur et al.,
doi 10.1177/1094342005051521). Blocks are pipelined, so that the network is busy while sums are
computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hvd_train.comm.ops import COMBINE, HALVES, Op, shares

BLOCK = 4 << 20
"""Bytes of the tensor that are exchanged together."""

Wait = Callable[[list[MPI.Request]], None]


def all_reduce_(flat: Tensor, op: Op, comm: MPI.Comm, wait: Wait) -> None:
    """Replace `flat` by its reduction, bitwise equal on every rank.

    `wait` returns once its requests are complete.
    """
    blocks = [_Block(part, comm) for part in flat.split(max(comm.size, BLOCK // flat.element_size()))]
    for block in blocks:
        block.exchange()
    for block in blocks:
        wait(block.requests)
        block.reduce(op)
        block.distribute()
    for block in blocks:
        wait(block.requests)


class _Block:
    """Consecutive elements of a tensor: one shard for every rank. This rank reduces its own."""

    def __init__(self, flat: Tensor, comm: MPI.Comm) -> None:
        self._comm, self._rank, self._size = comm, comm.rank, comm.size
        self._shards = flat.split_with_sizes(shares(flat.numel(), comm.size))
        self._own = self._shards[self._rank]
        self._received = [torch.empty_like(self._own) for _ in range(self._size - 1)]
        self.requests: list[MPI.Request] = []

    def exchange(self) -> None:
        """Send every rank its shard of this rank's tensor.

        Receive the others' values of the own shard.
        """
        for turn, buffer in enumerate(self._received, 1):
            target = (self._rank + turn) % self._size
            self.requests += (
                self._receive(buffer, (self._rank - turn) % self._size),
                self._send(self._shards[target], target),
            )

    def reduce(self, op: Op) -> None:
        """Reduce this rank's shard, once the exchange is complete."""
        self.requests = []
        wide = torch.float32 if self._own.dtype in HALVES else self._own.dtype
        total = self._own.to(wide)
        for part in self._received:
            COMBINE[op](total, part, out=total)
        if op == "mean":
            total /= self._size
        if total is not self._own:
            self._own.copy_(total)

    def distribute(self) -> None:
        """Send the reduced shard to every rank, and receive theirs."""
        for turn in range(1, self._size):
            source, target = (self._rank - turn) % self._size, (self._rank + turn) % self._size
            self.requests += self._receive(self._shards[source], source), self._send(self._own, target)

    def _send(self, part: Tensor, target: int) -> MPI.Request:
        return self._comm.Isend(memory(part), target)

    def _receive(self, part: Tensor, source: int) -> MPI.Request:
        return self._comm.Irecv(memory(part), source)


def memory(flat: Tensor) -> tuple[MPI.buffer, int, MPI.Datatype]:
    """Return the bytes of a contiguous tensor as MPI takes a buffer."""
    nbytes = flat.numel() * flat.element_size()
    return MPI.buffer.fromaddress(flat.data_ptr(), nbytes), nbytes, MPI.BYTE

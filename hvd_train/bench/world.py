"""The ranks of a bench, as the bench itself and the peers see them."""

from __future__ import annotations

import socket
from functools import cached_property
from typing import Any, TypeVar

import torch.distributed as dist
from mpi4py import MPI

T = TypeVar("T")


class World:
    """All ranks, over plain MPI."""

    def __init__(self) -> None:
        self.mpi = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.mpi.rank, self.mpi.size

    def barrier(self) -> None:
        self.mpi.Barrier()

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in rank order, on every rank."""
        return self.mpi.allgather(value)

    @cached_property
    def process_group(self) -> dist.ProcessGroup:
        """torch.distributed's default group over gloo, whose ranks meet at a port that the system gives rank 0."""
        host = self.mpi.bcast(socket.gethostname())
        mine = self._store(host, 0) if self.rank == 0 else None
        port = self.mpi.bcast(mine.port if mine else None)
        dist.init_process_group("gloo", store=mine or self._store(host, port), rank=self.rank, world_size=self.size)
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    def _store(self, host: str, port: int) -> Any:
        store: Any = dist.TCPStore  # type: ignore[attr-defined]
        return store(host, port, self.size, is_master=self.rank == 0, wait_for_workers=False)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        self.mpi.Free()

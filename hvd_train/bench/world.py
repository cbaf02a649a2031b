"""The ranks of a bench, for the bench itself and for the variants of other libraries."""

from __future__ import annotations

import socket
from functools import cached_property
from typing import Any, TypeVar

import torch.distributed as dist
from mpi4py import MPI

from hvd_train.comm import addresses

T = TypeVar("T")


class World:
    """All ranks, connected by plain MPI."""

    def __init__(self) -> None:
        self.mpi = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.mpi.rank, self.mpi.size

    def barrier(self) -> None:
        self.mpi.Barrier()

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value` in rank order, on every rank."""
        return self.mpi.allgather(value)

    @cached_property
    def process_group(self) -> dist.ProcessGroup:
        """torch.distributed's default group over gloo.

        Its store listens on rank 0, in the network of the job.
        """
        facts = self.gather(addresses.facts())
        listener = socket.create_server((addresses.own(0, facts), 0)) if self.rank == 0 else None
        host, port = self.mpi.bcast(listener.getsockname() if listener else None)
        options = {"is_master": True, "master_listen_fd": listener.detach()} if listener else {}
        store: Any = dist.TCPStore  # type: ignore[attr-defined]
        connected = store(host, port, self.size, wait_for_workers=False, **options)
        dist.init_process_group("gloo", store=connected, rank=self.rank, world_size=self.size)
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        self.mpi.Free()

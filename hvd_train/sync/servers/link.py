"""How the copies of a flat tensor travel between workers and the servers that own its regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, SharedMemory
from hvd_train.sync.servers.roles import Roles


class Link(Protocol):
    """A flat tensor of which every rank has a copy and each server owns a region."""

    flat: Tensor
    """This rank's copy."""
    mine: Tensor
    """The region of `flat` that this rank owns; empty on a rank that does not serve."""

    def push(self) -> list[Tensor]:
        """Send all regions to their owners; collective.

        Returns this rank's region as each worker has it, in rank order. The tensors are valid until
        `pull`.
        """

    def pull(self) -> None:
        """Copy all regions from their owners; collective."""


def link(comm: Communicator, who: Roles, counts: Sequence[int], dtype: torch.dtype, device: torch.device) -> Link:
    """Return a link on which server number s owns `counts[s]` elements, in the order of servers."""
    by_rank = [0] * who.size
    for rank, count in zip(who.serving, counts, strict=True):
        by_rank[rank] = count
    memory = comm.shared_memory
    if memory is not None and comm.local_size == comm.size and device.type == "cpu":
        return _SharedLink(comm, memory, who, by_rank, dtype)
    return _MessageLink(comm, who, by_rank, dtype, device)


class _MessageLink:
    """Sends regions by all_to_all to the servers and by all_gather from them."""

    def __init__(
        self, comm: Communicator, who: Roles, counts: list[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._comm, self._who = comm, who
        self.flat = torch.zeros(sum(counts), dtype=dtype, device=device)
        self._regions = self.flat.split(counts)
        self.mine = self._regions[comm.rank]

    def push(self) -> list[Tensor]:
        nothing = self.flat[:0]
        sent = self._regions if self._who.works(self._comm.rank) else [nothing] * self._who.size
        return self._comm.all_to_all(sent)[: self._who.workers]

    def pull(self) -> None:
        for rank, region in enumerate(self._comm.all_gather(self.mine)):
            if rank != self._comm.rank:
                self._regions[rank].copy_(region)


class _SharedLink:
    """Copies through the shared memory of one node.

    Servers read the workers' copies, and workers read the servers' copies.
    """

    def __init__(
        self, comm: Communicator, memory: SharedMemory, who: Roles, counts: list[int], dtype: torch.dtype
    ) -> None:
        self._comm, self._memory, self._who = comm, memory, who
        copies = [copy.view(dtype) for copy in memory.allocate(sum(counts) * dtype.itemsize)]
        self.flat = copies[comm.rank]
        regions = [copy.split(counts) for copy in copies]
        self.mine = regions[comm.rank][comm.rank]
        self._pushed = [regions[rank][comm.rank] for rank in range(who.workers)]
        self._pulled = [(regions[comm.rank][r], regions[r][r]) for r in who.serving if r != comm.rank]

    def push(self) -> list[Tensor]:
        self._memory.barrier()
        if self._who.works(self._comm.rank):
            self._comm.traffic.add(self.flat.nbytes - self.mine.nbytes)
        return self._pushed

    def pull(self) -> None:
        self._memory.barrier()
        for own, region in self._pulled:
            own.copy_(region)
        # After `pull` a rank may change its copy: until then, slower ranks may still read it.
        self._memory.barrier()
        self._comm.traffic.add(self.mine.nbytes * (self._comm.size - 1))

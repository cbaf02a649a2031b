"""Ranks that serve: each holds a part of what all ranks have a copy of, takes what workers push to it, and is pulled from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.comm.base import Communicator, SharedMemory
from hvd_train.errors import UserError
from hvd_train.optimizer import Build, kind
from hvd_train.sharding import ELEMENTWISE, WHOLE
from hvd_train.sync.base import Share, SyncStrategy, named

Placement = Literal["colocated", "dedicated"]


@dataclass(frozen=True)
class Roles:
    """Who serves: of `size` ranks the first `servers`, beside working; or the last ones, which then do nothing else."""

    size: int
    servers: int
    dedicated: bool

    @property
    def workers(self) -> int:
        """How many ranks work: the first ones."""
        return self.size - self.servers * self.dedicated

    @property
    def serving(self) -> range:
        """The ranks that serve."""
        first = self.size - self.servers if self.dedicated else 0
        return range(first, first + self.servers)

    def works(self, rank: int) -> bool:
        return rank < self.workers

    def share(self, rank: int) -> Share | None:
        """As `SyncStrategy.share`."""
        return Share(rank, self.workers) if self.works(rank) else None

    def __str__(self) -> str:
        also = "serve" if self.dedicated else "also serve"
        serving = named(self.serving) + (f" {also}" if self.servers > 1 else f" {also}s")
        return f"{named(range(self.workers))} work{'s' * (self.workers == 1)}, {serving}"


def roles(size: int, servers: int, placement: Placement) -> Roles:
    """UserError where there are not enough ranks for them."""
    dedicated = placement == "dedicated"
    if servers + dedicated > size:
        kind = " dedicated" if dedicated else ""
        way_out = ", or set sync.placement: colocated" if dedicated and servers <= size else ""
        raise UserError(
            f"sync.servers: {servers}{kind} server{'s' * (servers > 1)} and a worker take at least {servers + dedicated} "
            f"ranks, and there {'is' if size == 1 else 'are'} {size}: start more (--np), lower sync.servers{way_out}"
        )
    return Roles(size, servers, dedicated)


def by_whole_tensors(model: nn.Module, build: Build, way_out: str) -> bool:
    """Whether the optimizer takes whole tensors only; UserError with the `way_out` where it must have all parameters at once."""
    name = kind(model, build)
    if name not in ELEMENTWISE | WHOLE:
        raise UserError(
            f"optimizer.name: {name} looks at all parameters together, of which each server sees only a part; take "
            f"another one, or set {way_out}"
        )
    return name in WHOLE


class WithServers(SyncStrategy):
    """The base, before any other, of strategies in which ranks serve as `_who` says and all take their steps together."""

    _who: Roles

    @property
    def workers(self) -> int:
        return self._who.workers

    def share(self, epoch: int) -> Share | None:
        return self._who.share(self.comm.rank)

    def roles(self) -> str:
        return str(self._who)

    def start(self, model: nn.Module) -> None:
        self._model = model
        super().start(model)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        with super().agreed():
            self._buffers_of_workers_()
            yield

    def _buffers_of_workers_(self) -> None:
        """Let the mean of all ranks' floating buffers be that of workers: a server that does not work has seen no sample."""
        if not self._who.dedicated:
            return
        works = self._who.works(self.comm.rank)
        for buffer in model_state.common_statistics(self._model, self.comm):
            total = buffer.clone() if works else torch.zeros_like(buffer)
            self.comm.all_reduce_(total, "sum")
            if not works:
                buffer.copy_(total / self._who.workers)


class Link(Protocol):
    """Between workers and servers: every rank has a `flat` tensor alike, of which each server owns a region."""

    flat: Tensor
    mine: Tensor
    """This rank's region of `flat`; empty where it serves nothing."""

    def push(self) -> list[Tensor]:
        """What each worker has in this rank's region, in rank order, to be read until `pull`; collective."""

    def pull(self) -> None:
        """Take over the servers' regions from them; collective."""


def link(comm: Communicator, who: Roles, counts: Sequence[int], dtype: torch.dtype, device: torch.device) -> Link:
    """A link on which server number s owns `counts[s]` elements, after those of the servers before it."""
    by_rank = [0] * who.size
    for rank, count in zip(who.serving, counts, strict=True):
        by_rank[rank] = count
    memory = comm.shared_memory
    if memory is not None and comm.local_size == comm.size and device.type == "cpu":
        return _Shared(comm, memory, who, by_rank, dtype)
    return _Sent(comm, who, by_rank, dtype, device)


class _Sent:
    """By messages: all_to_all to the servers, all_gather from them."""

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


class _Shared:
    """Through memory of one node: servers read what workers have, and workers what servers have."""

    def __init__(
        self, comm: Communicator, memory: SharedMemory, who: Roles, counts: list[int], dtype: torch.dtype
    ) -> None:
        self._comm, self._memory, self._who = comm, memory, who
        parts = [part.view(dtype) for part in memory.allocate(sum(counts) * dtype.itemsize)]
        self.flat = parts[comm.rank]
        regions = [part.split(counts) for part in parts]
        self.mine = regions[comm.rank][comm.rank]
        self._pushed = [regions[rank][comm.rank] for rank in range(who.workers)]
        self._pulled = [(regions[comm.rank][r], regions[r][r]) for r in who.serving if r != comm.rank]

    def push(self) -> list[Tensor]:
        self._memory.barrier()
        if self._who.works(self._comm.rank):
            self._comm.bytes_sent += self.flat.nbytes - self.mine.nbytes
        return self._pushed

    def pull(self) -> None:
        self._memory.barrier()
        for own, region in self._pulled:
            own.copy_(region)
        # A worker may change its copy from here on, and with it what a slower one would still read.
        self._memory.barrier()
        self._comm.bytes_sent += self.mine.nbytes * (self._comm.size - 1)

"""Which ranks serve parameters, and which ranks are workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build
from hvd_train.gradients.pieces import ELEMENTWISE, WHOLE
from hvd_train.state import model_state
from hvd_train.sync.membership import Membership, Share, every_step, nothing, ranks_in_words

Placement = Literal["colocated", "dedicated"]


@dataclass(frozen=True)
class Roles:
    """The servers among `size` ranks.

    They are the first `servers` ranks, which are workers too, or the last ranks if `dedicated`.
    """

    size: int
    servers: int
    dedicated: bool

    @property
    def workers(self) -> int:
        """The number of workers: they are the first ranks."""
        return self.size - self.servers * self.dedicated

    @property
    def serving(self) -> range:
        """The ranks that serve."""
        first = self.size - self.servers if self.dedicated else 0
        return range(first, first + self.servers)

    def works(self, rank: int) -> bool:
        return rank < self.workers

    def __str__(self) -> str:
        also = "serve" if self.dedicated else "also serve"
        serving = ranks_in_words(self.serving) + (f" {also}" if self.servers > 1 else f" {also}s")
        return f"{ranks_in_words(range(self.workers))} work{'s' * (self.workers == 1)}, {serving}"


def roles(size: int, servers: int, placement: Placement) -> Roles:
    """Return the roles of `size` ranks; UserError if they are too few."""
    dedicated = placement == "dedicated"
    if servers + dedicated > size:
        kind = " dedicated" if dedicated else ""
        way_out = ", or set sync.placement: colocated" if dedicated and servers <= size else ""
        raise UserError(
            f"sync.servers: {servers}{kind} server{'s' * (servers > 1)} and a worker need at least {servers + dedicated} "
            f"ranks, and there {'is' if size == 1 else 'are'} {size}: start more (--np), lower sync.servers{way_out}"
        )
    return Roles(size, servers, dedicated)


def by_whole_tensors(build: Build, way_out: str) -> bool:
    """Return True if the optimizer needs whole parameters, so that servers must not split them.

    UserError, which names the `way_out`, if it needs all parameters at once.
    """
    name = build.name
    if name not in ELEMENTWISE | WHOLE:
        raise UserError(
            f"optimizer.name: {name} needs all parameters at once, and each server has only a part of them; take "
            f"another one, or set {way_out}"
        )
    return name in WHOLE


class ServedGroup(Membership):
    """A synchronous group in which some ranks serve, and workers have the samples."""

    def __init__(
        self,
        comm: Communicator,
        who: Roles,
        synchronises_at: Callable[[int], bool] = every_step,
        at_end: Callable[[], None] = nothing,
    ) -> None:
        super().__init__(comm, synchronises_at, at_end)
        self._who = who

    def share(self, epoch: int) -> Share | None:
        return Share(self.comm.rank, self._who.workers) if self._who.works(self.comm.rank) else None

    @property
    def workers(self) -> int:
        return self._who.workers

    def roles(self) -> str:
        return str(self._who)


def copy_buffers_of_workers_(model: nn.Module, comm: Communicator, who: Roles) -> None:
    """Set the running statistics of dedicated servers to the mean of the workers' statistics.

    Collective. Dedicated servers see no sample. The mean over all ranks is then the mean over
    workers.
    """
    if not who.dedicated:
        return
    works = who.works(comm.rank)
    for buffer in model_state.common_statistics(model, comm):
        total = buffer.clone() if works else torch.zeros_like(buffer)
        comm.all_reduce_(total, "sum")
        if not works:
            buffer.copy_(total / who.workers)

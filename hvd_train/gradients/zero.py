"""ZeRO stage 1 over shared memory.

A node holds the parameters once, and each of its ranks sums and updates some of them. Nothing is
zeroed, accumulated or sent within a node (Rajbhandari et al., arXiv 1910.02054, divide work and
state alike):

1. The hook that follows a complete gradient copies to shared memory what other ranks own of it,
   while it is in the cache.
2. After a barrier, the owner adds its neighbours' copies to its own gradient, in the memory where
   autograd left it.
3. The owner's optimizer updates the shared parameters. A second barrier ends the step.

With several nodes this happens bucket by bucket during backward: what a rank owns of a bucket is
then summed over the ranks of the same number on the other nodes. Compression applies to that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator, SharedMemory, Work
from hvd_train.gradients.buckets import Bucket, plan
from hvd_train.gradients.compression.base import Compressor
from hvd_train.gradients.pieces import Piece, cut
from hvd_train.gradients.reduction import Reduction, seed_of

_ALIGN = 64
"""Bytes of a cache line, at which pieces begin."""

_EARLY = 64 * 1024
"""Bytes from which a piece is copied by a hook of its own, while it is in the cache."""


class Arena:
    """Parameters of one dtype in shared memory, with slots for the gradients of other owners.

    Parameters are in the reverse order of the model, roughly the order in which gradients are
    completed. `pieces` are those of all ranks and `owned` those of this rank. `early[i]` are the
    pieces of parameter i that its hook copies. `missing` are the parameters whose gradient is not
    complete yet.
    """

    def __init__(self, parameters: list[nn.Parameter], memory: SharedMemory, *, whole: bool) -> None:
        self.parameters, self._memory = parameters, memory
        width = parameters[0].element_size()
        line = _ALIGN // width
        self.pieces = cut([p.numel() for p in parameters], memory.size, whole=whole, multiple=line)
        starts, total = _starts([p.numel() for p in parameters], line)
        values = memory.allocate(total * width if memory.rank == 0 else 0)[0].view(parameters[0].dtype)
        self._offsets, needed = self._laid_out(line)
        gradients = memory.allocate(needed[memory.rank] * width)
        self._gradients = [of_rank.view(parameters[0].dtype) for of_rank in gradients]
        # The last step in which each parameter had a gradient; at the end, in which all had one.
        self._used = [words.numpy().data.cast("i") for words in memory.allocate(4 * (len(parameters) + 1))]
        for p, start in zip(parameters, starts, strict=True):
            shared = values[start : start + p.numel()].view(p.shape)
            if memory.rank == 0:
                shared.copy_(p.data)
            p.data = shared
        mine = memory.rank
        self.owned = [Owned(self, piece, mine, memory.size) for piece in self.pieces if piece.owner == mine]
        outgoing = [Outgoing(self, piece, mine) for piece in self.pieces if piece.owner != mine]
        self.early = {
            index: [o for o in outgoing if o.parameter is p and o.nbytes >= _EARLY]
            for index, p in enumerate(parameters)
            if p.requires_grad
        }
        self._late = [o for o in outgoing if not (o.parameter.requires_grad and o.nbytes >= _EARLY)]
        self.missing: set[int] = set()
        memory.barrier()

    @property
    def _all(self) -> int:
        """The index in `_used` that stands for all parameters."""
        return len(self.parameters)

    def publish(self, step: int) -> None:
        """Copy what hooks have not copied, and note which parameters had a gradient in `step`."""
        used = self._used[self._memory.rank]
        if all(p.grad is not None for p in self.parameters):
            used[self._all] = step
        else:
            for index, p in enumerate(self.parameters):
                used[index] = step if p.grad is not None else 0
        for outgoing in self._late:
            outgoing.put()

    def sum(self, step: int) -> None:
        """Set the gradients of owned pieces to their sums over the node.

        The own gradient comes first, then the others in rank order.
        """
        if all(used[self._all] == step for used in self._used):
            self._sum_all()
        else:
            for owned in self.owned:
                owned.sum_of(self._users(owned.piece.index, step))

    def slot(self, rank: int, piece: Piece) -> Tensor:
        """Return the memory into which `rank` copies its gradient of `piece`."""
        start = self._offsets[rank, piece]
        return self._gradients[rank][start : start + piece.stop - piece.start]

    def _laid_out(self, line: int) -> tuple[dict[tuple[int, Piece], int], list[int]]:
        """Return the offset of every slot in its rank's memory, and the elements per rank."""
        offsets, needed = {}, []
        for rank in range(self._memory.size):
            outgoing = [piece for piece in self.pieces if piece.owner != rank]
            starts, total = _starts([piece.stop - piece.start for piece in outgoing], line)
            offsets.update({(rank, piece): start for piece, start in zip(outgoing, starts, strict=True)})
            needed.append(total)
        return offsets, needed

    def _sum_all(self) -> None:
        gradients = [owned.gradient() for owned in self.owned]
        if gradients:
            for r in self.owned[0].copies:
                torch._foreach_add_(gradients, [owned.copies[r] for owned in self.owned])
        for owned, gradient in zip(self.owned, gradients, strict=True):
            owned.shard.grad = gradient

    def _users(self, index: int, step: int) -> list[int]:
        """Return the ranks that had a gradient of parameter `index` in `step`."""
        words = ((r, used[index], used[self._all]) for r, used in enumerate(self._used))
        return [r for r, one, all_ in words if step in (one, all_)]


class Outgoing:
    """A piece of this rank's gradient that another rank owns."""

    def __init__(self, arena: Arena, piece: Piece, mine: int) -> None:
        self.parameter, self._piece = arena.parameters[piece.index], piece
        self._slot = arena.slot(mine, piece).view(piece.of(self.parameter.data).shape)
        self.nbytes = self._slot.numel() * self._slot.element_size()

    def put(self) -> None:
        """Copy the gradient, if there is one, to its slot in shared memory."""
        gradient = self.parameter.grad
        if gradient is not None:
            self._slot.copy_(self._piece.of(gradient))


class Owned:
    """A piece that this rank sums and updates.

    Its optimizer holds `shard`; `copies` are the other ranks' gradients.
    """

    def __init__(self, arena: Arena, piece: Piece, mine: int, size: int) -> None:
        self.piece, self._mine = piece, mine
        self.parameter = arena.parameters[piece.index]
        values = piece.of(self.parameter.data)
        self.shard = self.parameter if values.shape == self.parameter.shape else nn.Parameter(values)
        self.copies = {r: arena.slot(r, piece).view(self.shard.shape) for r in range(size) if r != mine}

    def of(self, whole: Tensor) -> Tensor:
        return self.piece.of(whole)

    def gradient(self) -> Tensor:
        """Return this rank's own gradient of the piece."""
        gradient = self.parameter.grad
        assert gradient is not None, "the parameter has no gradient on this rank"
        return self.piece.of(gradient)

    def sum_of(self, ranks: list[int]) -> None:
        """Set the shard's gradient to the sum over `ranks`, or to None if there are none."""
        total = self.gradient() if self._mine in ranks else None
        for r in ranks:
            if r != self._mine:
                total = self.copies[r].clone() if total is None else total.add_(self.copies[r])
        self.shard.grad = total


class ShardedGradients(Reduction):
    """Sums gradients over all ranks of `comm` into the shards of their owners.

    Owners are the same on every node.
    """

    def __init__(
        self, comm: Communicator, *, whole: bool, compressor: Compressor, fusion_bytes: int, seed: int
    ) -> None:
        self._comm, self._whole, self._seed = comm, whole, seed
        self._compressor, self._fusion_bytes = compressor, fusion_bytes
        self.node = comm.split(comm.cross_rank, comm.local_rank)
        memory = self.node.shared_memory
        assert memory is not None, "the engine has no shared memory: use ModelOptimizer"
        self.memory = memory
        self.across = comm.split(comm.local_rank, comm.cross_rank) if comm.cross_size > 1 else None
        self.arenas: list[Arena] = []
        self.buckets: list[Bucket] = []
        self.owned: list[Owned] = []
        self._bucket_of: dict[Arena, Bucket] = {}
        self._step = self._next = self._sent = 0
        self._armed = False
        self._under_way: list[Work] = []

    def adopt(self, parameters: list[nn.Parameter]) -> list[Owned]:
        """Move `parameters` to shared memory; return the pieces that this rank updates.

        Collective.
        """
        sizes = [p.numel() * p.element_size() for p in parameters]
        limit = self._fusion_bytes if self.across else sum(sizes)
        arenas = [
            Arena([parameters[i] for i in group], self.memory, whole=self._whole)
            for group in plan(sizes, [p.dtype for p in parameters], limit)
        ]
        for arena in arenas:
            self._add(arena)
        self._sent += round(2 * (self.node.size - 1) / self.node.size * sum(sizes))
        return [owned for arena in arenas for owned in arena.owned]

    def arm(self) -> None:
        self._step += 1
        self._next = 0
        self._armed = True
        for arena in self.arenas:
            arena.missing = set(arena.early)

    @torch.no_grad()
    def reduce(self) -> None:
        """Set the gradients of the shards that this rank owns."""
        if not self._armed:
            self.arm()
        self._armed = False
        if self.across is None:
            self._sum_on_node(self.arenas)
        else:
            self._sum_over_nodes(self.across)
        self._comm.traffic.add(self._sent)

    def publish(self) -> None:
        """Return once all ranks of the node have updated their shards."""
        self.memory.barrier()

    def _add(self, arena: Arena) -> None:
        self.arenas.append(arena)
        self.owned += arena.owned
        if self.across is not None and arena.owned:
            seed = seed_of(self._seed, len(self.buckets), self._comm)
            bucket = Bucket([owned.shard for owned in arena.owned], self.across, self._compressor, seed)
            self._bucket_of[arena] = bucket
            self.buckets.append(bucket)
        for index, early in arena.early.items():
            if early or self.across:
                arena.parameters[index].register_post_accumulate_grad_hook(self._hook(arena, index))

    def _hook(self, arena: Arena, index: int) -> Any:
        early = arena.early[index]

        def complete(_: Tensor) -> None:
            if not self._armed:
                return
            with torch.no_grad():
                for outgoing in early:
                    outgoing.put()
                arena.missing.discard(index)
                if self.across is not None:
                    self._issue_complete(self.across)

        return complete

    def _issue_complete(self, across: Communicator) -> None:
        while self._next < len(self.arenas) and not self.arenas[self._next].missing:
            self._issue(across)

    def _issue(self, across: Communicator) -> None:
        """Start the reduction of the next arena."""
        arena = self.arenas[self._next]
        self._next += 1
        arena.publish(self._step)
        self._under_way.append(across.submit(partial(self._sum, arena)))

    def _sum_over_nodes(self, across: Communicator) -> None:
        while self._next < len(self.arenas):
            self._issue(across)
        for work in self._under_way:
            work.wait()
        self._under_way = []

    @torch.no_grad()
    def _sum(self, arena: Arena) -> None:
        """Sum one arena over the node, then what this rank owns of it over the nodes."""
        self.memory.barrier()
        arena.sum(self._step)
        bucket = self._bucket_of.get(arena)
        if bucket is not None:
            bucket.open()
            bucket.issue()
            bucket.collect()

    def _sum_on_node(self, arenas: list[Arena]) -> None:
        for arena in arenas:
            arena.publish(self._step)
        self.memory.barrier()
        for arena in arenas:
            arena.sum(self._step)


def _starts(sizes: Sequence[int], line: int) -> tuple[list[int], int]:
    """Return the offsets of consecutive tensors, at multiples of `line` elements, and their end."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-size // line) * line
    return starts, at

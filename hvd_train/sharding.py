"""Parameters once per node, in shared memory; each rank of the node sums and updates a part of them (ZeRO, stage 1).

No gradient is zeroed, accumulated or sent within a node. In the hook that follows a gradient's completion, while it is hot in
the cache, a rank copies to shared memory what others own of it. After a barrier the owner adds its neighbours' copies to its own
gradient, where autograd left it, and its optimizer updates the shared parameters; a second barrier ends the step. The work and
the state of the optimizer are divided by the ranks of the node (Rajbhandari et al., arXiv 1910.02054).

With several nodes this happens bucket by bucket, beside backward: what a rank owns of a bucket it then sums with the ranks of the
same number on the other nodes, and compression applies to what travels there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator, SharedMemory, Work
from hvd_train.compress.base import Compressor
from hvd_train.compress.none import Identity
from hvd_train.fusion import Bucket, plan, seed_of
from hvd_train.optimizer import Build
from hvd_train.parted import PartedOptimizer

ELEMENTWISE = {
    "SGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "NAdam", "RAdam", "ASGD",
}  # fmt: skip
"""Optimizers that treat each element on its own, so that a parameter may be cut anywhere."""

WHOLE = {"Adafactor", "Muon"}
"""Optimizers that look at a whole parameter at a time."""

ALIGN = 64
"""Bytes: parts begin at cache lines."""

EARLY = 64 * 1024
"""Bytes from which a piece is worth a hook of its own, which copies it while it is in the cache."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of parameter number `index`, owned by `owner`."""

    index: int
    owner: int
    start: int
    stop: int

    def of(self, parameter: Tensor) -> Tensor:
        """These elements of a tensor shaped like the parameter: a flat slice, or the tensor itself where they are all of it."""
        if self.stop - self.start == parameter.numel():
            return parameter
        return parameter.reshape(-1)[self.start : self.stop]


def cut(sizes: Sequence[int], owners: int, *, whole: bool, multiple: int = 1) -> list[Piece]:
    """Deal the elements of consecutive tensors into `owners` runs of nearly equal length.

    Cuts fall on multiples of `multiple` elements of a tensor, or between tensors only if `whole`.
    """
    total, pieces, before = sum(sizes), [], 0
    for index, size in enumerate(sizes):
        if whole:
            owner = min(owners - 1, (2 * before + size) * owners // (2 * max(total, 1)))
            pieces.append(Piece(index, owner, 0, size))
        else:
            pieces += _cut_one(index, size, before, total, owners, multiple)
        before += size
    return pieces


def _cut_one(index: int, size: int, before: int, total: int, owners: int, multiple: int) -> Iterable[Piece]:
    start = 0
    for owner in range(owners):
        end = total * (owner + 1) // owners - before
        stop = size if owner == owners - 1 else min(size, max(start, end // multiple * multiple))
        if stop > start:
            yield Piece(index, owner, start, stop)
            start = stop


class Arena:
    """Parameters of one dtype: shared values, a place for each rank's gradients, and who owns what.

    `pieces` are those of all ranks. Order is the reverse of the model's, roughly that in which gradients come. `early` are the
    pieces of each parameter that a hook puts, `missing` the parameters whose gradient a bucket still waits for.
    """

    def __init__(self, parameters: list[nn.Parameter], memory: SharedMemory, *, whole: bool) -> None:
        self.parameters, self._memory = parameters, memory
        width = parameters[0].element_size()
        line = ALIGN // width
        self.pieces = cut([p.numel() for p in parameters], memory.size, whole=whole, multiple=line)
        starts, total = _starts([p.numel() for p in parameters], line)
        values = memory.allocate(total * width if memory.rank == 0 else 0)[0].view(parameters[0].dtype)
        self._places, needed = self._laid_out(line)
        parts = memory.allocate(needed[memory.rank] * width)
        self._gradients = [part.view(parameters[0].dtype) for part in parts]
        # A word for each parameter, and one more for all of them at once, which is the rule.
        self._used = [part.numpy().data.cast("i") for part in memory.allocate(4 * (len(parameters) + 1))]
        for p, start in zip(parameters, starts, strict=True):
            shared = values[start : start + p.numel()].view(p.shape)
            if memory.rank == 0:
                shared.copy_(p.data)
            p.data = shared
        mine = memory.rank
        self.owned = [Owned(self, piece, mine, memory.size) for piece in self.pieces if piece.owner == mine]
        away = [Away(self, piece, mine) for piece in self.pieces if piece.owner != mine]
        self.early = {
            index: [a for a in away if a.parameter is p and a.nbytes >= EARLY]
            for index, p in enumerate(parameters)
            if p.requires_grad
        }
        self._late = [a for a in away if not (a.parameter.requires_grad and a.nbytes >= EARLY)]
        self.missing: set[int] = set()
        memory.barrier()

    @property
    def _everything(self) -> int:
        return len(self.parameters)

    def publish(self, step: int) -> None:
        """Put what hooks have not put yet, and say which parameters had a gradient in `step`."""
        used = self._used[self._memory.rank]
        if all(p.grad is not None for p in self.parameters):
            used[self._everything] = step
        else:
            for index, p in enumerate(self.parameters):
                used[index] = step if p.grad is not None else 0
        for away in self._late:
            away.put()

    def sum(self, step: int) -> None:
        """Set the gradients of what this rank owns to the sums over ranks, own first, then in rank order."""
        if all(used[self._everything] == step for used in self._used):
            self._sum_all()
        else:
            for owned in self.owned:
                owned.sum_of(self._ranks_that_used(owned.piece.index, step))

    def place(self, rank: int, piece: Piece) -> Tensor:
        """Where `rank` puts its gradient of `piece`."""
        start = self._places[rank, piece]
        return self._gradients[rank][start : start + piece.stop - piece.start]

    def _laid_out(self, line: int) -> tuple[dict[tuple[int, Piece], int], list[int]]:
        """Where in its memory each rank puts which piece, and the elements it needs: none for what it owns."""
        places, needed = {}, []
        for rank in range(self._memory.size):
            away = [piece for piece in self.pieces if piece.owner != rank]
            starts, total = _starts([piece.stop - piece.start for piece in away], line)
            places.update({(rank, piece): start for piece, start in zip(away, starts, strict=True)})
            needed.append(total)
        return places, needed

    def _sum_all(self) -> None:
        gradients = [owned.gradient() for owned in self.owned]
        if gradients:
            for r in self.owned[0].places:
                torch._foreach_add_(gradients, [owned.places[r] for owned in self.owned])
        for owned, gradient in zip(self.owned, gradients, strict=True):
            owned.shard.grad = gradient

    def _ranks_that_used(self, index: int, step: int) -> list[int]:
        words = ((r, used[index], used[self._everything]) for r, used in enumerate(self._used))
        return [r for r, one, everything in words if step in (one, everything)]


class Away:
    """A piece of this rank's gradient that another rank owns."""

    def __init__(self, arena: Arena, piece: Piece, mine: int) -> None:
        self.parameter, self._piece = arena.parameters[piece.index], piece
        self._place = arena.place(mine, piece).view(piece.of(self.parameter.data).shape)
        self.nbytes = self._place.numel() * self._place.element_size()

    def put(self) -> None:
        """Copy it to where its owner finds it."""
        gradient = self.parameter.grad
        if gradient is not None:
            self._place.copy_(self._piece.of(gradient))


class Owned:
    """A piece that this rank sums and updates; `shard` is what its optimizer sees of it, `places` are the other ranks' copies."""

    def __init__(self, arena: Arena, piece: Piece, mine: int, size: int) -> None:
        self.piece, self._mine = piece, mine
        self.parameter = arena.parameters[piece.index]
        part = piece.of(self.parameter.data)
        self.shard = self.parameter if part.shape == self.parameter.shape else nn.Parameter(part)
        self.places = {r: arena.place(r, piece).view(self.shard.shape) for r in range(size) if r != mine}

    def of(self, whole: Tensor) -> Tensor:
        return self.piece.of(whole)

    def gradient(self) -> Tensor:
        """This rank's own gradient of the piece."""
        gradient = self.parameter.grad
        assert gradient is not None, "only asked for where there is one"
        return self.piece.of(gradient)

    def sum_of(self, ranks: list[int]) -> None:
        """Set the shard's gradient to the sum over `ranks`; to none where there are none."""
        total = self.gradient() if self._mine in ranks else None
        for r in ranks:
            if r != self._mine:
                total = self.places[r].clone() if total is None else total.add_(self.places[r])
        self.shard.grad = total


class ShardedOptimizer(PartedOptimizer):
    """Each rank of a node updates the pieces it owns; on every node the same, after a sum over nodes."""

    def __init__(
        self,
        model: nn.Module,
        build: Build,
        comm: Communicator,
        *,
        whole: bool,
        compressor: Compressor | None = None,
        fusion_bytes: int = 1 << 20,
        seed: int = 0,
    ) -> None:
        self._whole, self._seed = whole, seed
        self._compressor, self._fusion_bytes = compressor or Identity(), fusion_bytes
        self._node = comm.split(comm.cross_rank, comm.local_rank)
        memory = self._node.shared_memory
        assert memory is not None, "the engine has no shared memory: use ModelOptimizer"
        self._memory = memory
        self._across = comm.split(comm.local_rank, comm.cross_rank) if comm.cross_size > 1 else None
        self.arenas: list[Arena] = []
        self.buckets: list[Bucket] = []
        self._of_arena: dict[Arena, Bucket] = {}
        self.parts: list[Owned] = []
        self._step = self._next = self._sent = 0
        self._counted = self._across.bytes_sent if self._across else 0
        self._armed = False
        self._under_way: list[Work] = []
        super().__init__(model, build, comm, self._node)

    def arm(self) -> None:
        """The gradients that the coming backward pass completes are final."""
        self._step += 1
        self._next = 0
        self._armed = True
        for arena in self.arenas:
            arena.missing = set(arena.early)

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum over ranks the gradients of what this rank owns."""
        if not self._armed:
            self.arm()
        self._armed = False
        if self._across is None:
            self._sum_on_node(self.arenas)
        else:
            self._sum_over_nodes(self._across)
        self._comm.bytes_sent += self._sent

    def publish(self) -> None:
        """Return once all ranks of the node have updated what they own."""
        self._memory.barrier()

    def _take(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Put parameters into shared memory; what of them this rank updates."""
        sizes = [p.numel() * p.element_size() for p in parameters]
        limit = self._fusion_bytes if self._across else sum(sizes)
        arenas = [
            Arena([parameters[i] for i in group], self._memory, whole=self._whole)
            for group in plan(sizes, [p.dtype for p in parameters], limit)
        ]
        for arena in arenas:
            self._add(arena)
        self._sent += round(2 * (self._node.size - 1) / self._node.size * sum(sizes))
        return [owned.shard for arena in arenas for owned in arena.owned]

    def _add(self, arena: Arena) -> None:
        self.arenas.append(arena)
        self.parts += arena.owned
        if self._across is not None and arena.owned:
            seed = seed_of(self._seed, len(self.buckets), self._comm)
            bucket = Bucket([owned.shard for owned in arena.owned], self._across, self._compressor, seed)
            self._of_arena[arena] = bucket
            self.buckets.append(bucket)
        for index, early in arena.early.items():
            if early or self._across:
                arena.parameters[index].register_post_accumulate_grad_hook(self._hook(arena, index))

    def _hook(self, arena: Arena, index: int) -> Any:
        early = arena.early[index]

        def final(_: Tensor) -> None:
            if not self._armed:
                return
            with torch.no_grad():
                for away in early:
                    away.put()
                arena.missing.discard(index)
                if self._across is not None:
                    self._issue_complete(self._across)

        return final

    def _issue_complete(self, across: Communicator) -> None:
        while self._next < len(self.arenas) and not self.arenas[self._next].missing:
            self._issue(across)

    def _issue(self, across: Communicator) -> None:
        """Start the reduction of the next arena."""
        arena = self.arenas[self._next]
        self._next += 1
        arena.publish(self._step)
        self._under_way.append(across.submit(partial(self._cross, arena)))

    def _sum_over_nodes(self, across: Communicator) -> None:
        while self._next < len(self.arenas):
            self._issue(across)
        for work in self._under_way:
            work.wait()
        self._under_way = []
        self._comm.bytes_sent += across.bytes_sent - self._counted
        self._counted = across.bytes_sent

    @torch.no_grad()
    def _cross(self, arena: Arena) -> None:
        """One bucket: first on the node, then over the nodes."""
        self._memory.barrier()
        arena.sum(self._step)
        bucket = self._of_arena.get(arena)
        if bucket is not None:
            bucket.open()
            bucket.issue()
            bucket.collect()

    def _sum_on_node(self, arenas: list[Arena]) -> None:
        for arena in arenas:
            arena.publish(self._step)
        self._memory.barrier()
        for arena in arenas:
            arena.sum(self._step)


def _starts(sizes: Sequence[int], line: int) -> tuple[list[int], int]:
    """Offsets of tensors laid out one after another, each at a multiple of `line` elements, and the end of the last."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-size // line) * line
    return starts, at

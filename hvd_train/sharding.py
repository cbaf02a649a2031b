"""Parameters once per node, in shared memory; each rank of the node sums and updates a part of them (ZeRO, stage 1).

No gradient is zeroed, accumulated or sent. In the hook that follows a gradient's completion, while it is hot in the cache, a rank
copies to shared memory what others own of it. After a barrier the owner adds its neighbours' copies to its own gradient, where
autograd left it, and its optimizer updates the shared parameters; a second barrier ends the step. The work and the state of the
optimizer are divided by the ranks of the node (Rajbhandari et al., arXiv 1910.02054).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator, SharedMemory, gather_json
from hvd_train.optimizer import Build, ModelOptimizer, State

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

    `pieces` are those of all ranks. Order is the reverse of the model's, roughly that in which gradients come.
    """

    def __init__(self, parameters: list[nn.Parameter], memory: SharedMemory, *, whole: bool) -> None:
        self.parameters, self._memory = parameters, memory
        width = parameters[0].element_size()
        line = ALIGN // width
        self.pieces = cut([p.numel() for p in parameters], memory.size, whole=whole, multiple=line)
        self._starts, total = _starts([p.numel() for p in parameters], line)
        values = memory.allocate(total * width if memory.rank == 0 else 0)[0].view(parameters[0].dtype)
        self.gradients = [part.view(parameters[0].dtype) for part in memory.allocate(total * width)]
        # A word for each parameter, and one more for all of them at once, which is the rule.
        self._used = [part.numpy().data.cast("i") for part in memory.allocate(4 * (len(parameters) + 1))]
        for p, start in zip(parameters, self._starts, strict=True):
            shared = values[start : start + p.numel()].view(p.shape)
            if memory.rank == 0:
                shared.copy_(p.data)
            p.data = shared
        mine = memory.rank
        self.owned = [Owned(self, piece, mine, memory.size) for piece in self.pieces if piece.owner == mine]
        self._away = [Away(self, piece, mine) for piece in self.pieces if piece.owner != mine]
        self.early = [away for away in self._away if away.nbytes >= EARLY]
        self._late = [away for away in self._away if away.nbytes < EARLY]
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
        start = self._starts[piece.index]
        return self.gradients[rank][start + piece.start : start + piece.stop]

    def _sum_all(self) -> None:
        gradients = [owned.gradient() for owned in self.owned]
        if gradients:
            for r in range(self._memory.size):
                if r != self._memory.rank:
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
    """A piece that this rank sums and updates; `shard` is what its optimizer sees of it, `places` are the ranks' copies."""

    def __init__(self, arena: Arena, piece: Piece, mine: int, size: int) -> None:
        self.piece, self._mine = piece, mine
        self.parameter = arena.parameters[piece.index]
        part = piece.of(self.parameter.data)
        self.shard = self.parameter if part.shape == self.parameter.shape else nn.Parameter(part)
        self.places = [arena.place(r, piece).view(self.shard.shape) for r in range(size)]

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


class ShardedOptimizer(ModelOptimizer):
    """Each rank of a node updates the pieces it owns; on every node the same, after a sum over nodes."""

    def __init__(self, model: nn.Module, build: Build, comm: Communicator, *, whole: bool) -> None:
        memory = comm.shared_memory
        assert memory is not None, "the engine has no shared memory: use ModelOptimizer"
        self.model, self._comm, self._memory = model, comm, memory
        self._node = comm.split(comm.cross_rank, comm.local_rank)
        self._across = comm.split(comm.local_rank, comm.cross_rank) if comm.cross_size > 1 else None
        self.names = {p: name for name, p in model.named_parameters()}
        trained = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in trained:
            by_dtype.setdefault(p.dtype, []).append(p)
        self.arenas = [Arena(group, memory, whole=whole) for group in by_dtype.values()]
        self._owned = [owned for arena in self.arenas for owned in arena.owned]
        # A rank may own nothing, and torch's optimizers refuse to have no parameter.
        self._empty = nn.Parameter(trained[0].new_zeros(0, 0))
        self.torch = build([*(owned.shard for owned in self._owned), self._empty])
        self._step = 0
        self._armed = False
        payload = sum(p.numel() * p.element_size() for p in trained)
        self._sent = round(2 * (comm.size - 1) / comm.size * payload)
        for away in (away for arena in self.arenas for away in arena.early):
            away.parameter.register_post_accumulate_grad_hook(self._hook(away))

    def arm(self) -> None:
        """The gradients that the coming backward pass completes are final."""
        self._step += 1
        self._armed = True

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum over ranks the gradients of what this rank owns."""
        if not self._armed:
            self.arm()
        self._armed = False
        for arena in self.arenas:
            arena.publish(self._step)
        self._memory.barrier()
        for arena in self.arenas:
            arena.sum(self._step)
        if self._across is not None:
            self._sum_over_nodes(self._across)
        self._comm.bytes_sent += self._sent

    def publish(self) -> None:
        """Return once all ranks of the node have updated what they own."""
        self._memory.barrier()

    def clip(self, max_norm: float) -> None:
        gradients = [o.shard.grad for o in self._owned if o.shard.grad is not None]
        square = torch.zeros((), dtype=torch.float64)
        for gradient in gradients:
            square += torch.linalg.vector_norm(gradient).double().square()
        self._node.all_reduce_(square, "sum")
        scale = max_norm / (math.sqrt(float(square)) + 1e-6)
        if scale < 1 and gradients:
            torch._foreach_mul_(gradients, scale)

    def agree_(self, found_inf: Tensor) -> None:
        self._comm.all_reduce_(found_inf, "max")

    def state(self) -> State:
        mine: dict[int, dict[str, Any]] = self.torch.state_dict()["state"]
        held = {self.names[o.parameter]: (o, mine[i]) for i, o in enumerate(self._owned) if i in mine}
        known: dict[str, dict[str, list[Any]]] = {}
        for shapes in gather_json(self._node, {name: _shapes(values) for name, (_, values) in held.items()}):
            for name, fields in shapes.items():
                known.setdefault(name, fields)
        return {
            name: self._gathered(fields, held.get(name), self._shape(name)) for name, fields in sorted(known.items())
        }

    def load_state(self, state: State) -> None:
        whole: dict[str, Any] = self.torch.state_dict()
        names = [self.names[o.parameter] for o in self._owned]
        pairs = enumerate(zip(self._owned, names, strict=True))
        whole["state"] = {i: _part(state[name], owned) for i, (owned, name) in pairs if name in state}
        self.torch.load_state_dict(whole)

    def _hook(self, away: Away) -> Any:
        def final(_: Tensor) -> None:
            if self._armed:
                away.put()

        return final

    def _sum_over_nodes(self, across: Communicator) -> None:
        """One message for all that this rank owns, and a flag for each piece that says whether any node used it."""
        for dtype in sorted({o.shard.dtype for o in self._owned}, key=str):
            group = [o for o in self._owned if o.shard.dtype == dtype]
            used = torch.tensor([o.shard.grad is not None for o in group]).to(dtype)
            parts = [
                (o.shard.grad if o.shard.grad is not None else torch.zeros_like(o.shard)).reshape(-1) for o in group
            ]
            flat = torch.cat([*parts, used])
            across.all_reduce_(flat, "sum")
            *sums, flags = flat.split([p.numel() for p in parts] + [len(group)])
            for owned, total, flag in zip(group, sums, flags.tolist(), strict=True):
                owned.shard.grad = total.view(owned.shard.shape) if flag else None

    def _shape(self, name: str) -> torch.Size:
        return self.model.get_parameter(name).shape

    def _gathered(self, fields: dict[str, list[Any]], held: Any, shape: torch.Size) -> dict[str, Any]:
        """The state of a whole parameter from that of its pieces; numbers are the same in each."""
        found: dict[str, Any] = {}
        for key, (dtype, dims, value) in fields.items():
            if dtype is None:
                found[key] = value
                continue
            kind = getattr(torch, dtype)
            mine = held[1][key].reshape(-1) if held else torch.empty(0, dtype=kind)
            parts = [part for part in self._node.all_gather(mine) if part.numel()]
            found[key] = parts[0].view(()) if not dims else torch.cat(parts).view(dims if len(parts) == 1 else shape)
        return found


def _starts(sizes: Sequence[int], line: int) -> tuple[list[int], int]:
    """Offsets of tensors laid out one after another, each at a multiple of `line` elements, and the end of the last."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-size // line) * line
    return starts, at


def _shapes(values: dict[str, Any]) -> dict[str, list[Any]]:
    """Of each entry of a parameter's state its dtype and shape, or its value where it is no tensor."""
    return {
        key: [str(v.dtype).removeprefix("torch."), list(v.shape), None] if isinstance(v, Tensor) else [None, None, v]
        for key, v in values.items()
    }


def _part(state: dict[str, Any], owned: Owned) -> dict[str, Any]:
    """What of a whole parameter's state belongs to an owned piece."""
    shape = owned.parameter.shape
    return {key: owned.piece.of(v) if isinstance(v, Tensor) and v.shape == shape else v for key, v in state.items()}

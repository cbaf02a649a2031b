"""Synchronous parameter servers: gradients travel to servers, and parameters travel back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.ops import reduce_in_order
from hvd_train.gradients.pieces import Piece, cut
from hvd_train.state.model_state import as_real
from hvd_train.sync.servers.aggregate import AGGREGATORS, LEAST, distances, nearest
from hvd_train.sync.servers.link import link
from hvd_train.sync.servers.roles import Roles


@dataclass
class ServedPiece:
    """A `piece` of `parameter` that this rank serves; its optimizer holds it as `shard`."""

    parameter: nn.Parameter
    shard: nn.Parameter
    piece: Piece

    def of(self, whole: Tensor) -> Tensor:
        return self.piece.of(whole)


@dataclass(frozen=True)
class Pushed:
    """The flat gradient and the flags that each worker has pushed to this rank.

    A flag is 1 if the worker has a gradient.
    """

    gradients: list[Tensor]
    flags: list[Tensor]


class GradientLink:
    """Sends gradients of `parameters` to servers; server number s serves `pieces[s]`.

    The gradients of a server are followed by a flag for each of its pieces and a flag for the
    worker.
    """

    def __init__(
        self, parameters: list[nn.Parameter], pieces: list[list[Piece]], comm: Communicator, who: Roles
    ) -> None:
        self._parameters = parameters
        widths = [_elements(own) + len(own) + 1 for own in pieces]
        self._link = link(comm, who, widths, parameters[0].dtype, parameters[0].device)
        self._places: list[tuple[Piece, Tensor]] = []
        self._flags: list[tuple[list[Piece], Tensor]] = []
        for own, region in zip(pieces, self._link.flat.split(widths), strict=True):
            *places, flags = region.split([*map(_length, own), len(own) + 1])
            self._places += zip(own, places, strict=True)
            self._flags.append((own, flags))

    def push(self, served: int) -> Pushed:
        """Send this rank's gradients.

        Return what workers pushed to this rank, which serves `served` elements.
        """
        used = [p.grad is not None for p in self._parameters]
        for piece, place in self._places:
            gradient = self._parameters[piece.index].grad
            if gradient is None:
                place.zero_()
            else:
                place.copy_(piece.of(gradient).reshape(-1))
        for own, flags in self._flags:
            flags.copy_(torch.tensor([*(used[piece.index] for piece in own), any(used)]))
        rows = self._link.push()
        return Pushed([row[:served] for row in rows], [row[served:] for row in rows])


class ServedParameters:
    """Parameters of one dtype and device.

    Every rank has a copy of them on a link, and gradients travel on another link.
    """

    def __init__(self, parameters: list[nn.Parameter], comm: Communicator, who: Roles, *, whole: bool) -> None:
        """`whole`: servers do not split a parameter."""
        first, sizes = parameters[0], [p.numel() for p in parameters]
        all_pieces = cut(sizes, who.servers, whole=whole)
        pieces = [[piece for piece in all_pieces if piece.owner == server] for server in range(who.servers)]
        self._gradients = GradientLink(parameters, pieces, comm, who)
        self._values = link(comm, who, [_elements(own) for own in pieces], first.dtype, first.device)
        for p, place in zip(parameters, self._values.flat.split(sizes), strict=True):
            place.copy_(p.data.reshape(-1))
            p.data = place.view(p.shape)
        mine = pieces[who.serving.index(comm.rank)] if comm.rank in who.serving else []
        self._lengths = [_length(piece) for piece in mine]
        self.pieces = [_served(parameters[piece.index], piece) for piece in mine]
        """The pieces that this rank serves."""

    def push(self) -> Pushed:
        """Send this rank's gradients to the servers."""
        return self._gradients.push(sum(self._lengths))

    def set_gradients(self, total: Tensor | None, flags: Sequence[Tensor]) -> None:
        """Set the gradients of the pieces that this rank serves to the flat `total`.

        A piece has a gradient if the flag of a worker is 1.
        """
        used = reduce_in_order(flags, "sum").tolist()
        gradients = total.split(self._lengths) if total is not None else [None] * len(self.pieces)
        for piece, gradient, is_used in zip(self.pieces, gradients, used, strict=False):
            piece.shard.grad = gradient.view(piece.shard.shape) if gradient is not None and is_used else None

    def pull(self) -> None:
        """Copy the servers' parameters."""
        self._values.pull()


def _served(parameter: nn.Parameter, piece: Piece) -> ServedPiece:
    values = piece.of(parameter.data)
    return ServedPiece(parameter, parameter if values.shape == parameter.shape else nn.Parameter(values), piece)


def _length(piece: Piece) -> int:
    return piece.stop - piece.start


def _elements(pieces: list[Piece]) -> int:
    return sum(map(_length, pieces))


Aggregate = Callable[[list[Pushed]], list[Tensor | None]]
"""(what was pushed of each kind of parameters) -> the gradient of each; None skips the step.

Collective.
"""


def summed(pushed: list[Pushed]) -> list[Tensor | None]:
    """Return the sums over workers.

    Workers have divided by the samples of all, so that the sum is the mean.
    """
    return [reduce_in_order(each.gradients, "sum") for each in pushed]


class RobustAggregate:
    """An aggregate that withstands `f` Byzantine workers.

    Workers without samples in a step do not count. The step is skipped if too few workers have
    samples, as at the end of an epoch.
    """

    def __init__(self, name: str, f: int, comm: Communicator, workers: int) -> None:
        self._name, self._f, self._comm, self._workers = name, f, comm, workers

    def __call__(self, pushed: list[Pushed]) -> list[Tensor | None]:
        working = [w for w in range(self._workers) if any(each.flags[w].any() for each in pushed)]
        chosen = self._nearest(pushed, working) if self._name == "krum" else None
        if len(working) < LEAST[self._name](self._f):
            return [None] * len(pushed)
        if chosen is not None:
            return [each.gradients[chosen].clone() for each in pushed]
        return [self._by_coordinate([each.gradients[w] for w in working]) for each in pushed]

    def _by_coordinate(self, gradients: list[Tensor]) -> Tensor:
        """Aggregate each coordinate on its own.

        Real and imaginary parts are coordinates of their own.
        """
        stack = torch.stack(gradients)
        aggregate = AGGREGATORS[self._name](as_real(stack), self._f)
        return torch.view_as_complex(aggregate) if stack.is_complex() else aggregate

    def _nearest(self, pushed: list[Pushed], working: list[int]) -> int | None:
        """Return the worker that krum chooses by distances over all parameters and servers.

        Collective.
        """
        table = torch.zeros(self._workers, self._workers, dtype=torch.float64)
        for each in pushed:
            table += distances(torch.stack(each.gradients))
        self._comm.all_reduce_(table, "sum")
        return working[nearest(table[working][:, working], self._f)] if working else None


class ServerPartition:
    """All served parameters. A server owns its pieces of them, and other ranks own nothing."""

    def __init__(self, comm: Communicator, who: Roles, *, whole: bool) -> None:
        """`whole`: servers do not split a parameter."""
        self._comm, self._who, self._whole = comm, who, whole
        self._served: list[ServedParameters] = []
        self.owned: list[ServedPiece] = []

    @torch.no_grad()
    def push(self, aggregate: Aggregate) -> None:
        """Send gradients to the servers, which set their gradients to the aggregate; collective."""
        pushed = [served.push() for served in self._served]
        for served, own, total in zip(self._served, pushed, aggregate(pushed), strict=True):
            served.set_gradients(total, own.flags)

    @torch.no_grad()
    def pull(self) -> None:
        """Copy the servers' parameters; collective."""
        for served in self._served:
            served.pull()

    def adopt(self, parameters: list[nn.Parameter]) -> list[ServedPiece]:
        """Put newly trained `parameters` on links; return the pieces that this rank serves."""
        kinds = dict.fromkeys((p.dtype, p.device) for p in parameters)
        of_kinds = [[p for p in parameters if (p.dtype, p.device) == kind] for kind in kinds]
        new = [ServedParameters(some, self._comm, self._who, whole=self._whole) for some in of_kinds]
        pieces = [piece for served in new for piece in served.pieces]
        self._served += new
        self.owned += pieces
        return pieces

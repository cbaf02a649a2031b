"""Some ranks serve the parameters, a part each: every step workers push to them, and pull what they have made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.comm.base import Communicator, reduce_in_order, shares
from hvd_train.errors import UserError
from hvd_train.model_state import as_real, sparse_weights
from hvd_train.optimizer import Build, ModelOptimizer
from hvd_train.options import Annotated, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from hvd_train.parted import PartedOptimizer
from hvd_train.sharding import Piece, cut
from hvd_train.sync._aggregate import AGGREGATORS, LEAST, check, distances, nearest
from hvd_train.sync._backup import BackupWorkers
from hvd_train.sync._replicas import Replicas
from hvd_train.sync._servers import Link, Roles, WithServers, by_whole_tensors, link, roles
from hvd_train.sync.base import Context, SyncStrategy

ASYNCHRONOUS = "backup_workers"
"""With this option ranks do not wait for all of the others: the launcher lets the rest go on when one dies."""

MergeRule = Literal["mean", "weights", "mixed"]


@dataclass
class ServedPart:
    """What this rank serves of `parameter`: `piece`, which its optimizer sees as `shard`."""

    parameter: nn.Parameter
    shard: nn.Parameter
    piece: Piece

    def of(self, whole: Tensor) -> Tensor:
        return self.piece.of(whole)


@dataclass(frozen=True)
class Arrived:
    """What workers have pushed to this rank, one each: flat gradients, and flags of what they have a gradient of at all."""

    gradients: list[Tensor]
    flags: list[Tensor]


class GradientLink:
    """Gradients of `parameters` on their way to servers, of which number s serves `pieces[s]`.

    Those of a server are followed by a flag for each of its pieces, 1 where the worker has one, and by a flag for the worker.
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

    def push(self, served: int) -> Arrived:
        """Send this rank's gradients; what arrives has `served` elements, and then the flags."""
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
        return Arrived([row[:served] for row in rows], [row[served:] for row in rows])


class Group:
    """Parameters of one dtype and device: a copy of them on every rank, on a link, and their gradients on another one."""

    def __init__(self, parameters: list[nn.Parameter], comm: Communicator, who: Roles, *, whole: bool) -> None:
        first, sizes = parameters[0], [p.numel() for p in parameters]
        dealt = cut(sizes, who.servers, whole=whole)
        pieces = [[piece for piece in dealt if piece.owner == server] for server in range(who.servers)]
        self._gradients = GradientLink(parameters, pieces, comm, who)
        self._values = link(comm, who, [_elements(own) for own in pieces], first.dtype, first.device)
        for p, place in zip(parameters, self._values.flat.split(sizes), strict=True):
            place.copy_(p.data.reshape(-1))
            p.data = place.view(p.shape)
        mine = pieces[who.serving.index(comm.rank)] if comm.rank in who.serving else []
        self._lengths = [_length(piece) for piece in mine]
        self.parts = [_part(parameters[piece.index], piece) for piece in mine]

    def push(self) -> Arrived:
        """Send servers this rank's gradients of what they serve."""
        return self._gradients.push(sum(self._lengths))

    def take(self, total: Tensor | None, flags: Sequence[Tensor]) -> None:
        """Let the flat `total` be the gradient of what this rank serves, where a worker's flag says that there is one."""
        used = reduce_in_order(flags, "sum").tolist()
        gradients = total.split(self._lengths) if total is not None else [None] * len(self.parts)
        for part, gradient, has_one in zip(self.parts, gradients, used, strict=False):
            part.shard.grad = gradient.view(part.shard.shape) if gradient is not None and has_one else None

    def pull(self) -> None:
        """Take over what servers have made of the parameters."""
        self._values.pull()


def _part(parameter: nn.Parameter, piece: Piece) -> ServedPart:
    values = piece.of(parameter.data)
    return ServedPart(parameter, parameter if values.shape == parameter.shape else nn.Parameter(values), piece)


def _length(piece: Piece) -> int:
    return piece.stop - piece.start


def _elements(pieces: list[Piece]) -> int:
    return sum(map(_length, pieces))


Aggregate = Callable[[list[Arrived]], list[Tensor | None]]
"""From what has arrived in each group, the gradient there; None where the step is to pass. Collective."""


def summed(arrived: list[Arrived]) -> list[Tensor | None]:
    """Workers have divided by the samples of all: their sum is the mean."""
    return [reduce_in_order(group.gradients, "sum") for group in arrived]


class Robust:
    """An aggregate that withstands `f` Byzantine workers; those without samples in a step do not count.

    Where too few are left for that, as at the end of an epoch, the step passes.
    """

    def __init__(self, name: str, f: int, comm: Communicator, workers: int) -> None:
        self._name, self._f, self._comm, self._workers = name, f, comm, workers

    def __call__(self, arrived: list[Arrived]) -> list[Tensor | None]:
        working = [w for w in range(self._workers) if any(group.flags[w].any() for group in arrived)]
        chosen = self._nearest(arrived, working) if self._name == "krum" else None
        if len(working) < LEAST[self._name](self._f):
            return [None] * len(arrived)
        if chosen is not None:
            return [group.gradients[chosen].clone() for group in arrived]
        return [self._of_values([group.gradients[w] for w in working]) for group in arrived]

    def _of_values(self, gradients: list[Tensor]) -> Tensor:
        """Value by value; real and imaginary parts are values of their own."""
        stack = torch.stack(gradients)
        found = AGGREGATORS[self._name](as_real(stack), self._f)
        return torch.view_as_complex(found) if stack.is_complex() else found

    def _nearest(self, arrived: list[Arrived], working: list[int]) -> int | None:
        """Which worker krum chooses, by distances over all groups and servers."""
        table = torch.zeros(self._workers, self._workers, dtype=torch.float64)
        for group in arrived:
            table += distances(torch.stack(group.gradients))
        self._comm.all_reduce_(table, "sum")
        return working[nearest(table[working][:, working], self._f)] if working else None


class ServerOptimizer(PartedOptimizer):
    """Servers alone update parameters, and the optimizer's state lives with them, once."""

    def __init__(self, model: nn.Module, build: Build, comm: Communicator, who: Roles, *, whole: bool) -> None:
        self._who, self._whole = who, whole
        self._groups: list[Group] = []
        self.parts: list[ServedPart] = []
        super().__init__(model, build, comm, comm)

    @torch.no_grad()
    def collect(self, aggregate: Aggregate) -> None:
        """Push gradients; servers then have the aggregate of what they serve."""
        arrived = [group.push() for group in self._groups]
        for group, own, total in zip(self._groups, arrived, aggregate(arrived), strict=True):
            group.take(total, own.flags)

    @torch.no_grad()
    def publish(self) -> None:
        """Pull what servers have made of the parameters."""
        for group in self._groups:
            group.pull()

    def _take(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        kinds = dict.fromkeys((p.dtype, p.device) for p in parameters)
        of_kinds = [[p for p in parameters if (p.dtype, p.device) == kind] for kind in kinds]
        groups = [Group(some, self._comm, self._who, whole=self._whole) for some in of_kinds]
        parts = [part for group in groups for part in group.parts]
        self._groups += groups
        self.parts += parts
        return [part.shard for part in parts]


class GradientServers(WithServers):
    """Workers push gradients, each server steps on the aggregate of its part, workers pull (Li et al., OSDI 2014).

    With the mean this is `allreduce`, at any number of servers.
    """

    def __init__(self, context: Context, who: Roles, aggregate: str, byzantine: int) -> None:
        super().__init__(context)
        self._who = who
        self._robust = None if aggregate == "mean" else Robust(aggregate, byzantine, self.comm, who.workers)

    def divisor(self, own: int, total: int) -> int:
        return max(own, 1) if self._robust else total

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if sparse_weights(model):
            raise UserError(
                "sync.strategy: parameter_server with mode: gradients takes no sparse gradients (nn.Embedding(sparse=True)); "
                "set sparse=False, mode: parameters, or strategy: allreduce"
            )
        if self.comm.size > 1:
            model_state.check_forward(model)
        whole = by_whole_tensors(model, build, "sync.mode: parameters or sync.strategy: allreduce")
        self._servers = ServerOptimizer(model, build, self.comm, self._who, whole=whole)
        return self._servers

    def on_gradients(self, step: int) -> None:
        self._servers.collect(self._robust or summed)

    def on_parameters(self, step: int) -> None:
        self._servers.publish()


def coefficients(merge: MergeRule, mix: float, weights: Sequence[float]) -> list[float]:
    """How much each worker's parameters count, given their weights; these add up to one.

    `mixed` takes `mix` of the weighted mean, and of the plain mean the rest.
    """
    part = {"mean": 0.0, "weights": 1.0, "mixed": mix}[merge]
    total = math.fsum(weights)
    return [part * w / total + (1 - part) / len(weights) for w in weights]


class ParameterServers(WithServers, Replicas):
    """Workers step on their own and push parameters, each server merges its part, workers pull."""

    def __init__(
        self, context: Context, who: Roles, merge: MergeRule, mix: float, weights: Sequence[float] | None
    ) -> None:
        super().__init__(context)
        self._who, self._merge, self._mix, self._weights = who, merge, mix, weights
        self._samples = 0
        self._links: list[Link] = []

    def divisor(self, own: int, total: int) -> int:
        self._samples = own
        return super().divisor(own, total)

    def due(self, step: int) -> bool:
        return True

    def follow(self) -> None:
        for flat in self.flat.tensors[len(self._links) :]:
            counts = shares(flat.numel(), self._who.servers)
            self._links.append(link(self.comm, self._who, counts, flat.dtype, flat.device))

    def average_(self) -> None:
        factors = coefficients(self._merge, self._mix, self._weights_of_step())
        for flat, each in zip(self.flat.tensors, self._links, strict=True):
            each.flat.copy_(flat)
            total = torch.zeros_like(each.mine)
            for part, factor in zip(each.push(), factors, strict=True):
                total.add_(part, alpha=factor)
            each.mine.copy_(total)
            each.pull()
            flat.copy_(each.flat)

    def _weights_of_step(self) -> Sequence[float]:
        if self._weights is not None or self._merge == "mean":
            return self._weights or [1.0] * self._who.workers
        samples = self.comm.all_gather(torch.tensor([self._samples]))
        return [float(n) for n in samples[: self._who.workers]]


def create(
    context: Context,
    *,
    mode: Annotated[
        Literal["gradients", "parameters"],
        "gradients: servers step on what workers push; parameters: workers step, and servers merge",
    ] = "gradients",
    servers: Annotated[PositiveInt, "ranks that serve, a part of the parameters each"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "colocated: the first ranks serve beside working; dedicated: the last ones only serve",
    ] = "colocated",
    aggregate: Annotated[
        Literal["mean", "krum", "median", "trimmed_mean"],
        "gradients: all but mean withstand some workers that send anything",
    ] = "mean",
    byzantine: Annotated[NonNegativeInt, "how many such workers krum, median and trimmed_mean withstand"] = 1,
    merge: Annotated[
        Literal["mean", "weights", "mixed"],
        "parameters: every worker counts the same, by its weight, or something between",
    ] = "mean",
    weights: Annotated[
        list[NonNegativeFloat] | None, "parameters: one for each worker; none: its samples in the step"
    ] = None,
    mix: Annotated[
        float, Field(ge=0, le=1), "mixed: how much of the weighted mean; the rest is of the plain one"
    ] = 0.5,
    backup_workers: Annotated[NonNegativeInt, "gradients: the latest ones of a step, which nobody waits for"] = 0,
) -> SyncStrategy:
    _refuse_what_has_no_meaning(context, mode, aggregate, merge, weights, backup_workers)
    who = roles(context.comm.size, servers, placement)
    if backup_workers:
        return BackupWorkers(context, backup=backup_workers, servers=servers, placement=placement)
    if mode == "parameters":
        return ParameterServers(context, who, merge, mix, _checked(weights, who.workers))
    check(aggregate, who.workers, byzantine)
    return GradientServers(context, who, aggregate, byzantine)


def _refuse_what_has_no_meaning(
    context: Context, mode: str, aggregate: str, merge: MergeRule, weights: list[float] | None, backup_workers: int
) -> None:
    if context.compresses:
        raise UserError(
            "sync.compression: compressors sum over all ranks, and parameter_server only on its servers; leave it out, or "
            "set sync.strategy: allreduce"
        )
    if mode == "gradients" and merge != "mean":
        raise UserError(f"sync.merge: {merge} is for parameters; set sync.mode: parameters, or leave it out")
    if mode == "parameters" and aggregate != "mean":
        raise UserError(f"sync.aggregate: {aggregate} is for gradients; set sync.mode: gradients, or leave it out")
    if weights is not None and merge == "mean":
        raise UserError("sync.weights: merge: mean counts all workers the same; set sync.merge: weights or mixed")
    if backup_workers and (mode, aggregate) != ("gradients", "mean"):
        raise UserError(
            "sync.backup_workers: only the mean of gradients can do without late ones; leave mode and aggregate out"
        )


def _checked(weights: list[float] | None, workers: int) -> list[float] | None:
    if weights is not None and (len(weights) != workers or not sum(weights)):
        raise UserError(
            f"sync.weights: expected {workers} numbers, one for each worker and not all zero, got {weights}"
        )
    return weights

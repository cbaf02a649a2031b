"""Some ranks serve a part of the parameters each: every step workers push to them and pull."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from hvd_train.comm.ops import shares
from hvd_train.config.options import Annotated, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.gradients.partitioned import PartitionedOptimizer
from hvd_train.state import model_state
from hvd_train.state.model_state import sparse_weights
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.replicas.flat import FlatParameters
from hvd_train.sync.replicas.replica_set import ReplicaSet
from hvd_train.sync.scale import GradientScale, OwnMean
from hvd_train.sync.servers.aggregate import check
from hvd_train.sync.servers.backup import backup_workers as with_backup_workers
from hvd_train.sync.servers.gradient_link import RobustAggregate, ServerPartition, summed
from hvd_train.sync.servers.link import Link, link
from hvd_train.sync.servers.roles import Roles, ServedGroup, by_whole_tensors, copy_buffers_of_workers_, roles
from hvd_train.sync.view import View

ASYNCHRONOUS = "backup_workers"
"""With this option ranks do not wait for all others: when a rank dies, the launcher lets the others
continue."""

MergeRule = Literal["mean", "weights", "mixed"]


class GradientServers(SyncStrategy):
    """Workers push gradients, each server steps on the aggregate of its part, workers pull.

    Li et al., OSDI'14. With the mean this equals `allreduce`, for any number of servers.
    """

    def __init__(self, context: Context, who: Roles, aggregate: str, byzantine: int) -> None:
        comm, robust = context.comm, aggregate != "mean"
        super().__init__(
            context,
            members=ServedGroup(comm, who),
            gradient_scale=OwnMean(comm) if robust else GradientScale(comm),
            view=View(on_agreed=self._copy_buffers_),
        )
        self._who = who
        self._aggregate = RobustAggregate(aggregate, byzantine, comm, who.workers) if robust else summed

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if sparse_weights(model):
            raise UserError(
                "sync.strategy: parameter_server with mode: gradients takes no sparse gradients (nn.Embedding(sparse=True)); "
                "set sparse=False, mode: parameters, or strategy: allreduce"
            )
        if self.comm.size > 1:
            model_state.check_forward(model)
        whole = by_whole_tensors(build, "sync.mode: parameters or sync.strategy: allreduce")
        self._model, self._servers = model, ServerPartition(self.comm, self._who, whole=whole)
        return PartitionedOptimizer(model, build, self.comm, self.comm, self._servers)

    def on_gradients(self, step: int) -> None:
        self._servers.push(self._aggregate)

    def on_parameters(self, step: int) -> None:
        self._servers.pull()

    def _copy_buffers_(self) -> None:
        copy_buffers_of_workers_(self._model, self.comm, self._who)


def coefficients(merge: MergeRule, mix: float, weights: Sequence[float]) -> list[float]:
    """Return the coefficients of the workers' parameters in the merged ones; their sum is one.

    `weights` are the weights of the workers. `mixed` is `mix` times the weighted mean plus 1 -
    `mix` times the plain mean.
    """
    part = {"mean": 0.0, "weights": 1.0, "mixed": mix}[merge]
    total = math.fsum(weights)
    return [part * w / total + (1 - part) / len(weights) for w in weights]


class ParameterServers(SyncStrategy):
    """Workers step on their own and push parameters, each server merges its part, workers pull."""

    def __init__(
        self, context: Context, who: Roles, merge: MergeRule, mix: float, weights: Sequence[float] | None
    ) -> None:
        comm = context.comm
        self._scale = OwnMean(comm)
        self._replicas = ReplicaSet(comm, extend=self._extend, on_agreed=self._copy_buffers_)
        members = ServedGroup(comm, who, self._replicas.averaged_at, self._replicas.distance.reduce)
        super().__init__(context, members=members, gradient_scale=self._scale, view=self._replicas)
        self._who, self._merge, self._mix, self._weights = who, merge, mix, weights
        self._links: list[Link] = []

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        return self._replicas.use(super().optimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._replicas.start(model)

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    def on_parameters(self, step: int) -> None:
        self._replicas.average(self._merge_, step)

    def _merge_(self) -> None:
        factors = coefficients(self._merge, self._mix, self._weights_of_step())
        for flat, each in zip(self._replicas.flat.tensors, self._links, strict=True):
            each.flat.copy_(flat)
            total = torch.zeros_like(each.mine)
            for pushed, factor in zip(each.push(), factors, strict=True):
                total.add_(pushed, alpha=factor)
            each.mine.copy_(total)
            each.pull()
            flat.copy_(each.flat)

    def _weights_of_step(self) -> Sequence[float]:
        """Return the configured weights of workers, or their units in the step; collective."""
        if self._weights is not None or self._merge == "mean":
            return self._weights or [1.0] * self._who.workers
        samples = self.comm.all_gather(torch.tensor([self._scale.units], dtype=torch.float64))
        return [float(n) for n in samples[: self._who.workers]]

    def _extend(self, flat: FlatParameters) -> None:
        for tensor in flat.tensors[len(self._links) :]:
            counts = shares(tensor.numel(), self._who.servers)
            self._links.append(link(self.comm, self._who, counts, tensor.dtype, tensor.device))

    def _copy_buffers_(self) -> None:
        copy_buffers_of_workers_(self._replicas.optimizer.model, self.comm, self._who)


def create(
    context: Context,
    *,
    mode: Annotated[
        Literal["gradients", "parameters"],
        "gradients: servers step on the gradients that workers push; parameters: workers step, and servers merge",
    ] = "gradients",
    servers: Annotated[PositiveInt, "ranks that serve, a part of the parameters each"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "colocated: the first ranks are workers too; dedicated: the last ranks only serve",
    ] = "colocated",
    aggregate: Annotated[
        Literal["mean", "krum", "median", "trimmed_mean"],
        "gradients: all but mean withstand some workers that send anything (Byzantine workers)",
    ] = "mean",
    byzantine: Annotated[
        NonNegativeInt, "number of Byzantine workers that krum, median and trimmed_mean withstand"
    ] = 1,
    merge: Annotated[
        Literal["mean", "weights", "mixed"],
        "parameters: every worker counts the same, by its weight, or a mixture of both",
    ] = "mean",
    weights: Annotated[
        list[NonNegativeFloat] | None, "parameters: one for each worker; default: the worker's samples in the step"
    ] = None,
    mix: Annotated[float, Field(ge=0, le=1), "mixed: share of the weighted mean; the rest is the plain mean"] = 0.5,
    backup_workers: Annotated[NonNegativeInt, "gradients: the last ones of a step, which no rank waits for"] = 0,
) -> SyncStrategy:
    _check(context, mode, aggregate, merge, weights, backup_workers)
    who = roles(context.comm.size, servers, placement)
    if backup_workers:
        return with_backup_workers(context, backup=backup_workers, servers=servers, placement=placement)
    if mode == "parameters":
        return ParameterServers(context, who, merge, mix, _checked(weights, who.workers))
    check(aggregate, who.workers, byzantine)
    return GradientServers(context, who, aggregate, byzantine)


def _check(
    context: Context, mode: str, aggregate: str, merge: MergeRule, weights: list[float] | None, backup_workers: int
) -> None:
    """Raise UserError for options that exclude one another."""
    if context.compresses:
        raise UserError(
            "sync.compression: compressors sum over all ranks, and parameter_server sums on its servers only; leave it out, or "
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

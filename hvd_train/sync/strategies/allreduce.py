"""Every step uses the gradient of the samples of all ranks (synchronous data parallelism)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvd_train.comm.agree import agree
from hvd_train.comm.communicator import Communicator
from hvd_train.config.options import Annotated
from hvd_train.errors import UserError
from hvd_train.gradients.adasum import AdasumGradients
from hvd_train.gradients.alone import OwnGradients
from hvd_train.gradients.buckets import FIXED, GradientBuckets, measured
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.gradients.partitioned import PartitionedOptimizer
from hvd_train.gradients.pieces import ELEMENTWISE, WHOLE
from hvd_train.gradients.reduction import Reduction
from hvd_train.gradients.sparse import SparseSum
from hvd_train.gradients.zero import ShardedGradients
from hvd_train.state import model_state
from hvd_train.state.model_state import sparse_weights
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.scale import EqualRanks, GradientScale, OwnMean
from hvd_train.sync.view import RESIDUALS, View

Shard = Literal["auto"] | bool
MakeReduction = Callable[[Sequence[nn.Parameter], Communicator], Reduction]


def accept(model: nn.Module) -> None:
    """Accept every model."""


class ReductionView(View):
    """Saves the state of a reduction's compressors, and records the strategy's `choices`."""

    def __init__(self, choices: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._choices = choices
        self._restored: dict[str, Tensor] = {}

    def start(self, reduction: Reduction) -> None:
        """Restore the state of `reduction`."""
        self._reduction = reduction
        if not reduction.load_state(self._restored):
            self.unrestored.append(RESIDUALS)

    def summary(self) -> dict[str, Any]:
        return self._choices()

    def rank_state(self) -> dict[str, Tensor]:
        return self._reduction.state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._restored = state


class AllReduce(SyncStrategy):
    """w <- w - lr * sum(g_i), in fused buckets or with a sharded optimizer.

    For fused buckets see Sergeev and Del Balso, arXiv 1802.05799. Sparse gradients (of
    `nn.Embedding(sparse=True)`) stay sparse: their rows are gathered from all ranks.
    """

    def __init__(
        self,
        context: Context,
        shard: Shard,
        gradient_scale: GradientScale | None = None,
        reduction: MakeReduction | None = None,
        check: Callable[[nn.Module], None] = accept,
    ) -> None:
        """`reduction` replaces the fused buckets.

        `check` raises UserError for a model that it cannot train.
        """
        self._saved = ReductionView(self._choices)
        super().__init__(context, gradient_scale=gradient_scale, view=self._saved, takes_parts=True)
        self._context, self._shard, self._make, self._check = context, shard, reduction or self._buckets, check
        self.fusion_bytes = context.fusion_bytes
        self._sharded: ShardedGradients | None = None

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._check(model)
        if self.comm.size > 1:
            model_state.check_forward(model)
        obstacle = agree(self.comm, self._obstacle(model, build.name))
        if self._shard is True and obstacle:
            raise UserError(f"sync.shard_optimizer: {obstacle}; set it to auto or false")
        if self._shard is False or obstacle:
            return super().optimizer(model, build)
        self._sharded = ShardedGradients(
            self.comm,
            whole=build.name in WHOLE or self._context.compressor.whole,
            compressor=self._context.compressor,
            fusion_bytes=self._bucket_bytes(next(model.parameters()).device) if self.comm.cross_size > 1 else 0,
            seed=self._context.seed,
        )
        return PartitionedOptimizer(model, build, self.comm, self._sharded.node, self._sharded)

    def start(self, model: nn.Module) -> None:
        super().start(model)
        sparse = sparse_weights(model)
        self._sparse = SparseSum([p for p in model.parameters() if p in sparse], self.comm)
        dense = [p for p in model.parameters() if p not in sparse]
        self._device = next(model.parameters()).device
        self._reduction = self._sharded or self._make(dense, self.comm)
        self._saved.start(self._reduction)

    def on_backward(self, step: int) -> None:
        self._reduction.arm()

    def on_gradients(self, step: int) -> None:
        self._reduction.reduce()
        self.waited = self._reduction.waited
        self._sparse.reduce()

    def on_parameters(self, step: int) -> None:
        if self._sharded:
            self._sharded.publish()

    def _choices(self) -> dict[str, Any]:
        mib = None if self.fusion_bytes is None else self.fusion_bytes / 2**20
        return {"fusion_mb": mib, "shard_optimizer": self._sharded is not None}

    def _buckets(self, parameters: Sequence[nn.Parameter], comm: Communicator) -> Reduction:
        context, fusion_bytes = self._context, self._bucket_bytes(self._device)
        if comm.size == 1 and not context.compresses:
            return OwnGradients()  # copies into buckets take a fifteenth of a small step
        return GradientBuckets(parameters, comm, context.compressor, fusion_bytes, context.seed)

    def _bucket_bytes(self, device: torch.device) -> int:
        if self.fusion_bytes is None:
            self.fusion_bytes = FIXED if self._context.compressor.per_bucket else measured(self.comm, device)
        return self.fusion_bytes

    def _obstacle(self, model: nn.Module, optimizer: str) -> str | None:
        """Return why this rank cannot shard the optimizer; ranks may differ."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.comm.shared_memory is None or self.comm.size != self.comm.local_size * self.comm.cross_size:
            return "ranks share no memory: that takes --engine mpi and the same number of ranks, at least two, on each host"
        if self._context.split:
            return (
                "each rank has a part of the model, and the gradients of different parts are clipped and tied together"
            )
        if optimizer not in ELEMENTWISE | WHOLE:
            return f"{optimizer} needs all parameters at once"
        if any(p.device.type != "cpu" for p in trained):
            return "parameters on a GPU are not in memory that ranks share"
        if sparse_weights(model):
            return "sparse gradients are not sharded"
        # On one node nothing is sent that could be compressed, and the user asks for the numerics
        # of compression.
        if self._context.compresses and self.comm.cross_size == 1:
            return "compression needs gradients that are sent"
        return None


def adasum(context: Context) -> AllReduce:
    """Return the strategy w <- w - lr * adasum(g_i), of ranks' own mean gradients.

    Maleki et al., arXiv 2006.02924.
    """
    size = context.comm.size
    if size & (size - 1):
        raise UserError(
            f"sync.op: adasum combines pairs of ranks and needs 2, 4, 8, ... of them, and there are {size}; "
            "start so many (--np), or set sync.op: mean"
        )
    if context.split:
        raise UserError("sync.op: adasum needs whole tensors, and parallel divides the model; set sync.op: mean")
    if context.compresses:
        raise UserError("sync.compression: adasum needs gradients as they are; leave it out, or set sync.op: mean")
    return AllReduce(context, False, OwnMean(context.comm), AdasumGradients, _check_dense)


def _check_dense(model: nn.Module) -> None:
    if sparse_weights(model):
        raise UserError("sync.op: adasum takes no sparse gradients; set sparse=False in nn.Embedding, or sync.op: mean")


def create(
    context: Context,
    *,
    op: Annotated[
        Literal["mean", "adasum"],
        "adasum: a sum where gradients point in different directions, a mean where they agree",
    ] = "mean",
    weights: Annotated[
        Literal["samples", "equal"], "mean: every sample counts the same, or every rank, however few samples it has"
    ] = "samples",
    shard_optimizer: Annotated[
        Literal["auto"] | bool,
        "parameters once per node, each rank updating a part of them; auto: where ranks share memory",
    ] = "auto",
) -> AllReduce:
    if op == "mean":
        scale = EqualRanks(context.comm) if weights == "equal" else GradientScale(context.comm)
        return AllReduce(context, shard_optimizer, scale)
    if shard_optimizer is True:
        raise UserError("sync.shard_optimizer: adasum needs whole gradients on every rank; set it to auto or false")
    return adasum(context)

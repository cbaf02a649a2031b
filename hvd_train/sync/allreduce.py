"""Every step: one gradient, that of the samples of all ranks (synchronous data parallelism)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.comm._agree import agree
from hvd_train.errors import UserError
from hvd_train.fusion import FIXED, GradientBuckets, load_state_of, measured, state_of
from hvd_train.model_state import sparse_weights
from hvd_train.optimizer import Build, ModelOptimizer, kind
from hvd_train.options import Annotated
from hvd_train.sharding import ELEMENTWISE, WHOLE, ShardedOptimizer
from hvd_train.sync._adasum import AdasumGradients
from hvd_train.sync.base import RESIDUALS, Context, SyncStrategy

Shard = Literal["auto"] | bool


class AllReduce(SyncStrategy):
    """w <- w - lr * sum(g_i), in fused buckets (Sergeev and Del Balso, arXiv 1802.05799), or with a sharded optimizer.

    Every sample counts the same, or with `equal_ranks` every rank: then ranks mean their own samples' losses first.
    Sparse gradients (of `nn.Embedding(sparse=True)`) stay sparse: their rows are gathered from all ranks.
    """

    takes_parts = True

    def __init__(self, context: Context, shard: Shard, *, equal_ranks: bool = False) -> None:
        super().__init__(context)
        self._context, self._shard, self._equal_ranks = context, shard, equal_ranks
        self.fusion_bytes = context.fusion_bytes
        self._sharded: ShardedOptimizer | None = None
        self._restored: dict[str, Tensor] = {}

    def divisor(self, own: int, total: int) -> int:
        if not self._equal_ranks:
            return total
        ranks = torch.tensor(int(own > 0))
        self.comm.all_reduce_(ranks, "sum")
        return max(own, 1) * int(ranks)

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if self.comm.size > 1:
            model_state.check_forward(model)
        name = kind(model, build)
        obstacle = agree(self.comm, self._obstacle(model, name))
        if self._shard is True and obstacle:
            raise UserError(f"sync.shard_optimizer: {obstacle}; set it to auto or false")
        if self._shard is False or obstacle:
            return super().optimizer(model, build)
        self._sharded = ShardedOptimizer(
            model,
            build,
            self.comm,
            whole=name in WHOLE or self._context.compressor.whole,
            compressor=self._context.compressor,
            fusion_bytes=self._bucket_bytes(next(model.parameters()).device) if self.comm.cross_size > 1 else 0,
            seed=self._context.seed,
        )
        return self._sharded

    def start(self, model: nn.Module) -> None:
        super().start(model)
        sparse = sparse_weights(model)
        self._sparse = [p for p in model.parameters() if p in sparse]
        self._dense = self._sharded or self._reducer(model, [p for p in model.parameters() if p not in sparse])
        if not load_state_of(self._dense.buckets, self._restored):
            self.begun_anew.append(RESIDUALS)

    def on_backward(self, step: int) -> None:
        self._dense.arm()

    def on_gradients(self, step: int) -> None:
        self._dense.reduce()
        if isinstance(self._dense, GradientBuckets):
            self.waited = self._dense.waited
        for p in self._sparse:
            p.grad = self._gathered(p)

    def on_parameters(self, step: int) -> None:
        if self._sharded:
            self._sharded.publish()

    def summary(self) -> dict[str, Any]:
        mib = None if self.fusion_bytes is None else self.fusion_bytes / 2**20
        return {"fusion_mb": mib, "shard_optimizer": self._sharded is not None}

    def rank_state(self) -> dict[str, Tensor]:
        return state_of(self._dense.buckets)

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._restored = state

    def _reducer(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> GradientBuckets | AdasumGradients:
        fusion_bytes = self._bucket_bytes(next(model.parameters()).device)
        return GradientBuckets(parameters, self.comm, self._context.compressor, fusion_bytes, self._context.seed)

    def _obstacle(self, model: nn.Module, optimizer: str) -> str | None:
        """Why this rank cannot shard the optimizer, if so; others may see it differently."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.comm.shared_memory is None or self.comm.size != self.comm.local_size * self.comm.cross_size:
            return "ranks share no memory: that takes --engine mpi and the same number of ranks, at least two, on each host"
        if self._context.split:
            return "each rank has a part of the model to itself, and those of different parts are clipped and tied together"
        if optimizer not in ELEMENTWISE | WHOLE:
            return f"{optimizer} looks at all parameters together"
        if any(p.device.type != "cpu" for p in trained):
            return "parameters on a GPU are in no memory that ranks share"
        if sparse_weights(model):
            return "sparse gradients are not sharded"
        # What is not sent cannot be compressed: who asks for it wants the numerics of a cluster on a laptop too.
        alone = self.comm.cross_size == 1
        return "compression needs gradients that are sent" if self._context.compresses and alone else None

    def _bucket_bytes(self, device: torch.device) -> int:
        if self.fusion_bytes is None:
            self.fusion_bytes = FIXED if self._context.compressor.per_bucket else measured(self.comm, device)
        return self.fusion_bytes

    def _gathered(self, p: nn.Parameter) -> Tensor | None:
        """The sum of a parameter's sparse gradients; a rank without one adds no rows."""
        if p.grad is None:
            rows, values = torch.empty(0, dtype=torch.int64, device=p.device), p.new_empty(0, *p.shape[1:])
        else:
            gradient = p.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        every_row = torch.cat(self.comm.all_gather(rows))
        every_value = torch.cat(self.comm.all_gather(values))
        if not len(every_row):
            return None
        return torch.sparse_coo_tensor(every_row[None], every_value, p.shape, check_invariants=False).coalesce()


class Adasum(AllReduce):
    """w <- w - lr * adasum(g_i), of ranks' own mean gradients (Maleki et al., arXiv 2006.02924)."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, shard=False)
        if self.comm.size & (self.comm.size - 1):
            raise UserError(
                f"sync.op: adasum combines pairs of ranks and needs 2, 4, 8, ... of them, and there are {self.comm.size}; "
                "start so many (--np), or set sync.op: mean"
            )
        if context.split:
            raise UserError("sync.op: adasum needs whole tensors, and parallel divides the model; set sync.op: mean")
        if context.compresses:
            raise UserError("sync.compression: adasum needs gradients as they are; leave it out, or set sync.op: mean")

    def divisor(self, own: int, total: int) -> int:
        return max(own, 1)

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        if sparse_weights(model):
            raise UserError(
                "sync.op: adasum takes no sparse gradients; set sparse=False in nn.Embedding, or sync.op: mean"
            )
        return super().optimizer(model, build)

    def _reducer(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> AdasumGradients:
        return AdasumGradients(parameters, self.comm)


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
        return AllReduce(context, shard_optimizer, equal_ranks=weights == "equal")
    if shard_optimizer is True:
        raise UserError("sync.shard_optimizer: adasum needs whole gradients on every rank; set it to auto or false")
    return Adasum(context)

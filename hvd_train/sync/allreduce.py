"""Every step: the gradient is the mean over ranks (synchronous data parallelism)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvd_train.fusion import GradientBuckets
from hvd_train.sync.base import Context, SyncStrategy


class AllReduce(SyncStrategy):
    """w <- w - lr * mean(g_i), in fused buckets (Sergeev and Del Balso, arXiv 1802.05799).

    Sparse gradients (of `nn.Embedding(sparse=True)`) stay sparse: their rows are gathered from all ranks.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context

    def start(self, model: nn.Module) -> None:
        super().start(model)
        sparse = {
            m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse
        }
        trained = [p for p in model.parameters() if p.requires_grad]
        self._sparse = [p for p in trained if p in sparse]
        dense = [p for p in trained if p not in sparse]
        self._dense = GradientBuckets(dense, self.comm, self._context.compressor, self._context.fusion_bytes)

    def on_backward(self, step: int) -> None:
        self._dense.arm()

    def on_gradients(self, step: int) -> None:
        self._dense.reduce()
        for p in self._sparse:
            p.grad = self._gathered(p)

    def _gathered(self, p: nn.Parameter) -> Tensor | None:
        """The mean of a parameter's sparse gradients; a rank without one adds no rows."""
        if p.grad is None:
            rows, values = torch.empty(0, dtype=torch.int64, device=p.device), p.new_empty(0, *p.shape[1:])
        else:
            gradient = p.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        every_row = torch.cat(self.comm.all_gather(rows))
        every_value = torch.cat(self.comm.all_gather(values))
        if not len(every_row):
            return None
        return torch.sparse_coo_tensor(every_row[None], every_value / self.comm.size, p.shape, check_invariants=False).coalesce()


def create(context: Context) -> AllReduce:
    return AllReduce(context)

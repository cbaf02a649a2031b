"""The largest elements only, and what is left is sent later (Deep Gradient Compression, Lin et al., arXiv 1712.01887).

Payloads are gathered, 8 ratio (N - 1) bytes an element where an all-reduce of float32 takes 8 (N - 1) / N: it pays below a
ratio of 1 / N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.compress._gather import GatherReducer
from hvd_train.compress._residual import Residual
from hvd_train.compress.base import Layout
from hvd_train.options import Annotated, Field, NonNegativeInt


def warmed_up(ratio: float, step: int, warmup_steps: int) -> float:
    """The share to send in `step`, falling exponentially to `ratio`: the paper's 25%, 6.3%, 1.6%, 0.4%, 0.1% with 4 steps."""
    return float(ratio ** min(1.0, (step + 1) / (warmup_steps + 1)))


class Sparsifier:
    """The codec: int32 positions of the elements of largest magnitude of the bucket, then their values in float32.

    Momentum stays with the optimizer, which sees the sparse sums: the paper's local momentum and its masking are left out.
    """

    def __init__(self, ratio: float, warmup_steps: int) -> None:
        self._ratio, self._warmup_steps = ratio, warmup_steps
        self._step = torch.tensor(0)

    def encode(self, x: Tensor) -> Tensor:
        share = warmed_up(self._ratio, int(self._step), self._warmup_steps)
        self._step += 1
        positions = x.abs().topk(math.ceil(share * x.numel()), sorted=False).indices
        return torch.cat([positions.int().view(torch.uint8), x[positions].view(torch.uint8)])

    def add_(self, total: Tensor, payload: Tensor) -> None:
        positions, values = payload.clone().chunk(2)
        total[positions.view(torch.int32)] += values.view(torch.float32)

    def state(self) -> dict[str, Tensor]:
        return {"step": self._step}


class TopK:
    whole = False
    per_bucket = True

    def __init__(self, ratio: float, warmup_steps: int) -> None:
        self._ratio, self._warmup_steps = ratio, warmup_steps

    def reducer(self, layout: Layout, comm: Communicator) -> GatherReducer:
        return GatherReducer(Sparsifier(self._ratio, self._warmup_steps), layout, comm, Residual(layout))


def create(
    *,
    ratio: Annotated[float, Field(gt=0, le=1), "share of a bucket's elements sent in a step, each as 8 bytes"] = 0.01,
    warmup_steps: Annotated[NonNegativeInt, "steps in which the share falls from nearly all to `ratio`"] = 0,
) -> TopK:
    return TopK(ratio, warmup_steps)

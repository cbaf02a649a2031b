"""Sends the largest elements now, the others later.

Deep Gradient Compression (Lin et al., arXiv 1712.01887). Payloads are gathered, which takes
8 ratio (N - 1) bytes per element; an all-reduce of float32 takes 8 (N - 1) / N. Compression pays
below a ratio of 1 / N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.config.options import Annotated, Field, NonNegativeInt
from hvd_train.gradients.compression.base import BucketLayout
from hvd_train.gradients.compression.gather import GatherReducer
from hvd_train.gradients.compression.residual import Residual


def warmed_up(ratio: float, step: int, warmup_steps: int) -> float:
    """Return the share to send in `step`.

    It falls exponentially to `ratio`: 25%, 6.3%, 1.6%, 0.4%, 0.1% in 4 steps (paper).
    """
    return float(ratio ** min(1.0, (step + 1) / (warmup_steps + 1)))


class Sparsifier:
    """A `Codec`: int32 positions of the largest elements, then their values in float32.

    The paper's local momentum and its masking are left out: the optimizer applies momentum to the
    sparse sums.
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

    def reducer(self, layout: BucketLayout, comm: Communicator) -> GatherReducer:
        return GatherReducer(Sparsifier(self._ratio, self._warmup_steps), layout, comm, Residual(layout))


def create(
    *,
    ratio: Annotated[float, Field(gt=0, le=1), "share of a bucket's elements sent in a step, each as 8 bytes"] = 0.01,
    warmup_steps: Annotated[NonNegativeInt, "steps in which the share falls from nearly all to `ratio`"] = 0,
) -> TopK:
    return TopK(ratio, warmup_steps)

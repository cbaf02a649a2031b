"""Mixes each sample of a batch with another one of the batch, inputs and targets alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvd_train.config.options import Annotated, Field, PositiveFloat
from hvd_train.data.augmentation import beta, map_inputs, map_targets, soft, uniform
from hvd_train.data.nesting import count
from hvd_train.data.transform import Transform, TransformContext


@dataclass(frozen=True)
class Mixup(Transform):
    """Gives a part of Beta(alpha, alpha) to a sample and the rest to another; one part for a batch.

    Zhang et al., arXiv 1710.09412. Classes become probabilities (n, `outputs`), which the loss
    `cross_entropy` takes. A rank mixes the samples of its own batch.
    """

    alpha: float
    probability: float
    outputs: int
    label: str | None

    def batch(self, batch: Any, generator: torch.Generator) -> Any:
        batch = map_targets(lambda y: soft(y, self.outputs), batch, self.label)
        if uniform(0, 1, generator) >= self.probability:
            return batch
        part = beta(self.alpha, generator)
        other = torch.randperm(count(batch), generator=generator)
        mixed = map_inputs(lambda x: x.lerp(x[other], 1 - part), batch, self.label)
        return map_targets(lambda y: y.lerp(y[other], 1 - part), mixed, self.label)


def create(
    context: TransformContext,
    *,
    alpha: Annotated[PositiveFloat, "parameter of the Beta distribution; small values change little"] = 0.2,
    probability: Annotated[float, Field(ge=0, le=1), "probability that a batch is mixed"] = 1.0,
) -> Mixup:
    return Mixup(alpha, probability, context.spec.outputs, context.label)

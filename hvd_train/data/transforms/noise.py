"""Adds Gaussian noise to the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvd_train.config.options import Annotated, PositiveFloat
from hvd_train.data.augmentation import map_inputs
from hvd_train.data.transform import Transform, TransformContext


@dataclass(frozen=True)
class Noise(Transform):
    """Adds independent normal noise of standard deviation `std` to each floating-point input."""

    std: float
    label: str | None

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        return map_inputs(
            lambda x: x + self.std * torch.randn(x.shape, generator=generator, dtype=x.dtype), sample, self.label
        )


def create(
    context: TransformContext, *, std: Annotated[PositiveFloat, "standard deviation, in the units of the inputs"] = 0.1
) -> Noise:
    return Noise(std, context.label)

"""Random inputs labelled by a random linear teacher: learnable, reproducible, of any size."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hvd_train.data._source import Named, as_samples, hold_out
from hvd_train.data.base import Dataset
from hvd_train.options import Annotated, Field, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from hvd_train.spec import DataSpec


def create(
    *,
    samples: Annotated[PositiveInt, "number of samples, training and test together"] = 1024,
    features: Annotated[list[PositiveInt], Field(min_length=1), "shape of an input, as [3, 32, 32]"] = [16],
    classes: Annotated[NonNegativeInt, "number of classes; 0 makes a regression to one value"] = 10,
    noise: Annotated[NonNegativeFloat, "deviation added to the teacher's outputs, themselves near 1"] = 0.1,
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses inputs, teacher, noise and the samples held out"] = 0,
) -> Dataset:
    """Standard normal inputs; the target is the teacher's output, or the index of its largest output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *features, generator=generator)
    scores = _teach(x.flatten(1), max(classes, 1), noise, generator)
    spec = DataSpec(tuple(features), max(classes, 1), "classification" if classes else "regression")
    targets = scores.argmax(1) if classes else scores
    whole = as_samples(Named(x.numpy(), "synthetic: inputs"), Named(targets.numpy(), "synthetic: targets"))
    return replace(hold_out(whole, test_fraction, seed, "synthetic"), spec=spec)


def _teach(x: Tensor, outputs: int, noise: float, generator: torch.Generator) -> Tensor:
    teacher = torch.randn(x.shape[1], outputs, generator=generator) / math.sqrt(x.shape[1])
    return x @ teacher + noise * torch.randn(len(x), outputs, generator=generator)

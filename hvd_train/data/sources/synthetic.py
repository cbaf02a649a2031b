"""Random inputs of any size, with the outputs of a random linear teacher as targets."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Field, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from hvd_train.data.arrays import NamedArray, as_samples, held_out
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.spec import DataSpec


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    samples: Annotated[PositiveInt, "number of training and test samples together"] = 1024,
    features: Annotated[list[PositiveInt], Field(min_length=1), "shape of an input, such as [3, 32, 32]"] = [16],
    classes: Annotated[NonNegativeInt, "number of classes; 0: a regression to one value"] = 10,
    noise: Annotated[
        NonNegativeFloat,
        "standard deviation of the noise that is added to the outputs of the teacher, which are near 1",
    ] = 0.1,
    test_fraction: Annotated[Fraction, "fraction of the samples that is held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "seed of the inputs, the teacher, the noise and the held-out samples"] = 0,
) -> Dataset:
    """Return standard normal inputs.

    The target is the output of the teacher, or the index of the largest output.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *features, generator=generator)
    scores = _teach(x.flatten(1), max(classes, 1), noise, generator)
    spec = DataSpec(tuple(features), max(classes, 1), "classification" if classes else "regression")
    targets = scores.argmax(1) if classes else scores
    whole = as_samples(NamedArray(x.numpy(), "synthetic: inputs"), NamedArray(targets.numpy(), "synthetic: targets"))
    return replace(held_out(whole, HoldOut(test_fraction, seed, fold), "synthetic"), spec=spec)


def _teach(x: Tensor, outputs: int, noise: float, generator: torch.Generator) -> Tensor:
    teacher = torch.randn(x.shape[1], outputs, generator=generator) / math.sqrt(x.shape[1])
    return x @ teacher + noise * torch.randn(len(x), outputs, generator=generator)

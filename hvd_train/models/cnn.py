"""A small convolutional network: each block halves the image, and a linear layer reads the last one."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from hvd_train.models._fit import image
from hvd_train.models._norm import group_norm
from hvd_train.models.base import DataSpec
from hvd_train.options import Annotated, Field, PositiveInt


def create(
    spec: DataSpec,
    *,
    channels: Annotated[list[PositiveInt], Field(min_length=1), "channels of each block"] = [32, 64],
) -> nn.Module:
    """Blocks of convolution, group normalisation, ReLU and pooling, for sides of 2**blocks pixels or more."""
    halvings = len(channels)
    planes, height, width = image(spec, "cnn", 2**halvings)
    blocks = [_block(before, after) for before, after in pairwise([planes, *channels])]
    last = channels[-1] * (height >> halvings) * (width >> halvings)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(last, spec.outputs))


def _block(before: int, after: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, group_norm(after), nn.ReLU(), nn.MaxPool2d(2))

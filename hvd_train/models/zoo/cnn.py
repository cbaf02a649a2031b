"""Small convolutional network: blocks that each halve the image, then a linear layer."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from hvd_train.config.options import Annotated, Field, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import image
from hvd_train.models.norm import group_norm


def create(
    spec: DataSpec,
    *,
    channels: Annotated[list[PositiveInt], Field(min_length=1), "channels of each block"] = [32, 64],
) -> nn.Module:
    """Return blocks of convolution, group normalisation, ReLU and pooling.

    Images need at least 2**blocks pixels a side.
    """
    halvings = len(channels)
    planes, height, width = image(spec, "cnn", 2**halvings)
    blocks = [_block(before, after) for before, after in pairwise([planes, *channels])]
    last = channels[-1] * (height >> halvings) * (width >> halvings)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(last, spec.outputs))


def _block(before: int, after: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, group_norm(after), nn.ReLU(), nn.MaxPool2d(2))

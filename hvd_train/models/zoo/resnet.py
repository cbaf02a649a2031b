"""Residual network for small images, in the CIFAR form of the paper."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import image
from hvd_train.models.norm import group_norm

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters.

    The shortcut takes every `stride`-th pixel, and zeros for new channels.
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.stride, self.added = stride, after - before
        self.first = nn.Sequential(_convolution(before, after, stride), norm(after), nn.ReLU())
        self.second = nn.Sequential(_convolution(after, after, 1), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(self.second(self.first(x)) + shortcut)


def create(
    spec: DataSpec,
    *,
    depth: Annotated[PositiveInt, "layers with weights: 6n + 2, such as 20, 32, 44, 56, 110"] = 20,
    width: Annotated[PositiveInt, "channels of the first stage; each of the other two stages doubles them"] = 16,
    norm: Annotated[
        Literal["batch", "group"],
        "batch: statistics of the batch of the rank; group: statistics of one sample, independent of the batch and of np",
    ] = "batch",
) -> nn.Module:
    """He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2, shortcuts of
    option A.
    """
    blocks, odd = divmod(depth - 2, 6)
    if odd or blocks < 1:
        raise UserError(f"model.depth: {depth}, expected 6n + 2: 8, 14, 20, 26, 32, ...")
    planes, _, _ = image(spec, "resnet", 4)
    make: Norm = nn.BatchNorm2d if norm == "batch" else group_norm
    stem = nn.Sequential(_convolution(planes, width, 1), make(width), nn.ReLU())
    stages = [_stage(width * before, width * after, blocks, make) for before, after in ((1, 1), (1, 2), (2, 4))]
    model = nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, spec.outputs))
    return model.apply(_initialise)


def _stage(before: int, after: int, blocks: int, norm: Norm) -> nn.Module:
    first = Block(before, after, after // before, norm)
    return nn.Sequential(first, *(Block(after, after, 1, norm) for _ in range(blocks - 1)))


def _convolution(before: int, after: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""Operations on images (channels, height, width) that several corruptions use."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 224
"""The side of the images of ImageNet-C, for which lengths in pixels are given."""


def scale(image: Tensor) -> float:
    """Return the pixels of `image` for one pixel of an image of ImageNet-C."""
    return min(image.shape[-2:]) / SIDE


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def gaussian(length: int, sigma: float) -> Tensor:
    """Return weights of a Gaussian on -length to length, which add up to 1."""
    at = torch.arange(-length, length + 1.0)
    weights = torch.exp(-at.square() / (2 * max(sigma, 1e-3) ** 2))
    return weights / weights.sum()


def convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Return each channel convolved with `kernel` (odd height, odd width); edges are repeated."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(image[:, None], (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel[None, None].to(image))[:, 0]


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return the image after a Gaussian blur of `sigma` pixels."""
    weights = gaussian(max(1, math.ceil(3 * sigma)), sigma)
    return convolved(convolved(image, weights[:, None]), weights[None])


def displaced(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return the image that has at each place what was `down` and `across` pixels from it.

    Between pixels the value is interpolated, and beyond the edges it is that of the edge.
    """
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across, down = (x + across) * 2 / max(width - 1, 1) - 1, (y + down) * 2 / max(height - 1, 1) - 1
    grid = torch.stack([across.expand(height, width), down.expand(height, width)], -1).to(image)
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def zoomed(image: Tensor, factor: float) -> Tensor:
    """Return the image enlarged by `factor` around its centre."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return displaced(image, y / factor - y, x / factor - x)


def moved(image: Tensor, length: float, sigma: float, angle: float) -> Tensor:
    """Return the image as a camera sees it that moves by `length` pixels in the direction `angle`.

    The weight of a place falls with its distance as a Gaussian of `sigma` pixels.
    """
    at = torch.linspace(0, length, max(2, math.ceil(2 * length) + 1))
    weights = torch.exp(-at.square() / (2 * max(sigma, 1e-3) ** 2))
    places = zip((weights / weights.sum()).tolist(), at.tolist(), strict=True)
    y, x = torch.tensor(math.sin(angle)), torch.tensor(math.cos(angle))
    return torch.stack([weight * displaced(image, t * y, t * x) for weight, t in places]).sum(0)


def plasma(height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """Return a fractal of clouds (height, width) in 0 to 1.

    It is a sum of random grids of 2, 3, 5, 9, ... points a side, each of which has 1 / `decay` of the
    amplitude of the grid before it.
    """
    total = torch.zeros(1, 1, height, width)
    for octave in range(math.ceil(math.log2(max(height, width))) + 1):
        grid = uniform((1, 1, 2**octave + 1, 2**octave + 1), -1, 1, generator)
        smooth = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        total += smooth / decay**octave
    found = total[0, 0] - total.min()
    return found / found.max().clamp(min=1e-6)


def grey(image: Tensor) -> Tensor:
    """Return the luma (1, height, width), of ITU-R BT.601 for three channels."""
    if len(image) != 3:
        return image.mean(0, keepdim=True)
    return (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None].to(image)).sum(0, keepdim=True)
